//! The seams that two or more crates stand on.

/// Memory that a peer may write at any moment: a mapped ring, xenstore's page.
///
/// Only copies and single indices leave it, never a reference: what was read once is ours, what is
/// read twice may have changed. Offsets are in bytes from the start of the region and come from
/// our own arithmetic alone; one past the end is a bug of the caller and panics.
pub trait SharedMemory {
    /// Length of the region in bytes.
    fn len_bytes(&self) -> usize;

    /// Loads the 4-aligned index at `offset` once, with acquire ordering.
    fn load_u32(&self, offset: usize) -> u32;

    /// Stores the 4-aligned index at `offset` once, with release ordering.
    fn store_u32(&self, offset: usize, value: u32);

    /// Copies `into.len()` bytes at `offset` to our memory, each byte fetched once.
    fn read(&self, offset: usize, into: &mut [u8]);

    /// Copies `from` to `offset`, each byte stored once.
    fn write(&self, offset: usize, from: &[u8]);
}

impl<M: SharedMemory + ?Sized> SharedMemory for &M {
    fn len_bytes(&self) -> usize {
        (**self).len_bytes()
    }

    fn load_u32(&self, offset: usize) -> u32 {
        (**self).load_u32(offset)
    }

    fn store_u32(&self, offset: usize, value: u32) {
        (**self).store_u32(offset, value);
    }

    fn read(&self, offset: usize, into: &mut [u8]) {
        (**self).read(offset, into);
    }

    fn write(&self, offset: usize, from: &[u8]) {
        (**self).write(offset, from);
    }
}
