//! Unpacks an image that is packed by LZ4 to where it is linked, and enters it as Xen would have.
//!
//! This is what makes `target/granary` small: `scripts/build` links it with the image, which it
//! packed, by `linker.ld`. It runs before the image does and is forgotten: its memory is free once the
//! image runs.
//!
//! The packed image is the output of `lz4 -l`: a magic number, then blocks, each of its length as a
//! `u32` and that many bytes. A block is sequences: a token byte, literals, and a *match*, bytes to
//! repeat that were unpacked before
//! (<https://github.com/lz4/lz4/blob/dev/doc/lz4_Block_format.md>). Nothing is checked here:
//! who can change these bytes can change the code as well. That they unpack to the image,
//! `scripts/build` checks.

#![cfg_attr(target_os = "none", no_std, no_main)]

/// On the host there is nothing to run.
#[cfg(not(target_os = "none"))]
fn main() {}

/// No code here can panic; the linker drops it.
#[cfg(target_os = "none")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// `XEN_ELFNOTE_PHYS32_ENTRY` (`elfnote.h`).
#[cfg(target_os = "none")]
const PHYS32_ENTRY: u32 = 18;

// On entry (docs/misc/pvh.pandoc): EBX holds hvm_start_info's address, paging and interrupts are
// off, flat 32-bit segments are loaded, no stack. All of that is the image's when it is entered, so
// EBX is not touched and nothing is pushed.
//
// ESI is where packed bytes come from, EDI where unpacked ones go, EBP the end of the block, ECX a
// length.
#[cfg(target_os = "none")]
core::arch::global_asm!(
    ".pushsection .note.xen, \"a\", @note",
    ".balign 4",
    ".long 4, 8, {PHYS32_ENTRY}",
    ".asciz \"Xen\"",
    ".quad unpack_entry",
    ".popsection",

    // ECX is a token's half. If all its bits are set, bytes to add follow, the last of which is the
    // first that is not 255.
    ".macro whole_length",
    "cmp ecx, 15",
    "jne 3f",
    "2: movzx eax, byte ptr [esi]",
    "inc esi",
    "add ecx, eax",
    "cmp eax, 255",
    "je 2b",
    "3:",
    ".endm",

    ".pushsection .text.unpack_entry, \"ax\", @progbits",
    ".code32",
    ".globl unpack_entry",
    "unpack_entry:",
    "cld",
    "mov esi, offset packed_start + 4", // behind the magic number
    "mov edi, offset image_start",

    "4: lodsd",
    "lea ebp, [esi + eax]",

    "5: movzx edx, byte ptr [esi]", // the token
    "inc esi",
    "mov ecx, edx",
    "shr ecx, 4",
    "whole_length",
    "rep movsb",
    "cmp esi, ebp", // a block's last sequence has no match
    "jae 6f",

    "mov ecx, edx",
    "and ecx, 15",
    "movzx edx, word ptr [esi]", // how far back the match begins
    "add esi, 2",
    "whole_length",
    "add ecx, 4",
    "mov eax, esi",
    "mov esi, edi",
    "sub esi, edx",
    "rep movsb", // the match may overlap what it makes: byte by byte, upwards, repeats it
    "mov esi, eax",
    "jmp 5b",

    "6: cmp esi, offset packed_end",
    "jb 4b",

    // What is left of the image is its .bss, which the loader would have zeroed.
    "mov ecx, offset image_end",
    "sub ecx, edi",
    "xor eax, eax",
    "rep stosb",
    "mov eax, offset image_entry",
    "jmp eax",
    ".popsection",
    ".code64",
    ".purgem whole_length",
    PHYS32_ENTRY = const PHYS32_ENTRY,
);
