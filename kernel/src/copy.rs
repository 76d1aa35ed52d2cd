//! Copying within our own memory: the one place that decides how.
//!
//! Data is copied by one of three routines, chosen once at the start. On most processors of the
//! last ten years one string instruction is the fastest, and CPUID says so (ERMS). An emulator
//! makes it byte by byte, an order slower than anything else. Where CPUID does not say so, 128 bits
//! at a time are better than 64. Rings and other small things are always copied by words: a string
//! instruction takes long to start.

use core::arch::asm;
use core::arch::x86_64::{__cpuid, __cpuid_count, CpuidResult};
use core::fmt;
use core::sync::atomic::{AtomicU8, Ordering};

/// How data is copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Routine {
    /// Words of 64 bits.
    U64,
    /// Registers of 128 bits. `boot` has switched SSE on (CR4.OSFXSR).
    Sse,
    /// `rep movsb`.
    Erms,
}

/// The [`Routine`] in use.
static ROUTINE: AtomicU8 = AtomicU8::new(Routine::U64 as u8);

impl Routine {
    /// The best one for this processor.
    pub(crate) fn of_this_cpu() -> Self {
        let has_features = __cpuid(0).eax >= FEATURES_LEAF;
        let features = if has_features { __cpuid_count(FEATURES_LEAF, 0) } else { NO_FEATURES };
        let is_hypervised = __cpuid(1).ecx & HYPERVISOR != 0;
        let emulator = is_hypervised.then(|| __cpuid(EMULATOR_LEAF));
        Self::best(features, emulator)
    }

    /// The best one for a processor of these features, and with this hypervisor, if any.
    fn best(features: CpuidResult, hypervisor: Option<CpuidResult>) -> Self {
        let is_emulated = hypervisor.is_some_and(|leaf| [leaf.ebx, leaf.ecx, leaf.edx] == EMULATOR);
        let has_erms = features.ebx & ERMS != 0 || features.edx & FSRM != 0;
        if has_erms && !is_emulated { Self::Erms } else { Self::Sse }
    }

    /// Has all data copied by this routine from now on.
    pub(crate) fn choose(self) {
        ROUTINE.store(self as u8, Ordering::Relaxed);
    }
}

/// As the command line has it.
impl fmt::Display for Routine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::U64 => "u64",
            Self::Sse => "sse",
            Self::Erms => "erms",
        })
    }
}

/// CPUID's leaf of structured extended features, and none of them.
const FEATURES_LEAF: u32 = 7;
const NO_FEATURES: CpuidResult = CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 };

/// Enhanced `rep movsb`, in EBX of leaf 7.
const ERMS: u32 = 1 << 9;
/// Fast short `rep movsb`, in EDX of leaf 7.
const FSRM: u32 = 1 << 4;
/// Whether there is a hypervisor, in ECX of leaf 1.
const HYPERVISOR: u32 = 1 << 31;

/// Where QEMU's emulator says what it is, and what it says in EBX, ECX and EDX: "TCGTCGTCGTCG".
/// Under Xen it is Xen that stands there: what keeps us from ERMS on an emulated host then is a
/// processor model without it, or `copy=sse`.
const EMULATOR_LEAF: u32 = 0x4000_0000;
const EMULATOR: [u32; 3] = [0x5447_4354, 0x4354_4743, 0x4743_5447];

/// Copies `len` bytes of a disk's data.
///
/// # Safety
/// `len` bytes at `from` are readable and at `to` writable. Where the ranges overlap, what is
/// copied is not defined.
#[inline(never)]
pub(crate) unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    const SSE: u8 = Routine::Sse as u8;
    const ERMS: u8 = Routine::Erms as u8;
    // SAFETY: the caller's contract.
    unsafe {
        match ROUTINE.load(Ordering::Relaxed) {
            SSE => sse(from, to, len),
            ERMS => string(from, to, len),
            _ => words(from, to, len),
        }
    }
}

/// Copies `len` bytes by the registers of SSE, which the compiler uses for nothing.
///
/// # Safety
/// As of [`copy`].
unsafe fn sse(from: *const u8, to: *mut u8, len: usize) {
    // A sector, of which nearly all copies are multiples.
    const CHUNK: usize = 512;
    let rest = len % CHUNK;
    let whole = len - rest;
    if whole > 0 {
        // SAFETY: touches the first `whole` bytes of the two ranges, by the caller's contract.
        unsafe {
            asm!(
                "2:",
                ".irp part, 0, 128, 256, 384",
                "movups xmm0, [{from} + {at} + \\part]",
                "movups xmm1, [{from} + {at} + \\part + 16]",
                "movups xmm2, [{from} + {at} + \\part + 32]",
                "movups xmm3, [{from} + {at} + \\part + 48]",
                "movups xmm4, [{from} + {at} + \\part + 64]",
                "movups xmm5, [{from} + {at} + \\part + 80]",
                "movups xmm6, [{from} + {at} + \\part + 96]",
                "movups xmm7, [{from} + {at} + \\part + 112]",
                "movups [{to} + {at} + \\part], xmm0",
                "movups [{to} + {at} + \\part + 16], xmm1",
                "movups [{to} + {at} + \\part + 32], xmm2",
                "movups [{to} + {at} + \\part + 48], xmm3",
                "movups [{to} + {at} + \\part + 64], xmm4",
                "movups [{to} + {at} + \\part + 80], xmm5",
                "movups [{to} + {at} + \\part + 96], xmm6",
                "movups [{to} + {at} + \\part + 112], xmm7",
                ".endr",
                "add {at}, 512",
                "jnz 2b",
                from = in(reg) from.wrapping_add(whole),
                to = in(reg) to.wrapping_add(whole),
                // From the ends, up to 0: one count for both.
                at = inout(reg) whole.wrapping_neg() => _,
                out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
                options(nostack),
            );
        }
    }
    if rest > 0 {
        // SAFETY: the last `rest` bytes of the two ranges.
        unsafe { words(from.wrapping_add(whole), to.wrapping_add(whole), rest) };
    }
}

/// Copies `len` bytes by one string instruction.
///
/// # Safety
/// As of [`copy`].
unsafe fn string(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: touches exactly the two ranges, by the caller's contract. The direction flag is clear.
    unsafe {
        asm!(
            "rep movsb",
            inout("rsi") from => _,
            inout("rdi") to => _,
            inout("rcx") len => _,
            options(nostack, preserves_flags),
        );
    }
}

/// Copies `len` bytes by an unrolled loop over words: what is best for a few.
///
/// # Safety
/// As of [`copy`].
#[inline(never)]
pub(crate) unsafe fn words(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: touches exactly the two ranges, by the caller's contract.
    unsafe {
        asm!(
            "sub {len}, 64",
            "jb 3f",
            "2:",
            "mov {a}, [{from}]",
            "mov {b}, [{from} + 8]",
            "mov {c}, [{from} + 16]",
            "mov {d}, [{from} + 24]",
            "mov [{to}], {a}",
            "mov [{to} + 8], {b}",
            "mov [{to} + 16], {c}",
            "mov [{to} + 24], {d}",
            "mov {a}, [{from} + 32]",
            "mov {b}, [{from} + 40]",
            "mov {c}, [{from} + 48]",
            "mov {d}, [{from} + 56]",
            "mov [{to} + 32], {a}",
            "mov [{to} + 40], {b}",
            "mov [{to} + 48], {c}",
            "mov [{to} + 56], {d}",
            "add {from}, 64",
            "add {to}, 64",
            "sub {len}, 64",
            "jae 2b",
            // Fewer than 64 bytes are left: `len` is their number less 64.
            "3:",
            "add {len}, 64 - 8",
            "jnc 5f",
            "4:",
            "mov {a}, [{from}]",
            "mov [{to}], {a}",
            "add {from}, 8",
            "add {to}, 8",
            "sub {len}, 8",
            "jae 4b",
            // Fewer than 8: `len` is their number less 8.
            "5:",
            "add {len}, 8",
            "jz 7f",
            "6:",
            "mov {a:l}, [{from}]",
            "mov [{to}], {a:l}",
            "inc {from}",
            "inc {to}",
            "dec {len}",
            "jnz 6b",
            "7:",
            from = inout(reg) from => _,
            to = inout(reg) to => _,
            len = inout(reg) len => _,
            a = out(reg) _, b = out(reg) _, c = out(reg) _, d = out(reg) _,
            options(nostack),
        );
    }
}

/// Writes zeroes over `len` bytes.
///
/// # Safety
/// `len` bytes at `to` are writable.
#[inline(never)]
pub(crate) unsafe fn zero(to: *mut u8, len: usize) {
    // SAFETY: touches exactly the range, by the caller's contract.
    unsafe {
        asm!(
            "sub {len}, 64",
            "jb 3f",
            "2:",
            "mov [{to}], {zero}",
            "mov [{to} + 8], {zero}",
            "mov [{to} + 16], {zero}",
            "mov [{to} + 24], {zero}",
            "mov [{to} + 32], {zero}",
            "mov [{to} + 40], {zero}",
            "mov [{to} + 48], {zero}",
            "mov [{to} + 56], {zero}",
            "add {to}, 64",
            "sub {len}, 64",
            "jae 2b",
            "3:",
            "add {len}, 64",
            "jz 5f",
            "4:",
            "mov [{to}], {zero:l}",
            "inc {to}",
            "dec {len}",
            "jnz 4b",
            "5:",
            to = inout(reg) to => _,
            len = inout(reg) len => _,
            zero = in(reg) 0u64,
            options(nostack),
        );
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use core::arch::x86_64::CpuidResult;

    use super::{EMULATOR, ERMS, FSRM, NO_FEATURES, Routine, copy, sse, string, words, zero};

    /// Copies byte by byte what `routine` is to copy, and compares all around it.
    fn check(routine: unsafe fn(*const u8, *mut u8, usize), from: usize, to: usize, len: usize) {
        let source: Vec<u8> = (0..=250).cycle().take(from + len + 16).collect();
        let mut expected = vec![0xee; to + len + 16];
        for n in 0..len {
            expected[to + n] = source[from + n];
        }
        let mut copied = vec![0xee; to + len + 16];
        // SAFETY: both vectors are longer.
        unsafe { routine(source[from..].as_ptr(), copied[to..].as_mut_ptr(), len) };
        assert!(copied == expected, "{len} bytes from {from} to {to}");
    }

    #[test]
    fn every_routine_copies_every_length_at_every_alignment_exactly() {
        for routine in [words, sse, string] {
            for len in (0..=300).chain([511, 512, 1000, 1100, 4095, 4096]) {
                for offset in 0..16 {
                    check(routine, offset, 0, len);
                    check(routine, 0, offset, len);
                    check(routine, offset, 15 - offset, len);
                }
            }
        }
    }

    #[test]
    fn data_is_copied_whatever_is_chosen() {
        for routine in [Routine::Sse, Routine::Erms, Routine::U64] {
            routine.choose();
            check(copy, 3, 5, 4096);
        }
    }

    #[test]
    fn a_string_instruction_is_chosen_where_it_is_fast() {
        let erms = CpuidResult { ebx: ERMS, ..NO_FEATURES };
        let fsrm = CpuidResult { edx: FSRM, ..NO_FEATURES };
        let [ebx, ecx, edx] = EMULATOR;
        let emulator = CpuidResult { eax: 0x4000_0001, ebx, ecx, edx };
        assert_eq!(Routine::best(erms, None), Routine::Erms);
        assert_eq!(Routine::best(fsrm, Some(NO_FEATURES)), Routine::Erms);
        assert_eq!(Routine::best(NO_FEATURES, None), Routine::Sse);
        assert_eq!(Routine::best(erms, Some(emulator)), Routine::Sse);
        let text: Vec<u8> = EMULATOR.iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(text, b"TCGTCGTCGTCG");
    }

    #[test]
    fn every_length_at_every_offset_is_zeroed_exactly() {
        for len in 0..200 {
            for start in 0..9 {
                let mut to = vec![0xee; 300];
                // SAFETY: the vector is longer.
                unsafe { zero(to[start..].as_mut_ptr(), len) };
                assert!(to[start..start + len].iter().all(|&byte| byte == 0));
                assert!(to[..start].iter().chain(&to[start + len..]).all(|&byte| byte == 0xee));
            }
        }
    }
}
