//! The entries of our own grant table (`struct grant_entry_v1`, `grant_table.h`).

use alloc::vec::Vec;
use core::mem::{offset_of, size_of};
use core::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use blkfront::StillInUse;
use xen_abi::{DomId, Gfn, GrantRef, PAGE_SIZE};

/// `GTF_permit_access`: the frame may be mapped and copied, for reading and writing.
const PERMIT_ACCESS: u16 = 1 << 0;
/// `GTF_reading` and `GTF_writing`: Xen sets them as long as the peer has the frame.
const IN_USE: u16 = 1 << 3 | 1 << 4;

/// The first entry that is not the toolstack's (`GNTTAB_NR_RESERVED_ENTRIES`).
const FIRST: u32 = 8;

/// An entry. Xen writes its flags at any moment, hence the atomics.
#[doc(alias = "grant_entry_v1")]
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Entry {
    flags: AtomicU16,
    domid: AtomicU16,
    frame: AtomicU32,
}

const _: () = assert!(size_of::<Entry>() == 8);
const _: () = assert!(offset_of!(Entry, frame) == 4);

/// The entries in a frame of the table.
pub(crate) type EntryFrame = [Entry; PER_FRAME as usize];

const PER_FRAME: u32 = 512;

const _: () = assert!(size_of::<EntryFrame>() == PAGE_SIZE);

impl Entry {
    fn permit(&self, to: DomId, frame: u32) {
        self.domid.store(to.0, Ordering::Relaxed);
        self.frame.store(frame, Ordering::Relaxed);
        // Xen believes the rest once it sees this.
        self.flags.store(PERMIT_ACCESS, Ordering::Release);
    }

    /// Takes the permission back, unless somebody uses it.
    fn end(&self) -> Result<(), InUse> {
        let unused = |flags| (flags & IN_USE == 0).then_some(0);
        // Acquire: what the peer wrote is there before we take the frame for ours.
        self.flags
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, unused)
            .map_or(Err(InUse), |_| Ok(()))
    }
}

struct InUse;

/// Which entries stand for a grant. The table gets its frames one by one, when the entries of those
/// it has are all in use.
#[derive(Debug)]
pub(crate) struct Entries {
    frames: Vec<&'static EntryFrame>,
    max_frames: u32,
    /// Entries that were used; there is room for all of them.
    free: Vec<GrantRef>,
    /// From here on none was ever used.
    untouched: u32,
}

impl Entries {
    /// Those of a table that can have `max_frames`.
    pub(crate) const fn new(max_frames: u32) -> Self {
        Self { frames: Vec::new(), max_frames, free: Vec::new(), untouched: FIRST }
    }

    /// How many are not in use.
    pub(crate) fn nr_free(&self) -> usize {
        let nr_untouched = (self.max_frames * PER_FRAME).saturating_sub(self.untouched);
        self.free.len() + nr_untouched as usize
    }

    /// Grants `frame` to `to`. Where that takes one more frame of the table, `map` says where it
    /// has it, by its index. `None` where no entry is free, or no frame for it is to be had.
    pub(crate) fn grant(
        &mut self,
        to: DomId,
        frame: Gfn,
        map: impl FnOnce(u32) -> Option<&'static EntryFrame>,
    ) -> Option<GrantRef> {
        let frame = u32::try_from(frame.0).ok()?;
        let gref = match self.free.pop() {
            Some(gref) => gref,
            None => self.touch(map)?,
        };
        self.entry(gref).permit(to, frame);
        Some(gref)
    }

    /// As [`blkfront::GrantTable::end_access`].
    pub(crate) fn end_access(&mut self, gref: GrantRef) -> Result<(), StillInUse> {
        self.entry(gref).end().map_err(|InUse| StillInUse(gref))?;
        self.free.push(gref);
        Ok(())
    }

    /// The first entry that was never used.
    fn touch(&mut self, map: impl FnOnce(u32) -> Option<&'static EntryFrame>) -> Option<GrantRef> {
        let frame = self.untouched / PER_FRAME;
        if frame == self.max_frames {
            return None;
        }
        // Room to take it back, so that this needs no memory then.
        let nr_used = (self.untouched - FIRST) as usize;
        self.free.try_reserve(nr_used + 1).ok()?;
        if self.frames.len() == frame as usize {
            self.frames.try_reserve(1).ok()?;
            self.frames.push(map(frame)?);
        }
        let gref = GrantRef(self.untouched);
        self.untouched += 1;
        Some(gref)
    }

    fn entry(&self, GrantRef(gref): GrantRef) -> &Entry {
        assert!((FIRST..self.untouched).contains(&gref), "grant {gref} is none of ours");
        &self.frames[(gref / PER_FRAME) as usize][(gref % PER_FRAME) as usize]
    }
}

#[cfg(test)]
mod tests {
    use std::boxed::Box;
    use std::collections::BTreeSet;
    use std::sync::atomic::Ordering::Relaxed;

    use super::{Entries, Entry, EntryFrame, PER_FRAME};
    use blkfront::StillInUse;
    use xen_abi::{DomId, Gfn, GrantRef};

    const PEER: DomId = DomId(7);

    /// As Xen hands it out.
    fn frame() -> &'static EntryFrame {
        Box::leak(Box::new(core::array::from_fn(|_| Entry {
            flags: 0.into(),
            domid: 0.into(),
            frame: 0.into(),
        })))
    }

    fn granted(entry: &Entry) -> (u16, u16, u32) {
        (entry.flags.load(Relaxed), entry.domid.load(Relaxed), entry.frame.load(Relaxed))
    }

    #[test]
    fn a_grant_is_an_entry_behind_the_toolstacks() {
        let (frame, mut entries) = (frame(), Entries::new(1));
        assert_eq!(entries.nr_free(), 504);
        assert_eq!(entries.grant(PEER, Gfn(0x1234), |_| Some(frame)), Some(GrantRef(8)));
        assert_eq!(granted(&frame[8]), (1, 7, 0x1234));
        assert_eq!(entries.nr_free(), 503);
        assert_eq!(entries.end_access(GrantRef(8)), Ok(()));
        assert_eq!(granted(&frame[8]).0, 0);
        assert_eq!(entries.nr_free(), 504);
        assert!(frame[..8].iter().all(|entry| granted(entry) == (0, 0, 0)));
    }

    #[test]
    fn a_grant_that_the_peer_uses_is_not_taken_back() {
        let (frame, mut entries) = (frame(), Entries::new(1));
        let gref = entries.grant(PEER, Gfn(1), |_| Some(frame)).unwrap();
        for in_use in [1 << 3, 1 << 4, 1 << 3 | 1 << 4] {
            frame[8].flags.fetch_or(in_use, Relaxed);
            assert_eq!(entries.end_access(gref), Err(StillInUse(gref)));
            assert_eq!(granted(&frame[8]), (1 | in_use, 7, 1));
            assert_eq!(entries.grant(PEER, Gfn(2), |_| None), Some(GrantRef(9)));
            assert_eq!(entries.end_access(GrantRef(9)), Ok(()));
            frame[8].flags.fetch_and(!in_use, Relaxed);
        }
        assert_eq!(entries.end_access(gref), Ok(()));
    }

    #[test]
    fn the_table_grows_by_a_frame_when_it_must() {
        let (frames, mut entries) = ([frame(), frame()], Entries::new(2));
        let mut mapped = Vec::new();
        let mut grefs = BTreeSet::new();
        while let Some(gref) = entries.grant(PEER, Gfn(5), |index| {
            mapped.push(index);
            Some(frames[index as usize])
        }) {
            assert!(grefs.insert(gref.0), "{gref} twice");
        }
        assert!(grefs.into_iter().eq(8..2 * PER_FRAME));
        assert_eq!((mapped, entries.nr_free()), (vec![0, 1], 0));
        assert_eq!(granted(&frames[1][511]), (1, 7, 5));
        assert_eq!(entries.end_access(GrantRef(600)), Ok(()));
        assert_eq!(entries.nr_free(), 1);
        assert_eq!(entries.grant(PEER, Gfn(6), |_| None), Some(GrantRef(600)));
        assert_eq!(granted(&frames[1][600 - 512]), (1, 7, 6));
    }

    #[test]
    fn a_table_that_cannot_grow_grants_nothing() {
        let mut entries = Entries::new(0);
        assert_eq!(entries.nr_free(), 0);
        assert_eq!(entries.grant(PEER, Gfn(5), |_| Some(frame())), None);
        let mut entries = Entries::new(1);
        assert_eq!(entries.grant(PEER, Gfn(5), |_| None), None);
        assert_eq!(entries.grant(PEER, Gfn(5), |_| Some(frame())), Some(GrantRef(8)));
        assert_eq!(entries.grant(PEER, Gfn(1 << 32), |_| Some(frame())), None);
        assert_eq!(entries.nr_free(), 503);
    }

    #[test]
    #[should_panic(expected = "grant 7 is none of ours")]
    fn to_take_back_what_the_toolstack_granted_is_a_bug() {
        let mut entries = Entries::new(1);
        entries.grant(PEER, Gfn(5), |_| Some(frame()));
        let _ = entries.end_access(GrantRef(7));
    }
}
