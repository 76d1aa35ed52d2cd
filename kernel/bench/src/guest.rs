//! Xen and a guest's pages, for one frontend whose grant references count its pages.

use alloc::vec::Vec;

use blkback::{Grants, MapError};
use store::FrameAddr;
use xen_abi::{
    CopyFlags, CopyPtr, DomId, EvtchnPort, Gfn, GntStatus, GnttabCopy, GrantRef, SharedMemory,
};

use crate::frames::Frames;
use crate::region::Region;

/// The hypervisor's side of the [`Grants`], on the image's own [`Frames`] and [`Region`]s.
pub(crate) struct Guest {
    /// What copies may touch of ours.
    pub(crate) frames: Frames,
    /// The page of grant reference 0; that of reference `n` is `n` frames on.
    pub(crate) first_page: Gfn,
    /// Hypercalls, events not among them.
    pub(crate) nr_hypercalls: u64,
}

impl Guest {
    pub(crate) fn page(&self, gref: GrantRef) -> Region {
        // SAFETY: one of the bench's frames, which hold no Rust object.
        let page = unsafe { Region::new(Gfn(self.first_page.0 + u64::from(gref.0)), 1) };
        page.expect("frames are not at null")
    }

    fn end(&self, end: &CopyPtr, is_grant: bool) -> Region {
        if is_grant {
            return self.page(end.gref());
        }
        // SAFETY: as above.
        unsafe { Region::new(end.gfn(), 1) }.expect("frames are not at null")
    }
}

impl Grants for Guest {
    type Mapping = Region;

    #[inline(never)]
    fn map(&mut self, _: DomId, grefs: &[GrantRef]) -> Result<Region, MapError> {
        Ok(self.page(grefs[0]))
    }

    #[inline(never)]
    fn unmap(&mut self, _: Region) -> Result<(), GntStatus> {
        Ok(())
    }

    #[inline(never)]
    fn map_each(
        &mut self,
        _: DomId,
        grefs: &[GrantRef],
        mut mapped: impl FnMut(GrantRef, Result<Region, GntStatus>),
    ) {
        self.nr_hypercalls += 1;
        grefs.iter().for_each(|&gref| mapped(gref, Ok(self.page(gref))));
    }

    #[inline(never)]
    fn unmap_each(&mut self, mappings: &mut Vec<Region>) -> Result<(), GntStatus> {
        self.nr_hypercalls += 1;
        mappings.clear();
        Ok(())
    }

    #[inline]
    fn copy_in(&mut self, from: &Region, offset: u16, to: FrameAddr, len_bytes: u16) {
        self.frames.copy_in(from, offset.into(), to, len_bytes.into());
    }

    #[inline]
    fn copy_out(&mut self, from: FrameAddr, to: &Region, offset: u16, len_bytes: u16) {
        self.frames.copy_out(from, to, offset.into(), len_bytes.into());
    }

    #[inline(never)]
    fn copy(&mut self, copies: &mut [GnttabCopy]) {
        self.nr_hypercalls += 1;
        for copy in copies {
            let source = self.end(&copy.source, copy.flags.contains(CopyFlags::SOURCE_GREF));
            let dest = self.end(&copy.dest, copy.flags.contains(CopyFlags::DEST_GREF));
            let mut bytes = [0; 4096];
            let bytes = &mut bytes[..copy.len_bytes.into()];
            source.read(copy.source.offset.into(), bytes);
            dest.write(copy.dest.offset.into(), bytes);
            copy.status = GntStatus::OKAY;
        }
    }

    #[inline(never)]
    fn notify(&mut self, _: EvtchnPort) {}
}
