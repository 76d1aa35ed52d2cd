//! The engine over a store that answers later, in whatever order.

#![allow(clippy::cast_possible_truncation, clippy::unwrap_used, reason = "a test may")]

#[path = "late/store.rs"]
mod late_store;

use blkback::{Discards, Engine, Grants, Media, Next, Persistent, Queue, Reason, Turn};
use blkif::{
    Abi, BackRing, FrontRing, Indirect, IndirectOp, MaxIndirectSegments, Operation, Request,
    RequestId, Sector, Segment, Segments, Status, Transfer,
};
use late_store::{LateDisk, Room};
use sim::{GrantAccess, Iommu, Machine, OwnFrames, Page, Region, Rng, SimMapping, SimPlatform};
use store::{Access, BlockSize, Failure, Naming, PageDisk, PagePool, StoreError};
use xen_abi::{DomId, EvtchnPort, Gfn, GrantRef, PAGE_SIZE};

const FIRST_FRAME: Gfn = Gfn(100);
const NR_FRAMES: u64 = 1200;
const NR_SECTORS: u64 = 4096;

struct Lab {
    machine: Machine,
    platform: SimPlatform,
    guest: DomId,
    front: FrontRing<Region>,
    queue: Queue<SimMapping>,
    engine: Engine,
    pool: PagePool<OwnFrames>,
    disk: LateDisk,
    next_id: u64,
}

impl Lab {
    /// A ring of so many pages.
    fn new(nr_pages: usize) -> Self {
        let machine = Machine::new(1);
        let (us, guest) = (machine.create_domain(), machine.create_domain());
        let nr_all = NR_FRAMES + Engine::NR_FRAMES;
        let mut platform = SimPlatform::new(&machine, us, &[(FIRST_FRAME, nr_all)]);
        let runs = [(Gfn(FIRST_FRAME.0 + Engine::NR_FRAMES), NR_FRAMES)];
        let pool = PagePool::new(platform.frames().clone(), &runs).unwrap();
        let disk = PageDisk::new(NR_SECTORS, BlockSize::B512, NR_SECTORS / 8, &pool).unwrap();
        let max = MaxIndirectSegments::new(256).unwrap();
        let pages: Vec<Page> = (0..nr_pages).map(|_| Page::new()).collect();
        let grant = |page| machine.grants().grant(guest, us, page, GrantAccess::ReadWrite);
        let grefs: Vec<GrantRef> = pages.iter().map(grant).collect();
        let front = FrontRing::init(Region::owned(pages), Abi::X86_64).unwrap();
        let ring = BackRing::attach(platform.map(guest, &grefs).unwrap(), Abi::X86_64, max);
        let queue = Queue::new(ring.unwrap(), EvtchnPort(0), guest, None);
        let engine = Engine::new(FIRST_FRAME, max);
        let disk = LateDisk::new(disk);
        Self { machine, platform, guest, front, queue, engine, pool, disk, next_id: 0 }
    }

    /// Whose pages stay mapped, up to so many, where a device reaches them.
    fn lending(max_pages: usize) -> Self {
        let mut lab = Self::new(1);
        let iommu = Iommu::default();
        (lab.platform.iommu, lab.disk.iommu) = (Some(iommu.clone()), Some(iommu));
        lab.queue.mapped = Some(Persistent::new(max_pages));
        lab
    }

    fn page(&self) -> (Page, GrantRef) {
        let page = Page::new();
        let us = self.platform.domid();
        let gref = self.machine.grants().grant(self.guest, us, &page, GrantAccess::ReadWrite);
        (page, gref)
    }

    fn put(&mut self, op: Operation) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.front.push(&Request { id: RequestId(id), handle: 0, op }).unwrap();
        id
    }

    fn turn(&mut self) -> Turn {
        let _ = self.front.publish();
        let mut media = Media {
            disk: &mut self.disk,
            access: Access::ReadWrite,
            discards: Discards::Offered,
            pool: &mut self.pool,
        };
        self.engine.turn(&mut self.queue, &mut self.platform, &mut media).unwrap()
    }

    /// The ids that were answered OKAY; others with their status.
    fn answered(&mut self) -> (Vec<u64>, Vec<(u64, Status)>) {
        self.front.unconsumed().unwrap();
        let (mut okay, mut others) = (Vec::new(), Vec::new());
        while let Some(response) = self.front.consume() {
            match response.status {
                Status::OKAY => okay.push(response.id.0),
                status => others.push((response.id.0, status)),
            }
        }
        (okay, others)
    }

    /// Everything that waits is ready, until nothing waits: the ids that were answered.
    fn settle(&mut self) -> Vec<u64> {
        let mut answered = Vec::new();
        loop {
            let turn = self.turn();
            let (okay, others) = self.answered();
            assert_eq!(others, []);
            answered.extend(okay);
            let waiting = self.disk.waiting();
            if waiting.is_empty() && turn.next != Next::Work {
                return answered;
            }
            waiting.into_iter().for_each(|place| self.disk.make_ready(place, None));
        }
    }

    fn ready(&mut self, place: usize) -> Turn {
        self.disk.make_ready(place, None);
        self.turn()
    }

    fn log(&mut self) -> String {
        std::mem::take(&mut self.disk.log).trim_end().into()
    }
}

const LATER: Turn = Turn { next: Next::Event, refused: None, lost: None };

fn whole(gref: GrantRef) -> Segment {
    Segment { gref, first_sect: 0, last_sect: 7 }
}

fn transfer(sector: u64, segments: &[Segment]) -> Transfer {
    Transfer { sector: Sector(sector), segments: Segments::new(segments).unwrap() }
}

fn read(sector: u64, gref: GrantRef) -> Operation {
    Operation::Read(transfer(sector, &[whole(gref)]))
}

fn write(sector: u64, gref: GrantRef) -> Operation {
    Operation::Write(transfer(sector, &[whole(gref)]))
}

fn flush() -> Operation {
    Operation::Flush(transfer(0, &[]))
}

#[test]
fn answers_keep_the_order_of_the_ring() {
    let mut lab = Lab::new(1);
    let (_, gref) = lab.page();
    for n in 0..3 {
        lab.put(read(8 * n, gref));
    }
    assert_eq!(lab.turn(), LATER);
    assert_eq!(lab.log(), "read 0 read 8 read 16");
    assert_eq!(lab.queue.nr_in_flight(), 3);
    assert_eq!(lab.ready(2), LATER);
    assert_eq!(lab.answered(), (vec![], vec![]));
    assert_eq!(lab.ready(0), LATER);
    assert_eq!(lab.answered(), (vec![0], vec![]));
    assert_eq!(lab.ready(1), LATER);
    assert_eq!(lab.answered(), (vec![1, 2], vec![]));
    assert_eq!((lab.queue.nr_in_flight(), lab.disk.nr_open()), (0, 0));
}

#[test]
fn what_is_written_is_answered_when_it_is_there_and_read_back() {
    for writes in [Naming::Done, Naming::Later] {
        let mut lab = Lab::new(1);
        lab.disk.writes = writes;
        let (from, from_gref) = lab.page();
        let (to, to_gref) = lab.page();
        from.fill(0x5a);
        lab.put(write(24, from_gref));
        assert_eq!(lab.turn(), LATER);
        if writes == Naming::Later {
            // The data is fetched once the store says where to.
            assert_eq!(lab.log(), "write 24");
            from.fill(0x5b);
            assert_eq!(lab.ready(0), LATER);
            assert_eq!(lab.log(), "commit 24");
        } else {
            assert_eq!(lab.log(), "write 24 commit 24");
        }
        assert_eq!(lab.answered(), (vec![], vec![]));
        assert_eq!(lab.queue.stats.nr_writes, 0);
        assert_eq!(lab.ready(0), LATER);
        assert_eq!(lab.answered(), (vec![0], vec![]));
        let stats = lab.queue.stats;
        assert_eq!((stats.nr_writes, stats.nr_sectors_written), (1, 8));
        lab.put(read(24, to_gref));
        assert_eq!(lab.settle(), [1]);
        assert_eq!(to.bytes(0..PAGE_SIZE), from.bytes(0..PAGE_SIZE));
    }
}

#[test]
fn a_failure_is_the_requests_own() {
    let mut lab = Lab::new(1);
    let (_, gref) = lab.page();
    for op in [read(0, gref), write(8, gref), flush()] {
        let id = lab.put(op);
        lab.turn();
        let place = lab.disk.waiting()[0];
        lab.disk.make_ready(place, Some(Failure::Gone));
        let turn = lab.turn();
        let reason = turn.refused.map(|refused| (refused.id.0, refused.reason));
        assert_eq!(reason, Some((id, Reason::Store(StoreError::Device(Failure::Gone)))));
        assert_eq!(lab.answered(), (vec![], vec![(id, Status::ERROR)]));
    }
    // A frontend stops flushing then, instead of taking its disk for a broken one.
    let id = lab.put(flush());
    lab.turn();
    lab.disk.make_ready(0, Some(Failure::NotSupported));
    lab.turn();
    assert_eq!(lab.answered(), (vec![], vec![(id, Status::EOPNOTSUPP)]));
    lab.disk.writes = Naming::Later;
    lab.put(write(8, gref));
    lab.turn();
    lab.disk.make_ready(0, Some(Failure::Device));
    lab.turn();
    assert_eq!(lab.answered(), (vec![], vec![(4, Status::ERROR)]));
    assert_eq!(lab.disk.nr_open(), 0);
    assert_eq!(lab.queue.stats.nr_errors, 5);
}

#[test]
fn a_flush_waits_for_what_came_before_it_and_holds_back_nothing_once_it_is_begun() {
    let mut lab = Lab::new(1);
    let (_, gref) = lab.page();
    lab.put(write(0, gref));
    lab.put(flush());
    lab.put(write(8, gref));
    assert_eq!(lab.turn(), LATER);
    assert_eq!(lab.log(), "write 0 commit 0");
    lab.put(read(16, gref));
    assert_eq!(lab.turn(), LATER);
    assert_eq!(lab.log(), "", "nothing is taken past a flush that waits");
    assert_eq!(lab.ready(0), Turn { next: Next::Work, ..LATER });
    assert_eq!(lab.log(), "flush write 8 commit 8");
    assert_eq!(lab.answered(), (vec![0], vec![]));
    assert_eq!(lab.turn(), LATER);
    assert_eq!(lab.log(), "read 16");
    assert_eq!(lab.settle(), [1, 2, 3]);
}

#[test]
fn a_barrier_is_between_all_before_it_and_all_after_it() {
    let mut lab = Lab::new(1);
    let (page, gref) = lab.page();
    page.fill(7);
    lab.put(read(0, gref));
    lab.put(Operation::Barrier(transfer(8, &[whole(gref)])));
    lab.put(read(16, gref));
    let mut steps = Vec::new();
    while lab.queue.stats.nr_reads < 2 {
        lab.turn();
        steps.push(lab.log());
        for place in lab.disk.waiting() {
            lab.disk.make_ready(place, None);
        }
    }
    assert_eq!(steps, ["read 0", "flush", "write 8 commit 8", "flush", "read 16", ""]);
    assert_eq!(lab.answered(), (vec![0, 1, 2], vec![]));
    assert_eq!(lab.queue.stats.nr_barriers, 1);
    assert_eq!(lab.disk.nr_open(), 0);
}

#[test]
fn a_flush_with_data_writes_it_behind_the_flush() {
    let mut lab = Lab::new(1);
    let (_, gref) = lab.page();
    lab.put(Operation::Flush(transfer(40, &[whole(gref)])));
    lab.turn();
    assert_eq!(lab.log(), "flush");
    lab.ready(0);
    assert_eq!(lab.log(), "write 40 commit 40");
    assert_eq!(lab.settle(), [0]);
}

#[test]
fn a_busy_disk_is_asked_again_in_the_order_of_the_ring() {
    let mut lab = Lab::new(1);
    lab.disk.max_open = 2;
    let (_, gref) = lab.page();
    for n in 0..4 {
        lab.put(read(8 * n, gref));
    }
    let discard = Operation::Discard { sector: Sector(64), nr_sectors: 8, secure: false };
    lab.put(discard);
    let busy = Turn { next: Next::Disk, ..LATER };
    assert_eq!(lab.turn(), busy);
    assert_eq!(lab.log(), "read 0 read 8");
    assert_eq!(lab.turn(), busy, "nothing has changed");
    assert_eq!(lab.log(), "");
    assert_eq!(lab.ready(1), busy);
    assert_eq!(lab.log(), "read 16");
    assert_eq!(lab.settle(), [0, 1, 2, 3, 4]);
    assert_eq!(lab.log(), "read 24 discard 64");
    assert_eq!(lab.queue.stats.nr_discards, 1);
}

#[test]
fn a_long_discard_goes_in_parts_and_others_do_not_wait_for_all_of_it() {
    let mut lab = Lab::new(1);
    lab.disk.discard_unit = 1024;
    let (_, gref) = lab.page();
    lab.put(Operation::Discard { sector: Sector(1000), nr_sectors: 2000, secure: false });
    lab.put(read(8, gref));
    assert_eq!(lab.turn().next, Next::Work, "one that may take long ends a turn");
    lab.turn();
    assert_eq!(lab.log(), "discard 1000 read 8");
    // Its place is free for others, before it asks for one again.
    lab.disk.max_open = 1;
    assert_eq!(lab.ready(0).next, Next::Work);
    assert_eq!((lab.disk.nr_open(), lab.log()), (1, String::new()));
    assert_eq!(lab.turn().next, Next::Disk);
    lab.ready(1);
    assert_eq!((lab.disk.nr_open(), lab.log()), (0, String::new()));
    assert_eq!(lab.turn(), LATER);
    assert_eq!(lab.log(), "discard 1024");
    assert_eq!(lab.settle(), [0, 1]);
    assert_eq!(lab.log(), "discard 2048");
    let stats = lab.queue.stats;
    assert_eq!((stats.nr_discards, stats.nr_sectors_discarded), (1, 2000));
}

#[test]
fn a_part_of_a_discard_that_fails_fails_it() {
    let mut lab = Lab::new(1);
    lab.disk.discard_unit = 1024;
    lab.put(Operation::Discard { sector: Sector(0), nr_sectors: 2048, secure: false });
    lab.turn();
    lab.disk.make_ready(0, Some(Failure::Device));
    let turn = lab.turn();
    let reason = Reason::Store(StoreError::Device(Failure::Device));
    assert_eq!((turn.next, turn.refused.unwrap().reason), (Next::Event, reason));
    assert_eq!(lab.answered(), (vec![], vec![(0, Status::ERROR)]));
    assert_eq!(lab.log(), "discard 0");
}

#[test]
fn a_write_that_finds_no_room_is_resumed_when_those_before_it_are_committed() {
    let mut lab = Lab::new(1);
    lab.disk.writes = Naming::Later;
    lab.disk.room = Room::ForOne;
    let (_, gref) = lab.page();
    lab.put(write(0, gref));
    lab.put(write(8, gref));
    lab.turn();
    lab.disk.make_ready(0, None);
    lab.disk.make_ready(1, None);
    assert_eq!(lab.turn(), LATER);
    assert_eq!(lab.log(), "write 0 write 8 commit 0 commit 8");
    assert_eq!(lab.settle(), [0, 1]);
}

#[test]
fn what_is_abandoned_is_given_back_and_never_answered() {
    for writes in [Naming::Done, Naming::Later] {
        let mut lab = Lab::new(1);
        lab.disk.writes = writes;
        let (_, gref) = lab.page();
        let free = lab.pool.nr_free();
        lab.put(read(0, gref));
        lab.put(write(8, gref));
        lab.put(Operation::Discard { sector: Sector(64), nr_sectors: 8, secure: false });
        lab.put(flush());
        lab.turn();
        assert_eq!(lab.disk.nr_open(), 3);
        lab.queue.abandon(&mut lab.disk, &mut lab.pool);
        assert_eq!((lab.disk.nr_open(), lab.queue.nr_in_flight()), (0, 0));
        assert_eq!(lab.answered(), (vec![], vec![]));
        assert_eq!(lab.pool.nr_free() + lab.disk.disk.usage().nr_nodes, free);
    }
}

#[test]
fn no_more_are_in_flight_than_there_is_room_for() {
    let mut lab = Lab::new(4);
    let (_, gref) = lab.page();
    for n in 0..100 {
        lab.put(read(8 * n, gref));
    }
    assert_eq!(lab.turn(), Turn { next: Next::Work, ..LATER });
    assert_eq!(lab.turn(), LATER);
    assert_eq!(lab.turn(), LATER);
    assert_eq!((lab.queue.nr_in_flight(), lab.disk.nr_open()), (64, 64));
    assert_eq!(lab.settle(), (0..100).collect::<Vec<u64>>());
}

#[test]
fn long_requests_that_are_ready_at_once_take_several_rounds() {
    let mut lab = Lab::new(1);
    let pages: Vec<(Page, GrantRef)> = (0..256).map(|_| lab.page()).collect();
    let (table, table_gref) = lab.page();
    for (n, (_, gref)) in pages.iter().enumerate() {
        table.write(n * Segment::LEN_BYTES, &whole(*gref).encode());
    }
    let mut grefs = [GrantRef(0); 8];
    grefs[0] = table_gref;
    let put = |lab: &mut Lab, n: u64| {
        let (sector, max) = (Sector(n * 256), MaxIndirectSegments::MAX);
        let op = Indirect::new(IndirectOp::Read, sector, 256, grefs, max).unwrap();
        lab.put(Operation::Indirect(op))
    };
    (0..3).for_each(|n| _ = put(&mut lab, n));
    assert_eq!(lab.turn(), LATER);
    (3..9).for_each(|n| _ = put(&mut lab, n));
    // 768 segments are kept, so that there is room; with 1792 there is not.
    assert_eq!(lab.turn(), LATER);
    assert_eq!(lab.turn(), LATER);
    assert_eq!(lab.disk.waiting().len(), 7);
    // The segments are ours by now.
    let segments = table.bytes(0..PAGE_SIZE);
    table.fill(0xff);
    (0..7).for_each(|place| lab.disk.make_ready(place, None));
    assert_eq!(lab.turn(), Turn { next: Next::Work, ..LATER });
    assert_eq!(lab.answered(), (vec![0, 1, 2, 3], vec![]));
    table.write(0, &segments);
    assert_eq!(lab.turn(), Turn { next: Next::Work, ..LATER });
    assert_eq!(lab.answered(), (vec![4, 5, 6], vec![]));
    assert_eq!(lab.disk.waiting().len(), 1);
    assert_eq!(lab.settle(), [7, 8]);
    assert_eq!(lab.queue.stats.nr_sectors_read, 9 * 256 * 8);
}

#[test]
fn a_device_reaches_the_guests_own_pages() {
    let mut lab = Lab::lending(8);
    let pages = [1, 2, 3].map(|byte| {
        let page = lab.page();
        page.0.fill(byte);
        page
    });
    let [a, b, c] = [0, 1, 2].map(|n| whole(pages[n].1));
    let last = Segment { last_sect: 2, ..c };
    lab.put(Operation::Write(transfer(8, &[a, b, last])));
    assert_eq!(lab.turn(), LATER);
    assert_eq!(lab.log(), "drain 8");
    assert_eq!(lab.machine.counters().mapped_copies, 0);
    assert_eq!(lab.ready(0), LATER);
    assert_eq!(lab.answered(), (vec![0], vec![]));
    assert_eq!((lab.queue.stats.nr_writes, lab.queue.stats.nr_sectors_written), (1, 19));
    pages.iter().for_each(|page| page.0.fill(0xee));
    lab.put(Operation::Read(transfer(8, &[c, a, Segment { last_sect: 2, ..b }])));
    assert_eq!(lab.settle(), [1]);
    assert_eq!(lab.log(), "fill 8");
    assert_eq!((lab.queue.stats.nr_reads, lab.queue.stats.nr_sectors_read), (1, 19));
    assert_eq!(pages[2].0.bytes(0..PAGE_SIZE), [1; PAGE_SIZE]);
    assert_eq!(pages[0].0.bytes(0..PAGE_SIZE), [2; PAGE_SIZE]);
    assert_eq!(pages[1].0.bytes(0..1536), [3; 1536]);
    assert!(lab.queue.into_mappings().1.is_none());
}

#[test]
fn what_does_not_suit_is_copied() {
    let mut lab = Lab::lending(8);
    let ((_, a), (_, b)) = (lab.page(), lab.page());
    let part = |gref, first_sect, last_sect| Segment { gref, first_sect, last_sect };
    for segments in [vec![part(a, 1, 7)], vec![part(a, 0, 6), whole(b)]] {
        lab.put(Operation::Write(transfer(0, &segments)));
        lab.turn();
        assert_eq!(lab.log(), "write 0 commit 0");
        lab.settle();
    }
    // No room for it at the disk.
    lab.disk.lends = false;
    lab.put(read(0, a));
    lab.turn();
    assert_eq!(lab.log(), "read 0");
    lab.settle();
    lab.disk.lends = true;
    // No device reaches it.
    lab.platform.iommu = None;
    let (_, unreached) = lab.page();
    lab.put(read(0, unreached));
    lab.put(Operation::Read(transfer(0, &[whole(a), whole(unreached)])));
    lab.turn();
    assert_eq!(lab.log(), "read 0 read 0");
    lab.settle();
    // It does not stay mapped.
    lab.queue.mapped = None;
    lab.put(read(0, a));
    lab.turn();
    assert_eq!(lab.log(), "read 0");
}

#[test]
fn flushes_and_barriers_wait_for_what_is_lent() {
    let mut lab = Lab::lending(8);
    let (_, gref) = lab.page();
    lab.put(write(0, gref));
    lab.put(flush());
    lab.put(Operation::Barrier(transfer(8, &[whole(gref)])));
    lab.put(read(16, gref));
    let mut steps = Vec::new();
    while lab.queue.stats.nr_reads < 1 {
        lab.turn();
        steps.push(lab.log());
        for place in lab.disk.waiting() {
            lab.disk.make_ready(place, None);
        }
    }
    assert_eq!(steps, ["drain 0", "flush", "flush", "drain 8", "flush", "fill 16", ""]);
    assert_eq!(lab.answered(), (vec![0, 1, 2, 3], vec![]));
}

#[test]
fn a_page_that_is_lent_makes_no_room() {
    let mut lab = Lab::lending(2);
    let [a, b, c] = [(); 3].map(|()| lab.page().1);
    lab.put(read(0, a));
    lab.turn();
    lab.put(read(8, b));
    lab.turn();
    // All are lent, so its data is copied, and it does not stay.
    lab.put(read(16, c));
    lab.turn();
    assert_eq!(lab.log(), "fill 0 fill 8 read 16");
    lab.disk.access_lent();
    // Those of later rounds stay with the oldest.
    lab.ready(1);
    lab.put(read(24, c));
    lab.turn();
    assert_eq!(lab.log(), "read 24");
    lab.ready(0);
    assert_eq!(lab.answered(), (vec![0, 1], vec![]));
    lab.put(read(32, c));
    lab.turn();
    assert_eq!(lab.log(), "fill 32");
    assert_eq!(lab.queue.nr_mapped(), 2);
    assert_eq!(lab.settle(), [2, 3, 4]);
}

#[test]
fn nothing_makes_room_while_pages_are_lent_that_nobody_waits_for() {
    let mut lab = Lab::lending(2);
    let [a, b, c, d] = [(); 4].map(|()| lab.page().1);
    lab.put(read(0, a));
    lab.put(read(8, b));
    lab.turn();
    lab.disk.give_up(0);
    lab.ready(1);
    assert_eq!(lab.answered(), (vec![1], vec![(0, Status::ERROR)]));
    for gref in [c, d] {
        lab.put(read(16, gref));
        lab.settle();
    }
    lab.disk.finish_abandoned();
    lab.log();
    lab.put(read(16, c));
    lab.turn();
    assert_eq!(lab.log(), "fill 16");
}

#[test]
fn a_ring_is_lent_until_the_device_is_done_with_what_was_abandoned() {
    let mut lab = Lab::lending(8);
    let [a, b] = [(); 2].map(|()| lab.page().1);
    lab.put(read(0, a));
    lab.turn();
    lab.settle();
    lab.put(write(0, a));
    lab.put(read(8, b));
    lab.turn();
    lab.queue.abandon(&mut lab.disk, &mut lab.pool);
    assert_eq!(lab.queue.nr_in_flight(), 0);
    let lease = lab.queue.into_mappings().1.unwrap();
    assert_eq!(lease.nr_users(), 2);
    lab.disk.finish_abandoned();
    assert!(lease.is_over());
}

/// Requests of a page each at random, made ready in a random order, against a model.
#[test]
fn nothing_is_lost_in_any_order() {
    for seed in sim::seeds(20) {
        nothing_is_lost(seed, Lab::new(1), |lab| lab.page());
    }
}

/// The same where pages are lent, and few stay mapped.
#[test]
fn nothing_is_lost_of_what_is_lent() {
    for seed in sim::seeds(20) {
        let lab = Lab::lending(24);
        let pages: Vec<(Page, GrantRef)> = (0..40).map(|_| lab.page()).collect();
        let mut n = 0;
        let mut page = move |_: &Lab| {
            n += 7;
            pages[n % pages.len()].clone()
        };
        nothing_is_lost(seed, lab, &mut page);
    }
}

fn nothing_is_lost(seed: u64, mut lab: Lab, mut page: impl FnMut(&Lab) -> (Page, GrantRef)) {
    let mut rng = Rng::new(seed);
    let mut model = vec![Some(0_u8); NR_SECTORS as usize / 8];
    let mut in_flight: Vec<(u64, u64, Option<u8>, Page)> = Vec::new();
    let mut next_answer = 0;
    for step in 0..2000 {
        lab.disk.writes = if rng.one_in(2) { Naming::Done } else { Naming::Later };
        lab.disk.max_open = if rng.one_in(3) { 4 } else { usize::MAX };
        lab.disk.lends = !rng.one_in(4);
        let at = rng.below(NR_SECTORS / 8);
        let is_free = in_flight.iter().all(|other| other.1 != at);
        if step < 1900 && in_flight.len() < 32 && is_free {
            let (page, gref) = page(&lab);
            let value = rng.one_in(2).then(|| rng.below(256) as u8);
            let op = match value {
                Some(value) => {
                    page.fill(value);
                    if rng.one_in(8) {
                        Operation::Barrier(transfer(8 * at, &[whole(gref)]))
                    } else {
                        write(8 * at, gref)
                    }
                }
                None => read(8 * at, gref),
            };
            let id = lab.put(op);
            in_flight.push((id, at, value, page));
        }
        let waiting = lab.disk.waiting();
        if !waiting.is_empty() && rng.one_in(2) {
            let place = waiting[rng.below(waiting.len() as u64) as usize];
            let failure = rng.one_in(20).then_some(Failure::Device);
            lab.disk.make_ready(place, failure);
        }
        if rng.one_in(2) || step >= 1900 {
            lab.turn();
            lab.disk.access_lent();
        }
        lab.front.unconsumed().unwrap();
        while let Some(response) = lab.front.consume() {
            assert_eq!(response.id.0, next_answer, "seed {seed}");
            next_answer += 1;
            let place = in_flight.iter().position(|other| other.0 == response.id.0).unwrap();
            let (_, at, value, page) = in_flight.remove(place);
            match (value, response.status) {
                (Some(value), Status::OKAY) => model[at as usize] = Some(value),
                // A barrier may have failed after it was written.
                (Some(_), _) => model[at as usize] = None,
                (None, Status::OKAY) => {
                    if let Some(value) = model[at as usize] {
                        assert_eq!(page.bytes(0..PAGE_SIZE), [value; PAGE_SIZE], "seed {seed}");
                    }
                }
                (None, _) => {}
            }
        }
    }
    lab.disk.max_open = usize::MAX;
    let rest: Vec<u64> = lab.settle();
    assert_eq!(rest, in_flight.iter().map(|other| other.0).collect::<Vec<u64>>());
    assert_eq!((lab.disk.nr_open(), lab.queue.nr_in_flight()), (0, 0), "seed {seed}");
    assert!(lab.queue.into_mappings().1.is_none());
}
