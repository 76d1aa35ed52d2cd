//! An NVMe controller as PCI has it: its registers and its interrupt.

use core::fmt;

use domain::HypercallError;
use thiserror::Error;
use xen_abi::{EvtchnPort, PAGE_SIZE};

use super::Hvm;
use super::config_ports::ConfigPorts;
use super::local_apic::{DEVICE_VECTOR, LocalApic};
use super::mmio::{Mmio, TooLarge};
use crate::pci::{Bar, Function, Message, Msix, NoRoom, Placed, Placement};
use crate::platform::Xen;

/// As much of the registers is mapped: the doorbells of a few queues are in the second page.
const MAX_REGISTERS: usize = 64 << 10;

/// VS, the version it conforms to.
const VERSION: usize = 0x08;

/// A controller that is passed through, ready to be driven.
#[derive(Debug)]
pub(crate) struct Passed {
    pub(crate) function: Function,
    pub(crate) registers: Mmio,
    version: u32,
    paddr: u64,
    placed: Placed,
    pub(crate) completions: Completions,
}

/// How it is learned that a command was completed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Completions {
    /// By an event: the controller's interrupt, vector 0 of its MSI-X table.
    Event { pirq: u32, port: EvtchnPort },
    /// By an interrupt of the vCPU.
    Vector { apic: LocalApic, no_event: NoEvent },
    /// By looking.
    Polled(NoInterrupt),
}

/// Why a controller cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub(crate) enum Unusable {
    #[error("it has no registers in memory")]
    Unmapped,
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    #[error("its registers at {paddr:#x} do not answer")]
    Silent { paddr: u64 },
}

/// Why the interrupt is no event.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub(crate) enum NoEvent {
    #[error("Xen gives no pirq ({0}): from 4.20 on it wants hvm_pirq=1")]
    Pirq(HypercallError),
    #[error("the pirq cannot be bound: {0}")]
    Bind(HypercallError),
}

/// Why there is no interrupt.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub(crate) enum NoInterrupt {
    #[error("it has no MSI-X")]
    Missing,
    #[error("its MSI-X table is out of reach")]
    OutOfReach,
    #[error("no event channel for it, and no x2APIC")]
    NoApic,
    #[error("no interrupt arrives")]
    Lost,
}

impl Passed {
    /// Has it answer to its registers, access memory, and make interrupts.
    pub(crate) fn new(
        xen: &mut Xen<Hvm>,
        config: &mut ConfigPorts,
        placement: &mut Placement,
        function: Function,
    ) -> Result<Self, Unusable> {
        function.disable_memory(config);
        let mut bars = Bar::all(config, function);
        let Some((bar, others)) = bars.split_first_mut().filter(|(bar, _)| bar.index == 0) else {
            return Err(Unusable::Unmapped);
        };
        let placed = placement.place(config, function, bar)?;
        let msix = Msix::find(config, function);
        let mut table = msix.filter(|msix| msix.bar == bar.index).map(|_| *bar);
        // It will answer to all of them, used or not.
        for other in others {
            let has_table = msix.is_some_and(|msix| msix.bar == other.index);
            if has_table && placement.place(config, function, other).is_ok() {
                table = Some(*other);
            } else {
                placement.place_unused(config, function, other)?;
            }
        }
        function.enable(config);

        let len_bytes = usize::try_from(bar.size_bytes).unwrap_or(usize::MAX).min(MAX_REGISTERS);
        // SAFETY: the function answers there, and nothing else is there.
        let registers = unsafe { Mmio::map(bar.paddr, len_bytes)? };
        let version = registers.read(VERSION);
        // What nobody answers to reads as all ones.
        if version == u32::MAX {
            return Err(Unusable::Silent { paddr: bar.paddr });
        }
        let completions = match (msix, table) {
            (Some(msix), Some(table)) => interrupt(xen, config, function, msix, &table),
            (Some(_), None) => Err(NoInterrupt::OutOfReach),
            (None, _) => Err(NoInterrupt::Missing),
        };
        let completions = completions.unwrap_or_else(Completions::Polled);
        Ok(Self { function, registers, version, paddr: bar.paddr, placed, completions })
    }
}

/// Has the first entry of the MSI-X table make events, or else interrupts.
fn interrupt(
    xen: &mut Xen<Hvm>,
    config: &mut ConfigPorts,
    function: Function,
    msix: Msix,
    table: &Bar,
) -> Result<Completions, NoInterrupt> {
    let (page, within) = msix.first_entry(table).ok_or(NoInterrupt::OutOfReach)?;
    // SAFETY: the table is there, which nothing else of ours accesses.
    let page = unsafe { Mmio::map(page, PAGE_SIZE) };
    let page = page.map_err(|TooLarge| NoInterrupt::OutOfReach)?;
    let set_entry = |message| {
        const MASKED: u32 = 1;
        let Message([low, high, data]) = message;
        for (nth, word) in [(3, MASKED), (0, low), (1, high), (2, data), (3, 0)] {
            page.write(within + 4 * nth, word);
        }
    };

    let no_event = match xen.hypercalls.free_pirq() {
        Ok(pirq) => {
            set_entry(Message::to_pirq(pirq));
            // The device model maps the pirq to the interrupt now; before that it is none to bind.
            msix.enable(config, function);
            match xen.hypercalls.bind_pirq(pirq).and_then(|port| xen.listen(port)) {
                Ok(port) => return Ok(Completions::Event { pirq, port }),
                Err(error) => {
                    // An entry changes while MSI-X is off.
                    msix.disable(config, function);
                    NoEvent::Bind(error)
                }
            }
        }
        Err(error) => NoEvent::Pirq(error),
    };
    let apic = LocalApic::enable().ok_or(NoInterrupt::NoApic)?;
    set_entry(Message::to_vector(apic.id(), DEVICE_VECTOR));
    msix.enable(config, function);
    Ok(Completions::Vector { apic, no_event })
}

impl fmt::Display for Passed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Function { at, vendor, device, .. } = self.function;
        let (major, minor) = (self.version >> 16, self.version >> 8 & 0xff);
        let (paddr, nr_kib) = (self.paddr, self.registers.len_bytes() >> 10);
        write!(f, "{at} ({vendor:04x}:{device:04x}): NVMe {major}.{minor}, ")?;
        write!(f, "{nr_kib} KiB of registers at {paddr:#x}")?;
        if let Placed::Moved { from } = self.placed {
            write!(f, ", moved from {from:#x}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Completions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Event { pirq, port } => {
                write!(f, "by MSI-X, pirq {pirq} at event channel {port}")
            }
            Self::Vector { no_event, .. } => {
                write!(f, "by MSI-X, vector {DEVICE_VECTOR:#x} of the local APIC: {no_event}")
            }
            Self::Polled(reason) => write!(f, "are polled: {reason}"),
        }
    }
}
