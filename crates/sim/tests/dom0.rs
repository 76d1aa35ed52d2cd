//! Disks attached to dom0, as `xl block-attach 0` and pygrub do: the frontend's domid is 0, and its
//! directory may lie anywhere.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::time::Duration;

use sim::toolstack::{Detach, Device, DiskSpec, FrontendDir, Operation};
use sim::{Expect, Lab};
use xen_abi::{DomId, XenbusState};

const DOM0: DomId = DomId(0);

const PLACES: [FrontendDir; 3] = [
    FrontendDir::DeviceVbd,
    FrontendDir::Below("/local/domain/0/lab"),
    FrontendDir::Below("/lab/frontends/of/granary"),
];

/// A disk of dom0.
fn attached(lab: &mut Lab, vdev: &str, frontend_dir: FrontendDir) -> Device {
    let device = Device { frontend_dir, ..lab.device(DOM0, vdev) };
    let spec = DiskSpec::new(vdev, "ram,size=1M");
    let id = lab.begin(Operation::attach(lab.machine(), device, &spec));
    lab.finish(id).unwrap();
    device
}

#[test]
fn dom0_uses_a_disk_wherever_its_frontend_lies() {
    for (seed, place) in (1..).zip(PLACES) {
        let mut lab = Lab::new(seed).start();
        let disk = attached(&mut lab, "xvda", place);
        let frontend = lab.machine().xs(DOM0).read(&format!("{}/frontend", disk.backend_path()));
        assert_eq!(frontend, Ok(disk.frontend_path()));
        lab.connect(disk);
        lab.random_io(disk, 200);
        let seen = "vbd 0/51712: connected, x86_64-abi, 1 ring of 32 requests";
        assert!(lab.machine().console().iter().any(|line| line.starts_with(seen)));
        lab.detach(disk);
        // As pygrub does for every guest that it looks at.
        let disk = attached(&mut lab, "xvda", place);
        lab.connect(disk);
        lab.random_io(disk, 50);
        lab.frontend(disk).want(1000);
        lab.expect(Expect::Failures);
        lab.run_for(Duration::from_micros(300));
        assert_eq!(lab.try_detach(disk, Detach::Forced), Ok(()));
        lab.assert_clean();
    }
}

#[test]
fn frontends_of_dom0_and_of_guests_are_told_apart() {
    let mut lab = Lab::new(4).start();
    let guest = lab.create_guest();
    let mut disks = vec![lab.attach(guest, "xvda", "ram,size=1M")];
    for (vdev, place) in ["xvda", "xvdb", "xvdc"].into_iter().zip(PLACES) {
        disks.push(attached(&mut lab, vdev, place));
    }
    for &disk in &disks {
        lab.connect(disk);
    }
    for &disk in &disks {
        lab.random_io(disk, 50);
    }
    // One whose directory goes is let go, and the others never hear of it.
    lab.machine().xs(DOM0).rm(&disks[2].frontend_path()).unwrap();
    lab.run_until("state 6", |lab| {
        disks[2].backend_state(lab.machine()) == Some(XenbusState::Closed)
    });
    for &disk in &[disks[0], disks[1], disks[3]] {
        lab.random_io(disk, 50);
    }
    for disk in disks {
        lab.detach(disk);
    }
    lab.assert_clean();
}
