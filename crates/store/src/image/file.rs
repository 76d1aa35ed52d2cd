//! A file in our memory, and checked reads of it.

use crate::block_store::StoreError;
use crate::image::ImageError;
use crate::memory::{FrameAddr, FrameMemory};

/// A file in a run of our frames, at any byte offset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ImageFile {
    /// Its first byte.
    pub at: FrameAddr,
    /// Its length in bytes.
    pub len_bytes: u64,
}

/// Bytes that the file does not have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PastEnd {
    at: u64,
    len_bytes: u64,
    file_bytes: u64,
}

impl PastEnd {
    /// The error of an image in which `what` should have been there.
    pub(crate) const fn of(self, what: &'static str) -> ImageError {
        let Self { at, len_bytes, file_bytes } = self;
        ImageError::PastEnd { what, at, len_bytes, file_bytes }
    }
}

impl From<PastEnd> for StoreError {
    fn from(past_end: PastEnd) -> Self {
        Self::Damaged { at: past_end.at }
    }
}

impl ImageFile {
    /// Checks that `len_bytes` bytes from byte `at` on are in the file.
    pub(crate) const fn check(&self, at: u64, len_bytes: u64) -> Result<(), PastEnd> {
        match at.checked_add(len_bytes) {
            Some(end) if end <= self.len_bytes => Ok(()),
            _ => Err(PastEnd { at, len_bytes, file_bytes: self.len_bytes }),
        }
    }

    /// Copies out `into.len()` bytes from byte `at` on.
    pub(crate) fn read<M: FrameMemory>(
        &self,
        memory: &M,
        at: u64,
        into: &mut [u8],
    ) -> Result<(), PastEnd> {
        self.check(at, into.len() as u64)?;
        memory.read(self.addr(at), into);
        Ok(())
    }

    /// The `N` bytes from byte `at` on.
    pub(crate) fn bytes<M: FrameMemory, const N: usize>(
        &self,
        memory: &M,
        at: u64,
    ) -> Result<[u8; N], PastEnd> {
        let mut bytes = [0; N];
        self.read(memory, at, &mut bytes)?;
        Ok(bytes)
    }

    /// The big-endian number at byte `at`.
    pub(crate) fn u32<M: FrameMemory>(&self, memory: &M, at: u64) -> Result<u32, PastEnd> {
        self.bytes(memory, at).map(u32::from_be_bytes)
    }

    /// The big-endian number at byte `at`.
    pub(crate) fn u64<M: FrameMemory>(&self, memory: &M, at: u64) -> Result<u64, PastEnd> {
        self.bytes(memory, at).map(u64::from_be_bytes)
    }

    /// Where byte `at` of the file is.
    pub(crate) fn addr(&self, at: u64) -> FrameAddr {
        // The file lies in memory, which a `usize` counts.
        self.at.after(usize::try_from(at).unwrap_or(usize::MAX))
    }

    /// The file that `len_bytes` bytes from byte `at` on are.
    pub(crate) fn part(&self, at: u64, len_bytes: u64) -> Result<Self, PastEnd> {
        self.check(at, len_bytes)?;
        Ok(Self { at: self.addr(at), len_bytes })
    }
}

/// The big-endian number at byte `at` of a header that was read whole.
pub(crate) fn be_u16(header: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(field(header, at))
}

/// The big-endian number at byte `at` of a header that was read whole.
pub(crate) fn be_u32(header: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(field(header, at))
}

/// The big-endian number at byte `at` of a header that was read whole.
pub(crate) fn be_u64(header: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(field(header, at))
}

fn field<const N: usize>(header: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&header[at..at + N]);
    field
}
