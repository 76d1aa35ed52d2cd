//! What a driver domain stands on.

use alloc::vec::Vec;
use core::fmt;

use blkback::Grants;
use blkfront::GrantTable;
use catalog::Namespace;
use store::{Device, FrameMemory, ImageFile};
use xen_abi::{DomId, EvtchnPort, Gfn, Instant, SharedMemory};

/// Everything the driver domain asks of the world below it. Implemented by the kernel with
/// hypercalls, and by the simulated hypervisor.
pub trait Platform: Grants {
    /// Our own frames. A handle: it is taken out once, at the start.
    type Memory: FrameMemory;

    /// The page that we share with xenstore (`struct xenstore_domain_interface`, `io/xs_wire.h`).
    type XenstorePage: SharedMemory;

    /// Our own grant table.
    type GrantTable: GrantTable;

    /// A namespace of a controller that is ours. What was submitted to it is sent, and its events wake
    /// us, without the domain's doing.
    type Namespace: Device + 'static;

    /// Our own grant table: what peers that serve us disks may reach of our frames.
    fn grant_table(&mut self) -> &mut Self::GrantTable;

    /// Xen's system time.
    fn now(&self) -> Instant;

    /// Binds a port of ours to a peer's unbound port (`EVTCHNOP_bind_interdomain`).
    ///
    /// # Errors
    /// The call's error, negative as Xen returns it.
    fn bind_interdomain(
        &mut self,
        peer: DomId,
        port: EvtchnPort,
    ) -> Result<EvtchnPort, HypercallError>;

    /// Opens a port of ours that a peer may bind to (`EVTCHNOP_alloc_unbound`).
    ///
    /// # Errors
    /// The call's error, negative as Xen returns it.
    fn alloc_unbound(&mut self, peer: DomId) -> Result<EvtchnPort, HypercallError>;

    /// Closes a port of ours (`EVTCHNOP_close`).
    fn close_port(&mut self, port: EvtchnPort);

    /// Takes one port that an event arrived at since it was last taken. Coalesces, loses none.
    fn take_event(&mut self) -> Option<EvtchnPort>;

    /// Grant handles that are mapped now.
    fn nr_handles(&self) -> usize;

    /// Event channel ports that are bound now, xenstore's and the console's among them.
    fn nr_ports(&self) -> usize;

    /// The largest number of bytes that the heap ever held.
    fn heap_peak_bytes(&self) -> usize;

    /// Says one line to whoever looks at the domain's console.
    fn log(&mut self, line: fmt::Arguments<'_>);
}

/// What the platform hands over at the start, besides itself.
pub struct Resources<'a, P: Platform> {
    /// The handle to our frames.
    pub memory: P::Memory,
    /// Runs of frames that nothing else uses, for the page pool: first frame and their number.
    pub free_frames: &'a [(Gfn, u64)],
    /// The boot modules, in their order.
    pub modules: &'a [ImageFile],
    /// The page that we share with xenstore.
    pub xenstore: P::XenstorePage,
    /// The event channel that goes with it.
    pub xenstore_port: EvtchnPort,
    /// The namespaces of our own controllers, and their names.
    pub namespaces: Vec<(Namespace, P::Namespace)>,
    /// The command line, as xl.cfg's `cmdline=` has it.
    pub command_line: &'a [u8],
}

/// A hypercall's error: a negative errno of Xen's own list (`errno.h`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("Xen answered {0}")]
pub struct HypercallError(pub i64);

/// When `Domain::step` wants to be called again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// At once: there is more to do than one step takes.
    Now,
    /// When an event arrives, or at that time.
    At(Instant),
    /// When an event arrives.
    Idle,
    /// Not at all: the domain has let go of all it held and ends with this reason.
    Shutdown(ShutdownReason),
}

/// Why the domain ends (`SHUTDOWN_*`, `sched.h`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ShutdownReason {
    /// The toolstack asked for it.
    PowerOff,
    /// The toolstack asked for it, and wants us back.
    Reboot,
}
