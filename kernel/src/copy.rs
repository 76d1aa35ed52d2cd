//! Copying within our own memory: the one place that decides how.

use core::arch::asm;

/// Copies `len` bytes of a disk's data.
///
/// # Safety
/// `len` bytes at `from` are readable and at `to` writable. Where the ranges overlap, what is
/// copied is not defined.
#[inline(never)]
pub(crate) unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the caller's contract.
    unsafe { words(from, to, len) };
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

    use super::{words, zero};

    #[test]
    fn every_length_at_every_offset_is_copied_exactly() {
        let from: Vec<u8> = (0..=255).cycle().take(300).collect();
        for len in 0..200 {
            for offset in 0..9 {
                let mut to = vec![0xee; 300];
                // SAFETY: both vectors are longer.
                unsafe { words(from[offset..].as_ptr(), to[8 - offset..].as_mut_ptr(), len) };
                let start = 8 - offset;
                assert_eq!(to[start..start + len], from[offset..offset + len]);
                assert!(to[..start].iter().chain(&to[start + len..]).all(|&byte| byte == 0xee));
            }
        }
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
