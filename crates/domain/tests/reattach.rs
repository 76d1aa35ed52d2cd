//! A vdev that is attached again the moment its last disk is gone.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::time::Duration;

use sim::toolstack::DiskSpec;
use sim::{Lab, seeds};
use xen_abi::{DomId, XenbusState};

/// The new disk may come while we still read of the old one that it is gone: the event that says so
/// must not go with the old one's record.
#[test]
fn a_disk_attached_while_the_last_one_is_read_to_be_gone_is_seen() {
    for seed in seeds(10) {
        let mut lab = Lab::new(seed).start();
        let guest = lab.create_guest();
        let spec = DiskSpec::new("xvda", "ram,size=64K");
        let disk = lab.try_attach(guest, &spec).unwrap();
        for round in 0..40 {
            let dom0 = lab.machine().xs(DomId(0));
            dom0.write(&format!("{}/online", disk.backend_path()), "0").unwrap();
            dom0.write(&format!("{}/state", disk.backend_path()), "5").unwrap();
            lab.run_until("the removal", |lab| disk.backend_state(lab.machine()).is_none());
            lab.run_for(Duration::from_micros(5 * round));
            disk.add(lab.machine(), &spec).unwrap();
            lab.run_until("InitWait", |lab| {
                disk.backend_state(lab.machine()) == Some(XenbusState::InitWait)
            });
        }
    }
}

/// The toolstack may take a directory away and write another before we look: the new one's disk is to
/// be served, and not that of the old one.
#[test]
fn a_directory_in_the_place_of_another_is_read_anew() {
    for seed in seeds(4) {
        for is_connected in [false, true] {
            let mut lab = Lab::new(seed).start();
            let guest = lab.create_guest();
            let disk = lab.attach(guest, "xvda", "ram,size=64K");
            if is_connected {
                lab.connect(disk);
            }
            lab.settle();
            let dom0 = lab.machine().xs(DomId(0));
            for dir in [disk.frontend_path(), disk.backend_path()] {
                dom0.rm(&dir).unwrap();
            }
            disk.add(lab.machine(), &DiskSpec::new("xvda", "null,size=128K")).unwrap();
            lab.run_until("InitWait", |lab| {
                disk.backend_state(lab.machine()) == Some(XenbusState::InitWait)
            });
            let sectors = dom0.read(&format!("{}/sectors", disk.backend_path()));
            assert_eq!(sectors.unwrap(), "256");
            lab.detach(disk);
            lab.destroy(guest);
            lab.assert_clean();
        }
    }
}

/// Also while we read the old one, or publish what its disk offers: nothing of the two is mixed.
#[test]
fn a_directory_that_takes_the_place_of_one_that_is_being_read_is_read_anew() {
    for seed in seeds(4) {
        let mut lab = Lab::new(seed).start();
        let dom0 = lab.machine().xs(DomId(0));
        let new = DiskSpec::new("xvda", "null,size=128K").read_only();
        for round in 0..60 {
            let guest = lab.create_guest();
            let disk = lab.device(guest, "xvda");
            disk.add(lab.machine(), &DiskSpec::new("xvda", "ram,size=64K")).unwrap();
            lab.run_for(Duration::from_micros(5 * round));
            for dir in [disk.frontend_path(), disk.backend_path()] {
                dom0.rm(&dir).unwrap();
            }
            disk.add(lab.machine(), &new).unwrap();
            lab.run_until("InitWait", |lab| {
                disk.backend_state(lab.machine()) == Some(XenbusState::InitWait)
            });
            lab.settle();
            let node = |key: &str| dom0.read(&format!("{}/{key}", disk.backend_path())).ok();
            let found = ["sectors", "info", "discard-granularity"].map(node);
            let report = lab.report();
            assert_eq!(found, [Some("256".into()), Some("4".into()), None], "{round}: {report}");
            lab.detach(disk);
            lab.destroy(guest);
        }
        lab.assert_clean();
    }
}
