//! The security record of block backends: for each past bug the test that would have found it.
//! `docs/security.md` has the list.
//!
//! `SECURITY_COUNT` says how many requests and writes the floods make; 1000000 is the full run.

#![allow(clippy::cast_possible_truncation, clippy::unwrap_used, reason = "a test may")]

mod byhand;

use std::time::Duration;

use blkback::{Discards, Engine, Grants, Media, Queue};
use blkif::{
    Abi, BackRing, FrontRing, IndirectOp, MaxIndirectSegments, OpCode, Operation, ProducerOverrun,
    Request, RequestId, Response, Sector, Slot, Status, keys, layout,
};
use byhand::{ByHand, pattern, segment, state, transfer};
use sim::toolstack::{Detach, Device, DiskSpec, Operation as Xl};
use sim::xenstored::{DuplicateEvents, Errno};
use sim::{
    Access as Touch, GrantAccess, GrantUse, Lab, LabBuilder, Machine, Page, Region, SimPlatform,
    Storm, seeds,
};
use store::{Access, BlockSize, PageDisk, PagePool};
use xen_abi::{DomId, EvtchnPort, Gfn, GntStatus, GrantRef, PAGE_SIZE, XenbusState};

const NR_SECTORS: u64 = 512;
const TARGET: &str = "ram,size=256K";

/// How many requests or writes a flood has.
fn count(default: u64) -> u64 {
    std::env::var("SECURITY_COUNT").map_or(default, |text| text.parse().unwrap())
}

/// A host with a guest that has a disk, which it does nothing with yet.
fn attached(lab: LabBuilder, abi: Abi) -> (Lab, ByHand) {
    let mut lab = lab.start();
    let guest = lab.create_guest();
    let disk = lab.attach(guest, "xvda", TARGET);
    let guest = ByHand::new(&lab, disk, abi, NR_SECTORS);
    (lab, guest)
}

/// A host with a guest whose frontend is connected, with a ring of a page.
fn connected(cmdline: &str, abi: Abi, grant_use: GrantUse) -> (Lab, ByHand) {
    let (mut lab, mut guest) = attached(Lab::new(1).cmdline(cmdline), abi);
    guest.grant_use = grant_use;
    guest.connect(&mut lab, &[]);
    (lab, guest)
}

/// The guest is destroyed, and nothing of it is left.
fn end(mut lab: Lab, guest: &ByHand) {
    lab.destroy(guest.disk.frontend);
    lab.assert_clean();
}

/// The disk is detached; its frontend closes.
fn detach(lab: &mut Lab, guest: &ByHand) {
    let disk = guest.disk;
    let detach = Xl::detach(lab.machine(), disk, Detach::Polite);
    let detach = lab.begin(detach);
    lab.run_until("state 5", |lab| state(lab, disk) == Some(XenbusState::Closing));
    guest.state(6);
    assert_eq!(lab.finish(detach), Ok(()));
}

/// Another guest's disk is as good as ever.
fn others_are_served(lab: &mut Lab) {
    let guest = lab.create_guest();
    let disk = lab.attach(guest, "xvda", TARGET);
    lab.connect(disk);
    lab.random_io(disk, 50);
    lab.destroy(guest);
}

fn nr_handles(lab: &Lab) -> usize {
    lab.machine().grants().nr_handles(lab.domid())
}

/// The text of a vbd's error node.
fn error(lab: &Lab, disk: Device) -> Option<String> {
    let be = format!("/local/domain/{}", disk.backend);
    let node = format!("{be}/error/backend/vbd/{}/{}/error", disk.frontend, disk.devid);
    lab.machine().xs(DomId(0)).get(&node)
}

// ---- XSA-155: the backend fetched a request, or a segment, twice

/// Flips all that was fetched, so that whoever fetches it again gets something else.
fn mutate_behind(page: &Page) {
    page.count_fetches();
    page.set_hook(|page, touch| {
        if let Touch::Fetch { offset, len_bytes } = touch
            && offset >= layout::RING
        {
            let flipped: Vec<u8> =
                page.bytes(offset..offset + len_bytes).iter().map(|byte| !byte).collect();
            page.write(offset, &flipped);
        }
    });
}

#[test]
fn xsa_155_double_fetch_of_ring_and_indirect_page() {
    for abi in [Abi::X86_64, Abi::X86_32] {
        for grant_use in [GrantUse::PerRequest, GrantUse::Persistent] {
            let (mut lab, mut guest) = connected("", abi, grant_use);
            let ring = guest.rings[0].pages[0].clone();
            let (direct, direct_gref) = guest.page(GrantAccess::ReadOnly);
            let (indirect, indirect_gref) = guest.page(GrantAccess::ReadOnly);
            direct.write(0, &pattern(1));
            indirect.write(0, &pattern(2));
            let segments: Vec<_> =
                (0..8).map(|sector| segment(indirect_gref, sector, sector)).collect();
            let (op, tables) = guest.indirect(IndirectOp::Write, 8, &segments);
            let first = guest.push(Operation::Write(transfer(0, &[segment(direct_gref, 0, 7)])));
            let second = guest.push(op);
            // The first 64 bytes of the table and the data are not the ring's indices.
            for page in [&ring, &tables[0], &direct, &indirect] {
                mutate_behind(page);
            }
            tables[0].set_hook(|page, touch| {
                if let Touch::Fetch { .. } = touch {
                    page.fill(0xff);
                }
            });
            let answers = guest.served(&mut lab, 2);
            let okay = |id| Response { id, operation: OpCode::WRITE, status: Status::OKAY };
            assert_eq!(answers, [okay(first), okay(second)]);

            let slots_len = 2 * abi.layout().entry_len_bytes;
            let slots = ring.fetches(layout::RING..PAGE_SIZE);
            assert!(slots[..slots_len].iter().all(|&nr| nr == 1), "both slots, once");
            assert!(slots[slots_len..].iter().all(|&nr| nr == 0), "no other slot");
            let table = tables[0].fetches(0..PAGE_SIZE);
            assert!(table[..64].iter().all(|&nr| nr == 1), "8 segments, once");
            assert!(table[64..].iter().all(|&nr| nr == 0), "no others");
            for data in [&direct, &indirect] {
                assert!(data.fetches(0..PAGE_SIZE).iter().all(|&nr| nr == 1), "data, once");
                data.clear_hook();
            }
            ring.clear_hook();
            tables[0].clear_hook();
            // What was fetched first is what was done.
            assert_eq!(guest.read_sectors(&mut lab, 0, 8), pattern(1));
            assert_eq!(guest.read_sectors(&mut lab, 8, 8), pattern(2));
            end(lab, &guest);
        }
    }
}

// ---- XSA-216: bytes of the backend's stack in a response's padding

#[test]
fn xsa_216_stack_leak_in_response_padding() {
    for abi in [Abi::X86_64, Abi::X86_32] {
        let (mut lab, mut guest) = connected("", abi, GrantUse::PerRequest);
        let entry_len = abi.layout().entry_len_bytes;
        for (n, (mut slot, status)) in every_failure(&mut guest).into_iter().enumerate() {
            // The bytes that a request does not use hold something, too.
            slot.0[abi.layout().segments + 80..].fill(0xa5);
            let at = layout::RING + n % 32 * entry_len;
            guest.push_slot(&slot);
            let [response] = guest.served(&mut lab, 1)[..] else { unreachable!("asked for one") };
            assert_eq!(response.status, status);
            let ring = guest.rings[0].pages[0].bytes(at..at + entry_len);
            let mut expected = slot.0[..entry_len].to_vec();
            expected[..8].copy_from_slice(&response.id.0.to_le_bytes());
            expected[8] = response.operation.0;
            expected[9] = 0;
            expected[10..12].copy_from_slice(&status.0.to_le_bytes());
            if abi == Abi::X86_64 {
                expected[12..16].fill(0);
            }
            assert_eq!(ring, expected, "request {n}: the response, and nothing else changed");
        }
        end(lab, &guest);
    }
}

/// A request of every kind that fails, and how it is answered.
fn every_failure(guest: &mut ByHand) -> Vec<(Slot, Status)> {
    let abi = guest.abi;
    let layout = abi.layout();
    let (frontend, backend) = (guest.disk.frontend, guest.disk.backend);
    let (_, good) = guest.page(GrantAccess::ReadWrite);
    let (_, read_only) = guest.page(GrantAccess::ReadOnly);
    let (_, revoked) = guest.page(GrantAccess::ReadWrite);
    guest.machine.grants().revoke(frontend, revoked);
    let for_another =
        guest.machine.grants().grant(frontend, DomId(0), &Page::new(), GrantAccess::ReadWrite);
    assert_ne!(backend, DomId(0));
    let mut failures = Vec::new();
    let mut add = |op: Operation, change: &dyn Fn(&mut Slot), status| {
        let id = RequestId(0x1234_5678_9abc_0000 + failures.len() as u64);
        let mut slot = Request { id, handle: 7, op }.encode(abi);
        change(&mut slot);
        failures.push((slot, status));
    };
    let none = |_: &mut Slot| {};
    let one = |gref| [segment(gref, 0, 7)];
    for gref in [GrantRef(0), GrantRef(u32::MAX), revoked, for_another] {
        for segments in [&one(gref)[..], &[segment(good, 0, 7), segment(gref, 1, 3)]] {
            add(Operation::Read(transfer(0, segments)), &none, Status::ERROR);
            add(Operation::Write(transfer(0, segments)), &none, Status::ERROR);
            add(Operation::Flush(transfer(0, segments)), &none, Status::ERROR);
            add(Operation::Barrier(transfer(0, segments)), &none, Status::ERROR);
        }
    }
    if guest.grant_use == GrantUse::PerRequest {
        add(Operation::Read(transfer(0, &one(read_only))), &none, Status::ERROR);
    }
    for sector in [NR_SECTORS - 7, NR_SECTORS, u64::MAX - 7, u64::MAX] {
        add(Operation::Read(transfer(sector, &one(good))), &none, Status::ERROR);
        add(Operation::Write(transfer(sector, &one(good))), &none, Status::ERROR);
        let (sector, nr_sectors) = (Sector(sector), 8);
        let discard = Operation::Discard { sector, nr_sectors, secure: false };
        add(discard, &none, Status::ERROR);
    }
    for nr_sectors in [NR_SECTORS + 1, u64::MAX] {
        for sector in [Sector(0), Sector(8)] {
            let discard = Operation::Discard { sector, nr_sectors, secure: true };
            add(discard, &none, Status::ERROR);
        }
    }
    let write = Operation::Write(transfer(0, &one(good)));
    for nr_segments in [0, 12, 255] {
        add(write, &|slot| slot.0[1] = nr_segments, Status::ERROR);
    }
    for (first, last) in [(1, 0), (0, 8), (8, 8), (255, 0), (0, 255), (255, 255)] {
        let segments = [segment(good, 0, 7), segment(good, first, last)];
        add(Operation::Write(transfer(0, &segments)), &none, Status::ERROR);
    }
    for code in [4, 7, 8, 255] {
        add(write, &|slot| slot.0[0] = code, Status::EOPNOTSUPP);
    }

    for table in [GrantRef(0), GrantRef(u32::MAX), revoked, for_another] {
        let (op, _) = guest.indirect(IndirectOp::Write, 0, &one(good));
        let put = |slot: &mut Slot| {
            slot.0[layout.indirect_grefs..][..4].copy_from_slice(&table.0.to_le_bytes());
        };
        let id = RequestId(u64::from(table.0));
        let mut slot = Request { id, handle: 0, op }.encode(abi);
        put(&mut slot);
        failures.push((slot, Status::ERROR));
    }
    for (inner, nr_segments) in [(1, 0), (0, 257), (1, 4097), (1, u16::MAX), (3, 1), (5, 1), (6, 1)]
    {
        let (op, _) = guest.indirect(IndirectOp::Write, 0, &one(good));
        let mut slot = Request { id: RequestId(99), handle: 0, op }.encode(abi);
        slot.0[1] = inner;
        slot.0[2..4].copy_from_slice(&nr_segments.to_le_bytes());
        failures.push((slot, Status::ERROR));
    }
    for bad in [segment(good, 3, 2), segment(good, 0, 8), segment(revoked, 0, 7)] {
        let segments = [segment(good, 0, 7), bad];
        let (op, _) = guest.indirect(IndirectOp::Write, 0, &segments);
        failures.push((Request { id: RequestId(98), handle: 0, op }.encode(abi), Status::ERROR));
    }
    let (op, _) = guest.indirect(IndirectOp::Read, NR_SECTORS - 8, &[segment(good, 0, 7); 2]);
    failures.push((Request { id: RequestId(97), handle: 0, op }.encode(abi), Status::ERROR));
    failures
}

// ---- CVE-2013-2140: a discard on a read-only disk

/// An engine and a disk that holds something, without the domain around them.
struct Bench {
    machine: Machine,
    platform: SimPlatform,
    guest: DomId,
    front: FrontRing<Region>,
    queue: Queue<sim::SimMapping>,
    engine: Engine,
    pool: PagePool<sim::OwnFrames>,
    disk: PageDisk,
}

impl Bench {
    fn new() -> Self {
        let machine = Machine::new(1);
        let (us, guest) = (machine.create_domain(), machine.create_domain());
        let (area, nr_frames) = (Gfn(100), 400);
        let runs = [(Gfn(area.0 + Engine::NR_FRAMES), nr_frames)];
        let mut platform = SimPlatform::new(&machine, us, &[(area, nr_frames + Engine::NR_FRAMES)]);
        let pool = PagePool::new(platform.frames().clone(), &runs).unwrap();
        let disk = PageDisk::new(NR_SECTORS, BlockSize::B512, NR_SECTORS / 8, &pool).unwrap();
        let page = Page::new();
        let gref = machine.grants().grant(guest, us, &page, GrantAccess::ReadWrite);
        let front = FrontRing::init(Region::owned(vec![page]), Abi::X86_64).unwrap();
        let max = MaxIndirectSegments::new(256).unwrap();
        let ring = platform.map(guest, &[gref]).unwrap();
        let ring = BackRing::attach(ring, Abi::X86_64, max).unwrap();
        let queue = Queue::new(ring, EvtchnPort(0), guest, None);
        let engine = Engine::new(area, max);
        Self { machine, platform, guest, front, queue, engine, pool, disk }
    }

    fn page(&self) -> (Page, GrantRef) {
        let (page, us) = (Page::new(), self.platform.domid());
        let gref = self.machine.grants().grant(self.guest, us, &page, GrantAccess::ReadWrite);
        (page, gref)
    }

    fn serve(&mut self, op: Operation, access: Access) -> Status {
        self.front.push(&Request { id: RequestId(1), handle: 0, op }).unwrap();
        let _ = self.front.publish();
        let mut media = Media {
            disk: &mut self.disk,
            access,
            discards: Discards::Offered,
            pool: &mut self.pool,
        };
        let turn = self.engine.turn(&mut self.queue, &mut self.platform, &mut media).unwrap();
        assert_eq!(turn.next, blkback::Next::Event);
        assert_eq!(self.front.unconsumed(), Ok(1));
        self.front.consume().unwrap().status
    }

    fn image(&mut self) -> Vec<u8> {
        let (page, gref) = self.page();
        let mut image = Vec::new();
        for sector in (0..NR_SECTORS).step_by(8) {
            let read = Operation::Read(transfer(sector, &[segment(gref, 0, 7)]));
            assert_eq!(self.serve(read, Access::ReadOnly), Status::OKAY);
            image.extend(page.bytes(0..PAGE_SIZE));
        }
        image
    }
}

#[test]
fn cve_2013_2140_discard_on_a_read_only_disk() {
    let mut bench = Bench::new();
    let (page, gref) = bench.page();
    for sector in (0..NR_SECTORS).step_by(8) {
        page.write(0, &pattern(sector as u8));
        let write = Operation::Write(transfer(sector, &[segment(gref, 0, 7)]));
        assert_eq!(bench.serve(write, Access::ReadWrite), Status::OKAY);
    }
    let (before, free) = (bench.image(), bench.pool.nr_free());
    page.fill(0x77);
    let (table, table_gref) = bench.page();
    table.write(0, &segment(gref, 0, 7).encode());
    let mut grefs = [GrantRef(0); blkif::MAX_INDIRECT_PAGES];
    grefs[0] = table_gref;
    let indirect = |op| {
        let max = MaxIndirectSegments::MAX;
        Operation::Indirect(blkif::Indirect::new(op, Sector(0), 1, grefs, max).unwrap())
    };
    let one = transfer(0, &[segment(gref, 0, 7)]);
    let part = transfer(3, &[segment(gref, 3, 3)]);
    let nothing = transfer(0, &[]);
    let discard = |nr_sectors, secure| Operation::Discard { sector: Sector(0), nr_sectors, secure };
    for (op, status) in [
        (Operation::Write(one), Status::ERROR),
        (Operation::Write(part), Status::ERROR),
        (indirect(IndirectOp::Write), Status::ERROR),
        (Operation::Flush(one), Status::ERROR),
        (Operation::Barrier(one), Status::ERROR),
        (discard(8, false), Status::ERROR),
        (discard(8, true), Status::ERROR),
        (discard(3, true), Status::ERROR),
        (discard(NR_SECTORS, false), Status::ERROR),
        (discard(NR_SECTORS, true), Status::ERROR),
        (Operation::Unknown { code: OpCode(4) }, Status::EOPNOTSUPP),
        // These change nothing.
        (Operation::Read(one), Status::OKAY),
        (indirect(IndirectOp::Read), Status::OKAY),
        (Operation::Flush(nothing), Status::OKAY),
        (Operation::Barrier(nothing), Status::OKAY),
    ] {
        page.fill(0x77);
        assert_eq!(bench.serve(op, Access::ReadOnly), status, "{op:?}");
        assert!(bench.image() == before, "the disk changed by {op:?}");
    }
    assert_eq!(bench.pool.nr_free(), free, "pages of the disk");
}

#[test]
fn cve_2013_2140_mode_r_of_the_toolstack_is_obeyed() {
    let mut lab = Lab::new(2).start();
    let guest = lab.create_guest();
    let disk = lab.try_attach(guest, &DiskSpec::new("xvda", TARGET).read_only()).unwrap();
    let mut guest = ByHand::connected(&mut lab, disk, Abi::X86_64, NR_SECTORS);
    assert_eq!(guest.backend(keys::INFO).as_deref(), Some("4"), "VDISK_READONLY");
    let (page, gref) = guest.page(GrantAccess::ReadWrite);
    page.fill(0x77);
    let one = transfer(0, &[segment(gref, 0, 7)]);
    let (indirect, _) = guest.indirect(IndirectOp::Write, 0, &[segment(gref, 0, 7)]);
    let discard = |secure| Operation::Discard { sector: Sector(0), nr_sectors: 8, secure };
    for op in [
        Operation::Write(one),
        Operation::Flush(one),
        Operation::Barrier(one),
        indirect,
        discard(false),
        discard(true),
    ] {
        assert_eq!(guest.serve(&mut lab, op), Status::ERROR, "{op:?}");
    }
    assert!(guest.image(&mut lab).iter().all(|&byte| byte == 0));
    end(lab, &guest);
}

// ---- XSA-71, XSA-371: grants stayed mapped when a request failed

#[test]
fn xsa_71_371_grant_leaks_on_failing_requests() {
    let nr = count(20_000);
    for grant_use in [GrantUse::PerRequest, GrantUse::Persistent] {
        let (mut lab, mut guest) = connected("", Abi::X86_64, grant_use);
        assert_eq!(guest.write_sectors(&mut lab, 0, &pattern(7)), Status::OKAY);
        let before = guest.image(&mut lab);
        let failures = every_failure(&mut guest);
        let mut all = failures.iter().cycle();
        let mut most = 0;
        for _ in 0..nr.div_ceil(64) {
            let round: Vec<_> = all.by_ref().take(32).collect();
            for (slot, _) in &round {
                guest.push_slot(slot);
            }
            for (response, (slot, status)) in guest.served(&mut lab, 32).iter().zip(&round) {
                assert_eq!(response.status, *status, "{slot:?}");
            }
            most = most.max(nr_handles(&lab));
        }
        let cached = match grant_use {
            GrantUse::PerRequest => 0,
            // What the guest has granted and can be mapped: pages that stay mapped.
            GrantUse::Persistent => lab.machine().grants().nr_active(guest.disk.frontend) - 1,
        };
        assert!(most <= 1 + cached, "{most} handles for a ring and {cached} pages");
        assert!(cached <= failures.len(), "{cached}");
        assert!(guest.image(&mut lab) == before, "the disk changed");
        detach(&mut lab, &guest);
        assert_eq!(nr_handles(&lab), 0);
        assert_eq!(lab.machine().grants().nr_active(guest.disk.frontend), 0);
        guest.take_back();
        end(lab, &guest);
    }
}

#[test]
fn xsa_71_371_requests_that_the_hypervisor_fails_leak_nothing() {
    for grant_use in [GrantUse::PerRequest, GrantUse::Persistent] {
        let (mut lab, mut guest) = connected("", Abi::X86_64, grant_use);
        assert_eq!(guest.write_sectors(&mut lab, 0, &pattern(7)), Status::OKAY);
        lab.machine().grants().copy_faults.fail_one_in(1, GntStatus::GENERAL_ERROR);
        lab.machine().grants().map_faults.fail_one_in(1, GntStatus::GENERAL_ERROR);
        // The first is mapped already where pages stay mapped.
        let [_, (page, gref)] = [(); 2].map(|()| guest.page(GrantAccess::ReadWrite));
        page.fill(0x11);
        let write = Operation::Write(transfer(0, &[segment(gref, 0, 7)]));
        for _ in 0..200 {
            for _ in 0..32 {
                guest.push(write);
            }
            let responses = guest.served(&mut lab, 32);
            assert!(responses.iter().all(|response| response.status == Status::ERROR));
        }
        lab.machine().grants().copy_faults.clear();
        lab.machine().grants().map_faults.clear();
        assert_eq!(guest.read_sectors(&mut lab, 0, 8), pattern(7));
        assert!(nr_handles(&lab) <= 3, "the ring and the pages that can be mapped");
        end(lab, &guest);
    }
}

// ---- XSA-300: mappings without a bound

#[test]
fn xsa_300_unbounded_mappings() {
    const CAP: usize = 16;
    let (mut lab, mut guest) =
        connected(&format!("persistent={CAP}"), Abi::X86_64, GrantUse::Persistent);
    let mut nr_pages = 0;
    for _ in 0..count(2_000).div_ceil(32) {
        let mut expected = Vec::new();
        for n in 0..32 {
            // Each page is one that the backend has not seen yet.
            let page = Page::new();
            page.fill(n);
            let (owner, us) = (guest.disk.frontend, guest.disk.backend);
            let gref = guest.machine.grants().grant(owner, us, &page, GrantAccess::ReadWrite);
            guest.push(Operation::Write(transfer(u64::from(n) * 8, &[segment(gref, 0, 7)])));
            expected.push(n);
            nr_pages += 1;
        }
        let responses = guest.served(&mut lab, 32);
        assert!(responses.iter().all(|response| response.status == Status::OKAY));
        lab.settle();
        assert_eq!(nr_handles(&lab), 1 + CAP, "a page of the ring, and the cap");
        for n in expected {
            assert_eq!(guest.read_sectors(&mut lab, u64::from(n) * 8, 8), [n; PAGE_SIZE]);
        }
    }
    assert!(nr_pages > 100 * CAP);
    end(lab, &guest);
}

#[test]
fn xsa_300_the_cap_holds_under_hostile_load() {
    const CAP: usize = 6;
    const DISKS: usize = 3;
    let mut most = 0;
    for seed in seeds(4) {
        let mut lab = Lab::new(seed).cmdline("persistent=6 queues=1 ring-order=2").start();
        let guest = lab.create_guest();
        for vdev in ["xvda", "xvdb", "xvdc"] {
            let disk = lab.attach(guest, vdev, "ram,size=1M");
            lab.attack(disk, Abi::X86_64);
        }
        let end_at = lab.machine().now().after(Duration::from_secs(1));
        lab.run_until("the end of the attack", |lab| {
            most = most.max(nr_handles(lab));
            lab.machine().now() > end_at
        });
        assert!(most <= DISKS * (4 + CAP), "{most} handles");
        lab.destroy(guest);
        lab.assert_clean();
    }
    assert!(most > DISKS, "no page stayed mapped: {most}");
}

// ---- XSA-332: a storm of events

/// By the host's clock, how long another guest's disk takes for 300 requests.
fn time_of_others(disturb: impl Fn(&ByHand)) -> Duration {
    let (mut lab, guest) = connected("", Abi::X86_64, GrantUse::PerRequest);
    let other = lab.create_guest();
    let disk = lab.attach(other, "xvda", TARGET);
    lab.connect(disk);
    let began = lab.machine().now();
    lab.frontend(disk).want(300);
    lab.run_until("the answers", |lab| {
        disturb(&guest);
        lab.is_drained(disk)
    });
    let took = Duration::from_nanos(lab.machine().now().as_ns() - began.as_ns());
    lab.machine().events().storm = None;
    lab.destroy(other);
    end(lab, &guest);
    took
}

#[test]
fn xsa_332_event_storm() {
    let calm = time_of_others(|_| {});
    let flooded = time_of_others(|guest| {
        let port = guest.rings[0].port;
        for _ in 0..100 {
            guest.machine.events().send(guest.disk.frontend, port).unwrap();
        }
    });
    assert!(flooded < 2 * calm, "{flooded:?} under the flood, {calm:?} without");
    // One that comes again whenever it is taken, as from a CPU that does nothing else.
    let stormy = time_of_others(|guest| {
        let (domid, port) = (guest.disk.frontend, guest.rings[0].port);
        let mut events = guest.machine.events();
        if events.storm.is_none() {
            events.storm = Some(Storm { domid, port, left: 1_000_000 });
            events.send(domid, port).unwrap();
        }
        assert_ne!(events.storm.unwrap().left, 0, "no step waits for its end");
    });
    assert!(stormy < 2 * calm, "{stormy:?} in the storm, {calm:?} without");
}

/// Segments of a request of 1 MiB.
const NR_SEGMENTS: usize = 256;

/// A frontend whose rings are always full of requests of 1 MiB.
struct Flooder {
    guest: ByHand,
    read: Operation,
    nr_served: usize,
}

impl Flooder {
    fn new(lab: &mut Lab, frontend: DomId, vdev: &str, nr_queues: u32) -> Self {
        let disk = lab.attach(frontend, vdev, "ram,size=1M");
        let mut guest = ByHand::new(lab, disk, Abi::X86_64, 2048);
        guest.write(keys::MULTI_QUEUE_NUM_QUEUES, nr_queues);
        for n in 0..nr_queues {
            guest.new_ring(1);
            let ring = &guest.rings[n as usize];
            let queue = if nr_queues == 1 { String::new() } else { format!("{}/", keys::Queue(n)) };
            guest.write(&format!("{queue}{}", keys::RING_REF), ring.grefs[0]);
            guest.write(&format!("{queue}{}", keys::EVENT_CHANNEL), ring.port);
        }
        guest.state(3);
        lab.run_until("state 4", |lab| state(lab, disk) == Some(XenbusState::Connected));
        let (_, gref) = guest.page(GrantAccess::ReadWrite);
        let segments = [segment(gref, 0, 7); NR_SEGMENTS];
        let (read, _) = guest.indirect(IndirectOp::Read, 0, &segments);
        Self { guest, read, nr_served: 0 }
    }

    fn fill(&mut self) {
        let slot = Request { id: RequestId(1), handle: 0, op: self.read }.encode(self.guest.abi);
        for ring in &mut self.guest.rings {
            let _ = ring.front.final_check().unwrap();
            while let Some(response) = ring.front.consume() {
                assert_eq!(response.status, Status::OKAY);
                self.nr_served += 1;
            }
            while ring.front.free() > 0 {
                ring.front.push_slot(&slot).unwrap();
            }
        }
        self.guest.publish();
    }
}

/// Under a flood of vbds of one guest with so many queues each: how many steps of the domain, each
/// of which is one turn of one vbd, and how many copies another guest's request takes at most.
fn most_steps_and_copies(nr_vbds: usize, nr_queues: u32) -> (u64, u64) {
    let (mut lab, mut victim) = connected("", Abi::X86_64, GrantUse::PerRequest);
    let frontend = lab.create_guest();
    let mut flooders: Vec<Flooder> = ["xvda", "xvdb", "xvdc"][..nr_vbds]
        .iter()
        .map(|vdev| Flooder::new(&mut lab, frontend, vdev, nr_queues))
        .collect();
    let (_, gref) = victim.page(GrantAccess::ReadWrite);
    let read = Operation::Read(transfer(0, &[segment(gref, 0, 7)]));
    let mut most = (0, 0);
    for _ in 0..60 {
        let time = Duration::from_micros(lab.rng().below(500));
        let until = lab.machine().now().after(time);
        lab.run_until("a moment", |lab| {
            flooders.iter_mut().for_each(Flooder::fill);
            lab.machine().now() >= until
        });
        let before = (lab.nr_steps(), lab.machine().counters().copies);
        victim.push(read);
        victim.publish();
        lab.run_until("the answer", |_| {
            flooders.iter_mut().for_each(Flooder::fill);
            victim.responses().len() == 1
        });
        let after = (lab.nr_steps(), lab.machine().counters().copies);
        most = (most.0.max(after.0 - before.0), most.1.max(after.1 - before.1));
    }
    assert!(flooders.iter().all(|flooder| flooder.nr_served > 200), "and the greedy are served");
    lab.destroy(frontend);
    end(lab, &victim);
    most
}

#[test]
fn xsa_332_a_ring_that_is_always_full_delays_others_by_its_turn() {
    // In a turn four requests of 1 MiB, each with a page of segments to be fetched.
    let copies_of_turn = 4 * (NR_SEGMENTS as u64 + 1);
    // However many queues it has, a vbd has one turn before another has its own; several vbds of a
    // guest have one each.
    for (nr_vbds, nr_queues) in [(1, 1), (1, 4), (3, 2)] {
        let expected = (nr_vbds as u64 + 1, nr_vbds as u64 * copies_of_turn + 1);
        assert_eq!(most_steps_and_copies(nr_vbds, nr_queues), expected);
    }
}

// ---- XSA-349: a flood of writes to a watched node

#[test]
fn xsa_349_flood_of_a_watched_path() {
    let nr = count(20_000);
    for duplicates in [DuplicateEvents::Drop, DuplicateEvents::Queue] {
        let (mut lab, guest) = connected("", Abi::X86_64, GrantUse::PerRequest);
        lab.machine().xenstored().duplicates = duplicates;
        let node = format!("{}/state", guest.disk.frontend_path());
        let requests_before = 60;
        // A request past these would fail, and that would be counted.
        let faults = |lab: &Lab| lab.machine().xenstored().request_faults.nr_failed();
        lab.machine().xenstored().request_faults.fail_nth(requests_before, Errno::Einval);
        for _ in 0..nr {
            guest.xs.write(&node, "4").unwrap();
        }
        let waiting = lab.machine().xenstored().nr_queued(lab.domid());
        let expected = if duplicates == DuplicateEvents::Drop { 1 } else { nr as usize };
        assert_eq!(waiting, expected, "events that xenstored keeps for us");
        let began = lab.machine().now();
        lab.run_until("the end of the flood", |lab| {
            lab.machine().xenstored().nr_queued(lab.domid()) == 0
        });
        lab.settle();
        let took = lab.machine().now().as_ns() - began.as_ns();
        assert_eq!(faults(&lab), 0, "{nr} writes cost a few looks, not one each");
        assert_eq!(state(&lab, guest.disk), Some(XenbusState::Connected));
        assert!(took < 1_000_000 * (nr + 1000), "{took} ns for {nr} events");
        lab.machine().xenstored().request_faults.clear();
        others_are_served(&mut lab);
        end(lab, &guest);
    }
}

#[test]
fn xsa_349_a_flood_does_not_keep_others_from_their_disks() {
    let (mut lab, guest) = connected("", Abi::X86_64, GrantUse::PerRequest);
    let other = lab.create_guest();
    let disk = lab.attach(other, "xvda", TARGET);
    lab.connect(disk);
    let node = format!("{}/state", guest.disk.frontend_path());
    let mut n = 0u8;
    lab.frontend(disk).want(300);
    lab.run_until("the answers", |lab| {
        for _ in 0..50 {
            n = n.wrapping_add(1);
            guest.xs.write(&node, (n % 7).to_string()).unwrap();
        }
        lab.is_drained(disk)
    });
    assert_eq!(lab.frontend(disk).answers().okay, 300);
    lab.destroy(other);
    end(lab, &guest);
}

// ---- XSA-350: rapid connects and disconnects

#[test]
fn xsa_350_rapid_connect_and_disconnect() {
    let mut nr_connections = 0;
    for seed in seeds(40) {
        let (mut lab, mut guest) = attached(Lab::new(seed).cmdline("settle-ms=0"), Abi::X86_64);
        let disk = guest.disk;
        guest.offer_ring(1);
        let mut online = true;
        for _ in 0..100 {
            let state = lab.rng().between(1, 6) as u8;
            guest.state(state);
            let time = Duration::from_micros(lab.rng().below(400));
            lab.run_for(time);
            assert!(nr_handles(&lab) <= 1, "a second connection");
            if online && lab.rng().one_in(8) {
                // When it stands still, so do we where that calls for, however we got there.
                lab.run_for(Duration::from_millis(20));
                let ours = byhand::state(&lab, disk).map(|ours| ours as u8);
                let ours = ours.expect("a device that is online");
                let follows = match state {
                    1 | 2 => ours == 2,
                    5 => ours == 5 || ours == 6,
                    6 => ours == 6,
                    _ => ours >= 4,
                };
                assert!(follows, "seed {seed}: the frontend stands in {state}, we in {ours}");
            }
            // The toolstack comes and goes as well.
            if online && lab.rng().one_in(50) {
                let dom0 = lab.machine().xs(DomId(0));
                dom0.write(&format!("{}/online", disk.backend_path()), "0").unwrap();
                online = false;
            }
        }
        let operation = Xl::detach(lab.machine(), disk, Detach::Forced);
        let id = lab.begin(operation);
        assert_eq!(lab.finish(id), Ok(()), "seed {seed}");
        assert_eq!(nr_handles(&lab), 0);
        guest.take_back();
        nr_connections += lab.machine().counters().maps;
        // All of it took less than the time in which a line more may be said.
        let console = lab.machine().console();
        for caused in [": connected, ", ": closed after "] {
            let caused = console.iter().filter(|line| line.contains(caused));
            assert!(caused.count() <= 5, "{console:#?}");
        }
        end(lab, &guest);
    }
    assert!(nr_connections > 100, "{nr_connections} connections came about");
}

// ---- XSA-361, XSA-362, XSA-365: errors of mappings that nobody looked at

/// The frontend comes back after its backend has closed.
fn begin_again(lab: &mut Lab, guest: &mut ByHand) {
    let disk = guest.disk;
    guest.state(6);
    lab.run_until("state 6", |lab| state(lab, disk) == Some(XenbusState::Closed));
    guest.take_back();
    guest.state(1);
    lab.run_until("state 2", |lab| state(lab, disk) == Some(XenbusState::InitWait));
}

#[test]
fn xsa_361_362_365_map_errors_ignored() {
    for order in 0..=5u32 {
        let nr_pages = 1u32 << order;
        let (mut lab, mut guest) = attached(Lab::new(order.into()), Abi::X86_64);
        let disk = guest.disk;
        guest.write(keys::RING_PAGE_ORDER, order);
        for k in 1..=nr_pages {
            guest.offer_ring(nr_pages);
            let faults = k.into();
            lab.machine().grants().map_faults.fail_nth(faults, GntStatus::GENERAL_ERROR);
            guest.state(3);
            lab.run_until("the refusal", |lab| state(lab, disk) == Some(XenbusState::Closed));
            lab.settle();
            assert_eq!(nr_handles(&lab), 0, "page {k} of {nr_pages} failed");
            assert_eq!(lab.machine().events().nr_ports(lab.domid()), 1);
            if k <= 5 && order < 3 {
                let gref = guest.rings[0].grefs[k as usize - 1];
                let status = GntStatus::GENERAL_ERROR;
                let said = error(&lab, disk).unwrap();
                let expected = format!("22 cannot connect: cannot map grant {gref}: {status}");
                assert!(said.starts_with(&expected), "{said}");
            }
            begin_again(&mut lab, &mut guest);
        }
        guest.offer_ring(nr_pages);
        guest.state(3);
        lab.run_until("state 4", |lab| state(lab, disk) == Some(XenbusState::Connected));
        guest.random_io(&mut lab, 5);
        end(lab, &guest);
    }
}

#[test]
fn xsa_361_362_365_any_page_of_any_queue_may_fail() {
    let (mut lab, mut guest) = attached(Lab::new(9), Abi::X86_64);
    let disk = guest.disk;
    guest.write(keys::MULTI_QUEUE_NUM_QUEUES, 3);
    guest.write(keys::RING_PAGE_ORDER, 1);
    for k in 1..=6 {
        for queue in 0..3 {
            guest.new_ring(2);
            let dir = keys::Queue(queue);
            let ring = guest.rings.last().unwrap();
            guest.write(&format!("{dir}/{}", keys::EVENT_CHANNEL), ring.port);
            for (n, gref) in (0..).zip(&ring.grefs) {
                guest.write(&format!("{dir}/{}", keys::RingRef(n)), gref);
            }
        }
        lab.machine().grants().map_faults.fail_nth(k, GntStatus::NO_SPACE);
        guest.state(3);
        lab.run_until("the refusal", |lab| state(lab, disk) == Some(XenbusState::Closed));
        lab.settle();
        assert_eq!(nr_handles(&lab), 0, "page {k} of 6");
        assert_eq!(lab.machine().events().nr_ports(lab.domid()), 1, "ports of the queues before");
        begin_again(&mut lab, &mut guest);
    }
    end(lab, &guest);
}

#[test]
fn xsa_361_362_365_persistent_pages_that_cannot_be_mapped_are_copied() {
    for k in 1..=11 {
        let (mut lab, mut guest) = connected("", Abi::X86_64, GrantUse::Persistent);
        let pages: Vec<_> = (0..11).map(|_| guest.page(GrantAccess::ReadWrite)).collect();
        for (n, (page, _)) in pages.iter().enumerate() {
            page.write(0, &pattern(n as u8));
        }
        lab.machine().grants().map_faults.fail_nth(k, GntStatus::GENERAL_ERROR);
        let segments: Vec<_> = pages.iter().map(|&(_, gref)| segment(gref, 0, 7)).collect();
        let write = Operation::Write(transfer(0, &segments));
        assert_eq!(guest.serve(&mut lab, write), Status::OKAY);
        assert_eq!(nr_handles(&lab), 1 + 10, "all but page {k}");
        let counters = lab.machine().counters();
        assert_eq!((counters.copies, counters.mapped_copies), (1, 10));
        for n in 0..11 {
            assert_eq!(guest.read_sectors(&mut lab, n * 8, 8), pattern(n as u8), "page {n}");
        }
        end(lab, &guest);
    }
}

#[test]
fn xsa_361_362_365_a_copy_that_fails_fails_its_request() {
    for k in 1..=11 {
        let (mut lab, mut guest) = connected("", Abi::X86_64, GrantUse::PerRequest);
        let before = guest.image(&mut lab);
        let (page, gref) = guest.page(GrantAccess::ReadWrite);
        page.fill(0x99);
        let all = transfer(0, &[segment(gref, 0, 7); 11]);
        lab.machine().grants().copy_faults.fail_nth(k, GntStatus::GENERAL_ERROR);
        assert_eq!(guest.serve(&mut lab, Operation::Write(all)), Status::ERROR, "segment {k}");
        assert!(guest.image(&mut lab) == before, "segment {k} failed, and the disk changed");
        // The table of an indirect request is copy number 1, its segments come after.
        let (op, _) = guest.indirect(IndirectOp::Write, 0, &[segment(gref, 0, 7); 11]);
        lab.machine().grants().copy_faults.fail_nth(k, GntStatus::GENERAL_ERROR);
        assert_eq!(guest.serve(&mut lab, op), Status::ERROR);
        assert!(guest.image(&mut lab) == before, "copy {k} failed, and the disk changed");
        assert_eq!(guest.serve(&mut lab, op), Status::OKAY);
        end(lab, &guest);
    }
}

#[test]
fn xsa_361_362_365_an_unmap_that_fails_is_said_and_stops_nothing() {
    const NR: usize = 4;
    for k in 1..=NR {
        let (mut lab, mut guest) = connected("", Abi::X86_64, GrantUse::Persistent);
        let pages: Vec<_> = (1..NR).map(|_| guest.page(GrantAccess::ReadWrite)).collect();
        let segments: Vec<_> = pages.iter().map(|&(_, gref)| segment(gref, 0, 7)).collect();
        let write = Operation::Write(transfer(0, &segments));
        assert_eq!(guest.serve(&mut lab, write), Status::OKAY);
        assert_eq!(nr_handles(&lab), NR);
        lab.machine().grants().unmap_faults.fail_nth(k as u64, GntStatus::GENERAL_ERROR);
        detach(&mut lab, &guest);
        assert_eq!(nr_handles(&lab), 1, "the one that Xen kept");
        let lines = lab.machine().console();
        let said = lines.iter().filter(|line| line.contains("a grant stays mapped")).count();
        assert_eq!(said, 1, "{lines:#?}");
        others_are_served(&mut lab);
        assert_eq!(nr_handles(&lab), 1);
    }
}

// ---- XSA-376, XSA-391, XSA-396, XSA-403: a backend attacks its frontend

#[test]
fn xsa_376_391_396_403_a_backend_attacks_a_frontend() {
    for abi in [Abi::X86_64, Abi::X86_32] {
        let page = Page::new();
        let mut front = FrontRing::init(Region::mapped(vec![page.clone()]), abi).unwrap();
        // 403: nothing but zeroes and the indices is shown to the backend before the first request.
        let mut shown = vec![0; PAGE_SIZE];
        shown[layout::REQ_EVENT] = 1;
        shown[layout::RSP_EVENT] = 1;
        assert_eq!(page.bytes(0..PAGE_SIZE), shown);
        let request = |id| Request {
            id: RequestId(id),
            handle: 0,
            op: Operation::Read(transfer(0, &[segment(GrantRef(9), 0, 7)])),
        };
        front.push(&request(1)).unwrap();
        front.push(&request(2)).unwrap();
        let _ = front.publish();
        // A slot shows the request and zeroes.
        let used = abi.layout().segments + 8;
        let slot = page.bytes(layout::RING + used..layout::RING + abi.layout().entry_len_bytes);
        assert!(slot.iter().all(|&byte| byte == 0));

        // 376, 391: more responses than requests, found before a slot is touched; indices that go
        // back; the request's own fields overwritten.
        page.count_fetches();
        for produced in [3, 33, u32::MAX, 1 << 31] {
            page.store_u32(layout::RSP_PROD, produced);
            let overrun = ProducerOverrun { consumed: 0, produced, room: 2 };
            assert_eq!(front.final_check(), Err(overrun));
            assert!(front.consume().is_none());
        }
        assert_eq!(page.fetches(layout::RING..PAGE_SIZE).iter().sum::<u32>(), 0);
        page.store_u32(layout::REQ_PROD, 77);
        page.store_u32(layout::REQ_EVENT, 99);
        page.fill(0xff);
        page.store_u32(layout::RSP_PROD, 1);
        assert_eq!(front.unconsumed(), Ok(1));
        // 396: what was fetched cannot change any more.
        page.set_hook(|page, _| page.fill(0));
        let all = Response { id: RequestId(u64::MAX), operation: OpCode(0xff), status: Status(-1) };
        assert_eq!(front.consume(), Some(all));
        assert_eq!(front.consume(), None);
        let len = abi.layout().response_len_bytes;
        let fetched = page.fetches(layout::RING..PAGE_SIZE);
        assert!(fetched.iter().all(|&nr| nr <= 1));
        assert!(fetched[len..].iter().all(|&nr| nr == 0));
        page.clear_hook();
        assert_eq!(front.free(), front.nr_entries() - 1, "our own indices are ours");
    }
}

// ---- What else a frontend may claim

#[test]
fn a_sector_and_count_that_overflow_are_refused() {
    let (mut lab, mut guest) = connected("", Abi::X86_64, GrantUse::PerRequest);
    let (page, gref) = guest.page(GrantAccess::ReadWrite);
    page.fill(0x42);
    // (sector, sectors, whether they are on the disk)
    for (sector, nr, fits) in [
        (NR_SECTORS - 8, 8, true),
        (NR_SECTORS - 7, 8, false),
        (NR_SECTORS - 1, 1, true),
        (NR_SECTORS, 1, false),
        (u64::MAX, 1, false),
        (u64::MAX - 7, 8, false),
        (u64::MAX / 512 + 1, 8, false),
        (1 << 63, 1, false),
        (1 << 32, 8, false),
    ] {
        let expected = if fits { Status::OKAY } else { Status::ERROR };
        let one = transfer(sector, &[segment(gref, 0, nr - 1)]);
        let (indirect, _) = guest.indirect(IndirectOp::Read, sector, &[segment(gref, 0, nr - 1)]);
        let discard =
            |secure| Operation::Discard { sector: Sector(sector), nr_sectors: nr.into(), secure };
        for op in [
            Operation::Read(one),
            Operation::Write(one),
            Operation::Flush(one),
            Operation::Barrier(one),
            indirect,
            discard(false),
            discard(true),
        ] {
            assert_eq!(guest.serve(&mut lab, op), expected, "{op:?}");
        }
    }
    for (sector, nr_sectors) in [(8, u64::MAX), (u64::MAX, u64::MAX), (1, NR_SECTORS)] {
        let op = Operation::Discard { sector: Sector(sector), nr_sectors, secure: false };
        assert_eq!(guest.serve(&mut lab, op), Status::ERROR);
    }
    end(lab, &guest);
}

#[test]
fn nr_segments_of_0_12_255_and_past_the_limit_are_errors() {
    for abi in [Abi::X86_64, Abi::X86_32] {
        let (mut lab, mut guest) = connected("indirect=32", abi, GrantUse::PerRequest);
        let (_, gref) = guest.page(GrantAccess::ReadWrite);
        let at = layout::NR_SEGMENTS;
        for (nr, expected) in [
            (0, Status::ERROR),
            (1, Status::OKAY),
            (11, Status::OKAY),
            (12, Status::ERROR),
            (255, Status::ERROR),
        ] {
            let read = Operation::Read(transfer(0, &[segment(gref, 0, 7); 11]));
            let request = Request { id: guest.id(), handle: 0, op: read };
            let mut slot = request.encode(abi);
            slot.0[at] = nr;
            guest.push_slot(&slot);
            assert_eq!(guest.served(&mut lab, 1), [request.response(expected)], "{nr}");
        }
        for (nr, expected) in [
            (0u16, Status::ERROR),
            (1, Status::OKAY),
            (32, Status::OKAY),
            (33, Status::ERROR),
            (4096, Status::ERROR),
            (u16::MAX, Status::ERROR),
        ] {
            let (op, _) = guest.indirect(IndirectOp::Read, 0, &[segment(gref, 0, 7); 32]);
            let request = Request { id: guest.id(), handle: 0, op };
            let mut slot = request.encode(abi);
            slot.0[layout::INDIRECT_NR_SEGMENTS..][..2].copy_from_slice(&nr.to_le_bytes());
            guest.push_slot(&slot);
            assert_eq!(guest.served(&mut lab, 1), [request.response(expected)], "{nr} indirect");
        }
        end(lab, &guest);
    }
}

#[test]
fn a_segment_that_ends_before_it_begins_or_past_its_page_is_an_error() {
    let (mut lab, mut guest) = connected("", Abi::X86_64, GrantUse::PerRequest);
    let (page, gref) = guest.page(GrantAccess::ReadWrite);
    for first in (0..=16).chain([127, 128, 254, 255]) {
        for last in [0, 1, 6, 7, 8, 9, 128, 255] {
            page.fill(0x3c);
            let read = Operation::Read(transfer(0, &[segment(gref, first, last)]));
            let fits = first <= last && last < 8;
            let expected = if fits { Status::OKAY } else { Status::ERROR };
            assert_eq!(guest.serve(&mut lab, read), expected, "{first} to {last}");
            let touched = page.bytes(0..PAGE_SIZE).iter().filter(|&&byte| byte != 0x3c).count();
            let nr = if fits { usize::from(last - first) + 1 } else { 0 };
            assert_eq!(touched, nr * byhand::SECTOR);
        }
    }
    end(lab, &guest);
}

#[test]
fn a_producer_beyond_the_ring_stops_that_vbd_before_a_slot_is_touched() {
    for order in 0..=5 {
        for abi in [Abi::X86_64, Abi::X86_32] {
            let (mut lab, mut guest) = attached(Lab::new(3), abi);
            let disk = guest.disk;
            let nr_entries = abi.nr_entries(blkif::RingOrder::new(order).unwrap());
            for produced in [nr_entries + 1, u32::MAX, 1 << 31] {
                guest.write(keys::PROTOCOL, abi.protocol());
                guest.write(keys::RING_PAGE_ORDER, order);
                guest.offer_ring(1 << order);
                guest.state(3);
                lab.run_until("4", |lab| state(lab, disk) == Some(XenbusState::Connected));
                guest.state(4);
                lab.settle();
                let ring = guest.rings[0].pages.clone();
                ring.iter().for_each(Page::count_fetches);
                ring[0].store_u32(layout::REQ_PROD, produced);
                guest.machine.events().send(guest.disk.frontend, guest.rings[0].port).unwrap();
                lab.run_until("5", |lab| state(lab, disk) == Some(XenbusState::Closing));
                let fetched = |page: &Page, from| page.fetches(from..PAGE_SIZE).iter().sum::<u32>();
                assert_eq!(fetched(&ring[0], layout::RING), 0);
                assert!(ring[1..].iter().all(|page| fetched(page, 0) == 0));
                assert_eq!(ring[0].load_u32(layout::RSP_PROD), 0, "nothing was answered");
                begin_again(&mut lab, &mut guest);
            }
            // A ring that is exactly full is served.
            guest.offer_ring(1 << order);
            guest.state(3);
            lab.run_until("4", |lab| state(lab, disk) == Some(XenbusState::Connected));
            for _ in 0..nr_entries {
                guest.push(Operation::Flush(transfer(0, &[])));
            }
            guest.served(&mut lab, nr_entries as usize);
            end(lab, &guest);
        }
    }
}

/// Writes these keys and 3, and waits until the backend has refused them: what it says.
fn refusal(lab: &mut Lab, guest: &mut ByHand, keys: &[(&str, String)]) -> String {
    let disk = guest.disk;
    // What a frontend causes is said once in ten seconds.
    lab.run_for(Duration::from_secs(10));
    for (key, value) in keys {
        guest.write(key, value);
    }
    guest.state(3);
    lab.run_until("the refusal", |lab| state(lab, disk) == Some(XenbusState::Closed));
    lab.settle();
    assert_eq!(nr_handles(lab), 0);
    assert_eq!(lab.machine().events().nr_ports(lab.domid()), 1, "xenstore's port");
    error(lab, disk).unwrap()
}

#[test]
fn a_ring_order_and_queues_beyond_the_offer_are_refused() {
    for (key, value, said) in [
        (keys::RING_PAGE_ORDER, "3", "the frontend's ring-page-order is 3, 0 to 2 were offered"),
        (keys::RING_PAGE_ORDER, "4294967295", "is 4294967295, 0 to 2 were offered"),
        (keys::RING_PAGE_ORDER, "-1", "the frontend's ring-page-order is no number"),
        (keys::NUM_RING_PAGES, "8", "the frontend's num-ring-pages is 8, 1 to 4 were offered"),
        (keys::NUM_RING_PAGES, "3", "num-ring-pages is 3, which no ring-page-order is"),
        (keys::NUM_RING_PAGES, "0", "the frontend's num-ring-pages is 0, 1 to 4 were offered"),
        (keys::MULTI_QUEUE_NUM_QUEUES, "3", "multi-queue-num-queues is 3, 1 to 2 were offered"),
        (keys::MULTI_QUEUE_NUM_QUEUES, "0", "multi-queue-num-queues is 0, 1 to 2 were offered"),
        (keys::PROTOCOL, "arm-abi", "protocol is neither x86_64-abi nor x86_32-abi"),
        (keys::FEATURE_PERSISTENT, "2", "the frontend's feature-persistent is neither 0 nor 1"),
    ] {
        let (mut lab, mut guest) =
            attached(Lab::new(4).cmdline("ring-order=2 queues=2"), Abi::X86_64);
        let disk = guest.disk;
        guest.offer_ring(1);
        let error = refusal(&mut lab, &mut guest, &[(key, value.into())]);
        assert!(error.starts_with("22 cannot connect: ") && error.ends_with(said), "{error}");
        begin_again(&mut lab, &mut guest);
        let node = format!("{}/{key}", disk.frontend_path());
        guest.xs.rm(&node).unwrap();
        guest.connect(&mut lab, &[]);
        guest.random_io(&mut lab, 5);
        end(lab, &guest);
    }
}

#[test]
fn a_ring_ref_that_is_no_grant_is_refused() {
    let (mut lab, mut guest) = attached(Lab::new(5), Abi::X86_64);
    let disk = guest.disk;
    let frontend = disk.frontend;
    let grant = |guest: &ByHand, to, access| {
        guest.machine.grants().grant(frontend, to, &Page::new(), access)
    };
    let revoked = grant(&guest, disk.backend, GrantAccess::ReadWrite);
    guest.machine.grants().revoke(frontend, revoked);
    let read_only = grant(&guest, disk.backend, GrantAccess::ReadOnly);
    let for_another = grant(&guest, DomId(0), GrantAccess::ReadWrite);
    let (past, other) = (GntStatus::BAD_GNTREF, GntStatus::GENERAL_ERROR);
    for (gref, status) in [
        (GrantRef(u32::MAX), past),
        (GrantRef(4000), past),
        (GrantRef(0), other),
        (revoked, other),
        (read_only, other),
        (for_another, other),
    ] {
        guest.offer_ring(1);
        let said = refusal(&mut lab, &mut guest, &[(keys::RING_REF, gref.to_string())]);
        assert_eq!(said, format!("22 cannot connect: cannot map grant {gref}: {status}"));
        begin_again(&mut lab, &mut guest);
    }
    // A port that is none, one that is for another, and one that is bound already.
    let for_another = guest.machine.events().alloc_unbound(frontend, DomId(0)).unwrap();
    for port in [EvtchnPort(0), EvtchnPort(4000), EvtchnPort(u32::MAX), for_another] {
        guest.offer_ring(1);
        let said = refusal(&mut lab, &mut guest, &[(keys::EVENT_CHANNEL, port.to_string())]);
        assert_eq!(
            said,
            format!("22 cannot connect: cannot bind event-channel {port}: Xen answered -22")
        );
        begin_again(&mut lab, &mut guest);
    }
    guest.connect(&mut lab, &[]);
    guest.random_io(&mut lab, 5);
    end(lab, &guest);
}

#[test]
fn the_same_grant_twice_hurts_nobody_else() {
    for grant_use in [GrantUse::PerRequest, GrantUse::Persistent] {
        let (mut lab, mut guest) = connected("", Abi::X86_64, grant_use);
        for sector in 0..11 {
            let data = pattern(sector);
            assert_eq!(guest.write_sectors(&mut lab, u64::from(sector) * 8, &data), Status::OKAY);
        }
        // One page for all segments of a write, and of a read: the last one is what stays in it.
        let (page, gref) = guest.page(GrantAccess::ReadWrite);
        let all = transfer(0, &[segment(gref, 0, 7); 11]);
        assert_eq!(guest.serve(&mut lab, Operation::Read(all)), Status::OKAY);
        assert_eq!(page.bytes(0..PAGE_SIZE), pattern(10));
        assert_eq!(guest.serve(&mut lab, Operation::Write(all)), Status::OKAY);
        for sector in 0..11 {
            assert_eq!(guest.read_sectors(&mut lab, sector * 8, 8), pattern(10));
        }
        // A table that is its own data page: its segments were fetched before it was overwritten.
        let (op, tables) = guest.indirect(IndirectOp::Read, 0, &[segment(gref, 0, 7)]);
        let Operation::Indirect(indirect) = op else { unreachable!("just made") };
        let table_gref = indirect.grefs()[0];
        tables[0].write(0, &segment(table_gref, 0, 7).encode());
        let may_write = grant_use == GrantUse::Persistent;
        let expected = if may_write { Status::OKAY } else { Status::ERROR };
        assert_eq!(guest.serve(&mut lab, op), expected);
        let read = tables[0].bytes(0..PAGE_SIZE) == pattern(10);
        assert_eq!(read, may_write);
        detach(&mut lab, &guest);
        assert_eq!(nr_handles(&lab), 0);
        guest.take_back();
        end(lab, &guest);
    }
}

#[test]
fn a_ring_whose_pages_are_one_page_is_its_guests_own_trouble() {
    let (mut lab, mut guest) = attached(Lab::new(6), Abi::X86_64);
    let disk = guest.disk;
    guest.offer_ring(4);
    guest.write(keys::RING_PAGE_ORDER, 2);
    let first = guest.rings[0].grefs[0];
    for page in 1..4 {
        guest.write(&keys::RingRef(page).to_string(), first);
    }
    guest.state(3);
    lab.run_until("4", |lab| state(lab, disk) == Some(XenbusState::Connected));
    assert_eq!(nr_handles(&lab), 4, "a handle each");
    // The slots of the second page lie on the indices of the first.
    for _ in 0..64 {
        guest.push(Operation::Flush(transfer(0, &[])));
    }
    guest.publish();
    others_are_served(&mut lab);
    assert_eq!(lab.try_detach(disk, Detach::Polite), Ok(()), "the ring stopped by itself");
    assert_eq!(nr_handles(&lab), 0);
    guest.take_back();
    end(lab, &guest);
}
