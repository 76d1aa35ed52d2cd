//! A domain that looks like a PC: HVM, for that is the kind which PCI devices are passed through to.

mod config_ports;
mod driven;
mod local_apic;
mod mmio;
mod passed;

use alloc::borrow::Cow;
use alloc::vec::Vec;

use domain::{Namespace, Platform};
use x86_64::instructions::port::PortWriteOnly;
use x86_64::registers::model_specific::Msr;
use x86_64::structures::idt::InterruptDescriptorTable;
use xen_abi::{EvtchnPort, Instant};
use xen_pvh_boot::StartInfo;

use crate::configuration::{self, Waiting};
use crate::console;
use crate::events;
use crate::hypervisor::Hypervisor;
use crate::machine::{Channel, Machine};
use crate::memory::Memory;
use crate::pci::{self, Class, Placement};
use crate::platform::Xen;

use config_ports::ConfigPorts;
use driven::{Device, Driven};
use passed::Passed;

/// The domain's NVMe controllers.
pub(crate) struct Hvm {
    controllers: Vec<Driven>,
}

impl Machine for Hvm {
    type Namespace = Device;

    /// They end a wait, as the upcall does.
    fn set_gates(idt: &mut InterruptDescriptorTable) {
        // SAFETY: the handler returns as an interrupt's does.
        unsafe {
            idt[local_apic::DEVICE_VECTOR].set_handler_addr(events::upcall_handler());
            idt[local_apic::SPURIOUS_VECTOR].set_handler_addr(events::upcall_handler());
        }
    }

    fn prepare() {
        mask_pic();
        cache_memory();
    }

    fn find(
        xen: &mut Xen<Self>,
        memory: &mut Memory,
        hypervisor: Hypervisor,
        start_info: &StartInfo,
    ) -> Self {
        let mut config = ConfigPorts::new();
        let mut functions = Vec::new();
        pci::functions(&mut config, |_, function| {
            if function.class == Class::NVME {
                functions.push(function);
            }
        });
        let memory_map = start_info.memory_map().iter();
        let taken = memory_map.map(|range| range.paddr..range.paddr + range.size_bytes);
        let mut placement = Placement::beside(taken);
        xen.devices_reach_grants = hypervisor.has_iommu_mappings;
        let mut controllers = Vec::new();
        for (number, function) in (0..).zip(functions) {
            match Passed::new(xen, &mut config, &mut placement, function) {
                Ok(passed) => {
                    console::line(format_args!("nvme{number}: {passed}"));
                    match Driven::new(xen, memory, passed, number) {
                        Ok(driven) => {
                            driven.tell();
                            controllers.push(driven);
                        }
                        Err(error) => console::line(format_args!("nvme{number}: {error}")),
                    }
                }
                Err(error) => console::line(format_args!("nvme{number}: {}: {error}", function.at)),
            }
        }
        if controllers.is_empty() {
            console::line(format_args!("no NVMe controller is passed through"));
        } else {
            let whose =
                if xen.devices_reach_grants { "guests' own" } else { "our own, and copied" };
            console::line(format_args!("nvme: data is moved in pages that are {whose}"));
        }
        Self { controllers }
    }

    fn end(&mut self, xen: &mut Xen<Hvm>) {
        for controller in &mut self.controllers {
            controller.end(xen);
        }
    }

    fn step(&mut self, xen: &Xen<Self>) -> Option<Instant> {
        let now = xen.now();
        let due = self.controllers.iter_mut().filter_map(|controller| controller.step(now)).min();
        // What is over without an interrupt is for the domain to take, at once.
        if self.controllers.iter().any(Driven::has_completed) { Some(now) } else { due }
    }

    fn namespaces(&self) -> Vec<(Namespace, Device)> {
        self.controllers.iter().flat_map(Driven::devices).collect()
    }

    /// Started by `firmware_override`, it has no command line.
    fn words(
        xen: &mut Xen<Hvm>,
        xenstore: &Channel,
        command_line: &'static [u8],
    ) -> Cow<'static, [u8]> {
        if !command_line.is_empty() {
            return Cow::Borrowed(command_line);
        }
        let mut waiting = WithEvents { xen, port: xenstore.port };
        if let Some(words) = configuration::read(&xenstore.page, &mut waiting) {
            console::line(format_args!("{} says: {}", configuration::NODE, words.escape_ascii()));
            return Cow::Owned(words);
        }
        let limit = configuration::LIMIT.as_secs();
        console::line(format_args!("no command line, and no {} in {limit} s", configuration::NODE));
        Cow::Borrowed(b"")
    }
}

/// Time is spent by waiting for events.
struct WithEvents<'a> {
    xen: &'a mut Xen<Hvm>,
    port: EvtchnPort,
}

impl Waiting for WithEvents<'_> {
    fn now(&self) -> Instant {
        self.xen.now()
    }

    fn notify(&mut self) {
        let _ = self.xen.hypercalls.send(self.port);
    }

    fn wait(&mut self, deadline: Option<Instant>) {
        self.xen.events.wait(deadline);
        // There are none yet but xenstored's, and the console's.
        while self.xen.take_event().is_some() {}
    }
}

/// Has the PC's old interrupt controllers make none: firmware leaves them with a timer's, on the vector of
/// an exception.
fn mask_pic() {
    const DATA_PORTS: [u16; 2] = [0x21, 0xa1];
    for port in DATA_PORTS {
        // SAFETY: it masks the eight interrupts of a controller that is there or not, and nothing
        // else.
        unsafe { PortWriteOnly::new(port).write(0xff_u8) };
    }
}

/// Has memory cached by default, where no firmware did.
///
/// libxc leaves the MTRRs of an HVM domain to hvmloader. As long as they are off all memory is uncached by
/// definition, and Xen takes that literally on Intel's processors once the domain may have devices
/// (`epte_get_entry_emt`). On AMD's it does not look at them.
fn cache_memory() {
    /// `IA32_MTRR_DEF_TYPE`: the type of memory that no range names, and whether MTRRs count.
    const DEF_TYPE: u32 = 0x2ff;
    const ENABLE: u64 = 1 << 11;
    const WRITE_BACK: u64 = 6;
    let mut def_type = Msr::new(DEF_TYPE);
    // SAFETY: an HVM domain has this register. Nothing was kept in a cache as another type.
    unsafe {
        if def_type.read() & ENABLE == 0 {
            def_type.write(ENABLE | WRITE_BACK);
        }
    }
}
