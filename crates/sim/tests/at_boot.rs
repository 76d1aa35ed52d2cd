//! What stands below `backend/vbd` before the driver domain takes its first step, in whatever state:
//! each directory ends where it should, and none keeps another from that.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::time::Duration;

use sim::toolstack::{self, Detach, Device, DiskSpec, DomainKind};
use sim::{Lab, Machine, Rng, seeds};
use xen_abi::{DomId, XenbusState};

const DOM0: DomId = DomId(0);

/// What libxl writes into a backend's directory.
const NODES: [&str; 13] = [
    "frontend",
    "params",
    "script",
    "frontend-id",
    "online",
    "removable",
    "bootable",
    "state",
    "dev",
    "type",
    "mode",
    "device-type",
    "specification",
];

/// Those without which nothing can be served.
const NEEDED: [&str; 6] = ["frontend", "params", "frontend-id", "online", "state", "mode"];

/// A directory from which nodes are missing, as many as came to pass.
struct Half {
    disk: Device,
    /// The nodes that are not there yet, and what they will say.
    missing: Vec<(&'static str, String)>,
}

impl Half {
    fn new(machine: &Machine, disk: Device, missing: &[&'static str]) -> Self {
        let xs = machine.xs(DOM0);
        let take = |&name: &&'static str| {
            let path = format!("{}/{name}", disk.backend_path());
            let value = xs.read(&path).unwrap();
            xs.rm(&path).unwrap();
            (name, value)
        };
        Self { disk, missing: missing.iter().map(take).collect() }
    }

    fn is_servable(&self) -> bool {
        !self.missing.iter().any(|(name, _)| NEEDED.contains(name))
    }

    fn write_one(&mut self, lab: &mut Lab) {
        let at = lab.rng().index(self.missing.len());
        let (name, value) = self.missing.swap_remove(at);
        let path = format!("{}/{name}", self.disk.backend_path());
        lab.machine().xs(DOM0).write(&path, value).unwrap();
    }

    /// It stands in state 2 as soon as all is there that says what it is, and not before.
    fn assert_state(&self, lab: &Lab) {
        let state = self.disk.backend_state(lab.machine());
        if self.is_servable() {
            assert_eq!(state, Some(XenbusState::InitWait), "missing {:?}", self.missing);
        } else {
            let there = !self.missing.iter().any(|(name, _)| *name == "state");
            let untouched = there.then_some(XenbusState::Initialising);
            assert_eq!(state, untouched, "missing {:?}", self.missing);
        }
    }
}

fn subset(rng: &mut Rng) -> Vec<&'static str> {
    NODES.into_iter().filter(|_| rng.one_in(3)).collect()
}

#[test]
fn half_written_directories_are_served_when_they_are_whole_in_any_order() {
    for seed in seeds(60) {
        let (mut halves, mut whole) = (Vec::new(), Vec::new());
        let prepare = |machine: &Machine, domid| {
            let add = || {
                let guest = toolstack::create_domain(machine, DomainKind::Guest);
                let disk = Device::new(domid, guest, 51712);
                disk.add(machine, &DiskSpec::new("xvda", "ram,size=64K")).unwrap();
                disk
            };
            whole.extend([add(), add()]);
            let mut rng = Rng::new(seed);
            // Each of the needed ones alone, all of them, and any.
            let one = NEEDED[rng.index(NEEDED.len())];
            for missing in [vec![one], NODES.to_vec(), subset(&mut rng), subset(&mut rng)] {
                halves.push(Half::new(machine, add(), &missing));
            }
        };
        let mut lab = Lab::new(seed).start_after(prepare);
        for &disk in &whole {
            lab.connect(disk);
            lab.random_io(disk, 20);
        }
        while halves.iter().any(|half| !half.missing.is_empty()) {
            for half in &mut halves {
                half.assert_state(&lab);
                if !half.missing.is_empty() && !lab.rng().one_in(3) {
                    half.write_one(&mut lab);
                }
            }
            if lab.rng().one_in(2) {
                lab.random_io(whole[0], 5);
            }
            lab.settle();
        }
        whole.extend(halves.iter().map(|half| half.disk));
        let console = lab.machine().console();
        let nr_attached = console.iter().filter(|line| line.contains(": attached ")).count();
        assert_eq!(nr_attached, whole.len(), "{console:#?}");
        for half in halves {
            half.assert_state(&lab);
            lab.connect(half.disk);
            lab.random_io(half.disk, 20);
        }
        for disk in whole {
            lab.detach(disk);
            lab.destroy(disk.frontend);
        }
        // The domains were there at the start, but none of their nodes is ours.
        let us = lab.domid();
        lab.run_for(Duration::from_secs(1));
        assert_eq!(lab.machine().grants().nr_handles(us), 0);
        let left = lab.machine().xenstored().nodes_of(us);
        assert!(!left.iter().any(|path| path.contains("/backend/")), "{left:?}");
    }
}

/// How far the toolstack has come with taking a directory away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Leftover {
    /// It waits for 6.
    State5,
    /// The same, with the frontend's directory gone.
    State5AndNoFrontend,
    /// It waits for the directory to go.
    State6,
    /// The same of a directory that was never whole.
    HalfWritten,
}

#[test]
fn what_is_on_its_way_out_at_boot_goes_as_libxl_wants_to_see_it() {
    use Leftover::{HalfWritten, State5, State5AndNoFrontend, State6};
    for seed in seeds(20) {
        let mut leftovers = Vec::new();
        let mut whole = None;
        let prepare = |machine: &Machine, domid| {
            let xs = machine.xs(DOM0);
            let add = || {
                let guest = toolstack::create_domain(machine, DomainKind::Guest);
                let disk = Device::new(domid, guest, 51712);
                disk.add(machine, &DiskSpec::new("xvda", "ram,size=64K")).unwrap();
                disk
            };
            whole = Some(add());
            for kind in [State5, State5AndNoFrontend, State6, HalfWritten] {
                let disk = add();
                let node = |name: &str| format!("{}/{name}", disk.backend_path());
                xs.write(&node("online"), "0").unwrap();
                xs.write(&node("state"), if kind == State6 { "6" } else { "5" }).unwrap();
                match kind {
                    State5AndNoFrontend => xs.rm(&disk.frontend_path()).unwrap(),
                    HalfWritten => xs.rm(&node("frontend")).unwrap(),
                    State5 | State6 => {}
                }
                leftovers.push(disk);
            }
        };
        let mut lab = Lab::new(seed).start_after(prepare);
        let gone = |lab: &Lab, disk: &Device| !lab.machine().xs(DOM0).exists(&disk.backend_path());
        for disk in &leftovers {
            assert_eq!(disk.backend_state(lab.machine()), Some(XenbusState::Closed), "lingers");
        }
        lab.run_until("their end", |lab| leftovers.iter().all(|disk| gone(lab, disk)));
        let whole = whole.unwrap();
        lab.connect(whole);
        lab.random_io(whole, 20);
        lab.detach(whole);
        let console = lab.machine().console();
        let lines: Vec<_> = console.iter().filter(|line| line.starts_with("vbd ")).collect();
        let of_whole = format!("vbd {}/51712: ", whole.frontend);
        assert!(lines.iter().all(|line| line.starts_with(&of_whole)), "{lines:#?}");
    }
}

#[test]
fn a_directory_that_was_never_whole_can_be_detached() {
    let mut leftover = None;
    let mut lab = Lab::new(1).start_after(|machine, domid| {
        let guest = toolstack::create_domain(machine, DomainKind::Guest);
        let disk = Device::new(domid, guest, 51712);
        disk.add(machine, &DiskSpec::new("xvda", "ram,size=64K")).unwrap();
        machine.xs(DOM0).rm(&format!("{}/frontend", disk.backend_path())).unwrap();
        leftover = Some(disk);
    });
    let disk = leftover.unwrap();
    lab.run_for(Duration::from_secs(1));
    assert_eq!(disk.backend_state(lab.machine()), Some(XenbusState::Initialising));
    assert_eq!(lab.try_detach(disk, Detach::Polite), Ok(()));
    let disk = lab.attach(disk.frontend, "xvda", "ram,size=64K");
    lab.connect(disk);
    lab.random_io(disk, 20);
    lab.detach(disk);
}

#[test]
fn a_state_that_another_backend_left_behind_is_no_reason_not_to_serve() {
    for state in ["2", "3", "4", "5", "6", "0", "nonsense"] {
        let mut found = None;
        let mut lab = Lab::new(2).start_after(|machine, domid| {
            let guest = toolstack::create_domain(machine, DomainKind::Guest);
            let disk = Device::new(domid, guest, 51712);
            disk.add(machine, &DiskSpec::new("xvda", "ram,size=64K")).unwrap();
            machine.xs(DOM0).write(&format!("{}/state", disk.backend_path()), state).unwrap();
            found = Some(disk);
        });
        let disk = found.unwrap();
        assert_eq!(disk.backend_state(lab.machine()), Some(XenbusState::InitWait), "{state}");
        lab.connect(disk);
        lab.random_io(disk, 20);
        lab.detach(disk);
    }
}
