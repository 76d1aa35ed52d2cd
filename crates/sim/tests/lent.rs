//! Devices that reach what is mapped of guests: while one may access a page it stays mapped.
//!
//! An access to a page that is not mapped is an IOMMU fault, and fails the test.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::time::Duration;

use blkif::Abi;
use sim::toolstack::Device;
use sim::{Expect, FrontendConfig, Gone, Lab, Model, OwnDisk, Pace, seeds};
use xen_abi::DomId;

const NR_SECTORS: usize = 4096;

/// A host with a namespace, where of each ring's guest so many pages stay mapped.
fn lab(seed: u64, max_persistent: usize) -> (Lab, OwnDisk) {
    let disk = OwnDisk::new(NR_SECTORS);
    let words = format!("persistent={max_persistent}");
    (Lab::new(seed).cmdline(&words).namespace(&disk).iommu().start(), disk)
}

/// A guest's disk on the namespace, which may hold anything.
fn connect(lab: &mut Lab, guest: DomId, config: FrontendConfig) -> Device {
    let disk = lab.attach(guest, "xvda", "nvme0n1");
    let mut any = Model::zeroed(NR_SECTORS as u64);
    any.forget();
    lab.add_frontend(disk, config, Some(any));
    lab.run_until("it is connected", |lab| lab.is_connected(disk));
    disk
}

fn nr_handles(lab: &Lab) -> usize {
    lab.machine().grants().nr_handles(lab.domid())
}

/// A guest whose requests are under way at the device, in its own pages.
fn at_work(lab: &mut Lab, namespace: &OwnDisk, seed: u64) -> Device {
    let guest = lab.create_guest();
    let config =
        FrontendConfig { nr_queues: 1 + u32::from(seed.is_multiple_of(2)), ..Default::default() };
    let disk = connect(lab, guest, config);
    lab.random_io(disk, 20);
    namespace.set_pace(Pace::Slow(2 + seed % 7));
    lab.frontend(disk).want(400);
    lab.run_until("requests are under way", |_| namespace.nr_lent_under_way() > 1);
    disk
}

#[test]
fn data_is_moved_without_a_copy() {
    for seed in seeds(4) {
        let (mut lab, namespace) = lab(seed, 1024);
        let guest = lab.create_guest();
        // An overlay is copied to and from.
        let overlay = lab.attach(guest, "xvda", "nvme0n1,cow");
        lab.connect(overlay);
        lab.random_io(overlay, 200);
        assert_eq!(namespace.nr_lent(), 0);
        assert!(lab.machine().counters().mapped_copies > 200);
        lab.detach(overlay);
        let disk = lab.attach(guest, "xvda", "nvme0n1");
        lab.connect(disk);
        lab.random_io(disk, 400);
        assert!(namespace.nr_lent() > 100, "{}", namespace.nr_lent());
        lab.destroy(guest);
        lab.assert_clean();
    }
}

#[test]
fn few_pages_that_stay_mapped_are_those_in_use() {
    for seed in seeds(6) {
        let (mut lab, namespace) = lab(seed, 24);
        namespace.set_pace(Pace::Slow(3));
        let guest = lab.create_guest();
        let disk = connect(&mut lab, guest, FrontendConfig::default());
        lab.random_io(disk, 600);
        assert!(namespace.nr_lent() > 0);
        lab.destroy(guest);
        lab.assert_clean();
    }
}

#[test]
fn a_guest_that_is_destroyed_under_load_is_gone_when_the_device_is_done() {
    for seed in seeds(6) {
        let (mut lab, namespace) = lab(seed, [32, 1024][usize::from(seed % 3 == 0)]);
        for _ in 0..3 {
            let disk = at_work(&mut lab, &namespace, seed);
            namespace.set_pace(Pace::Stalled);
            lab.settle();
            lab.begin_destroy(disk.frontend);
            lab.run_for(Duration::from_secs(1));
            assert!(lab.machine().has_domain(disk.frontend));
            assert!(nr_handles(&lab) > 0);
            // Others are served meanwhile.
            let other = lab.create_guest();
            let beside = lab.attach(other, "xvda", "ram,size=1M");
            lab.connect(beside);
            lab.random_io(beside, 50);
            namespace.set_pace(Pace::Slow(3));
            lab.run_until("it is gone", |lab| !lab.machine().has_domain(disk.frontend));
            lab.destroy(other);
            assert_eq!(nr_handles(&lab), 0);
        }
        lab.assert_clean();
    }
}

#[test]
fn the_next_guest_of_a_disk_comes_while_pages_of_the_last_are_lent() {
    for seed in seeds(6) {
        let (mut lab, namespace) = lab(seed, 64);
        let mut gone = Vec::new();
        for _ in 0..4 {
            let guest = at_work(&mut lab, &namespace, seed).frontend;
            lab.begin_destroy(guest);
            gone.push(guest);
        }
        lab.run_until("they are gone", |lab| {
            gone.iter().all(|guest| !lab.machine().has_domain(*guest))
        });
        lab.assert_clean();
    }
}

#[test]
fn hostile_frontends_on_a_namespace() {
    for seed in seeds(6) {
        let (mut lab, namespace) = lab(seed, 16);
        namespace.set_pace(Pace::Slow(3));
        for _ in 0..3 {
            let guest = lab.create_guest();
            let disk = lab.attach(guest, "xvda", "nvme0n1");
            lab.attack(disk, Abi::X86_64);
            lab.run_for(Duration::from_millis(200));
            lab.begin_destroy(guest);
            lab.run_until("it is gone", |lab| !lab.machine().has_domain(guest));
        }
        lab.assert_clean();
    }
}

#[test]
fn a_controller_that_is_gone_under_load_fails_its_guests_and_lets_go_of_them() {
    for seed in seeds(6) {
        let (mut lab, namespace) = lab(seed, 64);
        let disk = at_work(&mut lab, &namespace, seed);
        lab.frontend(disk).expect(Expect::Failures);
        namespace.set_gone(Gone::CutOff);
        lab.run_for(Duration::from_secs(1));
        assert_eq!(namespace.nr_lent_under_way(), 0);
        assert!(lab.frontend(disk).answers().failed > 0);
        lab.destroy(disk.frontend);
        lab.assert_clean();
    }
}

#[test]
fn one_that_cannot_be_cut_off_keeps_the_pages_that_it_had() {
    for seed in seeds(6) {
        let (mut lab, namespace) = lab(seed, 64);
        let disk = at_work(&mut lab, &namespace, seed);
        lab.frontend(disk).expect(Expect::Failures);
        namespace.set_gone(Gone::Uncontrolled);
        lab.run_for(Duration::from_secs(1));
        assert!(lab.frontend(disk).answers().failed > 0);
        lab.begin_destroy(disk.frontend);
        lab.run_for(Duration::from_secs(1));
        assert!(lab.machine().has_domain(disk.frontend));
        // It can be ended: the toolstack takes its devices before Xen its mappings.
        lab.shutdown();
        lab.run_until("it has ended", |lab| lab.ended().is_some());
    }
}

#[test]
fn the_domain_ends() {
    for seed in seeds(6) {
        let (mut lab, namespace) = lab(seed, 64);
        let disk = at_work(&mut lab, &namespace, seed);
        lab.begin_destroy(disk.frontend);
        lab.shutdown();
        lab.run_until("it has ended", |lab| lab.ended().is_some());
    }
}
