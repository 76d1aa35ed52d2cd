//! A backend of an upstream disk that does what its test says and nothing by itself: it writes its
//! keys and states one by one, and maps what it is granted. It never answers a request.

#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test may")]

use std::fmt;

use sim::toolstack::{self, Detach, Device, DiskSpec, DomainKind, Operation};
use sim::{GrantAccess, Lab, Machine, Xs};
use xen_abi::{EvtchnPort, GrantHandle, GrantRef};

/// The backend.
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
