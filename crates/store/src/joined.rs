//! Naming bytes in frames, those that follow each other as one extent.

use crate::block_store::{Extent, ExtentSink};
use crate::memory::FrameAddr;

/// Joins what lies side by side on its way to a sink.
pub(crate) struct Joined<'a> {
    sink: &'a mut dyn ExtentSink,
    at: FrameAddr,
    len_bytes: usize,
}

impl<'a> Joined<'a> {
    pub(crate) fn new(sink: &'a mut dyn ExtentSink) -> Self {
        Self { sink, at: FrameAddr::at(0), len_bytes: 0 }
    }

    /// The next bytes are here.
    pub(crate) fn add(&mut self, at: FrameAddr, len_bytes: usize) {
        if self.len_bytes > 0 && self.at.after(self.len_bytes) == at {
            self.len_bytes += len_bytes;
        } else {
            self.pass();
            (self.at, self.len_bytes) = (at, len_bytes);
        }
    }

    /// There are no more.
    pub(crate) fn end(mut self) {
        self.pass();
    }

    fn pass(&mut self) {
        if self.len_bytes > 0 {
            self.sink.extent(Extent::Frames { at: self.at, len_bytes: self.len_bytes });
        }
    }
}
