//! The engine against a frontend's ring in a simulated hypervisor: exact answers to every kind of
//! request, and what they cost.

#![allow(clippy::cast_possible_truncation, clippy::unwrap_used, reason = "a test may")]

use blkback::{Discards, Engine, Grants, Media, Next, Persistent, Queue, Reason, Refused, Turn};
use blkif::{
    Abi, BackRing, FinalCheck, FrontRing, Indirect, IndirectOp, MalformedReason,
    MaxIndirectSegments, Notify, OpCode, Operation, Request, RequestId, Response, Sector, Segment,
    SegmentError, Segments, Slot, Status, Transfer,
};
use sim::{GrantAccess, Machine, OwnFrames, Page, Region, SimMapping, SimPlatform};
use store::{
    Access, BlockSize, BlockStore, ExtentSink, Geometry, OpenRead, PageDisk, PagePool, Progress,
    SectorRange, Steps, StoreError, Want,
};
use xen_abi::{DomId, EvtchnPort, Gfn, GntStatus, GrantRef, PAGE_SIZE};

const SECTOR: usize = 512;
const NR_SECTORS: u64 = 4096;
const MAX_INDIRECT: u16 = 256;
const FIRST_FRAME: Gfn = Gfn(100);

struct Lab {
    machine: Machine,
    platform: SimPlatform,
    guest: DomId,
    front: FrontRing<Region>,
    queue: Queue<SimMapping>,
    engine: Engine,
    pool: PagePool<OwnFrames>,
    disk: PageDisk,
    access: Access,
    discards: Discards,
    next_id: u64,
}

impl Lab {
    fn new() -> Self {
        Self::with_pool(1200)
    }

    fn with_pool(nr_frames: u64) -> Self {
        let machine = Machine::new(1);
        let (us, guest) = (machine.create_domain(), machine.create_domain());
        let nr_all = nr_frames + Engine::NR_FRAMES;
        let mut platform = SimPlatform::new(&machine, us, &[(FIRST_FRAME, nr_all)]);
        let runs = [(Gfn(FIRST_FRAME.0 + Engine::NR_FRAMES), nr_frames)];
        let pool = PagePool::new(platform.frames().clone(), &runs).unwrap();
        let disk = PageDisk::new(NR_SECTORS, BlockSize::B512, NR_SECTORS / 8, &pool)
            .or_else(|_| PageDisk::new(NR_SECTORS, BlockSize::B512, 20, &pool))
            .unwrap();
        let max = MaxIndirectSegments::new(MAX_INDIRECT).unwrap();
        let ring_page = Page::new();
        let gref = machine.grants().grant(guest, us, &ring_page, GrantAccess::ReadWrite);
        let front = FrontRing::init(Region::owned(vec![ring_page]), Abi::X86_64).unwrap();
        let mapping = platform.map(guest, &[gref]).unwrap();
        let ring = BackRing::attach(mapping, Abi::X86_64, max).unwrap();
        let queue = Queue::new(ring, EvtchnPort(0), guest, None);
        let engine = Engine::new(FIRST_FRAME, max);
        let (access, discards) = (Access::ReadWrite, Discards::Offered);
        let next_id = 1000;
        Self {
            machine,
            platform,
            guest,
            front,
            queue,
            engine,
            pool,
            disk,
            access,
            discards,
            next_id,
        }
    }

    /// A page that the guest grants us.
    fn page(&self, access: GrantAccess) -> (Page, GrantRef) {
        let page = Page::new();
        let gref = self.machine.grants().grant(self.guest, self.platform.domid(), &page, access);
        (page, gref)
    }

    fn put(&mut self, op: Operation) -> RequestId {
        self.next_id += 1;
        let id = RequestId(self.next_id);
        self.front.push(&Request { id, handle: 0, op }).unwrap();
        id
    }

    fn turn(&mut self) -> Turn {
        let _ = self.front.publish();
        let mut media = Media {
            disk: &mut self.disk,
            access: self.access,
            discards: self.discards,
            pool: &mut self.pool,
        };
        self.engine.turn(&mut self.queue, &mut self.platform, &mut media).unwrap()
    }

    /// A turn on the disk as if it were packed in units of so many bytes.
    fn turn_on_packed(&mut self, unit_bytes: u64) {
        let _ = self.front.publish();
        let mut media = Media {
            disk: &mut Packed { disk: &mut self.disk, unit_bytes },
            access: self.access,
            discards: self.discards,
            pool: &mut self.pool,
        };
        self.engine.turn(&mut self.queue, &mut self.platform, &mut media).unwrap();
    }

    fn responses(&mut self) -> Vec<Response> {
        self.front.unconsumed().unwrap();
        std::iter::from_fn(|| self.front.consume()).collect()
    }

    /// Serves one request: its status, and why it was refused.
    fn serve(&mut self, op: Operation) -> (Status, Option<Reason>) {
        let id = self.put(op);
        let turn = self.turn();
        assert_eq!(turn.next, Next::Event);
        let responses = self.responses();
        let [response] = responses[..] else { panic!("{responses:?}") };
        assert_eq!(response.id, id);
        (response.status, turn.refused.map(|refused| refused.reason))
    }

    fn refused(&mut self, op: Operation, reason: Reason) {
        assert_eq!(self.serve(op), (Status::ERROR, Some(reason)), "{op:?}");
    }

    fn write(&mut self, sector: u64, data: &[u8]) {
        for (n, chunk) in data.chunks(PAGE_SIZE).enumerate() {
            let (page, gref) = self.page(GrantAccess::ReadOnly);
            page.write(0, chunk);
            let sector = sector + 8 * n as u64;
            assert_eq!(self.serve(write(sector, &[whole(gref, chunk.len())])), OKAY);
        }
    }

    fn read(&mut self, sector: u64, nr: usize) -> Vec<u8> {
        let mut data = Vec::new();
        for at in (0..nr).step_by(8) {
            let (page, gref) = self.page(GrantAccess::ReadWrite);
            let len = (nr - at).min(8) * SECTOR;
            let sector = sector + at as u64;
            assert_eq!(self.serve(read(sector, &[whole(gref, len)])), OKAY);
            data.extend(page.bytes(0..len));
        }
        data
    }
}

const IDLE: Turn = Turn { next: Next::Event, refused: None, lost: None };
const OKAY: (Status, Option<Reason>) = (Status::OKAY, None);

fn segment(gref: GrantRef, first_sect: u8, last_sect: u8) -> Segment {
    Segment { gref, first_sect, last_sect }
}

/// The first `len` bytes of a page.
fn whole(gref: GrantRef, len: usize) -> Segment {
    segment(gref, 0, u8::try_from(len / SECTOR - 1).unwrap())
}

fn transfer(sector: u64, segments: &[Segment]) -> Transfer {
    Transfer { sector: Sector(sector), segments: Segments::new(segments).unwrap() }
}

fn read(sector: u64, segments: &[Segment]) -> Operation {
    Operation::Read(transfer(sector, segments))
}

fn write(sector: u64, segments: &[Segment]) -> Operation {
    Operation::Write(transfer(sector, segments))
}

/// An indirect request for `segments`, whose pages the guest grants.
fn indirect(lab: &Lab, op: IndirectOp, sector: u64, segments: &[Segment]) -> Operation {
    let mut grefs = [GrantRef(0); 8];
    for (chunk, gref_of) in segments.chunks(512).zip(&mut grefs) {
        let (page, gref) = lab.page(GrantAccess::ReadOnly);
        for (n, segment) in chunk.iter().enumerate() {
            page.write(n * Segment::LEN_BYTES, &segment.encode());
        }
        *gref_of = gref;
    }
    let (nr, max) = (u16::try_from(segments.len()).unwrap(), MaxIndirectSegments::MAX);
    Operation::Indirect(Indirect::new(op, Sector(sector), nr, grefs, max).unwrap())
}

#[test]
fn what_is_written_is_read_back() {
    let mut lab = Lab::new();
    let data: Vec<u8> = (0..11 * SECTOR).map(|n| (n / 7) as u8).collect();
    lab.write(13, &data);
    assert_eq!(lab.read(13, 11), data);
    assert_eq!(lab.read(12, 1), [0; SECTOR]);
    assert_eq!(lab.read(24, 8), [0; PAGE_SIZE]);
}

#[test]
fn segments_and_pages_of_the_disk_need_not_meet() {
    let mut lab = Lab::new();
    let parts = [(5, 7), (0, 7), (3, 3), (1, 6)];
    let mut segments = Vec::new();
    let mut data = Vec::new();
    for (n, (first, last)) in parts.into_iter().enumerate() {
        let (page, gref) = lab.page(GrantAccess::ReadOnly);
        page.fill(0xee);
        let part = vec![n as u8 + 1; usize::from(last - first + 1) * SECTOR];
        page.write(usize::from(first) * SECTOR, &part);
        data.extend(part);
        segments.push(segment(gref, first, last));
    }
    assert_eq!(lab.serve(write(3, &segments)), OKAY);
    assert_eq!(lab.read(3, data.len() / SECTOR), data);
    assert_eq!(lab.queue.stats.nr_sectors_written, 18);
}

#[test]
fn a_read_touches_only_the_sectors_asked_for() {
    let mut lab = Lab::new();
    lab.write(0, &[7; PAGE_SIZE]);
    let (page, gref) = lab.page(GrantAccess::ReadWrite);
    page.fill(0xee);
    assert_eq!(lab.serve(read(0, &[segment(gref, 2, 4)])), OKAY);
    assert_eq!(page.bytes(0..2 * SECTOR), [0xee; 2 * SECTOR]);
    assert_eq!(page.bytes(2 * SECTOR..5 * SECTOR), [7; 3 * SECTOR]);
    assert_eq!(page.bytes(5 * SECTOR..PAGE_SIZE), [0xee; 3 * SECTOR]);
}

#[test]
fn a_full_ring_costs_one_copy_call_and_is_answered_in_order() {
    let mut lab = Lab::new();
    let (_, gref) = lab.page(GrantAccess::ReadWrite);
    let ids: Vec<RequestId> =
        (0..32).map(|n| lab.put(read(8 * n, &[segment(gref, 0, 7)]))).collect();
    let before = lab.machine.counters();
    assert_eq!(lab.turn(), IDLE);
    let after = lab.machine.counters();
    assert_eq!(after.copy_calls - before.copy_calls, 1);
    assert_eq!(after.copies - before.copies, 32);
    let answered: Vec<RequestId> = lab.responses().iter().map(|response| response.id).collect();
    assert_eq!(answered, ids);
}

#[test]
fn only_the_event_for_a_lone_answer_may_wait() {
    for (nr_requests, nr_with_wait) in [(1, 1), (2, 0), (32, 0)] {
        let mut lab = Lab::new();
        let (_, gref) = lab.page(GrantAccess::ReadWrite);
        (0..nr_requests).for_each(|n| _ = lab.put(read(8 * n, &[segment(gref, 0, 7)])));
        let before = lab.machine.counters();
        lab.turn();
        let after = lab.machine.counters();
        assert_eq!(after.sends - before.sends, 1, "{nr_requests}");
        assert_eq!(after.sends_with_wait - before.sends_with_wait, nr_with_wait, "{nr_requests}");
    }
}

#[test]
fn indirect_requests_of_a_ring_cost_two_copy_calls_and_data_goes_both_ways() {
    let mut lab = Lab::new();
    let pages: Vec<(Page, GrantRef)> = (0..256).map(|_| lab.page(GrantAccess::ReadWrite)).collect();
    let segments: Vec<Segment> = pages.iter().map(|page| segment(page.1, 0, 7)).collect();
    for (n, (page, _)) in pages.iter().enumerate() {
        page.fill(n as u8);
    }
    let op = indirect(&lab, IndirectOp::Write, 8, &segments);
    let before = lab.machine.counters();
    assert_eq!(lab.serve(op), OKAY);
    assert_eq!(lab.machine.counters().copy_calls - before.copy_calls, 2);
    assert_eq!(lab.machine.counters().copies - before.copies, 257);
    assert_eq!(lab.read(8 + 8 * 77, 8), [77; PAGE_SIZE]);

    pages.iter().for_each(|(page, _)| page.fill(0xee));
    let op = indirect(&lab, IndirectOp::Read, 16, &segments);
    assert_eq!(lab.serve(op), OKAY);
    assert_eq!(pages[0].0.bytes(0..PAGE_SIZE), [1; PAGE_SIZE]);
    assert_eq!(pages[254].0.bytes(0..PAGE_SIZE), [255; PAGE_SIZE]);
    assert_eq!(pages[255].0.bytes(0..PAGE_SIZE), [0; PAGE_SIZE]);
}

#[test]
fn every_response_of_an_indirect_request_echoes_its_inner_operation() {
    let mut lab = Lab::new();
    let (_, gref) = lab.page(GrantAccess::ReadWrite);
    let op = indirect(&lab, IndirectOp::Write, 0, &[segment(gref, 0, 0)]);
    lab.put(op);
    lab.turn();
    assert_eq!(lab.responses()[0].operation, OpCode::WRITE);
}

#[test]
fn a_request_that_breaks_the_form_is_an_error_and_says_why() {
    let mut lab = Lab::new();
    let (_, gref) = lab.page(GrantAccess::ReadWrite);
    let past = |first, nr| Reason::Store(StoreError::PastEnd { first, nr, nr_sectors: NR_SECTORS });
    let one = segment(gref, 0, 0);
    for op in [read, write] {
        lab.refused(op(NR_SECTORS, &[one]), past(NR_SECTORS, 1));
        lab.refused(op(NR_SECTORS - 1, &[one, one]), past(NR_SECTORS - 1, 2));
        lab.refused(op(u64::MAX, &[one]), past(u64::MAX, 1));
        let order = SegmentError::Order { first: 4, last: 3 };
        lab.refused(op(0, &[one, segment(gref, 4, 3)]), Reason::Segment { n: 1, error: order });
        let error = SegmentError::PastPage { last: 8 };
        lab.refused(op(0, &[segment(gref, 0, 8)]), Reason::Segment { n: 0, error });
        let error = SegmentError::PastPage { last: 255 };
        lab.refused(op(0, &[segment(gref, 255, 255)]), Reason::Segment { n: 0, error });
    }
    let error = SegmentError::PastPage { last: 9 };
    let mut segments = vec![one; 20];
    segments[19].last_sect = 9;
    let op = indirect(&lab, IndirectOp::Read, 0, &segments);
    lab.refused(op, Reason::Segment { n: 19, error });
    let op = indirect(&lab, IndirectOp::Read, NR_SECTORS - 19, &[one; 20]);
    lab.refused(op, past(NR_SECTORS - 19, 20));
    assert_eq!(lab.queue.stats.nr_errors, 14);
}

#[test]
fn counts_of_segments_that_no_request_has_are_errors() {
    let mut lab = Lab::new();
    for (claimed, reason) in [
        (0, MalformedReason::NoSegments),
        (12, MalformedReason::TooManySegments { claimed: 12, max: 11 }),
        (255, MalformedReason::TooManySegments { claimed: 255, max: 11 }),
    ] {
        let request = Request { id: RequestId(9), handle: 0, op: read(0, &[]) };
        let mut slot: Slot = request.encode(Abi::X86_64);
        slot.0[1] = claimed;
        lab.front.push_slot(&slot).unwrap();
        let refused = lab.turn().refused;
        let operation = OpCode::READ;
        assert_eq!(
            refused,
            Some(Refused { id: RequestId(9), operation, reason: Reason::Malformed(reason) })
        );
        let status = Status::ERROR;
        assert_eq!(lab.responses(), [Response { id: RequestId(9), operation, status }]);
    }
    let (_, gref) = lab.page(GrantAccess::ReadWrite);
    let op = indirect(&lab, IndirectOp::Read, 0, &vec![segment(gref, 0, 0); 257]);
    let reason = MalformedReason::TooManySegments { claimed: 257, max: 256 };
    lab.refused(op, Reason::Malformed(reason));
}

#[test]
fn what_is_not_offered_is_not_supported() {
    let mut lab = Lab::new();
    lab.discards = Discards::No;
    let discard = Operation::Discard { sector: Sector(0), nr_sectors: 8, secure: false };
    for op in
        [discard, Operation::Unknown { code: OpCode(4) }, Operation::Unknown { code: OpCode(255) }]
    {
        assert_eq!(lab.serve(op), (Status::EOPNOTSUPP, Some(Reason::Unsupported)), "{op:?}");
    }
}

#[test]
fn a_read_only_vbd_is_not_written() {
    let mut lab = Lab::new();
    lab.write(0, &[1; PAGE_SIZE]);
    lab.access = Access::ReadOnly;
    let (page, gref) = lab.page(GrantAccess::ReadWrite);
    page.fill(2);
    lab.refused(write(0, &[segment(gref, 0, 7)]), Reason::ReadOnly);
    let op = indirect(&lab, IndirectOp::Write, 0, &[segment(gref, 0, 7)]);
    lab.refused(op, Reason::ReadOnly);
    let flush_with_data = Operation::Flush(transfer(0, &[segment(gref, 0, 7)]));
    lab.refused(flush_with_data, Reason::ReadOnly);
    let barrier = Operation::Barrier(transfer(0, &[segment(gref, 0, 7)]));
    lab.refused(barrier, Reason::ReadOnly);
    for secure in [false, true] {
        let discard = Operation::Discard { sector: Sector(0), nr_sectors: 8, secure };
        lab.refused(discard, Reason::ReadOnly);
    }
    assert_eq!(lab.serve(Operation::Flush(transfer(0, &[]))), OKAY);
    assert_eq!(lab.read(0, 8), [1; PAGE_SIZE]);
}

#[test]
fn a_barrier_comes_between_what_is_before_it_and_what_is_after() {
    let mut lab = Lab::new();
    let (page, gref) = lab.page(GrantAccess::ReadOnly);
    page.fill(3);
    lab.put(write(0, &[segment(gref, 0, 7)]));
    lab.put(Operation::Barrier(transfer(8, &[segment(gref, 0, 7)])));
    lab.put(write(16, &[segment(gref, 0, 7)]));
    lab.put(Operation::Barrier(transfer(0, &[])));
    let before = lab.machine.counters();
    lab.turn();
    // One for what is before, one for its own data, one for what is after.
    assert_eq!(lab.machine.counters().copy_calls - before.copy_calls, 3);
    let statuses: Vec<Status> = lab.responses().iter().map(|response| response.status).collect();
    assert_eq!(statuses, [Status::OKAY; 4]);
    assert_eq!((lab.queue.stats.nr_writes, lab.queue.stats.nr_barriers), (3, 2));
    assert_eq!(lab.read(8, 8), [3; PAGE_SIZE]);
    // One whose data cannot be had fails, and nothing is written.
    let bad = Operation::Barrier(transfer(8, &[segment(GrantRef(12345), 0, 7)]));
    lab.refused(bad, Reason::Copy(GntStatus::BAD_GNTREF));
    assert_eq!(lab.read(8, 8), [3; PAGE_SIZE]);
}

/// A frontend may discard a disk that is empty, and large, as often as it likes.
#[test]
fn sectors_that_are_discarded_are_counted_as_far_as_that_goes() {
    let mut lab = Lab::new();
    lab.queue.stats.nr_sectors_discarded = u64::MAX - 3;
    let discard = Operation::Discard { sector: Sector(0), nr_sectors: 8, secure: false };
    assert_eq!([lab.serve(discard), lab.serve(discard)], [OKAY, OKAY]);
    let mut sum = lab.queue.stats;
    assert_eq!((sum.nr_discards, sum.nr_sectors_discarded), (2, u64::MAX));
    // Of all rings.
    sum += lab.queue.stats;
    assert_eq!((sum.nr_discards, sum.nr_sectors_discarded), (4, u64::MAX));
}

#[test]
fn a_discard_gives_memory_back_and_a_long_one_takes_several_turns() {
    let mut lab = Lab::new();
    let free = lab.pool.nr_free();
    lab.write(0, &[7; 4 * PAGE_SIZE]);
    let discard = |sector, nr_sectors, secure| Operation::Discard {
        sector: Sector(sector),
        nr_sectors,
        secure,
    };
    assert_eq!(lab.serve(discard(8, 8, false)), OKAY);
    let mut expected = vec![7; 4 * PAGE_SIZE];
    expected[PAGE_SIZE..2 * PAGE_SIZE].fill(0);
    assert_eq!(lab.read(0, 32), expected);
    assert_eq!(lab.serve(discard(1, 2, true)), OKAY);
    expected[SECTOR..3 * SECTOR].fill(0);
    assert_eq!(lab.read(0, 32), expected);
    // One that was offered it still gets it once a snapshot shares its pages.
    let mut snapshot = lab.disk.snapshot(&mut lab.pool, Access::ReadOnly).unwrap();
    assert_eq!(lab.serve(discard(5, 1, true)), OKAY);
    expected[5 * SECTOR..6 * SECTOR].fill(0);
    assert_eq!(lab.read(0, 32), expected);
    assert_eq!(snapshot.clear(&mut lab.pool, &mut Steps::new(100)), Progress::Done);
    lab.refused(discard(8, 0, false), Reason::Store(StoreError::Empty));
    let past = |first, nr| Reason::Store(StoreError::PastEnd { first, nr, nr_sectors: NR_SECTORS });
    lab.refused(discard(1, NR_SECTORS, false), past(1, NR_SECTORS));
    lab.refused(discard(u64::MAX, u64::MAX, false), past(u64::MAX, u64::MAX));
    assert_eq!(lab.serve(discard(0, NR_SECTORS, false)), OKAY);
    assert_eq!(lab.pool.nr_free(), free);

    // A disk so large that its pages cannot be given back in one turn.
    let mut lab = Lab::with_pool(3000);
    let nr_sectors = 8 * 2000;
    lab.disk = PageDisk::new(nr_sectors, BlockSize::B512, 2000, &lab.pool).unwrap();
    let free = lab.pool.nr_free();
    let (_, gref) = lab.page(GrantAccess::ReadOnly);
    for n in 0..8 {
        let op = indirect(&lab, IndirectOp::Write, n * 2000, &vec![segment(gref, 0, 7); 250]);
        assert_eq!(lab.serve(op), OKAY);
    }
    let long = lab.put(discard(0, nr_sectors, true));
    let after = lab.put(read(0, &[segment(gref, 0, 0)]));
    let more = Turn { next: Next::Work, ..IDLE };
    assert_eq!(lab.turn(), more);
    assert_eq!(lab.responses(), []);
    assert_eq!(lab.turn(), more);
    let ids = |lab: &mut Lab| lab.responses().iter().map(|r| r.id).collect::<Vec<_>>();
    assert_eq!(ids(&mut lab), [long]);
    assert_eq!(lab.pool.nr_free(), free);
    lab.turn();
    assert_eq!(ids(&mut lab), [after]);
}

#[test]
fn requests_at_hand_and_their_segments_are_counted() {
    let mut lab = Lab::new();
    let (_, gref) = lab.page(GrantAccess::ReadWrite);
    let one = segment(gref, 0, 0);
    let shown = |lab: &Lab| {
        let stats = &lab.queue.stats;
        (stats.at_hand.to_string(), stats.segments.to_string())
    };
    // A turn that finds nothing.
    lab.turn();
    assert_eq!(shown(&lab), ("-".into(), "-".into()));
    lab.put(read(0, &[one; 3]));
    lab.put(write(0, &[one; 11]));
    lab.put(Operation::Flush(transfer(0, &[])));
    lab.put(Operation::Flush(transfer(0, &[one])));
    lab.put(Operation::Barrier(transfer(0, &[one; 2])));
    let op = indirect(&lab, IndirectOp::Write, 0, &[one; 200]);
    lab.put(op);
    lab.turn();
    assert_eq!(shown(&lab), ("4:1".into(), "1:1,2:2,8:1,128:1".into()));
    assert_eq!(lab.queue.stats.nr_errors, 0);
    // Refused with segments that are in order, with one that is not, and with none to speak of.
    lab.put(read(NR_SECTORS, &[one; 4]));
    lab.put(read(0, &[one, segment(gref, 0, 8)]));
    lab.put(Operation::Unknown { code: OpCode(77) });
    lab.turn();
    assert_eq!(shown(&lab), ("2:1,4:1".into(), "1:1,2:2,4:1,8:1,128:1".into()));
    assert_eq!(lab.queue.stats.nr_errors, 3);
}

#[test]
fn what_a_frontend_waits_for_is_in_flight() {
    let mut lab = Lab::with_pool(3000);
    let nr_sectors = 8 * 2000;
    lab.disk = PageDisk::new(nr_sectors, BlockSize::B512, 2000, &lab.pool).unwrap();
    let (_, gref) = lab.page(GrantAccess::ReadOnly);
    for n in 0..8 {
        let op = indirect(&lab, IndirectOp::Write, n * 2000, &vec![segment(gref, 0, 7); 250]);
        assert_eq!(lab.serve(op), OKAY);
    }
    assert_eq!(lab.queue.ring.nr_in_flight(), 0);
    // It takes two turns.
    lab.put(Operation::Discard { sector: Sector(0), nr_sectors, secure: false });
    lab.put(read(0, &[segment(gref, 0, 0)]));
    lab.put(read(0, &[segment(gref, 0, 0)]));
    let _ = lab.front.publish();
    let mut seen = vec![lab.queue.ring.nr_in_flight()];
    for _ in 0..3 {
        lab.turn();
        seen.push(lab.queue.ring.nr_in_flight());
    }
    assert_eq!(seen, [3, 3, 2, 0]);
    assert_eq!(lab.queue.stats.at_hand.to_string(), "1:8,2:3");
}

#[test]
fn blocks_of_4096_bytes_are_read_and_written_whole() {
    let mut lab = Lab::new();
    lab.disk = PageDisk::new(NR_SECTORS, BlockSize::B4096, 10, &lab.pool).unwrap();
    let (_, gref) = lab.page(GrantAccess::ReadWrite);
    assert_eq!(lab.serve(write(8, &[segment(gref, 0, 7)])), OKAY);
    let block = Reason::SegmentBlock { n: 1, block_bytes: 4096 };
    lab.refused(write(8, &[segment(gref, 0, 7), segment(gref, 0, 3)]), block);
    lab.refused(write(8, &[segment(gref, 0, 7), segment(gref, 4, 7)]), block);
    let misaligned = StoreError::Misaligned { first: 4, nr: 8, block: 8 };
    lab.refused(read(4, &[segment(gref, 0, 7)]), Reason::Store(misaligned));
}

/// Makes the frontend one that uses its grants again and again.
fn persistent(mut lab: Lab, max_pages: usize) -> Lab {
    lab.queue.mapped = Some(Persistent::new(max_pages));
    lab
}

#[test]
fn pages_that_are_used_again_are_mapped_once_and_cost_no_call() {
    let mut lab = persistent(Lab::new(), 300);
    let pages: Vec<(Page, GrantRef)> = (0..11).map(|_| lab.page(GrantAccess::ReadWrite)).collect();
    let segments: Vec<Segment> = pages.iter().map(|page| segment(page.1, 0, 7)).collect();
    for (n, (page, _)) in pages.iter().enumerate() {
        page.fill(n as u8 + 1);
    }
    let before = lab.machine.counters();
    assert_eq!(lab.serve(write(0, &segments)), OKAY);
    let first = lab.machine.counters();
    assert_eq!(first.map_calls - before.map_calls, 1);
    assert_eq!(first.maps - before.maps, 11);
    for _ in 0..5 {
        lab.put(write(0, &segments));
        lab.put(read(8, &segments));
    }
    lab.turn();
    let second = lab.machine.counters();
    assert_eq!(second.map_calls, first.map_calls);
    assert_eq!(second.copy_calls, before.copy_calls);
    assert_eq!(second.mapped_copies - first.mapped_copies, 110);
    assert_eq!(lab.machine.grants().nr_handles(lab.platform.domid()), 1 + 11);
}

#[test]
fn an_indirect_request_in_mapped_pages_costs_no_call_at_all() {
    let mut lab = persistent(Lab::new(), 300);
    let (page, gref) = lab.page(GrantAccess::ReadWrite);
    page.fill(9);
    let op = indirect(&lab, IndirectOp::Write, 0, &[segment(gref, 0, 7); 20]);
    // Its page of segments is granted for reading alone and so is copied; make it writable.
    let Operation::Indirect(inner) = op else { unreachable!() };
    let (descriptors, writable) = lab.page(GrantAccess::ReadWrite);
    for n in 0..20 {
        descriptors.write(n * Segment::LEN_BYTES, &segment(gref, 0, 7).encode());
    }
    let mut grefs = [GrantRef(0); 8];
    grefs[0] = writable;
    let max = MaxIndirectSegments::MAX;
    let op = Operation::Indirect(
        Indirect::new(inner.op(), inner.sector(), inner.nr_segments(), grefs, max).unwrap(),
    );
    assert_eq!(lab.serve(op), OKAY);
    let before = lab.machine.counters();
    assert_eq!(lab.serve(op), OKAY);
    let after = lab.machine.counters();
    assert_eq!(after.map_calls, before.map_calls);
    assert_eq!(after.copy_calls, before.copy_calls);
    assert_eq!(lab.read(8 * 19, 8), [9; PAGE_SIZE]);
}

#[test]
fn a_frontend_that_never_uses_a_page_again_holds_no_more_than_the_cap() {
    let mut lab = persistent(Lab::new(), 8);
    for n in 0..100u8 {
        let (page, gref) = lab.page(GrantAccess::ReadWrite);
        page.fill(n);
        assert_eq!(lab.serve(write(0, &[segment(gref, 0, 7)])), OKAY);
        assert!(lab.machine.grants().nr_handles(lab.platform.domid()) <= 1 + 8);
    }
    // More pages in one request than may stay mapped: the rest is copied by the hypervisor.
    let pages: Vec<(Page, GrantRef)> = (0..11).map(|_| lab.page(GrantAccess::ReadWrite)).collect();
    let segments: Vec<Segment> = pages.iter().map(|page| segment(page.1, 0, 7)).collect();
    pages.iter().enumerate().for_each(|(n, (page, _))| page.fill(n as u8));
    let before = lab.machine.counters();
    assert_eq!(lab.serve(write(0, &segments)), OKAY);
    assert_eq!(lab.machine.counters().copies - before.copies, 3);
    for n in 0..11 {
        assert_eq!(lab.read(8 * n, 8), [n as u8; PAGE_SIZE]);
    }
}

#[test]
fn more_pages_in_use_than_may_stay_mapped_are_not_mapped_over_and_over() {
    let mut lab = persistent(Lab::new(), 64);
    let pages: Vec<(Page, GrantRef)> = (0..132).map(|_| lab.page(GrantAccess::ReadWrite)).collect();
    let segments: Vec<Segment> = pages.iter().map(|page| segment(page.1, 0, 7)).collect();
    let mut maps = Vec::new();
    for turn in 0..6 {
        let before = lab.machine.counters().maps;
        // Four requests of 11 pages each, round the 132 pages.
        for chunk in segments.chunks(11).skip(turn % 3 * 4).take(4) {
            lab.put(read(0, chunk));
        }
        lab.turn();
        assert!(lab.responses().iter().all(|response| response.status == Status::OKAY));
        maps.push(lab.machine.counters().maps - before);
    }
    assert_eq!(maps[..2], [44, 20 + 16]);
    assert!(maps[2..].iter().all(|&maps| maps <= 16), "{maps:?}");
}

#[test]
fn a_page_that_cannot_be_mapped_is_copied_instead() {
    let mut lab = persistent(Lab::new(), 100);
    let (page, gref) = lab.page(GrantAccess::ReadOnly);
    page.fill(5);
    assert_eq!(lab.serve(write(0, &[segment(gref, 0, 7)])), OKAY);
    lab.refused(write(0, &[segment(GrantRef(54321), 0, 7)]), Reason::Copy(GntStatus::BAD_GNTREF));
    assert_eq!(lab.read(0, 8), [5; PAGE_SIZE]);
    assert_eq!(lab.queue.mapped.as_ref().unwrap().nr_pages(), 1);

    // Every k of the pages of a request.
    for k in 1..=11 {
        let mut lab = persistent(Lab::new(), 100);
        let pages: Vec<(Page, GrantRef)> =
            (0..11).map(|_| lab.page(GrantAccess::ReadWrite)).collect();
        let segments: Vec<Segment> = pages.iter().map(|page| segment(page.1, 0, 7)).collect();
        pages.iter().enumerate().for_each(|(n, (page, _))| page.fill(n as u8));
        lab.machine.grants().map_faults.fail_nth(k, GntStatus::GENERAL_ERROR);
        assert_eq!(lab.serve(write(0, &segments)), OKAY);
        assert_eq!(lab.queue.mapped.as_ref().unwrap().nr_pages(), 10);
        for n in 0..11 {
            assert_eq!(lab.read(8 * n, 8), [n as u8; PAGE_SIZE]);
        }
    }
}

#[test]
fn without_page_tables_for_more_mappings_no_more_are_asked_for() {
    let mut lab = persistent(Lab::new(), 100);
    lab.platform.map_space_pages = 1 + 4;
    let pages: Vec<(Page, GrantRef)> = (0..11).map(|_| lab.page(GrantAccess::ReadWrite)).collect();
    let segments: Vec<Segment> = pages.iter().map(|page| segment(page.1, 0, 7)).collect();
    assert_eq!(lab.serve(write(0, &segments)), OKAY);
    assert_eq!(lab.queue.mapped.as_ref().unwrap().nr_pages(), 4);
    let before = lab.machine.counters();
    assert_eq!(lab.serve(write(0, &segments)), OKAY);
    assert_eq!(lab.machine.counters().map_calls, before.map_calls);
}

#[test]
fn a_grant_that_is_revoked_while_mapped_hurts_its_guest_alone() {
    let mut lab = persistent(Lab::new(), 100);
    let (page, gref) = lab.page(GrantAccess::ReadWrite);
    page.fill(5);
    assert_eq!(lab.serve(write(0, &[segment(gref, 0, 7)])), OKAY);
    lab.machine.grants().revoke(lab.guest, gref);
    page.fill(6);
    assert_eq!(lab.serve(write(8, &[segment(gref, 0, 7)])), OKAY);
    let us = lab.platform.domid();
    assert_eq!(lab.machine.grants().nr_handles(us), 2);
    let queue = lab.queue;
    let (mut mappings, _) = queue.into_mappings();
    assert_eq!(lab.platform.unmap_each(&mut mappings), Ok(()));
    assert_eq!(lab.machine.grants().nr_handles(us), 0);
}

#[test]
fn a_copy_that_fails_at_any_segment_leaves_the_disk_as_it_was() {
    let mut lab = Lab::new();
    lab.write(0, &[1; 11 * PAGE_SIZE]);
    let free = lab.pool.nr_free();
    let (page, gref) = lab.page(GrantAccess::ReadOnly);
    page.fill(2);
    for bad in 0..11 {
        let mut segments = [segment(gref, 0, 7); 11];
        segments[bad].gref = GrantRef(12345);
        lab.refused(write(0, &segments), Reason::Copy(GntStatus::BAD_GNTREF));
        assert_eq!(lab.read(0, 88), [1; 11 * PAGE_SIZE]);
        assert_eq!(lab.pool.nr_free(), free);
    }
}

#[test]
fn a_copy_that_fails_hurts_only_its_own_request() {
    let mut lab = Lab::new();
    let (page, gref) = lab.page(GrantAccess::ReadOnly);
    page.fill(2);
    for n in 0..4 {
        lab.put(write(8 * n, &[segment(gref, 0, 7)]));
    }
    // The guest did not grant this one for writing.
    lab.put(read(0, &[segment(gref, 0, 7)]));
    lab.machine.grants().copy_faults.fail_nth(2, GntStatus::EAGAIN);
    let turn = lab.turn();
    assert_eq!(turn.refused.map(|refused| refused.reason), Some(Reason::Copy(GntStatus::EAGAIN)));
    let statuses: Vec<Status> = lab.responses().iter().map(|response| response.status).collect();
    let (okay, error) = (Status::OKAY, Status::ERROR);
    assert_eq!(statuses, [okay, error, okay, okay, error]);
    assert_eq!(lab.read(8, 8), [0; PAGE_SIZE]);
    assert_eq!(lab.read(16, 8), [2; PAGE_SIZE]);
}

#[test]
fn descriptors_that_cannot_be_fetched_fail_their_request() {
    let mut lab = Lab::new();
    let free = lab.pool.nr_free();
    let max = MaxIndirectSegments::MAX;
    let grefs = [GrantRef(54321); 8];
    let op = Indirect::new(IndirectOp::Write, Sector(0), 20, grefs, max).unwrap();
    let reason = Reason::Copy(GntStatus::BAD_GNTREF);
    lab.refused(Operation::Indirect(op), reason);
    assert_eq!(lab.pool.nr_free(), free);
}

#[test]
fn small_writes_to_one_page_in_one_turn_are_all_there() {
    let mut lab = Lab::new();
    let mut expected = Vec::new();
    for n in 0..8 {
        let (page, gref) = lab.page(GrantAccess::ReadOnly);
        page.fill(n as u8 + 1);
        expected.extend([n as u8 + 1; SECTOR]);
        lab.put(write(n, &[segment(gref, 0, 0)]));
    }
    lab.turn();
    assert!(lab.responses().iter().all(|response| response.status == Status::OKAY));
    assert_eq!(lab.read(0, 8), expected);
}

#[test]
fn a_flush_comes_after_what_was_asked_before_it() {
    let mut lab = Lab::new();
    let (page, gref) = lab.page(GrantAccess::ReadOnly);
    page.fill(3);
    lab.put(write(0, &[segment(gref, 0, 7)]));
    lab.put(Operation::Flush(transfer(0, &[])));
    lab.put(write(8, &[segment(gref, 0, 7)]));
    let before = lab.machine.counters();
    lab.turn();
    // The write before it was copied by itself.
    assert_eq!(lab.machine.counters().copy_calls - before.copy_calls, 2);
    let statuses: Vec<Status> = lab.responses().iter().map(|response| response.status).collect();
    assert_eq!(statuses, [Status::OKAY; 3]);
    assert_eq!((lab.queue.stats.nr_writes, lab.queue.stats.nr_flushes), (2, 1));
}

#[test]
fn a_pool_without_memory_fails_the_write_and_nothing_else() {
    let mut lab = Lab::with_pool(28);
    let (page, gref) = lab.page(GrantAccess::ReadWrite);
    page.fill(4);
    let total = lab.pool.nr_total();
    let mut written = 0;
    let reason = loop {
        match lab.serve(write(8 * written, &[segment(gref, 0, 7)])) {
            (Status::OKAY, None) => written += 1,
            (status, reason) => {
                assert_eq!(status, Status::ERROR);
                break reason.unwrap();
            }
        }
    };
    assert_eq!((written, total), (20, 26));
    assert_eq!(reason, Reason::Store(StoreError::CapReached { cap_pages: 20 }));
    assert_eq!(lab.read(8 * 19, 8), [4; PAGE_SIZE]);
    lab.write(0, &[5; PAGE_SIZE]);
    assert_eq!(lab.read(0, 8), [5; PAGE_SIZE]);
}

#[test]
fn overwrites_of_one_turn_need_no_more_of_a_full_pool_than_the_largest_of_them() {
    let mut lab = Lab::with_pool(28);
    for n in 0..20 {
        lab.write(8 * n, &[1; PAGE_SIZE]);
    }
    while lab.pool.nr_free() > 2 {
        lab.pool.take(Want::Exchange).unwrap();
    }
    let (page, gref) = lab.page(GrantAccess::ReadOnly);
    page.fill(2);
    for n in 0..10 {
        lab.put(write(16 * n, &[segment(gref, 0, 7); 2]));
    }
    assert_eq!(lab.turn(), IDLE);
    assert_eq!(lab.responses().len(), 10);
    assert_eq!(lab.read(0, 160), vec![2; 20 * PAGE_SIZE]);
    assert_eq!(lab.pool.nr_free(), 2);
    // One alone that needs more fails.
    let reason = Reason::Store(StoreError::NoMemory { free: 0, total: 26 });
    lab.refused(write(0, &[segment(gref, 0, 7); 3]), reason);
}

#[test]
fn writes_of_one_turn_to_the_same_new_page_count_it_once() {
    let mut lab = Lab::with_pool(28);
    for n in 0..19 {
        lab.write(8 * n, &[1; PAGE_SIZE]);
    }
    let (_, gref) = lab.page(GrantAccess::ReadOnly);
    for _ in 0..3 {
        lab.put(write(8 * 19, &[segment(gref, 0, 7)]));
    }
    assert_eq!(lab.turn(), IDLE);
    let usage = lab.disk.usage();
    assert_eq!((usage.nr_pages, usage.cap_pages), (20, 20));
}

#[test]
fn a_turn_is_bounded_and_says_that_there_is_more() {
    let mut lab = Lab::new();
    let (_, gref) = lab.page(GrantAccess::ReadWrite);
    for _ in 0..6 {
        let op = indirect(&lab, IndirectOp::Read, 0, &vec![segment(gref, 0, 7); 256]);
        lab.put(op);
    }
    assert_eq!(lab.turn(), Turn { next: Next::Work, ..IDLE });
    assert_eq!(lab.responses().len(), 4);
    assert_eq!(lab.turn(), IDLE);
    assert_eq!(lab.responses().len(), 2);
}

/// A disk of pages that says it has to unpack them.
struct Packed<'a> {
    disk: &'a mut PageDisk,
    unit_bytes: u64,
}

impl BlockStore<OwnFrames> for Packed<'_> {
    fn geometry(&self) -> Geometry {
        BlockStore::<OwnFrames>::geometry(self.disk)
    }

    fn unpack_unit_bytes(&self) -> Option<u64> {
        Some(self.unit_bytes)
    }

    fn begin_read(
        &mut self,
        pool: &mut PagePool<OwnFrames>,
        range: SectorRange,
        sink: &mut impl ExtentSink,
    ) -> Result<OpenRead, StoreError> {
        self.disk.begin_read(pool, range, sink)
    }
}

#[test]
fn a_turn_takes_no_more_than_may_be_unpacked_at_once_but_always_a_request() {
    let mut lab = Lab::new();
    let (_, gref) = lab.page(GrantAccess::ReadWrite);
    let (page, past) = (segment(gref, 0, 7), u64::MAX);
    let indirect = |lab: &Lab| indirect(lab, IndirectOp::Read, 0, &[page; 256]);
    // 32 reads of a page: within a unit, across two, of the largest unit, and nowhere.
    for (unit_bytes, sector, in_turn) in [
        (512, 0, 32),
        (32 << 10, 0, 32),
        (64 << 10, 120, 16),
        (64 << 10, 121, 8),
        (512 << 10, 0, 2),
        (2 << 20, 0, 1),
        (2 << 20, 4092, 1),
        (2 << 20, past, 1),
    ] {
        (0..32).for_each(|_| _ = lab.put(read(sector, &[page])));
        let mut turns = Vec::new();
        while turns.iter().sum::<usize>() < 32 {
            lab.turn_on_packed(unit_bytes);
            turns.push(lab.responses().len());
        }
        assert_eq!(turns, vec![in_turn; 32 / in_turn], "{unit_bytes} {sector}");
    }
    // A large request is taken alone, behind small ones too; a flush unpacks nothing.
    lab.put(read(0, &[page]));
    for _ in 0..2 {
        let op = indirect(&lab);
        lab.put(op);
        lab.put(Operation::Flush(transfer(0, &[])));
    }
    let turns: Vec<usize> =
        (0..3).map(|_| (lab.turn_on_packed(64 << 10), lab.responses().len()).1).collect();
    assert_eq!(turns, [2, 2, 1]);
}

#[test]
fn a_producer_past_the_ring_stops_it_before_a_slot_is_touched() {
    let mut lab = Lab::new();
    let (page, gref) = lab.page(GrantAccess::ReadWrite);
    lab.put(read(0, &[segment(gref, 0, 7)]));
    page.count_fetches();
    let (ring_page, gref) = {
        let ring_page = Page::new();
        ring_page.store_u32(0, 33);
        let us = lab.platform.domid();
        let gref = lab.machine.grants().grant(lab.guest, us, &ring_page, GrantAccess::ReadWrite);
        (ring_page, gref)
    };
    ring_page.count_fetches();
    let mapping = lab.platform.map(lab.guest, &[gref]).unwrap();
    let max = lab.engine.max_indirect();
    lab.queue.ring = BackRing::attach(mapping, Abi::X86_64, max).unwrap();
    assert_eq!(lab.queue.ring.nr_in_flight(), 0);
    let mut media = Media {
        disk: &mut lab.disk,
        access: lab.access,
        discards: lab.discards,
        pool: &mut lab.pool,
    };
    let error = lab.engine.turn(&mut lab.queue, &mut lab.platform, &mut media).unwrap_err();
    let blkif::ProducerOverrun { consumed, produced, room } = error;
    assert_eq!((consumed, produced, room), (0, 33, 32));
    assert_eq!(ring_page.fetches(64..PAGE_SIZE), vec![0; PAGE_SIZE - 64]);
}

#[test]
fn a_frontend_that_does_not_wait_is_not_told() {
    let mut lab = Lab::new();
    let (_, gref) = lab.page(GrantAccess::ReadWrite);
    let sends = |lab: &Lab| lab.machine.counters().sends;
    // Its first response is waited for: that is how a ring begins.
    lab.put(read(0, &[segment(gref, 0, 7)]));
    let before = sends(&lab);
    lab.turn();
    assert_eq!(sends(&lab) - before, 1);
    lab.put(read(0, &[segment(gref, 0, 7)]));
    lab.turn();
    assert_eq!(sends(&lab) - before, 1);
    lab.responses();
    assert_eq!(lab.front.final_check().unwrap(), FinalCheck::Idle);
    lab.put(read(0, &[segment(gref, 0, 7)]));
    assert_eq!(lab.front.publish(), Notify::Needed);
    lab.turn();
    assert_eq!(sends(&lab) - before, 2);
}

/// The README's table of operations, held against what the engine does.
#[test]
fn the_readme_says_what_is_supported() {
    let readme = include_str!("../../../README.md");
    let (_, table) = readme.split_once("| Operation | |\n|---|---|\n").unwrap();
    let rows: Vec<(&str, bool)> = table
        .lines()
        .map_while(|line| line.strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | "))
        .map(|(name, answer)| (name, answer == "yes"))
        .collect();
    assert_eq!(rows.len(), 7);
    for (name, offered) in rows {
        let mut lab = Lab::new();
        let (_, gref) = lab.page(GrantAccess::ReadWrite);
        let one = [segment(gref, 0, 7)];
        let op = match name {
            "read" => read(0, &one),
            "write" => write(0, &one),
            "flush" => Operation::Flush(transfer(0, &[])),
            "indirect" => indirect(&lab, IndirectOp::Read, 0, &one),
            "barrier" => Operation::Barrier(transfer(0, &one)),
            "discard" => Operation::Discard { sector: Sector(0), nr_sectors: 8, secure: false },
            "secure discard" => {
                Operation::Discard { sector: Sector(0), nr_sectors: 8, secure: true }
            }
            _ => panic!("no operation is called {name}"),
        };
        let expected = if offered { Status::OKAY } else { Status::EOPNOTSUPP };
        assert_eq!(lab.serve(op).0, expected, "{name}");
    }
}
