//! The interface between blkback and whatever keeps a disk's bytes.

use crate::device::Failure;
use crate::geometry::{Geometry, SectorRange};
use crate::lent::{Direction, Lent};
use crate::memory::{FrameAddr, FrameMemory};
use crate::pool::{PagePool, Reserved};

/// Where the next bytes of an open read or write are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extent {
    /// In our own frames, from `at` on; it may run over the end of a frame into the next.
    Frames {
        /// First byte.
        at: FrameAddr,
        /// Length in bytes, at least one.
        len_bytes: usize,
    },
    /// Nowhere: they read as zeroes. Reads only.
    Zero {
        /// Length in bytes, at least one.
        len_bytes: usize,
    },
    /// Nowhere: nothing is copied at all.
    Discarded {
        /// Length in bytes, at least one.
        len_bytes: usize,
    },
}

/// What a store hands an open request's [`Extent`]s to, in the order of the disk's bytes.
pub trait ExtentSink {
    /// Takes the next extent.
    fn extent(&mut self, extent: Extent);
}

impl<F: FnMut(Extent)> ExtentSink for F {
    fn extent(&mut self, extent: Extent) {
        self(extent);
    }
}

/// What a store works on for a request that it could not answer at once. Whoever has it owes the
/// store that made it its end.
#[must_use = "the store keeps what it names until it is ended"]
#[derive(PartialEq, Eq, Debug)]
pub struct Token {
    /// The place in the store's table, and how often that was used before: a token that is used
    /// after its end names nothing.
    slot: u32,
    generation: u32,
}

impl Token {
    /// What a store has at place `slot` of its table, for the `generation`-th time.
    pub const fn new(slot: u32, generation: u32) -> Self {
        Self { slot, generation }
    }

    /// The place in the store's table.
    #[must_use]
    pub const fn slot(&self) -> u32 {
        self.slot
    }

    /// How often the place was used before.
    #[must_use]
    pub const fn generation(&self) -> u32 {
        self.generation
    }
}

/// An open read, made by [`PagePool::begin_read`]: until it is ended, its extents keep their bytes.
#[must_use = "an open read holds frames until it is ended"]
#[derive(Debug)]
pub struct OpenRead {
    /// What its bytes come from, unless they are in frames of the pool alone.
    pub(crate) token: Option<Token>,
    pub(crate) naming: Naming,
}

/// Whether an open request's extents are named.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Naming {
    /// They are.
    Done,
    /// They are named by [`BlockStore::resume_read`] or [`BlockStore::resume_write`], once
    /// [`BlockStore::is_ready`] says that there is something to name.
    Later,
}

impl OpenRead {
    /// A read whose bytes come from what `token` stands for, and are not there yet. The pool does not
    /// count it among its own.
    pub const fn later(token: Token) -> Self {
        Self { token: Some(token), naming: Naming::Later }
    }

    /// Its extents have been named now.
    pub const fn set_named(&mut self) {
        self.naming = Naming::Done;
    }

    /// Takes what it stands for out of it.
    pub const fn take_token(&mut self) -> Option<Token> {
        self.token.take()
    }

    /// Whether its extents were named.
    #[must_use]
    pub const fn naming(&self) -> Naming {
        self.naming
    }

    /// What it waits for, where its extents were not named at once.
    #[must_use]
    pub const fn token(&self) -> Option<&Token> {
        self.token.as_ref()
    }
}

/// An open write: until it is committed, nobody sees its extents.
#[must_use = "an open write holds frames until it is committed or aborted"]
#[derive(Debug)]
pub struct OpenWrite {
    pub(crate) range: SectorRange,
    /// The reserved frames in the order of the pages they are for.
    pub(crate) reserved: Reserved,
    /// Pages among them that the disk does not have yet.
    pub(crate) nr_new: u64,
    /// What its bytes go to, or what it keeps of the disk comes from, unless that is the pool.
    pub(crate) token: Option<Token>,
    pub(crate) naming: Naming,
}

impl OpenWrite {
    /// A write for which nothing is reserved yet.
    pub const fn new(range: SectorRange) -> Self {
        Self { range, reserved: Reserved::NONE, nr_new: 0, token: None, naming: Naming::Done }
    }

    /// A write whose bytes go to what `token` stands for, or that keeps something of it.
    pub const fn with_token(range: SectorRange, token: Token, naming: Naming) -> Self {
        Self { token: Some(token), naming, ..Self::new(range) }
    }

    /// Its extents have been named now.
    pub const fn set_named(&mut self) {
        self.naming = Naming::Done;
    }

    /// Takes what it stands for out of it.
    pub const fn take_token(&mut self) -> Option<Token> {
        self.token.take()
    }

    /// What is written.
    #[must_use]
    pub const fn range(&self) -> SectorRange {
        self.range
    }

    /// Whether its extents were named.
    #[must_use]
    pub const fn naming(&self) -> Naming {
        self.naming
    }

    /// What it waits for, where its extents were not named at once.
    #[must_use]
    pub const fn token(&self) -> Option<&Token> {
        self.token.as_ref()
    }
}

/// Whether an operation is finished.
#[derive(PartialEq, Eq, Debug)]
pub enum Progress {
    /// All of it is done.
    Done,
    /// The steps are used up: call again with the same arguments.
    More,
    /// The store works on it: [`BlockStore::conclude`] says how it went, once
    /// [`BlockStore::is_ready`].
    Later(Token),
}

/// Whether there is anything to make durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flushing {
    /// Flushes are taken, and make true what they say.
    Offered,
    /// There is no flush: what is written is as durable as it gets.
    No,
}

/// What a discard must come to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Discard {
    /// The contents are of no more use; what reads back is up to the store.
    Plain,
    /// The contents are gone for good, and read back as zeroes.
    Secure,
}

/// How much work a call may do: about a page each step.
#[derive(Debug)]
pub struct Steps {
    left: u32,
}

/// Steps that a node of a table takes that is copied or gone through: a thousand loads.
const NODE_STEPS: u32 = 16;

impl Steps {
    /// A budget of `left` steps.
    #[must_use]
    pub const fn new(left: u32) -> Self {
        Self { left }
    }

    /// Takes one step; false when none is left.
    #[must_use]
    pub const fn take(&mut self) -> bool {
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }

    pub(crate) const fn are_used_up(&self) -> bool {
        self.left == 0
    }

    /// Takes the steps of a node, or those that are left; false when none is.
    pub(crate) const fn take_node(&mut self) -> bool {
        let any = self.left > 0;
        self.left = self.left.saturating_sub(NODE_STEPS);
        any
    }
}

/// Keeps a disk's bytes.
///
/// A store never sees a grant and never touches a guest's memory. It names places in our own
/// frames; its caller copies between them and the guest. A request is begun, copied and ended, and
/// several may be open at once: a begin that cannot go beside those that are open answers
/// [`StoreError::Busy`], and must be asked again once they are ended. With none open, no begin is
/// busy.
///
/// A store whose bytes are elsewhere does not have them at once. It may open a request without
/// naming its extents ([`Naming::Later`]), or answer the end of one with [`Progress::Later`]; what
/// the [`Token`] of either stands for is ready in any order. Such a store may be busy because of the
/// requests of others, too, and is then asked again whenever anything of it has become ready; it is
/// never too busy to end a request or to flush. A request that nobody waits for any more is ended
/// like any other: the store lets go of what is under way by itself.
///
/// Ranges were checked against [`BlockStore::geometry`]; the caller refuses writes to a disk that
/// is read-only. What is given here once for all is that of such a disk.
pub trait BlockStore<M: FrameMemory> {
    /// What the disk says of itself. Does not change while a request is open, unless what the disk is on
    /// does: requests for what is gone then fail.
    fn geometry(&self) -> Geometry;

    /// The unit in which data is packed: a request may have all of each that it touches unpacked
    /// when it is begun, which takes far longer than a copy, so that fewer requests are begun at
    /// once. In bytes, a power of two and at least a sector; `None` where nothing is packed.
    fn unpack_unit_bytes(&self) -> Option<u64> {
        None
    }

    /// Whether flushes are taken.
    fn flushing(&self) -> Flushing {
        Flushing::Offered
    }

    /// Whether what a token stands for is ready to be resumed or concluded.
    fn is_ready(&self, _token: &Token) -> bool {
        true
    }

    /// Whether it may take pages that are [lent](Self::lend).
    fn takes_pages(&self) -> bool {
        false
    }

    /// Begins to move a range between the disk and pages of a guest's, without a copy. `None` where that
    /// cannot be now; by extents it can. The token is concluded or cancelled; after that, too, the pages
    /// are in use until the lease is over.
    ///
    /// # Errors
    /// It cannot be done.
    fn lend(
        &mut self,
        _range: SectorRange,
        _direction: Direction,
        _lent: Lent<'_>,
    ) -> Result<Option<Token>, StoreError> {
        Ok(None)
    }

    /// Begins a read: the extents that hold the range's bytes go to `sink`.
    ///
    /// # Errors
    /// The read cannot be done; what `sink` got is void.
    fn begin_read(
        &mut self,
        pool: &mut PagePool<M>,
        range: SectorRange,
        sink: &mut impl ExtentSink,
    ) -> Result<OpenRead, StoreError>;

    /// Names the extents of a read that were not named at once, when its token is ready. It is still
    /// to be ended, also where this fails.
    ///
    /// # Errors
    /// The read cannot be done; what `sink` got is void.
    fn resume_read(
        &mut self,
        _pool: &mut PagePool<M>,
        _read: &mut OpenRead,
        _range: SectorRange,
        _sink: &mut impl ExtentSink,
    ) -> Result<(), StoreError> {
        Err(StoreError::Stale)
    }

    /// Ends a read; its extents may change from now on.
    fn end_read(&mut self, pool: &mut PagePool<M>, read: OpenRead) {
        pool.end_read(read);
    }

    /// Begins a write: extents that take the range's bytes go to `sink`. They are reserved for it,
    /// and what the write does not cover of them is filled from the disk.
    ///
    /// # Errors
    /// The write cannot be done; what `sink` got is void and the disk is as it was.
    fn begin_write(
        &mut self,
        _pool: &mut PagePool<M>,
        _range: SectorRange,
        _sink: &mut impl ExtentSink,
    ) -> Result<OpenWrite, StoreError> {
        Err(StoreError::ReadOnly)
    }

    /// Names the extents of a write that were not named at once, when its token is ready. It is still
    /// to be committed, or, where this fails, to be aborted. Where it fails for want of room
    /// ([`StoreError::NoMemory`], [`StoreError::CapReached`]) it may be tried again.
    ///
    /// # Errors
    /// The write cannot be done; what `sink` got is void.
    fn resume_write(
        &mut self,
        _pool: &mut PagePool<M>,
        _write: &mut OpenWrite,
        _sink: &mut impl ExtentSink,
    ) -> Result<(), StoreError> {
        Err(StoreError::Stale)
    }

    /// Publishes a write whose extents have all been copied to. Never [`Progress::More`].
    ///
    /// # Errors
    /// The write was not done, or not all of it; it is closed.
    fn commit_write(
        &mut self,
        _pool: &mut PagePool<M>,
        _write: OpenWrite,
    ) -> Result<Progress, StoreError> {
        Ok(Progress::Done)
    }

    /// Gives a write up: the disk is as it was.
    fn abort_write(&mut self, _pool: &mut PagePool<M>, _write: OpenWrite) {}

    /// Where to part a discard: at multiples of so many sectors, whole logical blocks. The parts are
    /// asked for one after the other, so that others have their turn between them.
    fn discard_unit_sectors(&self) -> u64 {
        u64::MAX
    }

    /// Gives a range up, at most `steps` of it at a time.
    ///
    /// # Errors
    /// [`StoreError::Busy`] while a write is open; or why it cannot be done, and how much of it
    /// was done already is not told.
    fn discard(
        &mut self,
        _pool: &mut PagePool<M>,
        _range: SectorRange,
        _discard: Discard,
        _steps: &mut Steps,
    ) -> Result<Progress, StoreError> {
        Err(StoreError::ReadOnly)
    }

    /// Makes every write durable whose commit is done, as far as the store can. Never
    /// [`Progress::More`].
    ///
    /// # Errors
    /// Writes that were acknowledged may be lost.
    fn flush(&mut self, _pool: &mut PagePool<M>) -> Result<Progress, StoreError> {
        Ok(Progress::Done)
    }

    /// Ends what was answered by [`Progress::Later`], or lent, and is ready. [`Progress::More`] only of a
    /// discard.
    ///
    /// # Errors
    /// How it failed.
    fn conclude(&mut self, _pool: &mut PagePool<M>, _token: Token) -> Result<Progress, StoreError> {
        Err(StoreError::Stale)
    }

    /// Nobody waits any more for what was answered by [`Progress::Later`], or lent, ready or not.
    fn cancel(&mut self, _pool: &mut PagePool<M>, _token: Token) {}
}

/// Why a store refuses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StoreError {
    /// A request for no sectors.
    #[error("no sectors")]
    Empty,
    /// A request for parts of logical blocks.
    #[error("sectors {first}+{nr} are not whole blocks of {block} sectors")]
    Misaligned {
        /// First sector.
        first: u64,
        /// Number of sectors.
        nr: u64,
        /// Sectors a logical block.
        block: u64,
    },
    /// A request past the end of the disk.
    #[error("sectors {first}+{nr} are past the end, the disk has {nr_sectors}")]
    PastEnd {
        /// First sector.
        first: u64,
        /// Number of sectors.
        nr: u64,
        /// The disk's capacity.
        nr_sectors: u64,
    },
    /// The disk is never written.
    #[error("the disk is read-only")]
    ReadOnly,
    /// Not beside the requests that are open; ask again when they are ended.
    #[error("busy with an overlapping request")]
    Busy,
    /// The disk is another's, and that answered so.
    #[error("{0}")]
    Device(Failure),
    /// More than the device that the disk is on moves at once.
    #[error("{nr} sectors are more than the {max} that the device moves at once")]
    TooLong {
        /// Sectors that were asked for.
        nr: u64,
        /// The longest buffer of the device.
        max: u64,
    },
    /// A token that names nothing, or not what was asked for.
    #[error("the request is not under way")]
    Stale,
    /// The disk does not erase: others may see what it gives up.
    #[error("the disk does no secure discards")]
    NotSecure,
    /// The disk has all the pages that it may have, or its table takes their room.
    #[error("the disk's cap of {cap_pages} pages is reached")]
    CapReached {
        /// How many it may have.
        cap_pages: u64,
    },
    /// The disk, once it has all its pages, would not fit the pool.
    #[error("the full disk takes {needed} pages, all disks together can have {usable}")]
    TooLarge {
        /// Pages that it takes, its tables included.
        needed: u64,
        /// Pages that disks can have.
        usable: u64,
    },
    /// A disk cannot have that many sectors.
    #[error("{nr_sectors} sectors are more than the {max} that a disk can have")]
    TooManySectors {
        /// Sectors that were asked for.
        nr_sectors: u64,
        /// Sectors that a disk can have.
        max: u64,
    },
    /// A disk in use does not become smaller.
    #[error("{wanted} sectors are fewer than the disk's {nr_sectors}")]
    Shrinks {
        /// Sectors that were asked for.
        wanted: u64,
        /// Sectors that it has.
        nr_sectors: u64,
    },
    /// What an image's file says of the bytes makes no sense.
    #[error("the image is damaged at byte {at} of its file")]
    Damaged {
        /// The first byte of the part that is.
        at: u64,
    },
    /// The heap has no room to keep the request open.
    #[error("no memory: the heap is full")]
    NoHeap,
    /// The pool has no page for it.
    #[error("no memory: {free} of {total} pages are free")]
    NoMemory {
        /// Pages that are free.
        free: u64,
        /// Pages there are.
        total: u64,
    },
}
