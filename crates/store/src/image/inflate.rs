//! Unpacks compressed clusters: raw deflate (RFC 1951), in memory that does not grow with them.

use alloc::vec::Vec;

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_HAS_MORE_INPUT;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

use crate::block_store::StoreError;
use crate::image::qcow2::Compressed;
use crate::image::{ImageError, ImageFile};
use crate::memory::FrameMemory;
use crate::pool::PagePool;

/// How far back deflate refers; a power of two.
const WINDOW_BYTES: usize = 32 << 10;
const INPUT_BYTES: usize = 2048;

/// What unpacking takes, allocated once.
pub(crate) struct Inflater {
    /// One, in a vector since the heap may have no room for it.
    state: Vec<DecompressorOxide>,
    /// What was unpacked last, written round and round.
    window: Vec<u8>,
    input: Vec<u8>,
}

impl Inflater {
    /// # Errors
    /// [`ImageError::NoMemory`].
    pub(crate) fn new() -> Result<Self, ImageError> {
        let mut state = reserve(1)?;
        state.push(DecompressorOxide::new());
        let mut window = reserve(WINDOW_BYTES)?;
        window.resize(WINDOW_BYTES, 0);
        let mut input = reserve(INPUT_BYTES)?;
        input.resize(INPUT_BYTES, 0);
        Ok(Self { state, window, input })
    }

    /// Unpacks `len_bytes` bytes, a power of two, of what is compressed in `file`. Hands them to
    /// `take` in order: all at once, or in pieces of 32 KiB, each with its place.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] where so many do not come out of it.
    pub(crate) fn inflate<M: FrameMemory>(
        &mut self,
        pool: &mut PagePool<M>,
        file: &ImageFile,
        compressed: Compressed,
        len_bytes: usize,
        mut take: impl FnMut(&mut PagePool<M>, usize, &[u8]),
    ) -> Result<(), StoreError> {
        let damaged = StoreError::Damaged { at: compressed.at };
        let Self { state, window, input } = self;
        let state = state.first_mut().ok_or(damaged)?;
        state.init();
        // What refers to before the start reads zeroes there, and not what was unpacked before.
        window.fill(0);
        let mut at = compressed.at;
        let end = at.saturating_add(compressed.len_bytes).min(file.len_bytes);
        let mut unread: &[u8] = &[];
        let mut in_window = 0;
        let mut nr_taken = 0;
        loop {
            if unread.is_empty() && at < end {
                let left = usize::try_from(end - at).unwrap_or(INPUT_BYTES);
                let chunk = &mut input[..left.min(INPUT_BYTES)];
                file.read(pool.memory(), at, chunk)?;
                at += chunk.len() as u64;
                unread = chunk;
            }
            let flags = if at < end { TINFL_FLAG_HAS_MORE_INPUT } else { 0 };
            let (status, nr_in, nr_out) = decompress(state, unread, window, in_window, flags);
            unread = &unread[nr_in..];
            in_window += nr_out;
            let piece = len_bytes.min(WINDOW_BYTES);
            if in_window >= piece {
                take(pool, nr_taken, &window[..piece]);
                nr_taken += piece;
                in_window = 0;
                if nr_taken == len_bytes {
                    return Ok(());
                }
            }
            match status {
                TINFLStatus::HasMoreOutput => {}
                TINFLStatus::NeedsMoreInput if at < end => {}
                _ => return Err(damaged),
            }
        }
    }
}

/// A vector with room for `nr` elements.
pub(crate) fn reserve<T>(nr: usize) -> Result<Vec<T>, ImageError> {
    let mut vector = Vec::new();
    let what = "unpacking compressed clusters";
    let len_bytes = nr.saturating_mul(size_of::<T>());
    vector.try_reserve_exact(nr).map_err(|_| ImageError::NoMemory { what, len_bytes })?;
    Ok(vector)
}
