//! Granary on Granary: a driver domain whose disks another one serves to it, held against a model by
//! its own guests.
//!
//! `SIM_SEEDS=200 cargo test --profile sim -p sim --test stacked` runs more of it, `SIM_SEED=n` one
//! seed again.

#![allow(clippy::unwrap_used, reason = "a test may")]

use sim::toolstack::{Detach, DiskSpec};
use sim::{Expect, FrontendConfig, Lab, Model, seeds};
use xen_abi::DomId;

/// A driver domain with an upstream disk of 2 MiB.
fn stacked(seed: u64, command_line: &str, disk: &DiskSpec) -> (Lab, DomId, sim::toolstack::Device) {
    println!("SIM_SEED={seed}");
    let mut lab = Lab::new(seed).cmdline(command_line).start();
    let server = lab.create_server("");
    let upstream = lab.serve(server, disk);
    (lab, server, upstream)
}

/// Nothing of the upstream disk is left in either domain.
fn assert_clean(lab: &mut Lab, nr_free_pages: u64) {
    lab.assert_clean();
    assert_eq!(lab.machine().grants().nr_grants(lab.domid()), 0, "grants of our own");
    assert_eq!(free_pages(lab), nr_free_pages);
}

/// What the domain says that its pool has.
fn free_pages(lab: &Lab) -> u64 {
    let path = format!("/local/domain/{}/data/usage", lab.domid());
    let usage = lab.machine().xs(DomId(0)).read(&path).unwrap();
    let free = usage.split(' ').find_map(|word| word.strip_prefix("free_pages="));
    free.unwrap().parse().unwrap()
}

#[test]
fn every_byte_goes_through() {
    for seed in seeds(4) {
        let spec = DiskSpec::new("xvdb", "ram,size=2M");
        let (mut lab, _, upstream) = stacked(seed, "", &spec);
        let nr_free = free_pages(&lab);
        let guest = lab.create_guest();
        let disk = lab.attach(guest, "xvda", "vbd/xvdb");
        lab.connect(disk);
        assert_eq!(lab.frontend(disk).disk().unwrap().nr_sectors, 4096);
        lab.random_io(disk, 400);
        assert_eq!(lab.frontend(disk).answers().failed, 0);
        lab.detach(disk);
        lab.try_detach(upstream, Detach::Polite).unwrap();
        lab.destroy(guest);
        assert_clean(&mut lab, nr_free);
    }
}
