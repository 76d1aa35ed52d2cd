//! xenstore counts the nodes of a domain, and libxl's in our directories are ours.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::time::Duration;

use sim::toolstack::{Detach, Device, DiskSpec, ToolstackError};
use sim::{FrontendConfig, GrantUse, Lab};
use xen_abi::{DomId, XenbusState};

const DOM0: DomId = DomId(0);

/// What libxl writes into a backend's directory at most, with the directory itself.
const NR_OF_LIBXL: usize = 16;
/// What we add to that.
const NR_OF_A_DISK: usize = 14;
/// What is added to that by an error: its node and the directory around it.
const NR_OF_AN_ERROR: usize = 2;

/// A disk with all nodes that libxl may write.
fn spec(vdev: &str) -> DiskSpec {
    DiskSpec {
        discard_enable: Some("1"),
        direct_io_safe: Some("1"),
        ..DiskSpec::new(vdev, "ram,size=64K")
    }
}

fn nr_nodes(lab: &Lab) -> usize {
    lab.machine().xenstored().nr_nodes(lab.domid())
}

fn error_node(device: &Device) -> String {
    let Device { backend, frontend, devid, .. } = device;
    format!("/local/domain/{backend}/error/backend/vbd/{frontend}/{devid}/error")
}

#[test]
fn a_disk_has_14_nodes_of_ours() {
    let mut lab = Lab::new(1).start();
    let us = lab.domid();
    let start = lab.machine().xenstored().nodes_of(us);
    for name in ["request", "response", "usage"] {
        let path = format!("/local/domain/{us}/data/{name}");
        assert!(start.contains(&path), "{path} is there from the start");
    }
    let guest = lab.create_guest();
    let disk = lab.try_attach(guest, &spec("xvda")).unwrap();
    let attached = start.len() + NR_OF_LIBXL + NR_OF_A_DISK;
    assert_eq!(nr_nodes(&lab), attached);
    // All that a frontend can use, and what a person asks for.
    let config = FrontendConfig {
        ring_order: 5,
        nr_queues: 4,
        grant_use: GrantUse::Persistent,
        ..FrontendConfig::default()
    };
    lab.connect_as(disk, config);
    lab.random_io(disk, 100);
    let params = format!("{}/params", disk.backend_path());
    lab.machine().xs(DOM0).write(&params, "ram,size=128K").unwrap();
    let request = format!("/local/domain/{us}/data/request");
    lab.machine().xs(DOM0).write(&request, "1 stats").unwrap();
    lab.run_for(Duration::from_secs(20));
    assert_eq!(nr_nodes(&lab), attached);
    lab.detach(disk);
    lab.settle();
    assert_eq!(lab.machine().xenstored().nodes_of(us), start);
}

/// Lets a guest name a ring that cannot be, again and again.
fn err(lab: &mut Lab, disk: Device, nr: usize) {
    let xs = lab.machine().xs(disk.frontend);
    let node = |key: &str| format!("{}/{key}", disk.frontend_path());
    xs.write(&node("ring-page-order"), "6").unwrap();
    for _ in 0..nr {
        for state in ["3", "6", "1"] {
            xs.write(&node("state"), state).unwrap();
            lab.run_for(Duration::from_millis(10));
        }
    }
    xs.rm(&node("ring-page-order")).unwrap();
}

#[test]
fn errors_cost_two_nodes_each_and_go_with_their_vbds() {
    let mut lab = Lab::new(2).start();
    let start = nr_nodes(&lab);
    let guests = [lab.create_guest(), lab.create_guest()];
    let mut disks = Vec::new();
    for guest in guests {
        for vdev in ["xvda", "xvdb"] {
            disks.push(lab.try_attach(guest, &spec(vdev)).unwrap());
        }
    }
    lab.run_for(Duration::from_secs(1));
    for &disk in &disks {
        err(&mut lab, disk, 3);
    }
    // Two directories for all, one for each guest.
    let nr_dirs = 2 + guests.len();
    let nr_of_all = NR_OF_LIBXL + NR_OF_A_DISK + NR_OF_AN_ERROR;
    assert_eq!(nr_nodes(&lab), start + nr_dirs + disks.len() * nr_of_all);
    for disk in disks {
        assert!(lab.machine().xs(DOM0).exists(&error_node(&disk)));
        lab.detach(disk);
        lab.settle();
        assert!(!lab.machine().xs(DOM0).exists(&error_node(&disk)));
    }
    assert_eq!(nr_nodes(&lab), start);
}

const VDEVS: [&str; 4] = ["xvda", "xvdb", "xvdc", "xvdd"];

#[test]
fn of_the_default_quota_32_disks_are_served_and_the_next_is_refused() {
    let mut lab = Lab::new(3).start();
    let start = nr_nodes(&lab);
    let guests: Vec<DomId> = (0..8).map(|_| lab.create_guest()).collect();
    let mut disks = Vec::new();
    for &guest in &guests {
        for vdev in VDEVS {
            let disk = lab.try_attach(guest, &spec(vdev)).unwrap();
            lab.connect(disk);
            disks.push(disk);
        }
    }
    let full = start + 32 * (NR_OF_LIBXL + NR_OF_A_DISK);
    assert_eq!(nr_nodes(&lab), full);
    assert!(full <= 1000);
    lab.run_for(Duration::from_secs(1));

    let guest = lab.create_guest();
    let seen = lab.machine().console().len();
    let refused = lab.device(guest, "xvda");
    let error = lab.try_attach(guest, &spec("xvda")).unwrap_err();
    let found = Some(XenbusState::Closed);
    assert_eq!(error, ToolstackError::TimedOut { wanted: XenbusState::InitWait, found });
    let vbd = format!("vbd {guest}/51712");
    let text = "cannot be served: Granary's quota of xenstore nodes is used up (ENOSPC)";
    assert_eq!(
        lab.machine().console()[seen..],
        [
            format!(
                "{vbd}: attached ram,size=64K, 128 sectors, read-write; starts afresh after a reboot, \
                 not for save or migrate"
            ),
            format!("{vbd}: {text}"),
        ]
    );
    for &disk in &disks {
        lab.random_io(disk, 20);
    }
    // As libxl wants it, and nothing is left of it.
    assert_eq!(lab.try_detach(refused, Detach::Polite), Ok(()));
    lab.settle();
    assert_eq!(nr_nodes(&lab), full);

    // Where one goes there is room for one.
    lab.detach(disks.pop().unwrap());
    let disk = lab.try_attach(guest, &spec("xvdb")).unwrap();
    lab.connect(disk);
    disks.push(disk);
    for disk in disks {
        lab.random_io(disk, 5);
        lab.detach(disk);
    }
    lab.assert_clean();
}

#[test]
fn errors_that_find_no_room_are_silent() {
    let mut lab = Lab::new(4).start();
    let guest = lab.create_guest();
    let disks = ["xvda", "xvdb"].map(|vdev| lab.try_attach(guest, &spec(vdev)).unwrap());
    lab.connect(disks[1]);
    lab.machine().xenstored().quotas.nodes = nr_nodes(&lab);
    lab.run_for(Duration::from_secs(1));
    let seen = lab.machine().console().len();
    err(&mut lab, disks[0], 50);
    let line = format!(
        "vbd {guest}/51712: cannot connect: the frontend's ring-page-order is 6, 0 to 5 were offered"
    );
    assert_eq!(lab.machine().console()[seen..], vec![line; 5]);
    assert!(!lab.machine().xs(DOM0).exists(&error_node(&disks[0])));
    lab.random_io(disks[1], 50);
    // The disk is none the worse for it.
    lab.connect(disks[0]);
    lab.random_io(disks[0], 50);
    for disk in disks {
        lab.detach(disk);
    }
    lab.assert_clean();
}

#[test]
fn a_disk_whose_frontend_cannot_be_watched_is_refused() {
    let mut lab = Lab::new(5).start();
    let guest = lab.create_guest();
    let disk = lab.try_attach(guest, &spec("xvda")).unwrap();
    lab.run_for(Duration::from_secs(1));
    let us = lab.domid();
    let nr_watches = lab.machine().xenstored().nr_watches(us);
    lab.machine().xenstored().quotas.watches = nr_watches;

    let refused = lab.device(guest, "xvdb");
    let error = lab.try_attach(guest, &spec("xvdb")).unwrap_err();
    let found = Some(XenbusState::Closed);
    assert_eq!(error, ToolstackError::TimedOut { wanted: XenbusState::InitWait, found });
    let text = "cannot be served: Granary's quota of xenstore watches is used up (E2BIG)";
    let line = format!("vbd {guest}/51728: {text}");
    assert_eq!(lab.machine().console().last(), Some(&line));
    let node = lab.machine().xs(DOM0).read(&error_node(&refused));
    assert_eq!(node.unwrap(), format!("28 {text}"));
    assert_eq!(lab.try_detach(refused, Detach::Polite), Ok(()));

    // Where one goes there is room for one.
    lab.detach(disk);
    let disk = lab.try_attach(guest, &spec("xvdb")).unwrap();
    lab.connect(disk);
    lab.random_io(disk, 20);
    lab.detach(disk);
    lab.assert_clean();
}
