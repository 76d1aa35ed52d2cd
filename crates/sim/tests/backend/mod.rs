//! What tests of upstream disks share: a backend by hand, and what dom0 is told.

#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test may")]

use std::fmt;

use sim::toolstack::{self, Detach, Device, DiskSpec, DomainKind, Operation};
use sim::{GrantAccess, Lab, Machine, Xs};
use xen_abi::{DomId, EvtchnPort, GrantHandle, GrantRef};

/// A backend that does what its test says and nothing by itself: it writes its keys and states one by
/// one, and maps what it is granted. It never answers a request.
pub struct Backend {
    machine: Machine,
    xs: Xs,
    pub device: Device,
    mapped: Vec<GrantHandle>,
}

impl Backend {
    /// One of a new domain, attached as `xvdb` of the driver domain: a disk of 8 sectors.
    pub fn new(lab: &Lab) -> Self {
        let machine = lab.machine().clone();
        let domid = toolstack::create_domain(&machine, DomainKind::DriverDomain);
        let device = Device::new(domid, lab.domid(), 51728);
        let backend = Self { xs: machine.xs(domid), machine, device, mapped: Vec::new() };
        backend.attach();
        backend
    }

    /// Writes a node of its own.
    pub fn write(&self, key: &str, value: impl fmt::Display) {
        let path = format!("{}/{key}", self.device.backend_path());
        self.xs.write(&path, value.to_string()).unwrap();
    }

    /// Reads a node of its frontend.
    pub fn theirs(&self, key: &str) -> Option<String> {
        self.xs.get(&format!("{}/{key}", self.device.frontend_path()))
    }

    /// Goes to a state, and waits until its frontend has seen it and is in another.
    pub fn state(&self, lab: &mut Lab, state: u32, theirs: u32) {
        self.write("state", state);
        lab.settle();
        let found = self.theirs("state").map_or(String::new(), |state| state);
        assert_eq!(found, theirs.to_string(), "in {state}: {}", lab.report());
    }

    /// Connects, with all that it is granted mapped.
    pub fn connect(&mut self, lab: &mut Lab) {
        self.state(lab, 2, 3);
        let port = self.theirs("event-channel").unwrap().parse().unwrap();
        let Device { backend, frontend, .. } = self.device;
        self.machine.events().bind_interdomain(backend, frontend, EvtchnPort(port)).unwrap();
        self.state(lab, 4, 4);
        self.map_all();
    }

    /// Is detached by force, and keeps what it has mapped.
    pub fn detach_by_force(&self, lab: &mut Lab) {
        let id = lab.begin(Operation::detach(&self.machine, self.device, Detach::Forced));
        self.write("state", 6);
        lab.settle();
        self.xs.rm(&self.device.backend_path()).unwrap();
        lab.finish(id).unwrap();
    }

    /// Is attached again.
    pub fn attach(&self) {
        self.device.add(&self.machine, &DiskSpec::new("xvdb", "mine")).unwrap();
        for (key, value) in [("sectors", 8), ("sector-size", 512), ("info", 0)] {
            self.write(key, value);
        }
    }

    /// Maps every page that its frontend grants it.
    pub fn map_all(&mut self) {
        let Device { backend, frontend, .. } = self.device;
        let mut grants = self.machine.grants();
        let all = (0..4096).map(GrantRef);
        let mapped = all.filter_map(|gref| {
            let mapped = grants.map(backend, frontend, gref, GrantAccess::ReadWrite);
            mapped.ok().map(|(handle, _)| handle)
        });
        self.mapped.extend(mapped);
    }

    /// Unmaps all that it has mapped.
    pub fn unmap_all(&mut self) {
        for handle in self.mapped.drain(..) {
            self.machine.grants().unmap(self.device.backend, handle).unwrap();
        }
    }
}

/// What the domain says that its pool has.
pub fn free_pages(lab: &Lab) -> u64 {
    let path = format!("/local/domain/{}/data/usage", lab.domid());
    let usage = lab.machine().xs(DomId(0)).read(&path).unwrap();
    let free = usage.split(' ').find_map(|word| word.strip_prefix("free_pages="));
    free.unwrap().parse().unwrap()
}

/// Lines of our own console that contain `text`.
pub fn lines_with(lab: &Lab, text: &str) -> usize {
    lab.machine().console().iter().filter(|line| line.contains(text)).count()
}

/// Has dom0 run a command: the answer's body, or the sentence of its error.
pub fn run(lab: &mut Lab, command: &str) -> Result<String, String> {
    let xs = lab.machine().xs(DomId(0));
    let data = format!("/local/domain/{}/data", lab.domid());
    let (request, response) = (format!("{data}/request"), format!("{data}/response"));
    let id = lab.rng().below(1 << 40);
    xs.write(&request, format!("{id} {command}")).unwrap();
    lab.settle();
    let answer = xs.read(&response).unwrap();
    xs.write(&request, format!("{id} part 0")).unwrap();
    lab.settle();
    let (head, body) = answer.split_once('\n').unwrap();
    if head == format!("{id} 1/1 ok") { Ok(body.into()) } else { Err(body.into()) }
}
