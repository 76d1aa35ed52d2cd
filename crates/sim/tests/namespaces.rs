//! Disks on namespaces of a controller that is the driver domain's own.

#![allow(clippy::unwrap_used, reason = "a test may")]

use blkif::{
    Indirect, IndirectOp, MAX_INDIRECT_PAGES, MaxIndirectSegments, Operation, Request, RequestId,
    Sector, Segment, Segments, Transfer,
};
use sim::toolstack::{Device, DiskSpec};
use sim::{Expect, FrontendConfig, Gone, GrantAccess, Lab, Load, OwnDisk, seeds};
use xen_abi::{DomId, GrantRef};

/// Sectors of the first namespace.
const NR_SECTORS: usize = 4096;

/// Segments of a long read.
const NR_SEGMENTS: u16 = 32;

fn lab(seed: u64, command_line: &str) -> (Lab, OwnDisk) {
    let disk = OwnDisk::new(NR_SECTORS);
    let lab = Lab::new(seed).cmdline(command_line).namespace(&disk).namespace(&OwnDisk::new(64));
    (lab.start(), disk)
}

fn connect(lab: &mut Lab, guest: DomId, vdev: &str, target: &str) -> Device {
    let disk = lab.attach(guest, vdev, target);
    lab.connect(disk);
    disk
}

#[test]
fn what_a_guest_writes_is_on_the_namespace() {
    for seed in seeds(4) {
        let (mut lab, namespace) = lab(seed, "");
        let guest = lab.create_guest();
        let overlay = connect(&mut lab, guest, "xvda", "nvme0n1,cow");
        lab.random_io(overlay, 400);
        lab.detach(overlay);
        assert!(namespace.bytes().iter().all(|byte| *byte == 0), "an overlay leaves it alone");

        let disk = connect(&mut lab, guest, "xvda", "nvme0n1");
        assert_eq!(lab.frontend(disk).disk().unwrap().nr_sectors, NR_SECTORS as u64);
        lab.random_io(disk, 400);
        assert_eq!(lab.frontend(disk).answers().failed, 0);
        lab.detach(disk);
        assert!(namespace.bytes().iter().any(|byte| *byte != 0));
        lab.destroy(guest);
    }
}

#[test]
fn parts_and_names_of_a_namespace_are_disks() {
    let words = "disk=left,nvme0n1,size=1M disk=right,nvme0n1,offset=1M";
    let (mut lab, namespace) = lab(1, words);
    assert!(lab.machine().console().contains(&"disk right: made".into()));
    let guest = lab.create_guest();
    let right = connect(&mut lab, guest, "xvdb", "right");
    assert_eq!(lab.frontend(right).disk().unwrap().nr_sectors, 2048);
    lab.random_io(right, 100);
    assert_eq!(namespace.bytes()[..1 << 20], vec![0; 1 << 20]);
    let left = connect(&mut lab, guest, "xvda", "left");
    lab.random_io(left, 100);
    for (vdev, devid, target, reason) in [
        ("xvdc", 51744, "nvme0n1", format!("nvme0n1 is in use there: vbd {guest}/51712 holds it")),
        ("xvdd", 51760, "nvme0n3", "there is no disk or image called nvme0n3".into()),
        (
            "xvde",
            51776,
            "nvme0n2,offset=32K",
            "sectors 64+1 are past the end, the disk has 64".into(),
        ),
    ] {
        lab.try_attach(guest, &DiskSpec::new(vdev, target)).unwrap_err();
        let line = format!("vbd {guest}/{devid}: cannot serve target={target}: {reason}");
        let console = lab.machine().console();
        assert!(console.contains(&line), "{line}: {console:#?}");
    }
    lab.destroy(guest);
}

#[test]
fn its_errors_are_the_guests() {
    let (mut lab, namespace) = lab(1, "");
    let guest = lab.create_guest();
    let bad = connect(&mut lab, guest, "xvda", "nvme0n1");
    let good = connect(&mut lab, guest, "xvdb", "nvme0n2");
    namespace.set_fails(true);
    lab.frontend(bad).expect(Expect::Failures);
    lab.random_io(bad, 50);
    lab.random_io(good, 50);
    let failed = lab.frontend(bad).answers().failed;
    assert!(failed > 40);
    assert_eq!(lab.frontend(good).answers().failed, 0);

    // A few of them are told, and their number whatever was told before.
    lab.detach(bad);
    let console = lab.machine().console();
    let said = |text: &str| {
        let line = format!("vbd {guest}/51712: {text}");
        console.iter().filter(|said| said.starts_with(&line)).collect::<Vec<_>>()
    };
    assert_eq!(said("request ").len(), 4, "{console:#?}");
    assert!(said("request ").iter().all(|line| line.ends_with(": the device failed")));
    let [closed] = said("closed after ")[..] else { panic!("{console:#?}") };
    assert!(closed.contains(&format!(", {failed} errors (")), "{closed}");
    assert!(closed.ends_with(" more before)"), "{closed}");
    lab.destroy(guest);
}

#[test]
fn nobody_is_attached_to_one_that_is_gone() {
    let (mut lab, namespace) = lab(1, "disk=left,nvme0n1,size=1M");
    let guests = [(); 2].map(|()| lab.create_guest());
    let disk = connect(&mut lab, guests[0], "xvda", "left");
    namespace.set_gone(Gone::CutOff);
    lab.frontend(disk).expect(Expect::Failures);
    lab.random_io(disk, 50);
    let beside = connect(&mut lab, guests[0], "xvdb", "nvme0n2");
    lab.random_io(beside, 50);
    assert_eq!(lab.frontend(beside).answers().failed, 0);
    lab.destroy(guests[0]);
    for (vdev, devid, target) in
        [("xvda", 51712, "left"), ("xvdb", 51728, "nvme0n1"), ("xvdc", 51744, "nvme0n1,cow")]
    {
        lab.try_attach(guests[1], &DiskSpec::new(vdev, target)).unwrap_err();
        let guest = guests[1];
        let line = format!("vbd {guest}/{devid}: cannot serve target={target}: nvme0n1 is gone");
        let console = lab.machine().console();
        assert!(console.contains(&line), "{line}: {console:#?}");
    }
    lab.destroy(guests[1]);
}

/// Steps that it takes to serve a guest beside so many others that ask for nothing.
fn nr_steps_beside(nr_others: usize) -> u64 {
    let (mut lab, _) = lab(1, "");
    let guest = lab.create_guest();
    let disk = connect(&mut lab, guest, "xvda", "nvme0n1,size=1M");
    for _ in 0..nr_others {
        let other = lab.create_guest();
        connect(&mut lab, other, "xvda", "nvme0n1,offset=1M,ro");
    }
    let before = lab.nr_steps();
    lab.random_io(disk, 200);
    lab.nr_steps() - before
}

#[test]
fn who_asks_for_nothing_has_no_turns_for_answers_to_others() {
    let (alone, beside) = (nr_steps_beside(0), nr_steps_beside(8));
    assert!(beside < alone * 3 / 2, "{beside} steps beside others, {alone} alone");
}

#[test]
fn nobody_sleeps_who_waited_for_pages_of_another_namespace() {
    for seed in seeds(2) {
        let lab = (0..20).fold(Lab::new(seed), |lab, _| lab.namespace(&OwnDisk::new(NR_SECTORS)));
        let mut lab = lab.start();
        let stays = lab.create_guest();
        let first = connect(&mut lab, stays, "xvda", "nvme0n1");
        for nsid in 2..=20 {
            let guest = lab.create_guest();
            let second = connect(&mut lab, guest, "xvda", &format!("nvme0n{nsid}"));
            for _ in 0..5 {
                lab.frontend(second).want(4);
                lab.random_io(first, 4);
            }
            lab.frontend(second).want(20);
            lab.frontend(first).want(20);
            lab.destroy(guest);
            lab.random_io(first, 1);
        }
    }
}

/// A guest that keeps its ring full of short reads takes each page that it can have.
struct Busy {
    disk: Device,
    short: Operation,
    next_id: u64,
}

impl Busy {
    fn new(lab: &mut Lab, target: &str) -> Self {
        let guest = lab.create_guest();
        let disk = by_hand(lab, guest, target);
        let (_, gref) = lab.frontend(disk).queues()[0].grant_page(GrantAccess::ReadWrite);
        let segments = Segments::new(&[Segment { gref, first_sect: 0, last_sect: 7 }]).unwrap();
        let short = Operation::Read(Transfer { sector: Sector(0), segments });
        Self { disk, short, next_id: 0 }
    }

    fn go(&mut self, lab: &mut Lab) {
        let queue = &mut lab.frontend(self.disk).queues()[0];
        queue.responses();
        while queue.free() > 0 {
            queue.push(&Request { id: RequestId(self.next_id), handle: 0, op: self.short });
            self.next_id += 1;
        }
        queue.publish();
    }
}

fn by_hand(lab: &mut Lab, guest: DomId, target: &str) -> Device {
    let disk = lab.attach(guest, "xvda", target);
    lab.connect_as(disk, FrontendConfig { load: Load::ByHand, ..FrontendConfig::default() });
    disk
}

#[test]
fn a_long_request_has_its_turn_beside_short_ones() {
    let targets =
        [("nvme0n1", "nvme0n2"), ("nvme0n2", "nvme0n1"), ("nvme0n1", "nvme0n1,offset=1536K")];
    for (seed, (short, long)) in seeds(3).flat_map(|seed| targets.map(|targets| (seed, targets))) {
        let lab = Lab::new(seed).namespace(&OwnDisk::new(NR_SECTORS));
        let mut lab = lab.namespace(&OwnDisk::new(NR_SECTORS)).start();
        let slices = ["size=512K", "offset=512K,size=512K", "offset=1M,size=512K"];
        let mut busy = slices.map(|slice| Busy::new(&mut lab, &format!("{short},{slice}")));
        let guest = lab.create_guest();
        let disk = by_hand(&mut lab, guest, long);
        let read = long_read(&mut lab, disk);
        for id in 0..20 {
            let queue = &mut lab.frontend(disk).queues()[0];
            queue.push(&Request { id: RequestId(id), handle: 0, op: read });
            queue.publish();
            let mut nr_rounds = 0;
            while lab.frontend(disk).queues()[0].responses().is_empty() {
                busy.iter_mut().for_each(|busy| busy.go(&mut lab));
                run_for_a_round(&mut lab);
                nr_rounds += 1;
                assert!(nr_rounds < 100, "{long} waits for {short}, seed {seed}");
            }
        }
        for busy in &busy {
            assert!(busy.next_id > 20, "{:?} has {} reads", busy.disk, busy.next_id);
        }
    }
}

/// A read of 128 KiB.
fn long_read(lab: &mut Lab, disk: Device) -> Operation {
    let queue = &mut lab.frontend(disk).queues()[0];
    let (_, gref) = queue.grant_page(GrantAccess::ReadWrite);
    let (table, table_gref) = queue.grant_page(GrantAccess::ReadOnly);
    let segment = Segment { gref, first_sect: 0, last_sect: 7 };
    for n in 0..NR_SEGMENTS {
        table.write(usize::from(n) * Segment::LEN_BYTES, &segment.encode());
    }
    let mut grefs = [GrantRef(0); MAX_INDIRECT_PAGES];
    grefs[0] = table_gref;
    let max = MaxIndirectSegments::MAX;
    let read = Indirect::new(IndirectOp::Read, Sector(0), NR_SEGMENTS, grefs, max);
    Operation::Indirect(read.unwrap())
}

fn run_for_a_round(lab: &mut Lab) {
    let mut is_over = false;
    lab.run_until("a round", |_| std::mem::replace(&mut is_over, true));
}
