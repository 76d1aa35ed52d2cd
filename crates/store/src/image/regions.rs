//! Which parts of a file are taken.

use alloc::collections::BinaryHeap;
use alloc::vec::Vec;
use core::mem;

use crate::image::ImageError;

/// Parts of a file of which no two may share bytes.
#[derive(Default)]
pub(crate) struct Regions {
    /// First byte, and past the last.
    parts: Vec<(u64, u64)>,
}

impl Regions {
    /// Adds `len_bytes` bytes from byte `at` on, which were checked to be in the file.
    pub(crate) fn add(&mut self, at: u64, len_bytes: u64) -> Result<(), ImageError> {
        if self.parts.try_reserve(1).is_err() {
            let len_bytes = (self.parts.len() + 1) * size_of::<(u64, u64)>();
            return Err(ImageError::NoMemory { what: "a list of its parts", len_bytes });
        }
        self.parts.push((at, at + len_bytes));
        Ok(())
    }

    /// Checks that no two of them overlap.
    pub(crate) fn check(&mut self) -> Result<(), ImageError> {
        // A heap sorts in place as `sort_unstable` does, in a tenth of its code.
        self.parts = BinaryHeap::from(mem::take(&mut self.parts)).into_sorted_vec();
        let overlap = self.parts.windows(2).find(|pair| pair[1].0 < pair[0].1);
        overlap.map_or(Ok(()), |pair| Err(ImageError::Overlap { at: pair[1].0 }))
    }
}
