//! Joining what follows each other in memory, so that a long request is named in few words.

use core::ops::Range;

use xen_abi::Gfn;

use crate::block_store::{Extent, ExtentSink};
use crate::memory::FrameAddr;

/// Bytes of a disk of pages that are found in one place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Run {
    /// In frames.
    Frames { at: FrameAddr, len_bytes: usize },
    /// In no page: the disk's base has them, from byte `offset` of the disk on.
    Absent { offset: u64, len_bytes: usize },
}

impl Run {
    /// Some bytes of a page.
    pub(super) fn in_page(page: Gfn, bytes: &Range<usize>) -> Self {
        Self::Frames { at: FrameAddr::start_of(page).after(bytes.start), len_bytes: bytes.len() }
    }

    /// Lets `run` take in the part of the disk that comes after it. Where that is elsewhere, it
    /// becomes the run, and the one so far is given.
    #[inline]
    pub(super) fn join(run: &mut Option<Self>, part: Self) -> Option<Self> {
        match (run.as_mut(), part) {
            (Some(Self::Frames { at, len_bytes }), Self::Frames { at: next, len_bytes: more })
                if at.after(*len_bytes) == next =>
            {
                *len_bytes += more;
                None
            }
            (Some(Self::Absent { len_bytes, .. }), Self::Absent { len_bytes: more, .. }) => {
                *len_bytes += more;
                None
            }
            _ => run.replace(part),
        }
    }

    /// Names it where it is in frames, as all of a write's are.
    pub(super) fn name_frames(run: Option<Self>, sink: &mut impl ExtentSink) {
        if let Some(Self::Frames { at, len_bytes }) = run {
            sink.extent(Extent::Frames { at, len_bytes });
        }
    }
}
