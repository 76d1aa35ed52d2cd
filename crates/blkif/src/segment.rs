//! Segments: a run of sectors within a granted page.

use core::fmt;

use thiserror::Error;
use xen_abi::{GrantRef, PAGE_SIZE};

use crate::layout::{SEGMENT_FIRST_SECT, SEGMENT_GREF, SEGMENT_LAST_SECT};
use crate::{MAX_SEGMENTS, SECTOR_SIZE};

/// What a frontend says of one piece of its buffer (`struct blkif_request_segment`). An
/// allegation: see [`Segment::check`].
#[doc(alias = "blkif_request_segment")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// The page that holds it.
    pub gref: GrantRef,
    /// Its first sector within the page, inclusive.
    pub first_sect: u8,
    /// Its last sector within the page, inclusive.
    pub last_sect: u8,
}

/// Why a [`Segment`] does not lie within its page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum SegmentError {
    /// It ends before it begins.
    #[error("segment from sector {first} to {last}")]
    Order {
        /// Its `first_sect`.
        first: u8,
        /// Its `last_sect`.
        last: u8,
    },
    /// It ends past the page, whose last sector is 7.
    #[error("segment to sector {last}, past its page")]
    PastPage {
        /// Its `last_sect`.
        last: u8,
    },
}

#[expect(clippy::cast_possible_truncation, reason = "8")]
const SECTORS_PER_PAGE: u8 = (PAGE_SIZE / SECTOR_SIZE as usize) as u8;

impl Segment {
    /// Bytes of a segment, in a request and in an indirect page, for either ABI.
    pub const LEN_BYTES: usize = 8;

    const ZERO: Self = Self { gref: GrantRef(0), first_sect: 0, last_sect: 0 };

    /// Reads a segment from its bytes; the padding is ignored.
    #[must_use]
    pub fn parse(bytes: [u8; Self::LEN_BYTES]) -> Self {
        let [a, b, c, d, first_sect, last_sect, _, _] = bytes;
        Self { gref: GrantRef(u32::from_le_bytes([a, b, c, d])), first_sect, last_sect }
    }

    /// The bytes of this segment; the padding is zero.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN_BYTES] {
        let mut bytes = [0; Self::LEN_BYTES];
        bytes[SEGMENT_GREF..SEGMENT_GREF + 4].copy_from_slice(&self.gref.0.to_le_bytes());
        bytes[SEGMENT_FIRST_SECT] = self.first_sect;
        bytes[SEGMENT_LAST_SECT] = self.last_sect;
        bytes
    }

    /// Checks that the segment lies within its page. Whether it keeps to a larger logical block
    /// size, and whether the grant exists, is not known here.
    ///
    /// # Errors
    /// [`SegmentError::PastPage`], else [`SegmentError::Order`].
    pub const fn check(&self) -> Result<CheckedSegment, SegmentError> {
        let Self { gref, first_sect: first, last_sect: last } = *self;
        if last >= SECTORS_PER_PAGE {
            return Err(SegmentError::PastPage { last });
        }
        if first > last {
            return Err(SegmentError::Order { first, last });
        }
        let offset = first as u16 * SECTOR_SIZE;
        Ok(CheckedSegment { gref, offset, len_bytes: (last as u16 + 1) * SECTOR_SIZE - offset })
    }
}

/// A run of 1 to 8 sectors that lies within its page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CheckedSegment {
    gref: GrantRef,
    offset: u16,
    len_bytes: u16,
}

impl CheckedSegment {
    /// The page that holds it.
    #[must_use]
    pub const fn gref(&self) -> GrantRef {
        self.gref
    }

    /// Its first byte within the page: 0 to 3584, a multiple of 512.
    #[must_use]
    pub const fn offset(&self) -> u16 {
        self.offset
    }

    /// Its bytes: 512 to 4096, a multiple of 512.
    #[must_use]
    pub const fn len_bytes(&self) -> u16 {
        self.len_bytes
    }
}

/// The segments of a direct request: 0 to 11, none of them checked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Segments {
    // Entries past `nr` are zero, so that equality can be derived.
    list: [Segment; MAX_SEGMENTS],
    nr: u8,
}

impl Segments {
    /// No segment, as in an empty flush.
    pub const EMPTY: Self = Self { list: [Segment::ZERO; MAX_SEGMENTS], nr: 0 };

    /// Takes a list of segments; `None` past 11.
    #[must_use]
    pub fn new(segments: &[Segment]) -> Option<Self> {
        let mut all = Self::EMPTY;
        all.list.get_mut(..segments.len())?.copy_from_slice(segments);
        all.nr = u8::try_from(segments.len()).ok()?;
        Some(all)
    }

    // `nr` is at most 11, and `bytes` are as many segments.
    pub(crate) fn parse(bytes: &[u8], nr: u8) -> Self {
        let mut all = Self { nr, ..Self::EMPTY };
        let (segments, _) = bytes.as_chunks();
        for (entry, bytes) in all.list.iter_mut().zip(&segments[..usize::from(nr)]) {
            *entry = Segment::parse(*bytes);
        }
        all
    }

    /// The segments, in the order of the disk's sectors.
    #[must_use]
    pub fn as_slice(&self) -> &[Segment] {
        &self.list[..usize::from(self.nr)]
    }

    /// How many, 0 to 11.
    #[must_use]
    pub const fn nr(&self) -> u8 {
        self.nr
    }
}

impl fmt::Debug for Segments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.as_slice()).finish()
    }
}
