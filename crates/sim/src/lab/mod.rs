//! A host with Granary on it, its toolstack and its guests, run step by step in random order.
//!
//! ```no_run
//! use sim::Lab;
//!
//! let mut lab = Lab::new(7).memory_pages(4096).cmdline("").start();
//! let guest = lab.create_guest();
//! let disk = lab.attach(guest, "xvda", "ram,size=8M");
//! lab.connect(disk);
//! lab.random_io(disk, 1000);
//! lab.detach(disk);
//! lab.destroy(guest);
//! lab.assert_clean();
//! ```

mod builder;
mod driver;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::task::Poll;
use std::time::Duration;

use blkif::Abi;
use domain::{Next, ShutdownReason};
use xen_abi::{DomId, Instant};

pub use builder::LabBuilder;

use driver::Driver;

use crate::toolstack::{
    self, Detach, Device, DiskSpec, DomainKind, Operation, ToolstackError, vdev_number,
};
use crate::{Expect, Frontend, FrontendConfig, Hostile, Machine, Model, Rng, SimPlatform};

/// How long a test may run by the host's clock.
const LIMIT: Duration = Duration::from_secs(300);

/// How many rounds without anything done for a frontend or the toolstack are too many.
const MAX_ROUNDS: u64 = 2_000_000;

/// An operation of the toolstack that was started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OperationId(usize);

#[derive(Debug)]
struct Running {
    operation: Operation,
    next_look: Instant,
    result: Option<Result<(), ToolstackError>>,
}

/// A running host.
pub struct Lab {
    machine: Machine,
    ours: Driver,
    /// Driver domains that serve disks to ours.
    servers: BTreeMap<DomId, Driver>,
    frontends: BTreeMap<Device, Frontend>,
    hostiles: BTreeMap<Device, Hostile>,
    operations: Vec<Running>,
    rng: Rng,
    nodes_at_start: Vec<String>,
    watches_at_start: usize,
}

impl Lab {
    /// A host, all of whose choices follow from `seed`.
    #[must_use]
    #[expect(clippy::new_ret_no_self, reason = "a host is described before it is started")]
    pub fn new(seed: u64) -> LabBuilder {
        LabBuilder::new(seed)
    }

    /// The host itself: faults, counters, xenstore, the console.
    #[must_use]
    pub const fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The driver domain.
    #[must_use]
    pub const fn domid(&self) -> DomId {
        self.ours.platform.domid()
    }

    /// How many steps the driver domain has taken.
    #[must_use]
    pub const fn nr_steps(&self) -> u64 {
        self.ours.nr_steps
    }

    /// The driver domain's platform.
    #[must_use]
    pub const fn platform(&mut self) -> &mut SimPlatform {
        &mut self.ours.platform
    }

    /// The test's own random choices.
    #[must_use]
    pub const fn rng(&mut self) -> &mut Rng {
        &mut self.rng
    }

    /// Creates a guest.
    #[must_use]
    pub fn create_guest(&mut self) -> DomId {
        toolstack::create_domain(&self.machine, DomainKind::Guest)
    }

    /// Creates a driver domain that serves disks to ours: another Granary, with 4 MiB.
    #[must_use]
    pub fn create_server(&mut self, command_line: &str) -> DomId {
        let driver = Driver::create(&self.machine, command_line, 1024);
        let domid = driver.platform.domid();
        self.servers.insert(domid, driver);
        domid
    }

    /// Attaches a disk of another driver domain to ours, and waits for the toolstack's verdict.
    ///
    /// # Panics
    /// Where the toolstack is not content.
    pub fn serve(&mut self, server: DomId, spec: &DiskSpec) -> Device {
        let devid = vdev_number(&spec.vdev).unwrap_or_else(|| panic!("no vdev {}", spec.vdev));
        let device = Device::new(server, self.domid(), devid);
        let id = self.begin(Operation::attach(&self.machine, device, spec));
        self.finish(id).unwrap_or_else(|error| panic!("{spec:?}: {error}"));
        device
    }

    /// From now on a driver domain that serves disks to ours does nothing.
    pub fn pause_server(&mut self, server: DomId) {
        let paused = self.servers.get_mut(&server);
        paused.unwrap_or_else(|| panic!("no server {server:?}")).next =
            Next::Shutdown(ShutdownReason::PowerOff);
    }

    /// Lets a driver domain run again that was paused.
    ///
    /// # Panics
    /// There is no such server.
    pub fn unpause_server(&mut self, server: DomId) {
        let paused = self.servers.get_mut(&server);
        paused.unwrap_or_else(|| panic!("no server {server:?}")).next = Next::Now;
    }

    /// Destroys a driver domain that serves disks to ours, with its nodes: its disks stay attached to
    /// ours.
    pub fn destroy_server(&mut self, server: DomId) {
        self.servers.remove(&server);
        toolstack::destroy_domain(&self.machine, server);
    }

    /// The device of a guest's vdev.
    ///
    /// # Panics
    /// Where libxl does not know such a vdev.
    #[must_use]
    pub fn device(&self, guest: DomId, vdev: &str) -> Device {
        let devid = vdev_number(vdev).unwrap_or_else(|| panic!("no vdev {vdev}"));
        Device::new(self.domid(), guest, devid)
    }

    /// Attaches a disk, and waits until the toolstack is content.
    ///
    /// # Panics
    /// Where it is not.
    pub fn attach(&mut self, guest: DomId, vdev: &str, target: &str) -> Device {
        let attached = self.try_attach(guest, &DiskSpec::new(vdev, target));
        attached.unwrap_or_else(|error| panic!("attach of {vdev}, {target}: {error}"))
    }

    /// Attaches a disk, and waits for the toolstack's verdict.
    ///
    /// # Errors
    /// What `xl block-attach` fails with.
    pub fn try_attach(&mut self, guest: DomId, spec: &DiskSpec) -> Result<Device, ToolstackError> {
        let device = self.device(guest, &spec.vdev);
        let id = self.begin(Operation::attach(&self.machine, device, spec));
        self.finish(id).map(|()| device)
    }

    /// Starts an operation of the toolstack beside all else.
    pub fn begin(&mut self, operation: Operation) -> OperationId {
        let next_look = self.machine.now();
        self.operations.push(Running { operation, next_look, result: None });
        OperationId(self.operations.len() - 1)
    }

    /// What became of an operation; `None` while it runs.
    #[must_use]
    pub fn result(&self, id: OperationId) -> Option<Result<(), ToolstackError>> {
        self.operations[id.0].result
    }

    /// Waits for an operation.
    ///
    /// # Errors
    /// What the operation fails with.
    pub fn finish(&mut self, id: OperationId) -> Result<(), ToolstackError> {
        self.run_until("the toolstack's operation", |lab| lab.result(id).is_some());
        self.result(id).expect("done")
    }

    /// Adds a frontend to a disk. It runs with everything else from now on.
    pub fn add_frontend(
        &mut self,
        disk: Device,
        config: FrontendConfig,
        model: Option<Model>,
    ) -> &mut Frontend {
        let frontend = Frontend::new(&self.machine, disk, config, model);
        self.frontends.insert(disk, frontend);
        self.frontend(disk)
    }

    /// Lets a hostile frontend loose on a disk. It attacks until its guest is destroyed or
    /// [`Lab::calm`] ends it.
    pub fn attack(&mut self, disk: Device, abi: Abi) {
        let hostile = Hostile::new(&self.machine, disk, abi);
        self.hostiles.insert(disk, hostile);
    }

    /// Ends an attack. Returns how many slots were filled.
    ///
    /// # Panics
    /// Where the driver domain changed a page that it may not.
    pub fn calm(&mut self, disk: Device) -> u64 {
        let hostile = self.hostiles.remove(&disk);
        let hostile = hostile.unwrap_or_else(|| panic!("no hostile frontend of {disk:?}"));
        hostile.assert_unharmed();
        hostile.nr_slots()
    }

    /// A disk's frontend.
    ///
    /// # Panics
    /// Where it has none.
    #[must_use]
    pub fn frontend(&mut self, disk: Device) -> &mut Frontend {
        self.frontends.get_mut(&disk).unwrap_or_else(|| panic!("no frontend of {disk:?}"))
    }

    /// Whether a disk's frontend has made all its requests and has all answers.
    #[must_use]
    pub fn is_drained(&self, disk: Device) -> bool {
        self.frontends[&disk].is_drained()
    }

    /// Whether a disk's frontend is connected.
    #[must_use]
    pub fn is_connected(&self, disk: Device) -> bool {
        self.frontends[&disk].is_connected()
    }

    /// A disk as its frontend has it, once connected.
    #[must_use]
    pub fn disk(&self, disk: Device) -> Option<&crate::frontend::Disk> {
        self.frontends[&disk].disk()
    }

    /// Whether a disk's frontend has closed.
    #[must_use]
    pub fn is_closed(&self, disk: Device) -> bool {
        self.frontends[&disk].is_closed()
    }

    /// Connects a frontend like Linux's to a disk of zeroes.
    ///
    /// # Panics
    /// Where it does not come about.
    pub fn connect(&mut self, disk: Device) {
        self.connect_as(disk, FrontendConfig::default());
    }

    /// Connects a frontend to a disk of zeroes.
    ///
    /// # Panics
    /// Where it does not come about.
    pub fn connect_as(&mut self, disk: Device, config: FrontendConfig) {
        self.add_frontend(disk, config, None);
        self.run_until("the connection", |lab| lab.frontends[&disk].is_connected());
    }

    /// Lets a frontend make `count` random requests and checks every answer.
    ///
    /// # Panics
    /// Where an answer is wrong, missing or too many.
    pub fn random_io(&mut self, disk: Device, count: u64) {
        self.frontend(disk).want(count);
        self.run_until("the answers", |lab| lab.is_drained(disk));
    }

    /// Detaches a disk politely; its frontend closes.
    ///
    /// # Panics
    /// Where the toolstack is not content with it.
    pub fn detach(&mut self, disk: Device) {
        let detached = self.try_detach(disk, Detach::Polite);
        detached.unwrap_or_else(|error| panic!("detach of {disk:?}: {error}"));
    }

    /// Detaches a disk and waits for the toolstack's verdict; its frontend is gone then.
    ///
    /// # Errors
    /// What `xl block-detach` fails with.
    pub fn try_detach(&mut self, disk: Device, detach: Detach) -> Result<(), ToolstackError> {
        let id = self.begin(Operation::detach(&self.machine, disk, detach));
        let result = self.finish(id);
        if result.is_ok() && self.frontends.contains_key(&disk) {
            self.run_until("the frontend's end", |lab| lab.is_closed(disk));
            self.frontends.remove(&disk);
        }
        result
    }

    /// Destroys a guest as `xl destroy` does: it is paused, its disks go by force, and it is gone
    /// when the last mapping of its memory is.
    ///
    /// # Panics
    /// Where the toolstack is not content, or the guest stays as a zombie.
    pub fn destroy(&mut self, guest: DomId) {
        self.begin_destroy(guest);
        assert!(!self.machine.has_domain(guest), "{guest:?} is a zombie");
    }

    /// As [`destroy`](Self::destroy), but something of it may still be in use.
    ///
    /// # Panics
    /// Where the toolstack is not content.
    pub fn begin_destroy(&mut self, guest: DomId) {
        self.frontends.retain(|device, _| device.frontend != guest);
        let hostile = self.hostiles.keys().filter(|device| device.frontend == guest);
        for device in hostile.copied().collect::<Vec<_>>() {
            self.calm(device);
        }
        let path = format!("/libxl/{guest}/device/vbd");
        let devids = self.machine.xs(DomId(0)).directory(&path).unwrap_or_default();
        let ids: Vec<OperationId> = devids
            .iter()
            .map(|devid| {
                let devid = devid.parse().expect("a vdev's number");
                let device = Device::new(self.domid(), guest, devid);
                self.begin(Operation::detach(&self.machine, device, Detach::Forced))
            })
            .collect();
        for id in ids {
            let result = self.finish(id);
            result.unwrap_or_else(|error| panic!("destroy of {guest:?}: {error}"));
        }
        toolstack::destroy_domain(&self.machine, guest);
    }

    /// Asks the driver domain to end, as `xl shutdown` does: it does when nothing is attached.
    pub fn shutdown(&mut self) {
        toolstack::shutdown(&self.machine, self.domid());
    }

    /// What the driver domain ended for, if it has.
    #[must_use]
    pub const fn ended(&self) -> Option<ShutdownReason> {
        match self.ours.next {
            Next::Shutdown(reason) => Some(reason),
            _ => None,
        }
    }

    /// Lets frontends' requests fail from now on, since faults are about to be injected.
    pub fn expect(&mut self, expect: Expect) {
        for frontend in self.frontends.values_mut() {
            frontend.expect(expect);
        }
    }

    /// Runs until nobody has anything to do at this moment.
    pub fn settle(&mut self) {
        let mut rounds = 0;
        while self.round() {
            rounds += 1;
            assert!(rounds < MAX_ROUNDS, "it never comes to rest");
        }
    }

    /// Runs for a time by the host's clock.
    pub fn run_for(&mut self, time: Duration) {
        let end = self.machine.now().after(time);
        while self.machine.now() < end {
            if !self.round() {
                let next = self.deadline().map_or(end, |at| at.min(end));
                self.machine.advance_to(next);
            }
        }
    }

    /// Runs until `done`.
    ///
    /// # Panics
    /// Where that does not come about.
    pub fn run_until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let limit = self.machine.now().after(LIMIT);
        let mut rounds = 0;
        while !done(self) {
            rounds += 1;
            assert!(rounds < MAX_ROUNDS, "waited {rounds} rounds for {what}");
            assert!(self.machine.now() < limit, "waited {LIMIT:?} for {what}");
            if !self.round() && !done(self) {
                let Some(next) = self.deadline() else {
                    panic!("everybody sleeps while waiting for {what}");
                };
                self.machine.advance_to(next);
            }
        }
    }

    /// When somebody wants to go on who sleeps now.
    fn deadline(&self) -> Option<Instant> {
        let drivers = self.servers.values().chain([&self.ours]);
        let drivers = drivers.filter_map(|driver| match driver.next {
            Next::At(at) => Some(at),
            Next::Now | Next::Idle | Next::Shutdown(_) => None,
        });
        let operations = self.operations.iter().filter(|running| running.result.is_none());
        operations.map(|running| running.next_look).chain(drivers).min()
    }

    /// Lets everybody take a step, in random order; now and then somebody misses the turn. Returns
    /// whether there was anything to do.
    fn round(&mut self) -> bool {
        enum Actor {
            Domain,
            Server(DomId),
            Xenstored,
            Frontend(Device),
            Hostile(Device),
            Operation(usize),
        }
        let mut actors = vec![Actor::Domain, Actor::Xenstored];
        actors.extend(self.servers.keys().map(|&server| Actor::Server(server)));
        actors.extend(self.frontends.keys().map(|&device| Actor::Frontend(device)));
        actors.extend(self.hostiles.keys().map(|&device| Actor::Hostile(device)));
        let running = (0..self.operations.len()).filter(|&n| self.operations[n].result.is_none());
        actors.extend(running.map(Actor::Operation));
        let pause_ns = if self.rng.one_in(16) { 2_000_000 } else { 20_000 };
        self.machine.advance(Duration::from_nanos(self.rng.below(pause_ns)));
        let mut busy = false;
        while !actors.is_empty() {
            let actor = actors.swap_remove(self.rng.index(actors.len()));
            if self.rng.one_in(8) {
                busy = true;
                continue;
            }
            busy |= match actor {
                Actor::Domain => self.ours.step(&self.machine),
                Actor::Server(server) => {
                    self.servers.get_mut(&server).expect("an actor").step(&self.machine)
                }
                Actor::Xenstored => self.machine.step_xenstored(),
                Actor::Frontend(device) => self.frontend(device).step(),
                Actor::Hostile(device) => {
                    self.hostiles.get_mut(&device).expect("an actor").step();
                    true
                }
                Actor::Operation(n) => self.step_operation(n),
            };
        }
        busy
    }

    /// The toolstack looks at xenstore again, a little late as it does.
    fn step_operation(&mut self, n: usize) -> bool {
        let now = self.machine.now();
        let running = &mut self.operations[n];
        if now < running.next_look {
            return false;
        }
        if let Poll::Ready(result) = running.operation.poll() {
            running.result = Some(result);
            return true;
        }
        let lag = if self.rng.one_in(4) { 90_000_000 } else { 5_000_000 };
        running.next_look = now.after(Duration::from_nanos(self.rng.between(1, lag)));
        false
    }

    /// Checks that the driver domain holds nothing that it did not hold at its start.
    ///
    /// # Panics
    /// Where it does.
    pub fn assert_clean(&mut self) {
        self.run_for(Duration::from_secs(1));
        let domid = self.domid();
        assert_eq!(self.machine.grants().nr_handles(domid), 0, "grant handles");
        assert_eq!(self.machine.events().nr_ports(domid), 1, "event channel ports");
        let xenstored = self.machine.xenstored();
        assert_eq!(xenstored.broken(domid), None);
        assert_eq!(xenstored.nr_transactions(domid), 0, "transactions");
        assert_eq!(xenstored.nodes_of(domid), self.nodes_at_start, "xenstore nodes");
        let nr_watches = self.watches_at_start;
        assert_eq!(xenstored.nr_watches(domid), nr_watches, "watches");
        let usage = xenstored.dump(&format!("/local/domain/{domid}/data/usage"));
        let none_held = format!(" handles=0 ports=1 watches={nr_watches} ");
        let held = |(_, usage): &(String, String)| usage.contains(&none_held);
        assert!(usage.first().is_some_and(held), "what it says itself: {usage:?}");
    }

    /// All that may help to understand a failure.
    #[must_use]
    pub fn report(&self) -> String {
        let mut text = format!("{:?}\n", self.machine);
        let _ = writeln!(text, "the domain goes on: {:?}", self.ours.next);
        for (domid, server) in &self.servers {
            let _ = writeln!(text, "the server {domid} goes on: {:?}", server.next);
        }
        for frontend in self.frontends.values() {
            let _ = writeln!(text, "{frontend:?}");
        }
        for running in self.operations.iter().filter(|running| running.result.is_none()) {
            let _ = writeln!(text, "{:?}", running.operation);
        }
        let _ = writeln!(text, "console:");
        for line in self.machine.console() {
            let _ = writeln!(text, "  {line}");
        }
        text
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.report());
        }
    }
}
