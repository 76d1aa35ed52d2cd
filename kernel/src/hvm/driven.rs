//! An NVMe controller as its driver has it.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::iter;
use core::time::Duration;

use domain::{LineLimit, Platform};
use nvme::{Controller, Dma, DmaAddr, Error, Interrupt, Namespace, NamespaceDevice, Reg32, Reg64};
use nvme::{Registers, State};
use store::{Device as _, FrameAddr, Request, Tag};
use xen_abi::{Gfn, Instant};

use super::Hvm;
use super::config_ports::ConfigPorts;
use super::mmio::Mmio;
use super::passed::{Completions, NoInterrupt, Passed};
use crate::console;
use crate::memory::Memory;
use crate::pci::Function;
use crate::platform::Xen;
use crate::scattered::Scattered;

/// How often completions are looked for where an interrupt was lost.
const POLL: Duration = Duration::from_micros(100);

/// A controller's share of the page pool, and the most that it gets: 4 MiB of requests under way.
const FRAMES_SHARE: u64 = 8;
const MAX_FRAMES: u64 = 1024;

/// How long an interrupt may take that is waited for.
const INTERRUPT_LIMIT: Duration = Duration::from_secs(1);

const SECTORS_PER_PAGE: u32 = 8;

/// Pages of guests that it has at once, for each frame of its share: with most, 8 MiB.
const LENT_PER_FRAME: usize = 2;

/// A namespace's disk.
pub(crate) type Device = NamespaceDevice<Reached, Scattered>;

/// A controller as it is reached: by its registers, and as a PCI function.
#[derive(Debug)]
pub(crate) struct Reached {
    registers: Mmio,
    function: Function,
}

/// A controller that is driven.
#[derive(Debug)]
pub(crate) struct Driven {
    controller: Rc<RefCell<Controller<Reached, Scattered>>>,
    completions: Completions,
    /// As Linux counts them, and names disks by.
    number: u32,
    told: State,
    /// Lines of failed requests: guests cause them.
    lines: LineLimit,
}

impl Driven {
    /// Brings a controller up, which takes as long as it takes. It gets frames of the pool.
    pub(crate) fn new(
        xen: &mut Xen<Hvm>,
        memory: &mut Memory,
        passed: Passed,
        number: u32,
    ) -> Result<Self, Error> {
        let interrupt = match passed.completions {
            Completions::Event { .. } | Completions::Vector { .. } => Interrupt::Vector(0),
            Completions::Polled(_) => Interrupt::Polled,
        };
        let nr_frames = (memory.free_frames.nr_frames() / FRAMES_SHARE).min(MAX_FRAMES);
        let frames: Vec<Gfn> = memory
            .free_frames
            .take(nr_frames)
            .map_or_else(Vec::new, |first| (first.0..first.0 + nr_frames).map(Gfn).collect());
        let now = xen.now();
        let reached = Reached { registers: passed.registers, function: passed.function };
        let mut controller = Controller::new(reached, xen, &frames, interrupt, now)?;
        loop {
            let due = controller.step(xen.now());
            if controller.state() != State::Starting {
                break;
            }
            wait(xen, due);
        }
        if let State::Failed(error) = controller.state() {
            return Err(error);
        }
        if xen.devices_reach_grants {
            controller.set_max_lent(frames.len() * LENT_PER_FRAME);
        }
        let told = controller.state();
        let controller = Rc::new(RefCell::new(controller));
        let completions = passed.completions;
        let mut driven = Self { controller, completions, number, told, lines: LineLimit::new() };
        driven.try_interrupt(xen);
        Ok(driven)
    }

    /// Reads a page of the first namespace: an interrupt that does not arrive is found now, and not by
    /// a guest that waits.
    fn try_interrupt(&mut self, xen: &mut Xen<Hvm>) {
        if matches!(self.completions, Completions::Polled(_)) {
            return;
        }
        let Some((_, mut device)) = self.devices().into_iter().next() else { return };
        let Some(buffer) = device.reserve(SECTORS_PER_PAGE) else { return };
        if let Err(refused) = device.submit(Tag(0), Request::Read { sector: 0, buffer }) {
            if let Request::Read { buffer, .. } = refused.request {
                device.give_back(buffer);
            }
            return;
        }
        let limit = xen.now().after(INTERRUPT_LIMIT);
        let (mut is_done, mut is_told) = (false, false);
        // It is over at the latest when the driver gives it up.
        while !is_done || !is_told && xen.now() < limit {
            let due = self.step(xen.now());
            let look_at = if xen.now() < limit { limit } else { xen.now().after(POLL) };
            let deadline = due.map_or(look_at, |due| due.min(look_at));
            xen.events.wait(Some(deadline));
            is_told |= self.has_told(xen, deadline);
            if let Some(completion) = device.complete() {
                is_done = true;
                if let Some(buffer) = completion.buffer {
                    device.give_back(buffer);
                }
            }
        }
        if !is_told {
            self.completions = Completions::Polled(NoInterrupt::Lost);
        }
    }

    /// Whether it was an interrupt that ended a wait until `deadline`.
    fn has_told(&self, xen: &mut Xen<Hvm>, deadline: Instant) -> bool {
        let events = iter::from_fn(|| xen.take_event());
        match self.completions {
            Completions::Event { port, .. } => {
                events.fold(false, |told, taken| told | (taken == port))
            }
            Completions::Vector { .. } => events.count() == 0 && xen.now() < deadline,
            Completions::Polled(_) => false,
        }
    }

    /// Says what it is, and what its namespaces are.
    pub(crate) fn tell(&self) {
        let controller = self.controller.borrow();
        console::line(format_args!("nvme{}: completions {}", self.number, self.completions));
        if let Some(identity) = controller.identity() {
            let (model, serial) = (identity.model.trim(), identity.serial.trim());
            console::line(format_args!("nvme{}: {model}, serial {serial}", self.number));
        }
        for (name, Namespace { disk, .. }) in self.names().zip(controller.namespaces()) {
            match disk {
                Ok(disk) => {
                    let (nr_mib, block) = (disk.geometry.nr_sectors >> 11, disk.geometry.logical);
                    console::line(format_args!(
                        "{name}: {nr_mib} MiB in blocks of {} bytes",
                        block.bytes()
                    ));
                }
                Err(error) => console::line(format_args!("{name}: not served: {error}")),
            }
        }
    }

    /// Its disks, with their names.
    pub(crate) fn devices(&self) -> Vec<(domain::Namespace, Device)> {
        let namespaces: Vec<Namespace> = self.controller.borrow().namespaces().to_vec();
        let devices = self.names().zip(namespaces).filter_map(|(name, namespace)| {
            Some((name, Device::new(Rc::clone(&self.controller), namespace.nsid)?))
        });
        devices.collect()
    }

    /// Sends what its disks were asked for, and sees to the controller. Says when to call again at
    /// the latest.
    pub(crate) fn step(&mut self, now: Instant) -> Option<Instant> {
        if let Completions::Vector { apic, .. } = self.completions {
            apic.end_of_interrupt();
        }
        let mut controller = self.controller.borrow_mut();
        let due = controller.step(now);
        if controller.state() != self.told {
            self.told = controller.state();
            let number = self.number;
            match self.told {
                State::Resetting(error) => {
                    console::line(format_args!("nvme{number}: reset: {error}"));
                }
                State::Failed(error) => {
                    console::line(format_args!("nvme{number}: given up: {error}"));
                }
                State::Ready => console::line(format_args!("nvme{number}: ready again")),
                State::Starting | State::Stopping | State::Off => {}
            }
        }
        if let Some((nsid, error)) = controller.take_error() {
            let number = self.number;
            self.lines.say(now, format_args!("nvme{number}n{nsid}: {error}"), console::line);
        }
        // The driver counts on an interrupt.
        let is_lost = matches!(self.completions, Completions::Polled(NoInterrupt::Lost));
        let look = (is_lost && controller.nr_in_flight() > 0).then(|| now.after(POLL));
        [due, look].into_iter().flatten().min()
    }

    /// Whether a request is over that its disk was not told of.
    pub(crate) fn has_completed(&self) -> bool {
        self.controller.borrow().has_completed()
    }

    /// Shuts the controller down, which writes its cache.
    pub(crate) fn end(&mut self, xen: &mut Xen<Hvm>) {
        self.controller.borrow_mut().shutdown();
        loop {
            let due = self.step(xen.now());
            if matches!(self.told, State::Off | State::Failed(_)) {
                break;
            }
            wait(xen, due);
        }
    }

    /// As Linux has them: the controller's number and the namespace's identifier.
    fn names(&self) -> impl Iterator<Item = domain::Namespace> {
        let number = self.number;
        let ids: Vec<_> =
            self.controller.borrow().namespaces().iter().map(|namespace| namespace.nsid).collect();
        ids.into_iter().map(move |nsid| domain::Namespace { controller: number, nsid: nsid.0 })
    }
}

/// Waits for an event, or until `due`. Nobody else listens to events yet, or any more.
fn wait(xen: &mut Xen<Hvm>, due: Option<Instant>) {
    xen.events.wait(due);
    while xen.take_event().is_some() {}
}

impl Registers for Reached {
    fn len_bytes(&self) -> usize {
        self.registers.len_bytes()
    }

    fn read32(&self, register: Reg32) -> u32 {
        self.registers.read(register.offset())
    }

    fn read64(&self, register: Reg64) -> u64 {
        self.registers.read(register.offset())
    }

    fn write32(&mut self, register: Reg32, value: u32) {
        self.registers.write(register.offset(), value);
    }

    fn write64(&mut self, register: Reg64, value: u64) {
        self.registers.write(register.offset(), value);
    }

    fn cut_off(&mut self) -> bool {
        self.function.disable_bus_master(&mut ConfigPorts::new())
    }
}

impl Dma for Xen<Hvm> {
    type Memory = Scattered;

    fn memory(&mut self, frames: &[Gfn]) -> Scattered {
        self.scattered(frames)
    }

    /// The IOMMU translates guest physical addresses.
    fn address(frame: Gfn) -> DmaAddr {
        DmaAddr(FrameAddr::start_of(frame).paddr())
    }
}
