//! Frames of ours that a peer can reach, and how they become ours alone again.

use alloc::vec::Vec;

use thiserror::Error;
use xen_abi::{DomId, Gfn, GrantRef, PAGE_SIZE, SharedMemory};

use crate::GrantTable;

/// A frame that a peer can reach: nothing else may be kept in it.
#[derive(Debug)]
pub(crate) struct Granted {
    frame: Gfn,
    /// `None` where it could not be granted after all.
    gref: Option<GrantRef>,
}

impl Granted {
    pub(crate) const fn frame(&self) -> Gfn {
        self.frame
    }

    /// The reference; 0, which is nobody's, where there is none.
    pub(crate) fn gref(&self) -> GrantRef {
        self.gref.unwrap_or(GrantRef(0))
    }
}

/// There are not as many grants as were asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("{needed} frames are to be granted, {free} grants are free")]
pub struct OutOfGrants {
    /// Frames that were to be granted.
    pub needed: usize,
    /// Entries of our grant table that were free.
    pub free: usize,
}

/// Zeroes frames, so that nothing that was in them is told to the peer, and grants them.
///
/// # Errors
/// Not all could be granted; all are in `retired`.
pub(crate) fn grant<G: GrantTable>(
    frames: &[Gfn],
    to: DomId,
    grants: &mut G,
    retired: &mut Retired,
) -> Result<(Vec<Granted>, G::Memory), OutOfGrants> {
    let (needed, free) = (frames.len(), grants.nr_free());
    let memory = grants.memory(frames);
    for page in 0..needed {
        memory.write(page * PAGE_SIZE, &[0; PAGE_SIZE]);
    }
    let mut grant = |&frame| {
        let gref = if needed <= free { grants.grant(to, frame) } else { None };
        Granted { frame, gref }
    };
    let granted: Vec<Granted> = frames.iter().map(&mut grant).collect();
    if granted.iter().any(|granted| granted.gref.is_none()) {
        retired.add(granted);
        return Err(OutOfGrants { needed, free });
    }
    Ok((granted, memory))
}

/// Frames that were granted and are of no more use, until their grants have been taken back.
///
/// A peer may keep a page mapped for as long as it likes. Such a frame stays here and is used for
/// nothing else: it is lost on purpose, as long as the peer has it. Who reconnects to a peer that still
/// has frames here lets it take more each time.
#[derive(Debug, Default)]
pub struct Retired {
    frames: Vec<Granted>,
}

impl Retired {
    /// None yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { frames: Vec::new() }
    }

    /// Frames whose grants have not been taken back.
    #[must_use]
    pub const fn nr_frames(&self) -> usize {
        self.frames.len()
    }

    /// Takes back the grants that nobody uses; each frame that is ours alone again goes to
    /// `reclaimed`. Those that are left may be asked for again later: how many.
    pub fn reclaim<G: GrantTable>(
        &mut self,
        grants: &mut G,
        mut reclaimed: impl FnMut(Gfn),
    ) -> usize {
        self.frames.retain(|&Granted { frame, gref }| {
            let in_use = gref.is_some_and(|gref| grants.end_access(gref).is_err());
            if !in_use {
                reclaimed(frame);
            }
            in_use
        });
        self.frames.len()
    }

    pub(crate) fn add(&mut self, granted: Vec<Granted>) {
        self.frames.extend(granted);
    }
}
