//! However much stands in xenstore, a step does a bounded part of it, and rings have their turns in
//! between.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod byhand;

use std::time::Duration;

use blkif::{Abi, Operation, keys};
use byhand::{ByHand, segment, state, transfer};
use sim::toolstack::{self, Detach, Device, DiskSpec, DomainKind, Operation as Xl};
use sim::{GrantAccess, Lab};
use xen_abi::{DomId, XenbusState};

const DOM0: DomId = DomId(0);

/// The most steps that the domain takes until a request is answered, while `done` has not come about.
fn most_steps(lab: &mut Lab, guest: &mut ByHand, mut done: impl FnMut(&Lab) -> bool) -> u64 {
    let (_, gref) = guest.page(GrantAccess::ReadWrite);
    let read = Operation::Read(transfer(0, &[segment(gref, 0, 7)]));
    let mut most = 0;
    while !done(lab) {
        guest.push(read);
        guest.publish();
        let before = lab.nr_steps();
        lab.run_until("the answer", |_| guest.responses().len() == 1);
        most = most.max(lab.nr_steps() - before);
        let time = Duration::from_micros(lab.rng().below(50));
        lab.run_for(time);
    }
    most
}

fn connected(lab: &mut Lab) -> ByHand {
    let guest = lab.create_guest();
    let disk = lab.attach(guest, "xvda", "ram,size=1M");
    ByHand::connected(lab, disk, Abi::X86_64, 2048)
}

#[test]
fn very_many_devices_and_domains_keep_no_ring_from_its_turn() {
    let mut lab = Lab::new(1).start();
    let mut guest = connected(&mut lab);
    let us = lab.domid();
    let dom0 = lab.machine().xs(DOM0);
    let add = |frontend: DomId, devid: u32| {
        // Never whole, and so they stay.
        let path = Device::new(us, frontend, devid).backend_path();
        dom0.write(&format!("{path}/state"), "1").unwrap();
    };
    let others: Vec<DomId> =
        (0..200).map(|_| toolstack::create_domain(lab.machine(), DomainKind::Guest)).collect();
    for &other in &others {
        add(other, 51712);
    }
    for devid in 0..400 {
        add(others[0], 1 << 28 | devid << 8);
    }
    let queued = |lab: &Lab| lab.machine().xenstored().nr_queued(us) > 0;
    let most = most_steps(&mut lab, &mut guest, |lab| !queued(lab));
    // At once, as a vbd that is alone: nobody else has a turn.
    assert_eq!(most, 1);
    // The directories are listed again, all of them, as often as the toolstack says.
    for _ in 0..2 {
        dom0.write(&format!("/local/domain/{us}/backend/vbd"), "").unwrap();
        dom0.write(&format!("/local/domain/{us}/backend/vbd/{}", others[0]), "").unwrap();
        let until = lab.machine().now().after(Duration::from_millis(200));
        let most = most_steps(&mut lab, &mut guest, |lab| lab.machine().now() >= until);
        assert_eq!(most, 1);
    }
    // Among all these a disk is attached and detached as always.
    let new = lab.create_guest();
    let disk = lab.attach(new, "xvda", "ram,size=1M");
    lab.connect(disk);
    lab.random_io(disk, 50);
    lab.detach(disk);
    dom0.rm(&format!("/local/domain/{us}/backend/vbd/{}", others[0])).unwrap();
    let most = most_steps(&mut lab, &mut guest, |lab| !queued(lab));
    assert_eq!(most, 1);
    guest.random_io(&mut lab, 20);
    let said = lab.machine().console();
    assert!(said.len() < 12, "{said:#?}");
}

#[test]
fn values_as_long_as_a_guests_nodes_can_be_are_refused_like_short_ones() {
    let mut lab = Lab::new(2).start();
    let mut served = connected(&mut lab);
    let guest = lab.create_guest();
    let disk = lab.attach(guest, "xvda", "ram,size=1M");
    // A node's 2048 bytes hold its header and permissions, too. As a number it would be 1.
    let long = format!("{:01990}", 1);
    let seen = lab.machine().console().len();
    let refused = [
        (keys::RING_REF, "ring-ref is no number"),
        (keys::EVENT_CHANNEL, "event-channel is no number"),
        (keys::PROTOCOL, "protocol is neither x86_64-abi nor x86_32-abi"),
        (keys::RING_PAGE_ORDER, "ring-page-order is no number"),
        (keys::NUM_RING_PAGES, "num-ring-pages is no number"),
        (keys::MULTI_QUEUE_NUM_QUEUES, "multi-queue-num-queues is no number"),
        (keys::FEATURE_PERSISTENT, "feature-persistent is neither 0 nor 1"),
    ];
    for (key, _) in refused {
        let mut frontend = ByHand::new(&lab, disk, Abi::X86_64, 2048);
        frontend.offer_ring(1);
        frontend.write(key, &long);
        frontend.state(3);
        lab.run_until("state 6", |lab| state(lab, disk) == Some(XenbusState::Closed));
        served.random_io(&mut lab, 5);
        // A state as long is none.
        frontend.write("state", &long);
        lab.run_for(Duration::from_millis(5));
        let path = format!("{}/{key}", disk.frontend_path());
        lab.machine().xs(guest).rm(&path).unwrap();
        frontend.take_back();
        frontend.state(6);
        frontend.state(1);
        lab.run_until("state 2", |lab| state(lab, disk) == Some(XenbusState::InitWait));
        lab.run_for(Duration::from_secs(11));
    }
    let said = lab.machine().console().split_off(seen);
    let line = |text| format!("vbd {guest}/51712: cannot connect: the frontend's {text}");
    assert_eq!(said, refused.map(|(_, text)| line(text)));
    lab.destroy(guest);
    lab.destroy(served.disk.frontend);
    lab.assert_clean();
}

#[test]
fn values_as_long_as_dom0_can_write_them_end_that_vbd_alone() {
    let long = "x".repeat(3900);
    for (key, value) in [
        ("params", long.clone()),
        ("params", format!("ram,size=1M,{long}")),
        ("mode", long.clone()),
        ("frontend-id", long.clone()),
        ("frontend", format!("/local/domain/7/{}", &long[..2900])),
        ("state", long.clone()),
        ("online", long),
    ] {
        let mut lab = Lab::new(3).start();
        let mut served = connected(&mut lab);
        let guest = lab.create_guest();
        let disk = lab.device(guest, "xvda");
        let seen = lab.machine().console().len();
        let spec = DiskSpec::new("xvda", "ram,size=1M");
        let attach = Xl::attach(lab.machine(), disk, &spec);
        let path = format!("{}/{key}", disk.backend_path());
        lab.machine().xs(DOM0).write(&path, value).unwrap();
        let attach = lab.begin(attach);
        let _ = lab.finish(attach);
        served.random_io(&mut lab, 20);
        let said = lab.machine().console().split_off(seen);
        assert!(said.len() <= 3 && said.iter().all(|line| line.len() < 300), "{key}: {said:#?}");
        assert_eq!(lab.try_detach(disk, Detach::Forced), Ok(()), "{key}");
        lab.destroy(guest);
        lab.destroy(served.disk.frontend);
        lab.assert_clean();
    }
}
