//! `xl shutdown` of the domain: what is attached is served until it is detached, or until the domain
//! has waited long enough, and then for good.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::time::Duration;

use domain::ShutdownReason;
use sim::toolstack::{Detach, Device, DiskSpec, Operation, ToolstackError};
use sim::{FrontendConfig, Lab};
use xen_abi::{DomId, EvtchnPort, SharedMemory, XenbusState};

const DOM0: DomId = DomId(0);

/// The words that the toolstack wrote, as far as they are not acknowledged.
fn words(lab: &Lab) -> String {
    let path = format!("/local/domain/{}/control/shutdown", lab.domid());
    lab.machine().xs(DOM0).read(&path).unwrap()
}

/// Lines of the domain's own end, in their order.
fn lines(lab: &Lab) -> Vec<String> {
    let mut lines = lab.machine().console();
    lines.retain(|line| line.contains("end (") || line.contains("not ending"));
    lines
}

fn assert_gone(lab: &Lab, reason: ShutdownReason) {
    assert_eq!(lab.ended(), Some(reason));
    assert_eq!(words(lab), "");
    let us = lab.domid();
    assert_eq!(lab.machine().grants().nr_handles(us), 0);
    // xenstore's alone.
    assert_eq!(lab.machine().events().nr_ports(us), 1);
}

fn run_until_in(lab: &mut Lab, disk: Device, state: XenbusState) {
    lab.run_until("the state", |lab| disk.backend_state(lab.machine()) == Some(state));
}

fn connected(lab: &mut Lab, guest: DomId, vdev: &str) -> Device {
    let disk = lab.attach(guest, vdev, "ram,size=1M");
    lab.connect(disk);
    disk
}

#[test]
fn it_ends_when_the_last_disk_is_detached() {
    for seed in 0..20 {
        let mut lab = Lab::new(seed).start();
        let guests = [lab.create_guest(), lab.create_guest()];
        let disks = guests.map(|guest| connected(&mut lab, guest, "xvda"));
        lab.shutdown();
        lab.settle();
        assert_eq!(words(&lab), "", "acknowledged at once");
        for disk in disks {
            lab.random_io(disk, 100);
        }
        lab.detach(disks[1]);
        lab.run_for(Duration::from_secs(5));
        lab.random_io(disks[0], 100);
        assert_eq!(lab.ended(), None);
        // The toolstack sees 6, and then the directory go.
        lab.detach(disks[0]);
        lab.settle();
        assert_gone(&lab, ShutdownReason::PowerOff);
        assert_eq!(
            lines(&lab),
            ["asked to end (PowerOff): 2 vbds are attached, waits up to 60 s for them to go"]
        );
    }
}

#[test]
fn guests_that_are_destroyed_let_it_end() {
    let mut lab = Lab::new(1).start();
    let guest = lab.create_guest();
    for vdev in ["xvda", "xvdb", "xvdc"] {
        let disk = connected(&mut lab, guest, vdev);
        lab.frontend(disk).want(1000);
    }
    lab.shutdown();
    lab.run_for(Duration::from_micros(300));
    lab.destroy(guest);
    lab.settle();
    assert_gone(&lab, ShutdownReason::PowerOff);
}

#[test]
fn past_its_time_it_stays_as_if_nobody_had_asked() {
    let mut lab = Lab::new(2).cmdline("drain-s=30").start();
    let guest = lab.create_guest();
    let disks = ["xvda", "xvdb"].map(|vdev| connected(&mut lab, guest, vdev));
    lab.shutdown();
    lab.run_for(Duration::from_secs(20));
    // Asked again meanwhile: heard, and no reason to wait any longer.
    lab.shutdown();
    lab.settle();
    assert_eq!(words(&lab), "");
    lab.run_for(Duration::from_millis(9900));
    assert_eq!(lines(&lab).len(), 1);
    let refused = lab.try_attach(guest, &DiskSpec::new("xvdc", "ram,size=1M"));
    assert!(refused.is_err(), "{refused:?}");
    let first = "asked to end (PowerOff): 2 vbds are attached, waits up to 30 s for them to go";
    let stays = format!("2 vbds are still attached, first vbd {guest}/51712: not ending");
    assert_eq!(lines(&lab), [first, &stays]);

    lab.run_for(Duration::from_secs(100));
    lab.random_io(disks[0], 100);
    let disk = lab.attach(guest, "xvdd", "ram,size=1M");
    for disk in [disks[0], disks[1], disk] {
        lab.detach(disk);
    }
    lab.run_for(Duration::from_secs(1));
    assert_eq!(lab.ended(), None, "nobody asks any more");
    let disk = connected(&mut lab, guest, "xvde");
    // It begins anew, with all the time there is.
    toolstack_says(&lab, "reboot");
    lab.run_for(Duration::from_secs(29));
    lab.detach(disk);
    lab.settle();
    assert_gone(&lab, ShutdownReason::Reboot);
    let again = "asked to end (Reboot): 1 vbd is attached, waits up to 30 s for them to go";
    assert_eq!(lines(&lab), [first, &stays, again]);
}

fn toolstack_says(lab: &Lab, word: &str) {
    let path = format!("/local/domain/{}/control/shutdown", lab.domid());
    lab.machine().xs(DOM0).write(&path, word).unwrap();
}

#[test]
fn with_no_time_to_wait_it_stays_at_once() {
    let mut lab = Lab::new(3).cmdline("drain-s=0").start();
    let guest = lab.create_guest();
    let disk = connected(&mut lab, guest, "xvda");
    lab.shutdown();
    lab.settle();
    assert_eq!(
        lines(&lab),
        [
            "asked to end (PowerOff): 1 vbd is attached, waits up to 0 s for them to go",
            &format!("1 vbd is still attached, first vbd {guest}/51712: not ending"),
        ]
    );
    lab.random_io(disk, 100);
    lab.detach(disk);
    lab.shutdown();
    lab.settle();
    assert_gone(&lab, ShutdownReason::PowerOff);
}

#[test]
fn nothing_new_is_attached_while_it_ends() {
    let mut lab = Lab::new(4).start();
    let guests = [lab.create_guest(), lab.create_guest()];
    let disk = connected(&mut lab, guests[0], "xvda");
    lab.shutdown();
    lab.settle();
    let spec = DiskSpec::new("xvda", "ram,size=1M");
    let error = lab.try_attach(guests[1], &spec).unwrap_err();
    let found = Some(XenbusState::Closed);
    assert_eq!(error, ToolstackError::TimedOut { wanted: XenbusState::InitWait, found });
    let refused = lab.device(guests[1], "xvda");
    let text = "cannot serve target=ram,size=1M: Granary is ending";
    let line = format!("vbd {}/51712: {text}", guests[1]);
    assert_eq!(lab.machine().console().last(), Some(&line));
    let node = format!("/local/domain/{}/error/backend/vbd/{}/51712/error", lab.domid(), guests[1]);
    assert_eq!(lab.machine().xs(DOM0).read(&node).unwrap(), format!("16 {text}"));
    // Nobody waits for a vbd that was refused, and it can be detached like any other.
    assert_eq!(lab.try_detach(refused, Detach::Polite), Ok(()));
    assert!(lab.try_attach(guests[1], &spec).is_err());
    lab.detach(disk);
    lab.settle();
    assert_gone(&lab, ShutdownReason::PowerOff);
}

#[test]
fn a_guest_that_reboots_meanwhile_does_not_come_back() {
    let mut lab = Lab::new(5).start();
    let guests = [lab.create_guest(), lab.create_guest()];
    let other = connected(&mut lab, guests[0], "xvda");
    connected(&mut lab, guests[1], "xvda");
    lab.shutdown();
    lab.settle();
    lab.destroy(guests[1]);
    let reborn = lab.create_guest();
    assert!(lab.try_attach(reborn, &DiskSpec::new("xvda", "ram,size=1M")).is_err());
    lab.destroy(reborn);
    assert_eq!(lab.ended(), None);
    lab.detach(other);
    lab.settle();
    assert_gone(&lab, ShutdownReason::PowerOff);
}

#[test]
fn a_guest_that_boots_is_waited_for() {
    let mut lab = Lab::new(6).start();
    let guest = lab.create_guest();
    // As `xl create` leaves it: the guest is paused, we stand in state 2.
    let disk = lab.attach(guest, "xvda", "ram,size=1M");
    lab.shutdown();
    lab.run_for(Duration::from_secs(5));
    assert_eq!(lab.ended(), None);
    // A boot loader comes and goes, and then the kernel.
    lab.connect(disk);
    lab.random_io(disk, 20);
    lab.frontend(disk).close();
    lab.run_until("the close", |lab| lab.is_closed(disk));
    lab.run_for(Duration::from_secs(5));
    assert_eq!(disk.backend_state(lab.machine()), Some(XenbusState::Closed));
    assert_eq!(lab.ended(), None);
    let model = lab.frontend(disk).model().cloned();
    let state = format!("{}/state", disk.frontend_path());
    lab.machine().xs(guest).write(&state, "1").unwrap();
    run_until_in(&mut lab, disk, XenbusState::InitWait);
    lab.add_frontend(disk, FrontendConfig::default(), model);
    run_until_in(&mut lab, disk, XenbusState::Connected);
    lab.random_io(disk, 20);
    lab.detach(disk);
    lab.settle();
    assert_gone(&lab, ShutdownReason::PowerOff);
}

#[test]
fn a_vbd_that_waits_for_a_handover_still_gets_its_disk() {
    let mut lab = Lab::new(7).cmdline("disk=kept,ram,size=1M").start();
    let guests = [lab.create_guest(), lab.create_guest()];
    let [old, new] = guests.map(|guest| {
        let disk = lab.attach(guest, "xvda", "kept,handover");
        lab.add_frontend(disk, FrontendConfig::default(), None);
        disk
    });
    run_until_in(&mut lab, old, XenbusState::Connected);
    lab.shutdown();
    lab.settle();
    assert_eq!(new.backend_state(lab.machine()), Some(XenbusState::InitWait));
    lab.destroy(guests[0]);
    run_until_in(&mut lab, new, XenbusState::Connected);
    lab.random_io(new, 100);
    assert_eq!(lab.ended(), None);
    lab.detach(new);
    lab.settle();
    assert_gone(&lab, ShutdownReason::PowerOff);
}

#[test]
fn when_xenstore_breaks_meanwhile_it_stays_and_serves() {
    let mut lab = Lab::new(8).start();
    let guest = lab.create_guest();
    let disk = connected(&mut lab, guest, "xvda");
    lab.shutdown();
    lab.settle();
    // `rsp_prod` of the page.
    let page = lab.platform().resources(&[], b"").xenstore;
    page.store_u32(2060, page.load_u32(2060).wrapping_add(5000));
    for port in 0..32 {
        let _ = lab.machine().events().send(DOM0, EvtchnPort(port));
    }
    lab.run_for(Duration::from_secs(61));
    let stays = format!("1 vbd is still attached, first vbd {guest}/51712: not ending");
    assert_eq!(lines(&lab).last(), Some(&stays));
    lab.random_io(disk, 100);
    assert_eq!(lab.ended(), None);
}

#[test]
fn it_does_not_end_before_xenstore_has_removed_the_last_directory() {
    for seed in 0..50 {
        let mut lab = Lab::new(seed).start();
        let guest = lab.create_guest();
        let disk = connected(&mut lab, guest, "xvda");
        lab.shutdown();
        lab.settle();
        let id = lab.begin(Operation::detach(lab.machine(), disk, Detach::Polite));
        let path = disk.backend_path();
        lab.run_until("the end", |lab| {
            let there = lab.machine().xs(DOM0).exists(&path);
            assert!(lab.ended().is_none() || !there);
            lab.ended().is_some()
        });
        assert_eq!(lab.finish(id), Ok(()));
    }
}
