//! From the loader's 32-bit protected mode to long mode.

use core::arch::global_asm;

use crate::memory::LOW_GIB_AGAIN;

/// Size of the only stack, in bytes.
const STACK_BYTES: usize = 64 << 10;

/// What is mapped on a CPU without 1 GiB pages: page directories, 1 GiB each.
const NR_DIRECTORIES: usize = 8;

/// `XEN_ELFNOTE_PHYS32_ENTRY` (`elfnote.h`).
const PHYS32_ENTRY: u32 = 18;

const PRESENT_WRITE: u32 = 0b11;
const PRESENT_WRITE_LARGE: u32 = 0b1000_0011;

const CR0_MP: u32 = 1 << 1;
const CR0_EM: u32 = 1 << 2;
const CR0_TS: u32 = 1 << 3;
const CR0_WP: u32 = 1 << 16;
const CR0_PG: u32 = 1 << 31;
const CR4_PAE: u32 = 1 << 5;
const CR4_OSFXSR: u32 = 1 << 9;
const CR4_OSXMMEXCPT: u32 = 1 << 10;
const MSR_EFER: u32 = 0xc000_0080;
const EFER_LME: u32 = 1 << 8;
/// CPUID leaf 0x8000_0001, EDX.
const CPUID_PAGE_1G: u32 = 1 << 26;

const CODE_SELECTOR: u16 = 0x08;
const DATA_SELECTOR: u16 = 0x10;

// On entry (docs/misc/pvh.pandoc): EBX holds hvm_start_info's address, paging and interrupts are
// off, flat 32-bit segments are loaded, no stack. The loader has zeroed .bss.
//
// Mapped, each address at itself: 511 GiB by 1 GiB pages where the CPU has them, else 8 GiB by
// 2 MiB pages. The 2 MiB that hold the stack are mapped by 4 KiB pages, so that the page below the
// stack can be left out: an overflow faults instead of running into other data. The first GiB is by
// 2 MiB pages for that. Behind the others it is mapped once more, by one page.
global_asm!(
    ".pushsection .note.xen, \"a\", @note",
    ".balign 4",
    ".long 4, 8, {PHYS32_ENTRY}",
    ".asciz \"Xen\"",
    ".quad xen_pvh_entry",
    ".popsection",

    ".pushsection .bss.xen_pvh_boot, \"aw\", @nobits",
    ".balign 4096",
    "xen_pvh_pml4: .skip 4096",
    "xen_pvh_pdpt: .skip 4096",
    "xen_pvh_directories: .skip {NR_DIRECTORIES} * 4096",
    "xen_pvh_table: .skip 4096",
    "xen_pvh_stack_guard: .skip 4096",
    ".skip {STACK_BYTES}",
    "xen_pvh_stack_top:",
    ".popsection",

    ".pushsection .rodata.xen_pvh_gdt, \"a\", @progbits",
    ".balign 8",
    "xen_pvh_gdt:",
    ".quad 0",
    ".quad 0x00af9b000000ffff", // 64-bit code
    ".quad 0x00cf93000000ffff", // data
    "xen_pvh_gdt_pointer:",
    ".word . - xen_pvh_gdt - 1",
    ".long xen_pvh_gdt",
    ".popsection",

    ".pushsection .text.xen_pvh_entry, \"ax\", @progbits",
    ".code32",
    ".globl xen_pvh_entry",
    "xen_pvh_entry:",
    "cld",
    "mov ebp, ebx", // CPUID overwrites EBX

    // Every directory, by 2 MiB pages.
    "mov edi, offset xen_pvh_directories",
    "mov eax, {PRESENT_WRITE_LARGE}",
    "xor edx, edx",
    "mov ecx, {NR_DIRECTORIES} * 512",
    "2: mov [edi], eax",
    "mov [edi + 4], edx",
    "add edi, 8",
    "add eax, 0x200000",
    "adc edx, 0",
    "dec ecx",
    "jnz 2b",

    // The directories into the PDPT.
    "mov edi, offset xen_pvh_pdpt",
    "mov eax, offset xen_pvh_directories + {PRESENT_WRITE}",
    "mov ecx, {NR_DIRECTORIES}",
    "2: mov [edi], eax",
    "add edi, 8",
    "add eax, 4096",
    "dec ecx",
    "jnz 2b",
    "mov esi, {NR_DIRECTORIES}", // GiB mapped

    // 1 GiB pages over all but the first directory, where the CPU has them.
    "mov eax, 0x80000000",
    "cpuid",
    "cmp eax, 0x80000001",
    "jb 3f",
    "mov eax, 0x80000001",
    "cpuid",
    "test edx, {CPUID_PAGE_1G}",
    "jz 3f",
    "mov edi, offset xen_pvh_pdpt + 8",
    "mov eax, 0x40000000 + {PRESENT_WRITE_LARGE}",
    "xor edx, edx",
    "mov ecx, {LOW_GIB_AGAIN} - 1",
    "2: mov [edi], eax",
    "mov [edi + 4], edx",
    "add edi, 8",
    "add eax, 0x40000000",
    "adc edx, 0",
    "dec ecx",
    "jnz 2b",
    "mov dword ptr [edi], {PRESENT_WRITE_LARGE}",
    "mov esi, {LOW_GIB_AGAIN}",
    "3:",
    "mov eax, offset xen_pvh_pdpt + {PRESENT_WRITE}",
    "mov [xen_pvh_pml4], eax",

    // The stack's 2 MiB by 4 KiB pages, without the guard.
    "mov eax, offset xen_pvh_stack_guard",
    "mov edx, eax",
    "shr edx, 21",
    "mov dword ptr [edx * 8 + xen_pvh_directories], offset xen_pvh_table + {PRESENT_WRITE}",
    "and eax, 0xffe00000",
    "or eax, {PRESENT_WRITE}",
    "mov edi, offset xen_pvh_table",
    "mov ecx, 512",
    "2: mov [edi], eax",
    "add edi, 8",
    "add eax, 4096",
    "dec ecx",
    "jnz 2b",
    "mov eax, offset xen_pvh_stack_guard",
    "shr eax, 12",
    "and eax, 511",
    "mov dword ptr [eax * 8 + xen_pvh_table], 0",

    // Long mode, and SSE for code that asks for it.
    "mov eax, cr4",
    "or eax, {CR4}",
    "mov cr4, eax",
    "mov eax, offset xen_pvh_pml4",
    "mov cr3, eax",
    "mov ecx, {MSR_EFER}",
    "rdmsr",
    "or eax, {EFER_LME}",
    "wrmsr",
    "mov eax, cr0",
    "and eax, {CR0_CLEAR}",
    "or eax, {CR0_SET}",
    "mov cr0, eax",
    "lgdt [xen_pvh_gdt_pointer]",
    // The assembler knows no far jump to a symbol in this syntax: push selector and address.
    "mov esp, offset xen_pvh_stack_top",
    "push {CODE_SELECTOR}",
    "mov eax, offset xen_pvh_long_mode",
    "push eax",
    "retf",

    ".code64",
    "xen_pvh_long_mode:",
    "mov eax, {DATA_SELECTOR}",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "xor eax, eax",
    "mov fs, eax",
    "mov gs, eax",
    "mov esp, offset xen_pvh_stack_top",
    "mov edi, ebp",
    "shl rsi, 30",
    "xor ebp, ebp",
    "call xen_pvh_main",
    "ud2",
    ".popsection",
    PHYS32_ENTRY = const PHYS32_ENTRY,
    NR_DIRECTORIES = const NR_DIRECTORIES,
    LOW_GIB_AGAIN = const LOW_GIB_AGAIN,
    STACK_BYTES = const STACK_BYTES,
    PRESENT_WRITE = const PRESENT_WRITE,
    PRESENT_WRITE_LARGE = const PRESENT_WRITE_LARGE,
    CPUID_PAGE_1G = const CPUID_PAGE_1G,
    CR4 = const CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT,
    MSR_EFER = const MSR_EFER,
    EFER_LME = const EFER_LME,
    CR0_CLEAR = const !(CR0_EM | CR0_TS),
    CR0_SET = const CR0_PG | CR0_WP | CR0_MP,
    CODE_SELECTOR = const CODE_SELECTOR,
    DATA_SELECTOR = const DATA_SELECTOR,
);
