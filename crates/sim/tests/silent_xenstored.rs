//! A xenstored that answers late, or not at all any more: what is connected is served as if nothing
//! were, and what was asked meanwhile comes about when it answers.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod byhand;

use std::time::Duration;

use blkif::{Abi, layout};
use byhand::ByHand;
use sim::toolstack::{Detach, Device, DiskSpec, Operation};
use sim::{Expect, Lab, seeds};
use xen_abi::{DomId, XenbusState};

fn connected(lab: &mut Lab, vdev: &str) -> Device {
    let guest = lab.create_guest();
    let disk = lab.attach(guest, vdev, "ram,size=1M");
    lab.connect(disk);
    disk
}

#[test]
fn a_xenstored_that_stops_for_good_stops_no_disk() {
    for seed in seeds(5) {
        let mut lab = Lab::new(seed).start();
        let disks = [connected(&mut lab, "xvda"), connected(&mut lab, "xvdb")];
        // In the middle of all that can be under way.
        let under_way = connected(&mut lab, "xvdc");
        let guest = lab.create_guest();
        let spec = DiskSpec::new("xvda", "ram,size=1M");
        let attach = Operation::attach(lab.machine(), lab.device(guest, "xvda"), &spec);
        let detach = Operation::detach(lab.machine(), under_way, Detach::Polite);
        let ids = [lab.begin(attach), lab.begin(detach)];
        let time = Duration::from_micros(lab.rng().below(2_000));
        lab.run_for(time);
        lab.machine().silence_xenstored();
        let seen = lab.machine().console().len();
        for _ in 0..5 {
            for disk in disks {
                lab.random_io(disk, 100);
            }
            lab.run_for(Duration::from_secs(60));
        }
        for disk in disks {
            let answers = lab.frontend(disk).answers();
            assert_eq!((answers.okay, answers.failed), (500, 0));
        }
        let said = &lab.machine().console()[seen..];
        assert!(said.len() <= 3, "{said:#?}");
        // libxl has given up, the domain has not.
        for id in ids {
            assert!(lab.result(id).is_some());
        }
        assert_eq!(lab.ended(), None);
    }
}

#[test]
fn whatever_was_asked_meanwhile_comes_about_when_it_answers_again() {
    for seed in seeds(10) {
        let mut lab = Lab::new(seed).start();
        let served = connected(&mut lab, "xvda");
        let closing = connected(&mut lab, "xvdb");
        let crashing = connected(&mut lab, "xvdc");
        let guest = lab.create_guest();
        lab.frontend(served).want(1_000);
        lab.frontend(crashing).expect(Expect::Failures);
        lab.frontend(crashing).want(1_000);
        lab.machine().silence_xenstored();
        let begun = Duration::from_micros(lab.rng().below(2_000));
        lab.run_for(begun);
        let new = lab.device(guest, "xvda");
        let attach = Operation::attach(lab.machine(), new, &DiskSpec::new("xvda", "ram,size=1M"));
        let detach = Operation::detach(lab.machine(), closing, Detach::Polite);
        let force = Operation::detach(lab.machine(), crashing, Detach::Forced);
        let ids = [attach, detach, force].map(|operation| lab.begin(operation));
        // As long as libxl still waits.
        let silence = Duration::from_millis(lab.rng().between(1, 9_000));
        lab.run_for(silence);
        assert!(ids.iter().all(|&id| lab.result(id).is_none()), "nobody answers");
        lab.machine().wake_silent_xenstored();
        for id in ids {
            assert_eq!(lab.finish(id), Ok(()), "seed {seed}");
        }
        lab.connect(new);
        lab.random_io(new, 100);
        lab.run_until("the answers", |lab| lab.is_drained(served));
        assert_eq!(lab.frontend(served).answers().okay, 1_000);
        for disk in [new, served] {
            lab.detach(disk);
        }
        lab.assert_clean();
    }
}

#[test]
fn a_xenstored_that_is_slow_at_every_step_makes_all_of_it_slow_and_nothing_wrong() {
    for seed in seeds(10) {
        let mut lab = Lab::new(seed).start();
        let served = connected(&mut lab, "xvda");
        let guest = lab.create_guest();
        let disk = lab.device(guest, "xvda");
        for _ in 0..3 {
            let spec = DiskSpec::new("xvda", "ram,size=1M");
            let attach = lab.begin(Operation::attach(lab.machine(), disk, &spec));
            stutter_until(&mut lab, served, |lab| lab.result(attach).is_some());
            assert_eq!(lab.result(attach), Some(Ok(())), "seed {seed}");
            lab.add_frontend(disk, sim::FrontendConfig::default(), None);
            stutter_until(&mut lab, served, |lab| {
                disk.backend_state(lab.machine()) == Some(XenbusState::Connected)
            });
            lab.random_io(disk, 50);
            let kind = if lab.rng().one_in(2) { Detach::Polite } else { Detach::Forced };
            let detach = lab.begin(Operation::detach(lab.machine(), disk, kind));
            stutter_until(&mut lab, served, |lab| lab.result(detach).is_some());
            assert_eq!(lab.result(detach), Some(Ok(())), "seed {seed}");
        }
        lab.detach(served);
        lab.assert_clean();
    }
}

/// Lets xenstored take a few steps and sleep by turns, while a disk is used.
fn stutter_until(lab: &mut Lab, served: Device, done: impl Fn(&Lab) -> bool) {
    for _ in 0..10_000 {
        if done(lab) {
            lab.machine().wake_silent_xenstored();
            lab.settle();
            return;
        }
        lab.machine().wake_silent_xenstored();
        let awake = Duration::from_micros(lab.rng().between(20, 400));
        lab.run_for(awake);
        lab.machine().silence_xenstored();
        lab.random_io(served, 5);
        let asleep = Duration::from_micros(lab.rng().below(200_000));
        lab.run_for(asleep);
    }
    panic!("it never comes about");
}

/// Has xenstore asked for more than the queue to it has room for, and not answer.
fn fill_the_queue(lab: &mut Lab) {
    let (dom0, us, other) = (lab.machine().xs(DomId(0)), lab.domid(), lab.create_guest());
    for devid in 0..400 {
        // Never whole, and so all of it is asked for.
        let path = Device::new(us, other, 1 << 28 | devid << 8).backend_path();
        dom0.write(&format!("{path}/state"), "1").unwrap();
    }
    // Their listing has come, and few of the answers after it.
    lab.run_for(Duration::from_millis(1));
    lab.machine().silence_xenstored();
    lab.settle();
}

#[test]
fn a_frontend_that_breaks_its_ring_is_told_of_once_whatever_it_does_until_xenstored_answers() {
    let mut lab = Lab::new(1).start();
    let guest = lab.create_guest();
    let disk = lab.attach(guest, "xvda", "ram,size=1M");
    let guest = ByHand::connected(&mut lab, disk, Abi::X86_64, 2048);
    fill_the_queue(&mut lab);
    let seen = lab.machine().console().len();
    let ring = &guest.rings[0];
    ring.pages[0].store_u32(layout::REQ_PROD, 77);
    for _ in 0..1_000 {
        // The port is gone as soon as it was seen.
        let _ = lab.machine().events().send(disk.frontend, ring.port);
        lab.settle();
    }
    let said = lab.machine().console().split_off(seen);
    assert_eq!(said.len(), 2, "{said:#?}");
    assert!(
        said[0].contains(": ring stopped: ") && said[1].contains(": closed after "),
        "{said:#?}"
    );
    lab.machine().wake_silent_xenstored();
    lab.run_until("state 6", |lab| disk.backend_state(lab.machine()) == Some(XenbusState::Closed));
    lab.destroy(disk.frontend);
}
