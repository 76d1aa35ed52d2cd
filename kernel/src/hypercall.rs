//! The only hypercalls: a typed function for each one that is used.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::ptr;
use core::slice;
use core::sync::atomic::{AtomicBool, Ordering};

use domain::HypercallError;
use x86_64::instructions::hlt;
use x86_64::registers::model_specific::Msr;
use xen_abi::{
    DomId, EvtchnPort, Gfn, GntStatus, GnttabCopy, GnttabMapGrantRef, GnttabUnmapGrantRef,
    PAGE_SIZE,
};
use xen_pvh_boot::IdentityMap;

use crate::abi::{
    AddToPhysmap, AllocUnbound, BindInterdomain, BindPirq, Close, GetFreePirq, HvmParam,
    HvmParamOp, MulticallEntry, Poll, QuerySize, Send, Shutdown, ShutdownCode,
};
use crate::hypervisor::Hypervisor;

// `xen.h`: the hypercalls' numbers.
const MEMORY_OP: usize = 12;
const MULTICALL: usize = 13;
const GRANT_TABLE_OP: usize = 20;
const SCHED_OP: usize = 29;
const EVENT_CHANNEL_OP: usize = 32;
const PHYSDEV_OP: usize = 33;
const HVM_OP: usize = 34;

const XENMEM_ADD_TO_PHYSMAP: usize = 7;
const GNTTABOP_MAP_GRANT_REF: usize = 0;
const GNTTABOP_UNMAP_GRANT_REF: usize = 1;
const GNTTABOP_COPY: usize = 5;
const GNTTABOP_QUERY_SIZE: usize = 6;
const SCHEDOP_YIELD: usize = 0;
const SCHEDOP_SHUTDOWN: usize = 2;
const SCHEDOP_POLL: usize = 3;
const EVTCHNOP_BIND_INTERDOMAIN: usize = 0;
const EVTCHNOP_BIND_PIRQ: usize = 2;
const EVTCHNOP_CLOSE: usize = 3;
const EVTCHNOP_SEND: usize = 4;
const EVTCHNOP_ALLOC_UNBOUND: usize = 6;
const PHYSDEVOP_GET_FREE_PIRQ: usize = 23;
const HVMOP_SET_PARAM: usize = 0;
const HVMOP_GET_PARAM: usize = 1;

/// What Xen fills with a way in for each hypercall, 32 bytes apart.
#[repr(C, align(4096))]
struct HypercallPage(UnsafeCell<[u8; PAGE_SIZE]>);

// SAFETY: no Rust code reads or writes the page; Xen fills it, the CPU runs it.
unsafe impl Sync for HypercallPage {}

static PAGE: HypercallPage = HypercallPage(UnsafeCell::new([0; PAGE_SIZE]));
static READY: AtomicBool = AtomicBool::new(false);

/// The right to make hypercalls: there is a Xen, and the hypercall page is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hypercalls {
    /// What to add to an address in the first GiB for Xen's eyes, 0 for nothing.
    ///
    /// Xen walks our page tables for each argument that it reads or writes, and looks up each table
    /// of them in its own: two fewer where one page maps the whole GiB. The same for the instruction
    /// that makes the call, which Xen reads where the processor does not say how long it was
    /// (`svm_get_insn_len`).
    low_gib_again: usize,
}

const GIB: usize = 1 << 30;

impl Hypercalls {
    /// Has Xen make the hypercall page. Xen also takes from the mode it is called in how
    /// `shared_info` is laid out, 64-bit here (`hvm_latch_shinfo_size`).
    pub(crate) fn set_up(xen: Hypervisor, memory: &IdentityMap) -> Self {
        let page = ptr::from_ref(&PAGE).expose_provenance();
        // SAFETY: the MSR takes the address of a page to fill, addresses are physical ones, and
        // the page is there for nothing else.
        unsafe { Msr::new(xen.hypercall_msr).write(page as u64) };
        READY.store(true, Ordering::Relaxed);
        let low_gib_again = memory.low_gib_again().map(usize::try_from);
        Self { low_gib_again: low_gib_again.and_then(Result::ok).unwrap_or(0) }
    }

    /// For who stands outside the main path, as the panic handler: `None` before
    /// [`Self::set_up`].
    pub(crate) fn get() -> Option<Self> {
        READY.load(Ordering::Relaxed).then_some(Self { low_gib_again: 0 })
    }

    /// `XENMEM_add_to_physmap` of the page of `struct shared_info`.
    ///
    /// # Safety
    /// Nothing of ours is at `gfn`.
    pub(crate) unsafe fn map_shared_info(self, gfn: Gfn) -> Result<(), HypercallError> {
        // SAFETY: the caller's contract.
        unsafe { self.add_to_physmap(AddToPhysmap::SHARED_INFO, 0, gfn) }
    }

    /// `XENMEM_add_to_physmap` of frame `idx` of our own grant table, which grows to have it.
    ///
    /// # Safety
    /// Nothing of ours is at `gfn`.
    pub(crate) unsafe fn map_grant_table(self, idx: u32, gfn: Gfn) -> Result<(), HypercallError> {
        // SAFETY: the caller's contract.
        unsafe { self.add_to_physmap(AddToPhysmap::GRANT_TABLE, idx.into(), gfn) }
    }

    /// # Safety
    /// Nothing of ours is at `gfn`.
    unsafe fn add_to_physmap(self, space: u32, idx: u64, gpfn: Gfn) -> Result<(), HypercallError> {
        let mut op = AddToPhysmap { domid: DomId::SELF, size: 0, space, idx, gpfn };
        // SAFETY: the op is the call's own struct; the caller answers for the frame.
        check(unsafe { self.op::<MEMORY_OP, _>(XENMEM_ADD_TO_PHYSMAP, &mut op) })
    }

    /// `HVMOP_get_param` of our own domain.
    pub(crate) fn param(self, index: HvmParam) -> Result<u64, HypercallError> {
        let mut op = HvmParamOp { domid: DomId::SELF, pad: 0, index, value: 0 };
        // SAFETY: the op is the call's own struct; Xen writes nothing else.
        check(unsafe { self.op::<HVM_OP, _>(HVMOP_GET_PARAM, &mut op) })?;
        Ok(op.value)
    }

    /// Has upcalls arrive at interrupt `vector` of the vCPU (`HVM_PARAM_CALLBACK_IRQ`).
    pub(crate) fn set_upcall_vector(self, vector: u8) -> Result<(), HypercallError> {
        // HVM_PARAM_CALLBACK_TYPE_VECTOR in bits 63 to 56.
        let value = 2 << 56 | u64::from(vector);
        let index = HvmParam::CALLBACK_IRQ;
        let mut op = HvmParamOp { domid: DomId::SELF, pad: 0, index, value };
        // SAFETY: the op is the call's own struct; an upcall needs interrupts on, and who turns
        // them on answers for a handler.
        check(unsafe { self.op::<HVM_OP, _>(HVMOP_SET_PARAM, &mut op) })
    }

    /// `EVTCHNOP_bind_interdomain`: the port of ours that is bound.
    pub(crate) fn bind_interdomain(
        self,
        remote_dom: DomId,
        remote_port: EvtchnPort,
    ) -> Result<EvtchnPort, HypercallError> {
        let mut op = BindInterdomain { remote_dom, remote_port, local_port: EvtchnPort(0) };
        // SAFETY: the op is the call's own struct; Xen writes nothing else of ours.
        check(unsafe { self.op::<EVENT_CHANNEL_OP, _>(EVTCHNOP_BIND_INTERDOMAIN, &mut op) })?;
        Ok(op.local_port)
    }

    /// `EVTCHNOP_alloc_unbound`: a port of ours that `remote_dom` may bind to.
    pub(crate) fn alloc_unbound(self, remote_dom: DomId) -> Result<EvtchnPort, HypercallError> {
        let mut op = AllocUnbound { dom: DomId::SELF, remote_dom, port: EvtchnPort(0) };
        // SAFETY: the op is the call's own struct; Xen writes nothing else of ours.
        check(unsafe { self.op::<EVENT_CHANNEL_OP, _>(EVTCHNOP_ALLOC_UNBOUND, &mut op) })?;
        Ok(op.port)
    }

    /// `PHYSDEVOP_get_free_pirq`: a pirq for an interrupt by message.
    pub(crate) fn free_pirq(self) -> Result<u32, HypercallError> {
        let mut op = GetFreePirq { kind: GetFreePirq::MSI, pirq: 0 };
        // SAFETY: the op is the call's own struct; Xen writes nothing else of ours.
        check(unsafe { self.op::<PHYSDEV_OP, _>(PHYSDEVOP_GET_FREE_PIRQ, &mut op) })?;
        Ok(op.pirq)
    }

    /// `EVTCHNOP_bind_pirq`: the port of ours that is bound.
    pub(crate) fn bind_pirq(self, pirq: u32) -> Result<EvtchnPort, HypercallError> {
        let mut op = BindPirq { pirq, flags: 0, port: EvtchnPort(0) };
        // SAFETY: the op is the call's own struct; Xen writes nothing else of ours.
        check(unsafe { self.op::<EVENT_CHANNEL_OP, _>(EVTCHNOP_BIND_PIRQ, &mut op) })?;
        Ok(op.port)
    }

    /// `EVTCHNOP_close`.
    pub(crate) fn close(self, port: EvtchnPort) -> Result<(), HypercallError> {
        // SAFETY: the op is the call's own struct; Xen writes nothing of ours.
        check(unsafe { self.op::<EVENT_CHANNEL_OP, _>(EVTCHNOP_CLOSE, &mut Close { port }) })
    }

    /// `EVTCHNOP_send`.
    pub(crate) fn send(self, port: EvtchnPort) -> Result<(), HypercallError> {
        // SAFETY: the op is the call's own struct; Xen writes nothing of ours but pending bits.
        check(unsafe { self.op::<EVENT_CHANNEL_OP, _>(EVTCHNOP_SEND, &mut Send { port }) })
    }

    /// `SCHEDOP_poll`, with interrupts on from before the call until after it.
    ///
    /// # Safety
    /// Interrupts are off. The handler of each interrupt that can arrive leaves all registers as
    /// they were and touches no memory that Rust code does not share with it by atomics.
    pub(crate) unsafe fn poll_with_interrupts(self, poll: &Poll) -> Result<(), HypercallError> {
        // SAFETY: Xen writes nothing; the caller answers for the handlers.
        check(unsafe { self.with_interrupts::<SCHED_OP>(SCHEDOP_POLL, self.seen_by_xen(poll, 1)) })
    }

    /// `EVTCHNOP_send` and then [`Self::poll_with_interrupts`], in one exit.
    ///
    /// # Safety
    /// As of [`Self::poll_with_interrupts`].
    pub(crate) unsafe fn send_and_poll_with_interrupts(
        self,
        port: EvtchnPort,
        poll: &Poll,
    ) -> Result<(), HypercallError> {
        let send = Send { port };
        let mut calls = [
            MulticallEntry::new(EVENT_CHANNEL_OP, EVTCHNOP_SEND, self.seen_by_xen(&send, 1)),
            MulticallEntry::new(SCHED_OP, SCHEDOP_POLL, self.seen_by_xen(poll, 1)),
        ];
        let address = self.seen_by_xen(calls.as_mut_ptr(), calls.len());
        // SAFETY: Xen writes the entries' answers; the caller answers for the handlers.
        check(unsafe { self.with_interrupts::<MULTICALL>(address, calls.len()) })
    }

    /// `SCHEDOP_yield`.
    pub(crate) fn yield_now(self) {
        // SAFETY: takes no argument and touches no memory. It always succeeds.
        unsafe { self.raw::<SCHED_OP>(SCHEDOP_YIELD, 0, 0) };
    }

    /// `SCHEDOP_shutdown`.
    pub(crate) fn shutdown(self, reason: ShutdownCode) -> ! {
        // SAFETY: the op is the call's own struct; Xen does not write.
        unsafe { self.op::<SCHED_OP, _>(SCHEDOP_SHUTDOWN, &mut Shutdown { reason }) };
        // It does not return; if it did there would be nothing left to do.
        loop {
            hlt();
        }
    }

    /// `GNTTABOP_map_grant_ref`: each op gets its own status.
    ///
    /// # Safety
    /// Nothing of ours is at the ops' addresses.
    pub(crate) unsafe fn map_grants(
        self,
        ops: &mut [GnttabMapGrantRef],
    ) -> Result<(), HypercallError> {
        // SAFETY: the ops are the call's own structs; the caller answers for the addresses.
        check(unsafe { self.grant_op(GNTTABOP_MAP_GRANT_REF, ops) })
    }

    /// `GNTTABOP_unmap_grant_ref`: each op gets its own status.
    ///
    /// # Safety
    /// Nobody uses what is mapped at the ops' addresses any more.
    pub(crate) unsafe fn unmap_grants(
        self,
        ops: &mut [GnttabUnmapGrantRef],
    ) -> Result<(), HypercallError> {
        // SAFETY: the ops are the call's own structs; the caller answers for the addresses.
        check(unsafe { self.grant_op(GNTTABOP_UNMAP_GRANT_REF, ops) })
    }

    /// `GNTTABOP_copy`: each op gets its own status.
    ///
    /// # Safety
    /// Rust has no reference to the frames of ours that the ops write.
    pub(crate) unsafe fn copy_grants(self, ops: &mut [GnttabCopy]) -> Result<(), HypercallError> {
        // SAFETY: the ops are the call's own structs; the caller answers for the frames.
        check(unsafe { self.grant_op(GNTTABOP_COPY, ops) })
    }

    /// `GNTTABOP_query_size`: how many frames our own grant table can grow to.
    pub(crate) fn max_grant_frames(self) -> Result<u32, HypercallError> {
        let status = GntStatus::GENERAL_ERROR;
        let mut op = QuerySize { dom: DomId::SELF, nr_frames: 0, max_nr_frames: 0, status };
        // SAFETY: the op is the call's own struct; Xen writes nothing else of ours.
        check(unsafe { self.grant_op(GNTTABOP_QUERY_SIZE, slice::from_mut(&mut op)) })?;
        Ok(if op.status.is_okay() { op.max_nr_frames } else { 0 })
    }

    /// The address by which Xen is to find `count` arguments.
    pub(crate) fn seen_by_xen<T>(self, arguments: *const T, count: usize) -> usize {
        let address = arguments.expose_provenance();
        // What lies across the end of the GiB has one address, its own.
        let left_bytes = GIB.checked_sub(address);
        let is_within = left_bytes.is_some_and(|left_bytes| left_bytes >= count * size_of::<T>());
        if is_within { address + self.low_gib_again } else { address }
    }

    /// Where a hypercall begins. The image lies in the first GiB.
    fn way_in<const NUMBER: usize>(self) -> usize {
        PAGE.0.get().addr().wrapping_add(NUMBER * 32).wrapping_add(self.low_gib_again)
    }

    /// # Safety
    /// `ops` are of the type that `command` takes, and its effect on memory is sound.
    unsafe fn grant_op<T>(self, command: usize, ops: &mut [T]) -> i64 {
        let (address, count) = (self.seen_by_xen(ops.as_mut_ptr(), ops.len()), ops.len());
        // SAFETY: the caller's contract.
        unsafe { self.raw::<GRANT_TABLE_OP>(command, address, count) }
    }

    /// # Safety
    /// `op` is of the type that the hypercall's `command` takes, and its effect on memory is sound.
    unsafe fn op<const NUMBER: usize, T>(self, command: usize, op: &mut T) -> i64 {
        // SAFETY: the caller's contract.
        unsafe { self.raw::<NUMBER>(command, self.seen_by_xen(op, 1), 0) }
    }

    /// # Safety
    /// As of [`Self::raw`] and of [`Self::poll_with_interrupts`].
    unsafe fn with_interrupts<const NUMBER: usize>(self, first: usize, second: usize) -> i64 {
        let answer: i64;
        // STI takes effect after CALL: Xen must not find the vCPU in its shadow, where no event is
        // deliverable.
        // SAFETY: the caller's contract.
        unsafe {
            asm!(
                "sti",
                "call {way_in}",
                "cli",
                way_in = in(reg) self.way_in::<NUMBER>(),
                inlateout("rdi") first => _,
                inlateout("rsi") second => _,
                out("rdx") _, out("r10") _, out("r8") _, out("r9") _, out("rcx") _, out("r11") _,
                lateout("rax") answer,
            );
        }
        answer
    }

    /// # Safety
    /// The arguments are right for the hypercall, and its effect on memory is sound.
    unsafe fn raw<const NUMBER: usize>(self, first: usize, second: usize, third: usize) -> i64 {
        let answer: i64;
        // SAFETY: `self` says that the page is made. All that a hypercall may clobber is listed;
        // the caller answers for its effect.
        unsafe {
            asm!(
                "call {way_in}",
                way_in = in(reg) self.way_in::<NUMBER>(),
                inlateout("rdi") first => _,
                inlateout("rsi") second => _,
                inlateout("rdx") third => _,
                out("r10") _, out("r8") _, out("r9") _, out("rcx") _, out("r11") _,
                lateout("rax") answer,
            );
        }
        answer
    }
}

/// A hypercall answers 0, or a negative errno.
fn check(answer: i64) -> Result<(), HypercallError> {
    if answer < 0 { Err(HypercallError(answer)) } else { Ok(()) }
}
