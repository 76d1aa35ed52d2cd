//! What kind of domain an image is for: the type decides what is in the image.

use alloc::borrow::Cow;
use alloc::vec::Vec;
use core::convert::Infallible;

use domain::Namespace;
use store::Device;
use x86_64::structures::idt::InterruptDescriptorTable;
use xen_abi::{EvtchnPort, Instant};
use xen_pvh_boot::StartInfo;

use crate::hypervisor::Hypervisor;
use crate::memory::Memory;
use crate::platform::Xen;
use crate::region::Region;

/// The way to xenstored.
pub(crate) struct Channel {
    pub(crate) page: Region,
    pub(crate) port: EvtchnPort,
}

/// A kind of domain, with what it has besides memory, xenstore and a console.
pub(crate) trait Machine: Sized {
    /// A namespace of an NVMe controller.
    type Namespace: Device + 'static;

    /// Sets the gates of interrupts that there are besides the upcall.
    fn set_gates(idt: &mut InterruptDescriptorTable);

    /// Called first of all: makes up for firmware that did not run.
    fn prepare();

    /// Finds the devices, says what they are, and has them ready.
    fn find(
        xen: &mut Xen<Self>,
        memory: &mut Memory,
        hypervisor: Hypervisor,
        start_info: &StartInfo,
    ) -> Self;

    /// The namespaces of its controllers.
    fn namespaces(&self) -> Vec<(Namespace, Self::Namespace)>;

    /// The words that say what it is to do: those of the command line, if there is one.
    fn words(
        xen: &mut Xen<Self>,
        xenstore: &Channel,
        command_line: &'static [u8],
    ) -> Cow<'static, [u8]>;

    /// Sends what devices were asked for, and sees to them; called after each turn of the domain. Says
    /// when to call again at the latest.
    fn step(&mut self, xen: &Xen<Self>) -> Option<Instant>;

    /// Lets the devices go, at the end of the domain.
    fn end(&mut self, xen: &mut Xen<Self>);
}

/// A domain that has nothing else. libxc has set it up as it is to be.
pub(crate) struct Pvh;

impl Machine for Pvh {
    type Namespace = Infallible;

    fn set_gates(_: &mut InterruptDescriptorTable) {}

    fn prepare() {}

    fn find(_: &mut Xen<Self>, _: &mut Memory, _: Hypervisor, _: &StartInfo) -> Self {
        Self
    }

    fn namespaces(&self) -> Vec<(Namespace, Infallible)> {
        Vec::new()
    }

    fn words(_: &mut Xen<Self>, _: &Channel, command_line: &'static [u8]) -> Cow<'static, [u8]> {
        Cow::Borrowed(command_line)
    }

    fn step(&mut self, _: &Xen<Self>) -> Option<Instant> {
        None
    }

    fn end(&mut self, _: &mut Xen<Self>) {}
}
