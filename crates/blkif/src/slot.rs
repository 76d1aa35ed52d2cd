//! Our own copy of one ring slot.

/// The bytes of one request or response, long enough for either ABI. Bytes that an ABI does not
/// use are zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slot(pub [u8; Slot::LEN_BYTES]);

// The offsets come from `layout`, whose largest field ends within the slot.
impl Slot {
    /// Bytes of the longer ABI's slot.
    pub const LEN_BYTES: usize = 112;

    /// All zeroes.
    pub const ZERO: Self = Self([0; Self::LEN_BYTES]);

    #[inline]
    pub(crate) fn get<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.0[at..at + N]);
        bytes
    }

    pub(crate) fn put<const N: usize>(&mut self, at: usize, bytes: [u8; N]) {
        self.0[at..at + N].copy_from_slice(&bytes);
    }

    pub(crate) fn u8_at(&self, at: usize) -> u8 {
        self.0[at]
    }

    pub(crate) fn u16_at(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.get(at))
    }

    pub(crate) fn u32_at(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.get(at))
    }

    pub(crate) fn u64_at(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.get(at))
    }
}
