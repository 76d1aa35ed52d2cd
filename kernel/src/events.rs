//! Event channels, 2-level ABI, and the wait for events.
//!
//! While the domain runs every port is masked: an event then sets its pending bit and nothing else,
//! no upcall, no exit. [`Events::take`] reads the bits. To wait, `SCHEDOP_poll` names the port that
//! an event was last taken from, which is nearly always the next one's, too; `do_poll` looks at its
//! bit after it has marked the vCPU as blocked, so no event slips through between our look and the
//! sleep, and it needs no interrupt and no timer.
//!
//! Xen walks our page tables for each port it is told of, which takes it longer than we take to
//! serve a request. So the others are not named: they are unmasked for the time of the call, and
//! interrupts are on for it, so that their events make an upcall. There are three times when such
//! an event can arrive after our own last look:
//!
//! 1. before the hypercall: the upcall's handler runs, and writes a number of ports into the call's
//!    argument that Xen refuses, so that the call returns at once;
//! 2. in the hypercall, before the vCPU sleeps: `do_poll` asks `local_events_need_delivery` after it
//!    has marked the vCPU as blocked, sees the upcall that is due, and returns;
//! 3. when it sleeps: an upcall that becomes due unblocks the vCPU (`vcpu_kick`).
//!
//! The event for a lone answer goes with the wait, in one multicall: an exit less for a request that
//! comes alone. Between the two calls Xen may return to us, to have the rest of the multicall made
//! again (`hypercall_preempt_check`); that is time 1 once more.
//!
//! An event that arrived before, while its port was masked, made no upcall: hence the look at the
//! pending bits after unmasking. The handler returns with interrupts off, so it runs once a wait.

use core::arch::global_asm;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use domain::HypercallError;
use x86_64::VirtAddr;
use xen_abi::{EvtchnPort, Instant};

use crate::abi::{Poll, SharedInfo};
use crate::hypercall::Hypercalls;
use crate::ports::{NoSuchPort, PortSet, place};

/// The vector of the upcall.
pub(crate) const UPCALL_VECTOR: u8 = 0x20;

/// The argument of the wait that is under way, and the port in it.
static POLL: Poll =
    Poll { ports: AtomicU64::new(0), nr_ports: AtomicU32::new(0), timeout_ns: AtomicU64::new(0) };
static HOT: AtomicU32 = AtomicU32::new(0);

unsafe extern "C" {
    fn upcall_entry();
}

// Refuses the poll that is about to be made; drops IF (bit 9) from the flags that it returns to.
// Touches no register.
global_asm!(
    ".pushsection .text.upcall_entry, \"ax\", @progbits",
    ".globl upcall_entry",
    "upcall_entry:",
    "mov dword ptr [rip + {poll} + {nr_ports}], {refused}",
    "and dword ptr [rsp + 16], ~0x200",
    "iretq",
    ".popsection",
    poll = sym POLL,
    nr_ports = const offset_of!(Poll, nr_ports),
    refused = const Poll::MAX_PORTS + 1,
);

/// Where the upcall's interrupt gate must lead.
pub(crate) fn upcall_handler() -> VirtAddr {
    VirtAddr::from_ptr(upcall_entry as *const ())
}

/// The domain's event channels.
pub(crate) struct Events {
    hypercalls: Hypercalls,
    shared: &'static SharedInfo,
    ports: PortSet,
    /// Where the next look begins, so that no port is starved.
    cursor: EvtchnPort,
    /// Whose peer is still to be sent an event.
    to_notify: Option<EvtchnPort>,
}

impl Events {
    /// Masks every port. Interrupts are off, and the IDT leads [`UPCALL_VECTOR`] to
    /// [`upcall_handler`].
    pub(crate) fn new(
        hypercalls: Hypercalls,
        shared: &'static SharedInfo,
    ) -> Result<Self, HypercallError> {
        // First of all: it also has Xen lay out `shared` for the mode that it is called in.
        hypercalls.set_upcall_vector(UPCALL_VECTOR)?;
        for word in &shared.evtchn_mask {
            word.store(u64::MAX, Ordering::Relaxed);
        }
        Ok(Self {
            hypercalls,
            shared,
            ports: PortSet::new(),
            cursor: EvtchnPort(0),
            to_notify: None,
        })
    }

    /// Waits for `port` as well, from now on.
    pub(crate) fn add(&mut self, port: EvtchnPort) -> Result<(), NoSuchPort> {
        self.ports.insert(port)
    }

    /// Closes `port`, and forgets an event of it that was not taken.
    pub(crate) fn close(&mut self, port: EvtchnPort) -> Result<(), HypercallError> {
        self.send();
        self.ports.remove(port);
        let answer = self.hypercalls.close(port);
        if let Some((word, bit)) = place(port) {
            self.shared.evtchn_pending[word].fetch_and(!bit, Ordering::AcqRel);
        }
        answer
    }

    /// How many ports are bound.
    pub(crate) fn nr_ports(&self) -> usize {
        self.ports.nr_bound()
    }

    /// Takes a port that an event arrived at since it was last taken.
    pub(crate) fn take(&mut self) -> Option<EvtchnPort> {
        let port = self.ports.next(self.cursor, |word| self.pending(word))?;
        self.cursor = EvtchnPort(port.0 + 1);
        // Cleared before its work is done: an event that comes meanwhile sets it again.
        let (word, bit) = place(port)?;
        self.shared.evtchn_pending[word].fetch_and(!bit, Ordering::AcqRel);
        self.ports.heat(port);
        Some(port)
    }

    /// Sends an event to the peer of `port`, at the latest with the next [`Self::wait`].
    pub(crate) fn notify_with_wait(&mut self, port: EvtchnPort) {
        self.send();
        self.to_notify = Some(port);
    }

    /// Sends what is still to be sent.
    pub(crate) fn send(&mut self) {
        if let Some(port) = self.to_notify.take() {
            // An error would be a port that was closed, which has no peer.
            let _ = self.hypercalls.send(port);
        }
    }

    /// Waits until there is an event to take, or until `deadline`. May return early.
    pub(crate) fn wait(&mut self, deadline: Option<Instant>) {
        self.wait_after(deadline, || {});
    }

    /// As [`Self::wait`], but does something between the last look at the pending bits and the
    /// hypercall: the self test sends an event there.
    pub(crate) fn wait_after(&mut self, deadline: Option<Instant>, after_last_look: impl FnOnce()) {
        if let Some(port) = self.ports.hot() {
            HOT.store(port.0, Ordering::Relaxed);
        }
        // 0 means never, so that "at once" is 1.
        let timeout_ns = deadline.map_or(0, |deadline| deadline.as_ns().max(1));
        let hot = self.hypercalls.seen_by_xen(HOT.as_ptr(), 1) as u64;
        POLL.ports.store(hot, Ordering::Relaxed);
        POLL.nr_ports.store(self.ports.hot().is_some().into(), Ordering::Relaxed);
        POLL.timeout_ns.store(timeout_ns, Ordering::Relaxed);

        self.clear_upcall();
        self.set_masks_of_others(Mask::Open);
        if !self.any_pending() {
            after_last_look();
            // An error would be a port that is not ours, which the set has none of. The loop would
            // spin then, and still serve.
            // SAFETY: interrupts are off, as always outside this call. The vCPU's only interrupt
            // is the upcall, whose handler touches no register and writes an atomic alone.
            let _ = unsafe {
                match self.to_notify.take() {
                    Some(port) => self.hypercalls.send_and_poll_with_interrupts(port, &POLL),
                    None => self.hypercalls.poll_with_interrupts(&POLL),
                }
            };
        }
        self.send();
        self.set_masks_of_others(Mask::Closed);
    }

    /// Clears what an upcall left. First that it is due, then the words to look at: in the other
    /// order, an event between the two would leave its word marked and no upcall due, and the next
    /// event in that word would make none.
    fn clear_upcall(&self) {
        let vcpu = &self.shared.vcpu_info[0];
        vcpu.evtchn_upcall_pending.store(0, Ordering::SeqCst);
        vcpu.evtchn_pending_sel.swap(0, Ordering::SeqCst);
    }

    fn set_masks_of_others(&self, to: Mask) {
        for (word, others) in self.ports.others() {
            let mask = &self.shared.evtchn_mask[word];
            match to {
                Mask::Open => mask.fetch_and(!others, Ordering::SeqCst),
                Mask::Closed => mask.fetch_or(others, Ordering::SeqCst),
            };
        }
        // Xen sets pending, then reads the mask; we write the mask, then read pending.
        fence(Ordering::SeqCst);
    }

    fn any_pending(&self) -> bool {
        self.ports.any(|word| self.pending(word))
    }

    fn pending(&self, word: usize) -> u64 {
        self.shared.evtchn_pending[word].load(Ordering::Acquire)
    }
}

#[derive(Clone, Copy)]
enum Mask {
    Open,
    Closed,
}
