//! Whole histories of a host, each out of one seed, with everything on at once: two guests of any
//! kind of frontend, a hostile one, failing copies and maps, transactions that conflict, disks over
//! zeroes and over an image that come, grow and go. Every answer and every byte read is checked against a model.
//!
//! A plain `cargo test` runs 20 of them, short. All of it, on two threads:
//!
//! ```sh
//! SIM_SEEDS=1000 SIM_REQUESTS=10000 cargo test --profile sim -p sim --test long -- --nocapture
//! ```
//!
//! `SIM_SEED=n` runs one seed again.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{env, thread};

use blkback::Terms;
use blkif::Abi;
use domain::ShutdownReason;
use sim::toolstack::{Detach, Device, DiskSpec};
use sim::xenstored::{DuplicateEvents, Errno};
use sim::{Expect, FrontendConfig, Lab, Model, seeds};
use xen_abi::{DomId, GntStatus, XenbusState};

const NR_THREADS: usize = 2;

/// Requests of a history in a plain `cargo test`.
const NR_REQUESTS: u64 = 200;

/// What came of one history or more.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    nr_seeds: u64,
    okay: u64,
    failed: u64,
    /// Slots that hostile frontends filled.
    hostile: u64,
    /// Copies, maps, unmaps and commits that were made to fail.
    faults: u64,
    /// Disks that were made larger while they were used.
    grown: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.nr_seeds += other.nr_seeds;
        self.okay += other.okay;
        self.failed += other.failed;
        self.hostile += other.hostile;
        self.faults += other.faults;
        self.grown += other.grown;
    }
}

#[test]
fn any_history_keeps_every_disk_as_its_model() {
    let nr_requests = env::var("SIM_REQUESTS").map_or(NR_REQUESTS, |text| text.parse().unwrap());
    let seeds = seeds(20);
    let next = AtomicU64::new(seeds.start);
    let begin = Instant::now();
    let mut sum = Tally::default();
    thread::scope(|scope| {
        let run = || {
            let mut sum = Tally::default();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if !seeds.contains(&seed) {
                    return sum;
                }
                sum += History::new(seed).run(nr_requests);
            }
        };
        let threads: Vec<_> = (0..NR_THREADS).map(|_| scope.spawn(run)).collect();
        for thread in threads {
            sum += thread.join().unwrap();
        }
    });
    println!("{sum:?} in {:?}", begin.elapsed());
    assert_eq!(sum.nr_seeds, seeds.end - seeds.start);
    assert_eq!(sum.okay + sum.failed, sum.nr_seeds * nr_requests, "answers");
}

/// A disk over the image that the loader brought.
const OVERLAY: &str = "gold,cow";

/// An image of an odd number of sectors, no two of them alike.
fn image(rng: &mut sim::Rng) -> Vec<u8> {
    let nr_sectors = rng.between(100, 3000);
    (0..nr_sectors).flat_map(|sector| (sector | 1 << 40).to_le_bytes().repeat(64)).collect()
}

struct History {
    lab: Lab,
    /// What `gold` holds.
    image: Vec<u8>,
    guests: [DomId; 2],
    /// The disks of those, and where they are.
    disks: Vec<(DiskSpec, Device)>,
    hostile: DomId,
    attacked: Vec<Device>,
    tally: Tally,
}

impl History {
    fn new(seed: u64) -> Self {
        let mut rng = sim::Rng::new(seed);
        let mut pick = |choices: &[u64]| choices[rng.index(choices.len())];
        let memory_pages = pick(&[1200, 2000, 4096]);
        let command_line = format!(
            "queues={} ring-order={} indirect={} persistent={}",
            pick(&[1, 2, 4]),
            pick(&[0, 1, 2, 5]),
            pick(&[0, 8, 32, 128]),
            pick(&[0, 8, 64, 1056]),
        );
        let image = image(&mut rng);
        let command_line = format!("disk=gold,module=0 {command_line}");
        let lab = Lab::new(seed).memory_pages(memory_pages).module(image.clone());
        let mut lab = lab.cmdline(&command_line).start();
        if lab.rng().one_in(2) {
            lab.machine().xenstored().duplicates = DuplicateEvents::Drop;
        }
        lab.machine().xenstored().commit_faults.fail_one_in(4, Errno::Eagain);
        let guests = [lab.create_guest(), lab.create_guest()];
        let hostile = lab.create_guest();
        let tally = Tally { nr_seeds: 1, ..Tally::default() };
        Self { lab, image, guests, disks: Vec::new(), hostile, attacked: Vec::new(), tally }
    }

    fn run(mut self, nr_requests: u64) -> Tally {
        for vdev in ["xvda", "xvdb"] {
            for guest in self.guests {
                self.attach(guest, vdev);
            }
        }
        for vdev in ["xvda", "xvdb"] {
            let device = self.lab.attach(self.hostile, vdev, "ram,size=512K");
            let abi = self.abi();
            self.lab.attack(device, abi);
            self.attacked.push(device);
        }
        let nr_parts = 4;
        for part in 0..nr_parts {
            let nr = nr_requests / nr_parts + if part == 0 { nr_requests % nr_parts } else { 0 };
            self.serve(nr);
            match self.lab.rng().below(3) {
                0 => self.reattach(),
                1 => self.reopen(),
                _ => {}
            }
        }
        self.end()
    }

    fn abi(&mut self) -> Abi {
        if self.lab.rng().one_in(2) { Abi::X86_64 } else { Abi::X86_32 }
    }

    /// Attaches a disk of any kind, and connects a frontend of any kind.
    fn attach(&mut self, guest: DomId, vdev: &str) {
        let rng = self.lab.rng();
        let block = [512, 512, 4096][rng.index(3)];
        let size = ["64K", "256K", "1M", "2M"][rng.index(4)];
        let target = match rng.index(4) {
            0 => OVERLAY.into(),
            _ => format!("ram,size={size},block={block}"),
        };
        let mut spec = DiskSpec::new(vdev, &target);
        if rng.one_in(8) {
            spec = spec.read_only();
        }
        if rng.one_in(4) {
            spec.discard_enable = Some("0");
        }
        let device = self.lab.try_attach(guest, &spec).unwrap();
        self.connect(&spec, device);
        self.disks.push((spec, device));
    }

    fn connect(&mut self, spec: &DiskSpec, device: Device) {
        let model = (spec.target == OVERLAY).then(|| Model::overlay(self.image.clone()));
        let abi = self.abi();
        let config = FrontendConfig::random(abi, self.lab.rng());
        self.lab.add_frontend(device, config, model);
        self.lab.run_until("the connection", |lab| {
            device.backend_state(lab.machine()) == Some(XenbusState::Connected)
        });
    }

    /// Makes a disk larger while it is used, as far as the pool has room for it.
    fn grow(&mut self) {
        let chosen = self.lab.rng().index(self.disks.len());
        let (spec, device) = &mut self.disks[chosen];
        let sizes = ["64K", "256K", "1M", "2M", "4M"];
        let is_of = |size: &&str| spec.target.starts_with(&format!("ram,size={size},"));
        let Some(at) = sizes[..4].iter().position(is_of) else { return };
        spec.target = spec.target.replace(sizes[at], sizes[at + 1]);
        let params = format!("{}/params", device.backend_path());
        self.lab.machine().xs(DomId(0)).write(&params, &spec.target).unwrap();
        self.tally.grown += 1;
    }

    /// Lets the frontends make so many requests, while copies and maps fail now and then.
    fn serve(&mut self, nr_requests: u64) {
        let copies = [0, 5, 50, 1000][self.lab.rng().index(4)];
        let maps = [0, 3, 30, 300][self.lab.rng().index(4)];
        let map_status =
            if self.lab.rng().one_in(4) { GntStatus::NO_SPACE } else { GntStatus::GENERAL_ERROR };
        self.lab.expect(Expect::Failures);
        self.lab.machine().grants().copy_faults.fail_one_in(copies, GntStatus::GENERAL_ERROR);
        self.lab.machine().grants().map_faults.fail_one_in(maps, map_status);
        let nr_disks = self.disks.len() as u64;
        for (n, &(_, device)) in (0..).zip(&self.disks) {
            let nr = nr_requests / nr_disks + u64::from(n < nr_requests % nr_disks);
            self.lab.frontend(device).want(nr);
        }
        if self.lab.rng().one_in(2) {
            self.lab.run_for(Duration::from_micros(100));
            self.grow();
        }
        let disks: Vec<Device> = self.disks.iter().map(|&(_, device)| device).collect();
        self.lab.run_until("the answers", |lab| disks.iter().all(|&disk| lab.is_drained(disk)));
        self.lab.machine().grants().copy_faults.clear();
        self.lab.machine().grants().map_faults.clear();
    }

    fn count(&mut self, device: Device) {
        let answers = self.lab.frontend(device).answers();
        self.tally.okay += answers.okay;
        self.tally.failed += answers.failed;
    }

    /// Detaches a disk and attaches it again, which is a new one.
    fn reattach(&mut self) {
        let chosen = self.lab.rng().index(self.disks.len());
        let (spec, device) = self.disks[chosen].clone();
        self.count(device);
        self.lab.detach(device);
        assert_eq!(self.lab.try_attach(device.frontend, &spec), Ok(device));
        self.connect(&spec, device);
    }

    /// A frontend closes, and another kind of frontend connects: the disk is the same one.
    fn reopen(&mut self) {
        let chosen = self.lab.rng().index(self.disks.len());
        let (_, device) = self.disks[chosen];
        self.count(device);
        self.lab.frontend(device).close();
        self.lab.run_until("the close", |lab| lab.is_closed(device));
        let mut model = self.lab.frontend(device).model().cloned();
        let (path, xs) = (device.frontend_path(), self.lab.machine().xs(device.frontend));
        for key in Terms::KEYS {
            let _ = xs.rm(&format!("{path}/{key}"));
        }
        assert_eq!(xs.write(&format!("{path}/state"), "1"), Ok(()));
        let in_state = |lab: &Lab, state| device.backend_state(lab.machine()) == Some(state);
        self.lab.run_until("InitWait", |lab| in_state(lab, XenbusState::InitWait));
        // It may have been made larger too late for the frontend that closed.
        let sectors = format!("{}/sectors", device.backend_path());
        let nr_sectors = self.lab.machine().xs(device.frontend).number(&sectors).unwrap();
        if let Some(model) = &mut model {
            model.resize(nr_sectors);
        }
        let abi = self.abi();
        let config = FrontendConfig::random(abi, self.lab.rng());
        self.lab.add_frontend(device, config, model);
        self.lab.run_until("the connection", |lab| in_state(lab, XenbusState::Connected));
    }

    /// Lets all go: nothing is left of anybody.
    fn end(mut self) -> Tally {
        for (_, device) in self.disks.clone() {
            self.count(device);
        }
        let ends = self.lab.rng().one_in(4);
        if ends {
            self.lab.shutdown();
        }
        let [first, second] = self.guests;
        for (_, device) in self.disks.iter().filter(|(_, device)| device.frontend == first) {
            self.lab.detach(*device);
        }
        // With requests in flight.
        for (_, device) in self.disks.iter().filter(|(_, device)| device.frontend == second) {
            self.lab.frontend(*device).want(1000);
        }
        self.lab.run_for(Duration::from_micros(300));
        self.lab.destroy(second);
        self.lab.destroy(first);
        assert_eq!(self.lab.ended(), None, "the hostile guest has its disks still");
        if ends {
            self.end_with_the_domain();
        } else if self.lab.rng().one_in(4) {
            self.end_with_failing_unmaps();
        } else {
            for device in self.attacked.drain(..) {
                self.tally.hostile += self.lab.calm(device);
            }
            self.lab.destroy(self.hostile);
            self.lab.assert_clean();
        }
        let grants = self.lab.machine().grants();
        self.tally.faults += grants.copy_faults.nr_failed()
            + grants.map_faults.nr_failed()
            + grants.unmap_faults.nr_failed()
            + self.lab.machine().xenstored().commit_faults.nr_failed();
        drop(grants);
        self.tally
    }

    /// With the last disk the domain ends, as it was asked to before.
    fn end_with_the_domain(&mut self) {
        for device in self.attacked.drain(..) {
            self.tally.hostile += self.lab.calm(device);
        }
        self.lab.destroy(self.hostile);
        self.lab.settle();
        assert_eq!(self.lab.ended(), Some(ShutdownReason::PowerOff));
        let domid = self.lab.domid();
        assert_eq!(self.lab.machine().grants().nr_handles(domid), 0, "grant handles");
        assert_eq!(self.lab.machine().events().nr_ports(domid), 1, "event channel ports");
    }

    /// What Xen does not unmap is lost, and nothing else.
    fn end_with_failing_unmaps(&mut self) {
        self.lab.machine().grants().unmap_faults.fail_one_in(3, GntStatus::GENERAL_ERROR);
        self.lab.run_for(Duration::from_millis(20));
        for device in self.attacked.drain(..) {
            self.tally.hostile += self.lab.calm(device);
            assert_eq!(self.lab.try_detach(device, Detach::Forced), Ok(()));
        }
        self.lab.run_for(Duration::from_secs(1));
        let domid = self.lab.domid();
        let grants = self.lab.machine().grants();
        assert_eq!(grants.nr_handles(domid) as u64, grants.unmap_faults.nr_failed(), "handles");
        drop(grants);
        assert_eq!(self.lab.machine().events().nr_ports(domid), 1, "event channel ports");
    }
}
