//! Exceptions: every one is a bug, and is told with the registers before the domain ends.

use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::fmt;

use spin::Once;
use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, SS, Segment};
use x86_64::instructions::tables::load_tss;
use x86_64::registers::control::Cr2;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable};
use x86_64::structures::idt::{Entry, EntryOptions, InterruptDescriptorTable};
use x86_64::structures::tss::TaskStateSegment;

use crate::console;
use crate::end;
use crate::events;

/// Stack of the double fault's handler, which may come because there is no stack left.
const DOUBLE_FAULT_STACK_BYTES: usize = 16 << 10;
const DOUBLE_FAULT_IST: u16 = 0;

#[repr(C, align(16))]
struct Stack(UnsafeCell<[u8; DOUBLE_FAULT_STACK_BYTES]>);

// SAFETY: no Rust code reads or writes it; the CPU stands on it.
unsafe impl Sync for Stack {}

static DOUBLE_FAULT_STACK: Stack = Stack(UnsafeCell::new([0; DOUBLE_FAULT_STACK_BYTES]));
static TSS: Once<TaskStateSegment> = Once::new();
static GDT: Once<GlobalDescriptorTable> = Once::new();
static IDT: Once<InterruptDescriptorTable> = Once::new();

/// How far apart the stubs are, in bytes.
const STUB_BYTES: u64 = 16;

unsafe extern "C" {
    fn trap_stubs();
}

// A stub a vector: makes all frames alike by an error code of 0 where the CPU pushes none, and
// pushes the vector. Then all registers: the `Frame` that the handler reads.
global_asm!(
    ".pushsection .text.trap_stubs, \"ax\", @progbits",
    ".balign {STUB_BYTES}",
    ".globl trap_stubs",
    "trap_stubs:",
    ".set vector, 0",
    ".rept 32",
    ".balign {STUB_BYTES}",
    // The vectors that come with an error code: 8, 10 to 14, 17, 21, 29 and 30.
    ".if !((0x60227d00 >> vector) & 1)",
    "push 0",
    ".endif",
    "push vector",
    "jmp trap_common",
    ".set vector, vector + 1",
    ".endr",
    "trap_common:",
    "push rax",
    "push rbx",
    "push rcx",
    "push rdx",
    "push rsi",
    "push rdi",
    "push rbp",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov rdi, rsp",
    "and rsp, -16",
    "cld",
    "call {on_trap}",
    "ud2",
    ".popsection",
    STUB_BYTES = const STUB_BYTES,
    on_trap = sym on_trap,
);

/// What a stub leaves on the stack.
#[repr(C)]
struct Frame {
    r15: u64,
    r14: u64,
    r13: u64,
    r12: u64,
    r11: u64,
    r10: u64,
    r9: u64,
    r8: u64,
    rbp: u64,
    rdi: u64,
    rsi: u64,
    rdx: u64,
    rcx: u64,
    rbx: u64,
    rax: u64,
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vector, error, rip, cs, rflags, rsp, ss, .. } = self;
        let Self { rax, rbx, rcx, rdx, rsi, rdi, rbp, .. } = self;
        let Self { r8, r9, r10, r11, r12, r13, r14, r15, .. } = self;
        let (name, cr2) = (name(*vector), Cr2::read_raw());
        writeln!(f, "{name} (exception {vector}, error {error:#x}) at {cs:02x}:{rip:016x}")?;
        writeln!(f, "rax {rax:016x} rbx {rbx:016x} rcx {rcx:016x} rdx {rdx:016x}")?;
        writeln!(f, "rsi {rsi:016x} rdi {rdi:016x} rbp {rbp:016x} rsp {rsp:016x}")?;
        writeln!(f, "r8  {r8:016x} r9  {r9:016x} r10 {r10:016x} r11 {r11:016x}")?;
        writeln!(f, "r12 {r12:016x} r13 {r13:016x} r14 {r14:016x} r15 {r15:016x}")?;
        write!(f, "cr2 {cr2:016x} rflags {rflags:08x} ss {ss:02x}")
    }
}

const fn name(vector: u64) -> &'static str {
    match vector {
        0 => "divide error",
        1 => "debug",
        2 => "NMI",
        3 => "breakpoint",
        6 => "invalid opcode",
        7 => "device not available",
        8 => "double fault",
        10 => "invalid TSS",
        11 => "segment not present",
        12 => "stack fault",
        13 => "general protection fault",
        14 => "page fault",
        16 => "x87 error",
        17 => "alignment check",
        18 => "machine check",
        19 => "SIMD error",
        _ => "trap",
    }
}

extern "C" fn on_trap(frame: &Frame) -> ! {
    console::line_everywhere(format_args!("{frame}"));
    end::crash()
}

/// Loads our own GDT, TSS and IDT. Called once, first of all.
/// `more` sets the gates of interrupts that there are besides the upcall.
pub(crate) fn init(more: impl FnOnce(&mut InterruptDescriptorTable)) {
    let tss = TSS.call_once(|| {
        let mut tss = TaskStateSegment::new();
        let end = (&raw const DOUBLE_FAULT_STACK).wrapping_add(1);
        tss.interrupt_stack_table[usize::from(DOUBLE_FAULT_IST)] =
            VirtAddr::new_truncate(end.addr() as u64);
        tss
    });
    let mut gdt = GlobalDescriptorTable::new();
    let code = gdt.append(Descriptor::kernel_code_segment());
    let data = gdt.append(Descriptor::kernel_data_segment());
    let task = gdt.append(Descriptor::tss_segment(tss));
    GDT.call_once(|| gdt).load();
    // SAFETY: the selectors are of the GDT that was just loaded; its segments are flat as those
    // before.
    unsafe {
        CS::set_reg(code);
        SS::set_reg(data);
        load_tss(task);
    }
    let mut idt = idt();
    more(&mut idt);
    IDT.call_once(|| idt).load();
}

fn idt() -> InterruptDescriptorTable {
    let mut idt = InterruptDescriptorTable::new();
    // SAFETY: each entry stands at its vector. The upcall's handler returns as an
    // interrupt's does.
    unsafe {
        set_stub(&mut idt.divide_error, 0);
        set_stub(&mut idt.debug, 1);
        set_stub(&mut idt.non_maskable_interrupt, 2);
        set_stub(&mut idt.breakpoint, 3);
        set_stub(&mut idt.overflow, 4);
        set_stub(&mut idt.bound_range_exceeded, 5);
        set_stub(&mut idt.invalid_opcode, 6);
        set_stub(&mut idt.device_not_available, 7);
        set_stub(&mut idt.double_fault, 8).set_stack_index(DOUBLE_FAULT_IST);
        set_stub(&mut idt.invalid_tss, 10);
        set_stub(&mut idt.segment_not_present, 11);
        set_stub(&mut idt.stack_segment_fault, 12);
        set_stub(&mut idt.general_protection_fault, 13);
        set_stub(&mut idt.page_fault, 14);
        set_stub(&mut idt.x87_floating_point, 16);
        set_stub(&mut idt.alignment_check, 17);
        set_stub(&mut idt.machine_check, 18);
        set_stub(&mut idt.simd_floating_point, 19);
        set_stub(&mut idt.virtualization, 20);
        set_stub(&mut idt.cp_protection_exception, 21);
        set_stub(&mut idt.hv_injection_exception, 28);
        set_stub(&mut idt.vmm_communication_exception, 29);
        set_stub(&mut idt.security_exception, 30);
        idt[events::UPCALL_VECTOR].set_handler_addr(events::upcall_handler());
    }
    idt
}

/// Points an entry to its stub. Not inlined: two dozen times the same few lines.
///
/// # Safety
/// The entry is that of `vector`, whose frame the stub takes; it never returns.
#[inline(never)]
unsafe fn set_stub<F>(entry: &mut Entry<F>, vector: u64) -> &mut EntryOptions {
    let stub = VirtAddr::new_truncate(trap_stubs as *const () as u64 + vector * STUB_BYTES);
    // SAFETY: the caller's contract.
    unsafe { entry.set_handler_addr(stub) }
}
