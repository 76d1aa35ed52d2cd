//! The driver domain in the lab: a small one of each thing that the lab can do.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::time::Duration;

use blkif::Abi;
use domain::ShutdownReason;
use sim::toolstack::{Detach, DiskSpec, Operation, ToolstackError};
use sim::xenstored::{DuplicateEvents, Errno};
use sim::{Expect, FrontendConfig, GrantUse, Lab, seeds};
use xen_abi::{DomId, GntStatus, XenbusState};

#[test]
fn a_disk_is_attached_used_and_detached() {
    let mut lab = Lab::new(1).memory_pages(4096).cmdline("").start();
    let guest = lab.create_guest();
    let disk = lab.attach(guest, "xvda", "ram,size=8M");
    lab.connect(disk);
    lab.random_io(disk, 1000);
    assert_eq!(lab.frontend(disk).answers().okay, 1000);
    lab.detach(disk);
    lab.destroy(guest);
    lab.assert_clean();
}

#[test]
fn every_seed_serves_every_frontend() {
    for seed in seeds(10) {
        let mut lab = Lab::new(seed).start();
        if lab.rng().one_in(2) {
            lab.machine().xenstored().duplicates = DuplicateEvents::Drop;
        }
        let guests = [lab.create_guest(), lab.create_guest()];
        let mut disks = Vec::new();
        for guest in guests {
            for vdev in ["xvda", "xvdb"] {
                let disk = lab.attach(guest, vdev, "ram,size=1M");
                let abi = if lab.rng().one_in(2) { Abi::X86_64 } else { Abi::X86_32 };
                let config = FrontendConfig::random(abi, lab.rng());
                lab.add_frontend(disk, config, None).want(300);
                disks.push(disk);
            }
        }
        let all = disks.clone();
        lab.run_until("all answers", |lab| all.iter().all(|&disk| lab.is_drained(disk)));
        for &disk in &disks {
            assert_eq!(lab.frontend(disk).answers().okay, 300, "{:?}", lab.frontend(disk));
        }
        lab.detach(disks[0]);
        lab.destroy(guests[1]);
        lab.destroy(guests[0]);
        lab.assert_clean();
    }
}

#[test]
fn a_guest_destroyed_while_it_writes_is_no_zombie() {
    for seed in seeds(20) {
        let mut lab = Lab::new(seed).start();
        let guest = lab.create_guest();
        let disks = ["xvda", "xvdb", "xvdc"].map(|vdev| lab.attach(guest, vdev, "ram,size=1M"));
        for disk in disks {
            lab.connect(disk);
        }
        for disk in disks {
            lab.frontend(disk).want(100_000);
        }
        lab.run_for(Duration::from_micros(seed * 200));
        lab.destroy(guest);
        lab.assert_clean();
    }
}

#[test]
fn a_disk_is_attached_again_and_again() {
    let mut lab = Lab::new(4).start();
    let guest = lab.create_guest();
    for _ in 0..10 {
        let disk = lab.attach(guest, "xvdb", "ram,size=1M");
        lab.connect(disk);
        lab.random_io(disk, 50);
        lab.detach(disk);
    }
    let disk = lab.attach(guest, "xvdb", "ram,size=1M");
    lab.connect(disk);
    lab.frontend(disk).close();
    lab.run_until("the close", |lab| lab.is_closed(disk));
    lab.try_detach(disk, Detach::Polite).unwrap();
    lab.assert_clean();
}

#[test]
fn requests_that_are_made_to_fail_fail_and_leave_the_disk_as_it_was() {
    for seed in seeds(10) {
        let mut lab = Lab::new(seed).start();
        let guest = lab.create_guest();
        let grant_use = [GrantUse::PerRequest, GrantUse::Persistent][(seed % 2) as usize];
        let disk = lab.attach(guest, "xvda", "ram,size=1M");
        lab.connect_as(disk, FrontendConfig { grant_use, ..FrontendConfig::default() });
        lab.expect(Expect::Failures);
        lab.machine().grants().copy_faults.fail_one_in(20, GntStatus::GENERAL_ERROR);
        lab.machine().grants().map_faults.fail_one_in(20, GntStatus::NO_SPACE);
        lab.random_io(disk, 500);
        let answers = lab.frontend(disk).answers();
        assert_eq!(answers.okay + answers.failed, 500);
        assert!(answers.failed > 10 && answers.okay > 50, "{answers:?}");
        lab.machine().grants().copy_faults.clear();
        lab.machine().grants().map_faults.clear();
        lab.expect(Expect::Success);
        lab.random_io(disk, 500);
        lab.detach(disk);
        lab.assert_clean();
    }
}

#[test]
fn writes_that_find_no_memory_fail_and_leave_the_disk_as_it_was() {
    for seed in seeds(10) {
        let mut lab = Lab::new(seed).memory_pages(720).start();
        let guest = lab.create_guest();
        let disks = ["xvda", "xvdb"].map(|vdev| lab.attach(guest, vdev, "ram,size=2M"));
        for disk in disks {
            lab.connect(disk);
            lab.frontend(disk).expect(Expect::Failures);
            lab.frontend(disk).want(500);
        }
        lab.run_until("all answers", |lab| disks.iter().all(|&disk| lab.is_drained(disk)));
        let answers = disks.map(|disk| lab.frontend(disk).answers());
        assert!(answers.iter().map(|a| a.failed).sum::<u64>() > 10, "{answers:?}");
        for disk in disks {
            lab.detach(disk);
        }
        lab.assert_clean();
    }
}

#[test]
fn transactions_that_conflict_are_tried_again() {
    let mut lab = Lab::new(5).start();
    lab.machine().xenstored().commit_faults.fail_one_in(3, Errno::Eagain);
    let guest = lab.create_guest();
    for _ in 0..10 {
        let disk = lab.attach(guest, "xvda", "ram,size=1M");
        lab.connect(disk);
        lab.detach(disk);
    }
    lab.assert_clean();
}

#[test]
fn several_operations_of_the_toolstack_at_once() {
    let mut lab = Lab::new(6).start();
    let guest = lab.create_guest();
    let vdevs = ["xvda", "xvdb", "xvdc", "xvdd"];
    let begin = |lab: &mut Lab, vdev: &str| {
        let spec = DiskSpec::new(vdev, "ram,size=64K");
        let device = lab.device(guest, vdev);
        let operation = Operation::attach(lab.machine(), device, &spec);
        (device, lab.begin(operation))
    };
    let begun = vdevs.map(|vdev| begin(&mut lab, vdev));
    for (_, id) in begun {
        assert_eq!(lab.finish(id), Ok(()));
    }
    let ids = begun.map(|(device, _)| {
        let operation = Operation::detach(lab.machine(), device, Detach::Forced);
        lab.begin(operation)
    });
    for id in ids {
        assert_eq!(lab.finish(id), Ok(()));
    }
    lab.assert_clean();
}

#[test]
fn a_target_that_cannot_be_served_fails_the_attach_and_can_be_detached() {
    let mut lab = Lab::new(7).start();
    let guest = lab.create_guest();
    let error = lab.try_attach(guest, &DiskSpec::new("xvda", "nonsense")).unwrap_err();
    let ToolstackError::TimedOut { wanted: XenbusState::InitWait, found } = error else {
        panic!("{error}");
    };
    assert_ne!(found, Some(XenbusState::InitWait));
    let disk = lab.device(guest, "xvda");
    lab.try_detach(disk, Detach::Polite).unwrap();
    let disk = lab.attach(guest, "xvda", "ram,size=1M");
    lab.connect(disk);
    lab.random_io(disk, 100);
}

#[test]
fn the_domain_ends_when_it_is_told_to() {
    let mut lab = Lab::new(8).start();
    let guest = lab.create_guest();
    let disk = lab.attach(guest, "xvda", "ram,size=1M");
    lab.connect(disk);
    lab.random_io(disk, 10);
    lab.shutdown();
    lab.random_io(disk, 10);
    assert_eq!(lab.ended(), None, "a disk is attached");
    lab.detach(disk);
    lab.settle();
    assert_eq!(lab.ended(), Some(ShutdownReason::PowerOff));
}

#[test]
#[should_panic(expected = "everybody sleeps while waiting for the connection")]
fn a_wait_for_what_never_comes_ends() {
    let mut lab = Lab::new(9).start();
    let guest = lab.create_guest();
    let disk = lab.attach(guest, "xvda", "ram,size=1M");
    lab.machine().xs(DomId(0)).rm(&disk.frontend_path()).unwrap();
    lab.settle();
    lab.connect(disk);
}

#[test]
fn one_seed_is_one_history() {
    let history = |seed| {
        let mut lab = Lab::new(seed).start();
        let guest = lab.create_guest();
        let disk = lab.attach(guest, "xvda", "ram,size=1M");
        lab.connect(disk);
        lab.random_io(disk, 200);
        (lab.machine().now(), lab.machine().counters(), lab.machine().console())
    };
    assert_eq!(history(10), history(10));
    assert_ne!(history(10).0, history(11).0);
}
