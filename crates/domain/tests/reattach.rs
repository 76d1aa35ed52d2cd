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
