//! Disks that another Granary serves, by `blkfront`, held against a model.
//!
//! `SIM_SEEDS=200 cargo test --profile sim -p sim --test upstream` runs more of it, `SIM_SEED=n` one
//! seed again.

#![allow(clippy::unwrap_used, reason = "a test may")]

#[path = "upstream/mod.rs"]
mod upstream;

use std::time::Duration;

use blkfront::Event;
use blkif::RingOrder;
use sim::toolstack::{Detach, Device, DiskSpec, Operation};
use sim::{Expect, Lab, seeds};
use store::Access;
use upstream::{Config, Upstream};
use xen_abi::{DomId, GntStatus};

/// Runs both until `done`.
fn run_until(lab: &mut Lab, up: &mut Upstream, mut done: impl FnMut(&Lab, &Upstream) -> bool) {
    for _ in 0..1_000_000 {
        up.step();
        if done(lab, up) {
            return;
        }
        lab.run_for(Duration::from_micros(20));
    }
    panic!("it never comes to that");
}

fn io(lab: &mut Lab, up: &mut Upstream, nr_requests: u64) {
    up.wanted = nr_requests;
    run_until(lab, up, |_, up| up.is_drained());
}

fn detach(lab: &mut Lab, up: &mut Upstream, device: Device, detach: Detach) {
    let id = lab.begin(Operation::detach(lab.machine(), device, detach));
    run_until(lab, up, |lab, _| lab.result(id).is_some());
    assert_eq!(lab.result(id), Some(Ok(())));
    run_until(lab, up, |_, up| up.is_closed());
}

fn random(lab: &mut Lab) -> Config {
    let ring_order = u32::try_from(lab.rng().below(6)).unwrap();
    Config {
        ring_order: RingOrder::new(ring_order).unwrap(),
        nr_frames: [3, 40, 300][lab.rng().index(3)],
        max_sectors: [8, 88, 300, 3000][lab.rng().index(4)],
    }
}

fn connect(lab: &mut Lab, spec: &DiskSpec, config: Config) -> (Device, Upstream) {
    let other = lab.create_guest();
    let device = lab.try_attach(other, spec).unwrap();
    let mut up = Upstream::new(&lab.machine().clone(), device, config);
    run_until(lab, &mut up, |_, up| up.is_connected());
    (device, up)
}

/// A driver domain that offers this or that.
fn lab(seed: u64) -> Lab {
    println!("SIM_SEED={seed}");
    let mut rng = sim::Rng::new(seed);
    let mut pick = |choices: &[u64]| choices[rng.index(choices.len())];
    let command_line = format!(
        "ring-order={} indirect={} persistent={}",
        pick(&[0, 1, 2, 5]),
        pick(&[0, 8, 32, 128, 512]),
        pick(&[0, 8, 64, 1056]),
    );
    Lab::new(seed).cmdline(&command_line).start()
}

#[test]
fn every_byte_is_as_the_model_has_it_while_the_disk_grows() {
    for seed in seeds(6) {
        let mut lab = lab(seed);
        let block = [512, 4096][lab.rng().index(2)];
        let config = random(&mut lab);
        let target = format!("ram,size=2M,block={block}");
        let (device, mut up) = connect(&mut lab, &DiskSpec::new("xvdb", &target), config);
        assert_eq!(up.disk().unwrap().logical.bytes(), block);
        io(&mut lab, &mut up, 150);

        up.wanted = 150;
        let params = format!("{}/params", device.backend_path());
        let target = target.replace("2M", "3M");
        lab.machine().xs(DomId(0)).write(&params, &target).unwrap();
        run_until(&mut lab, &mut up, |_, up| up.is_drained());
        run_until(&mut lab, &mut up, |_, up| up.disk().unwrap().nr_sectors == 3 << 11);
        io(&mut lab, &mut up, 50);
        assert_eq!((up.okay, up.failed, up.gone), (350, 0, 0));

        detach(&mut lab, &mut up, device, Detach::Polite);
        up.assert_clean();
        lab.destroy(device.frontend);
        lab.assert_clean();
    }
}

#[test]
fn it_closes_and_opens_again_and_the_disk_is_the_same() {
    for seed in seeds(3) {
        let mut lab = lab(seed);
        let config = random(&mut lab);
        let (device, mut up) = connect(&mut lab, &DiskSpec::new("xvdb", "ram,size=1M"), config);
        for _ in 0..5 {
            io(&mut lab, &mut up, 40);
            up.tell(Event::Close);
            run_until(&mut lab, &mut up, |_, up| up.is_closed());
            up.assert_clean();
            up.tell(Event::Reopen);
            run_until(&mut lab, &mut up, |_, up| up.is_connected());
        }
        detach(&mut lab, &mut up, device, Detach::Polite);
        up.assert_clean();
        lab.assert_clean();
    }
}

#[test]
fn a_backend_that_goes_under_load_leaves_nothing_behind() {
    let mut gone = 0;
    for seed in seeds(8) {
        let mut lab = lab(seed);
        let config = random(&mut lab);
        let (device, mut up) = connect(&mut lab, &DiskSpec::new("xvdb", "ram,size=1M"), config);
        up.wanted = 100_000;
        let most = 200 + 100 * seed;
        for _ in 0..lab.rng().below(most) {
            up.step();
            lab.run_for(Duration::from_micros(20));
        }
        let how = if seed % 2 == 0 { Detach::Forced } else { Detach::Polite };
        detach(&mut lab, &mut up, device, how);
        up.assert_clean();
        gone += up.gone;
        lab.assert_clean();
    }
    assert!(gone > 0, "no request was in flight when its backend went");
}

#[test]
fn what_fails_upstream_fails_here() {
    for seed in seeds(4) {
        let mut lab = lab(seed);
        // One request each: what fails leaves the disk as it was.
        let config = Config { max_sectors: 8, ..random(&mut lab) };
        let (device, mut up) = connect(&mut lab, &DiskSpec::new("xvdb", "ram,size=1M"), config);
        up.expect = Expect::Failures;
        lab.machine().grants().map_faults.fail_one_in(10, GntStatus::GENERAL_ERROR);
        lab.machine().grants().copy_faults.fail_one_in(10, GntStatus::GENERAL_ERROR);
        io(&mut lab, &mut up, 300);
        lab.machine().grants().map_faults.clear();
        lab.machine().grants().copy_faults.clear();
        up.expect = Expect::Success;
        io(&mut lab, &mut up, 100);
        assert_eq!((up.okay + up.failed, up.gone), (400, 0));
        detach(&mut lab, &mut up, device, Detach::Polite);
        up.assert_clean();
        lab.assert_clean();
    }
}

#[test]
fn a_disk_that_is_only_read_is_only_read() {
    let mut lab = lab(1);
    let config = random(&mut lab);
    let spec = DiskSpec::new("xvdb", "ram,size=1M").read_only();
    let (device, mut up) = connect(&mut lab, &spec, config);
    assert_eq!(up.disk().unwrap().access, Access::ReadOnly);
    io(&mut lab, &mut up, 100);
    assert_eq!(up.okay, 100);
    detach(&mut lab, &mut up, device, Detach::Polite);
    up.assert_clean();
    lab.assert_clean();
}
