//! From the entry to the main loop.

use core::marker::PhantomData;
use core::ptr;
use core::time::Duration;

use domain::{CopyRoutine, Domain, HypercallError, Next, Resources, ShutdownReason};
use spin::Once;
use xen_abi::{EvtchnPort, Gfn, PAGE_SHIFT};
use xen_pvh_boot::{Boot, StartInfo};

use crate::abi::{HvmParam, SharedInfo, ShutdownCode};
use crate::console;
use crate::copy::Routine;
use crate::end;
use crate::events::Events;
use crate::grants::GrantTable;
use crate::hypercall::Hypercalls;
use crate::hypervisor::Hypervisor;
use crate::machine::{Channel, Machine};
use crate::memory::{self, Memory};
use crate::own_grants::OwnGrants;
use crate::platform::Xen;
use crate::region::Region;
use crate::selftest;
use crate::time::{self, Clock};
use crate::traps;

/// How long the console daemon gets to take the last lines.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

/// Who may say how data is copied, besides CPUID.
const COMMAND_LINE: &str = "the command line";

/// Kept for good: the command line is read as long as the domain runs.
static START_INFO: Once<StartInfo> = Once::new();

/// What an image does, from its entry on.
pub(crate) fn main<M: Machine>(boot: Boot) -> ! {
    let entry_ticks = time::ticks();
    traps::init(M::set_gates);
    let Some(hypervisor) = Hypervisor::detect() else {
        console::line(format_args!("there is no Xen here, and nothing to do without it"));
        end::halt()
    };
    M::prepare();
    let hypercalls = Hypercalls::set_up(hypervisor, &boot.memory);
    let start_info = match StartInfo::read(&boot.memory, boot.start_info_paddr) {
        Ok(start_info) => START_INFO.call_once(|| start_info),
        Err(error) => end::refuse(format_args!("{error}")),
    };
    let special = match SpecialPages::find(hypercalls) {
        Ok(special) => special,
        Err(error) => end::refuse(format_args!("no xenstore or no console: {error}")),
    };
    // SAFETY: called once. Nothing was put into memory besides the image yet, and what start_info
    // pointed at has been copied out, but for the modules.
    let memory = unsafe {
        memory::divide(start_info, boot.memory.end(), [special.xenstore, special.console])
    };
    let mut memory = memory.unwrap_or_else(|error| end::refuse(format_args!("{error}")));
    match bring_up::<M>(hypercalls, &memory, &special) {
        Ok(xen) => run(hypervisor, xen, &mut memory, start_info, &special, entry_ticks),
        Err(error) => end::refuse(format_args!("cannot set up event channels: {error}")),
    }
}

/// The pages that the toolstack gave us to talk to xenstore and the console, and their ports.
struct SpecialPages {
    xenstore: Gfn,
    xenstore_port: EvtchnPort,
    console: Gfn,
    console_port: EvtchnPort,
}

impl SpecialPages {
    fn find(hypercalls: Hypercalls) -> Result<Self, HypercallError> {
        let port = |index| {
            // A port is 32 bits wide; the parameter is wider as others need it.
            hypercalls.param(index).map(|port| EvtchnPort(u32::try_from(port).unwrap_or(u32::MAX)))
        };
        Ok(Self {
            xenstore: Gfn(hypercalls.param(HvmParam::STORE_PFN)?),
            xenstore_port: port(HvmParam::STORE_EVTCHN)?,
            console: Gfn(hypercalls.param(HvmParam::CONSOLE_PFN)?),
            console_port: port(HvmParam::CONSOLE_EVTCHN)?,
        })
    }
}

/// Maps the shared page, masks all ports, brings the console up.
fn bring_up<M: Machine>(
    hypercalls: Hypercalls,
    memory: &Memory,
    special: &SpecialPages,
) -> Result<Xen<M>, HypercallError> {
    // The window's first frame is for shared_info, then come those of our own grant table; the rest
    // is for grants.
    let (window, nr_frames) = memory.window;
    // SAFETY: the window holds nothing.
    unsafe { hypercalls.map_shared_info(window)? };
    let address = usize::try_from(window.0 << PAGE_SHIFT).unwrap_or(0);
    // SAFETY: Xen's page is mapped there now for good, identity-mapped as all of the window. The
    // struct is all atomics and cells, and any bits are good in them.
    let shared: &'static SharedInfo = unsafe { &*ptr::with_exposed_provenance(address) };
    let mut events = Events::new(hypercalls, shared)?;

    let table = Gfn(window.0 + 1);
    // SAFETY: the window holds nothing, and these frames are used for nothing else.
    let own_grants = unsafe { OwnGrants::new(hypercalls, table) };
    let nr_special = 1 + u64::from(OwnGrants::MAX_FRAMES);
    let nr_grants = usize::try_from(nr_frames.saturating_sub(nr_special)).unwrap_or(0);
    // SAFETY: the rest of the window holds nothing and is used for nothing else.
    let grants = unsafe { GrantTable::new(hypercalls, Gfn(window.0 + nr_special), nr_grants) };

    // SAFETY: the toolstack's page, which `divide` left out of memory.
    if let Some(page) = unsafe { Region::new(special.console, 1) } {
        console::set_pv(hypercalls, page, special.console_port);
        // A console without a port takes lines and sends no events.
        let _ = events.add(special.console_port);
    }
    let clock = Clock::new(shared);
    let frames = memory.frames();
    let console_port = special.console_port;
    Ok(Xen {
        hypercalls,
        clock,
        events,
        grants,
        own_grants,
        frames,
        console_port,
        devices_reach_grants: false,
        machine: PhantomData,
    })
}

fn run<M: Machine>(
    hypervisor: Hypervisor,
    mut xen: Xen<M>,
    memory: &mut Memory,
    start_info: &'static StartInfo,
    special: &SpecialPages,
    entry_ticks: u64,
) -> ! {
    if xen.events.add(special.xenstore_port).is_err() {
        end::refuse(format_args!("xenstore's port is {}", special.xenstore_port));
    }
    // SAFETY: the toolstack's page, which `divide` left out of memory; taken here alone.
    let xenstore = unsafe { Region::new(special.xenstore, 1) };
    let Some(xenstore) = xenstore else {
        end::refuse(format_args!("xenstore's page is at {}", special.xenstore))
    };
    let xenstore = Channel { page: xenstore, port: special.xenstore_port };

    let mut machine = M::find(&mut xen, memory, hypervisor, start_info);
    let words = M::words(&mut xen, &xenstore, start_info.command_line());
    selftest::run(&words, xen.hypercalls, xen.clock, &mut xen.events);
    let resources = Resources {
        memory: memory.frames(),
        free_frames: memory.free_frames.as_slice(),
        modules: &memory.modules,
        xenstore: xenstore.page,
        xenstore_port: xenstore.port,
        namespaces: machine.namespaces(),
        command_line: &words,
    };
    let mut domain = match Domain::new(resources, &mut xen) {
        Ok(domain) => domain,
        Err(error) => end::refuse(format_args!("{error}")),
    };
    let (routine, chosen_by) = match domain.copy_routine() {
        CopyRoutine::Auto => (Routine::of_this_cpu(), "CPUID"),
        CopyRoutine::U64 => (Routine::U64, COMMAND_LINE),
        CopyRoutine::Sse => (Routine::Sse, COMMAND_LINE),
        CopyRoutine::Erms => (Routine::Erms, COMMAND_LINE),
    };
    routine.choose();
    console::line(format_args!("data is copied by {routine}, as {chosen_by} says"));
    console::line(format_args!(
        "{} on Xen {} is ready after {} us: {} KiB of memory, heap of {} KiB",
        env!("CARGO_PKG_VERSION"),
        hypervisor.version,
        xen.clock.ns_since(entry_ticks) / 1000,
        memory.ram_bytes >> 10,
        memory.heap_bytes >> 10,
    ));
    let reason = loop {
        let next = domain.step(&mut xen);
        // It sends what the domain asked its devices for.
        let due = machine.step(&xen);
        match next {
            Next::Now => xen.events.send(),
            Next::At(deadline) => {
                let deadline = due.map_or(deadline, |due| due.min(deadline));
                xen.events.wait(Some(deadline));
            }
            Next::Idle => xen.events.wait(due),
            Next::Shutdown(reason) => break reason,
        }
    };
    xen.events.send();
    machine.end(&mut xen);
    console::flush(xen.clock, FLUSH_LIMIT);
    xen.hypercalls.shutdown(match reason {
        ShutdownReason::PowerOff => ShutdownCode::PowerOff,
        ShutdownReason::Reboot => ShutdownCode::Reboot,
    })
}
