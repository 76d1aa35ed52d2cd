//! The one pool of pages that all disks share.
//!
//! Plain data, addressed by frame number: a word for every frame, kept in frames of the pool
//! itself, says how often the frame is referred to, or which frame comes after it in the list of
//! those that are free, reserved or in limbo. Nothing here grows with the pool but that table, and
//! nothing is touched at the start: frames that were never used are taken in order.

use alloc::collections::BinaryHeap;
use alloc::vec::Vec;

use xen_abi::{Gfn, PAGE_SIZE};

use crate::block_store::{Naming, OpenRead, StoreError};
use crate::memory::{FrameAddr, FrameMemory};

const WORD_BYTES: usize = 4;
const WORDS_PER_FRAME: u64 = (PAGE_SIZE / WORD_BYTES) as u64;

/// The end of a list of frames. No frame's index: the table stops short of it.
const NIL: u32 = u32::MAX;

/// In the word of a frame that is referred to: zeroes are written over it when that is over.
const ERASE: u32 = 1 << 31;

/// Frames from the first to the last: 4 TiB. Each reference to a frame stands in a table's node,
/// which is another frame and refers to it once, or in a disk, which takes more of the heap than of
/// these words; so no count comes near [`ERASE`].
const MAX_FRAMES: u64 = 1 << 30;

/// What a new page is wanted for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Want {
    /// To hold more than before.
    More,
    /// To take the place of a page that goes back right after. May use the pool's reserve.
    Exchange,
}

/// A refcounted pool of [`PAGE_SIZE`] pages.
///
/// At every point, free + used = total; what is in limbo is in use.
#[derive(Debug)]
pub struct PagePool<M> {
    memory: M,
    /// The frame of word 0.
    base: Gfn,
    /// Where the table of words is.
    table: FrameAddr,
    /// Runs of frames that were never used: index of the first, and past the last.
    fresh: Vec<(u32, u32)>,
    /// First of the list of free frames, or [`NIL`].
    free_head: u32,
    nr_free: u64,
    nr_total: u64,
    nr_reserve: u64,
    /// Open reads. While there are any, a frame that nobody refers to waits in limbo.
    nr_reads: u32,
    /// How often the last open read was ended.
    read_epoch: u64,
    limbo: Limbo,
    /// Frames in limbo that are to be erased.
    doomed: Limbo,
    /// A frame of zeroes, never written.
    zero: Gfn,
}

/// A list of frames that nobody refers to and that an open read may still name, in the order in
/// which they were released. Each one's word but that of the last names the next.
#[derive(Debug)]
struct Limbo {
    head: u32,
    tail: u32,
    nr: u64,
}

/// A list of frames that were taken one after the other and that nobody refers to yet. Each one's
/// word names the next; that of the last is not looked at.
#[derive(Debug)]
pub(crate) struct Reserved {
    first: u32,
    nr: u32,
}

impl Reserved {
    pub(crate) const NONE: Self = Self { first: NIL, nr: 0 };
}

/// A list of frames whose last references were dropped one after the other. Each one's word but
/// that of the last names the next.
#[derive(Default)]
pub(crate) struct Released {
    first: u32,
    last: u32,
    nr: u32,
}

/// Where a list of reserved frames goes on.
#[derive(Default)]
pub(crate) struct Tail {
    last: u32,
    /// What the last one's word names for sure: frames that were free one behind the other are
    /// linked already. Else [`NIL`].
    named: u32,
}

impl Limbo {
    const EMPTY: Self = Self { head: NIL, tail: NIL, nr: 0 };
}

impl<M: FrameMemory> PagePool<M> {
    /// Makes a pool of runs of frames: the first of each and their number.
    ///
    /// # Errors
    /// [`PoolError`] where the runs cannot hold as much as the table of their own words.
    pub fn new(memory: M, runs: &[(Gfn, u64)]) -> Result<Self, PoolError> {
        let mut runs: Vec<(u64, u64)> = runs
            .iter()
            // In a table, frame number 0 says that there is none.
            .map(|&(first, nr)| (first.0.max(1), first.0.saturating_add(nr)))
            .filter(|(start, end)| start < end)
            .collect();
        runs = BinaryHeap::from(runs).into_sorted_vec();
        let base = runs.first().ok_or(PoolError::Empty)?.0;
        let end = runs.last().ok_or(PoolError::Empty)?.1;
        let nr_frames = end - base;
        if nr_frames > MAX_FRAMES || end >= u64::from(u32::MAX) {
            return Err(PoolError::TooLarge { nr_frames });
        }
        let nr_table = nr_frames.div_ceil(WORDS_PER_FRAME);
        // The table and the page of zeroes come out of the first run that has room for them.
        let wanted = nr_table + 1;
        let home = runs
            .iter_mut()
            .find(|(start, end)| end - start > wanted)
            .ok_or(PoolError::NoRoomForTable { nr_table })?;
        let table = FrameAddr::start_of(Gfn(home.0));
        let zero = Gfn(home.0 + nr_table);
        home.0 += wanted;

        let nr_total: u64 = runs.iter().map(|(start, end)| end - start).sum();
        // Kept back so that a full pool can still exchange pages: a write goes to new frames
        // before the old ones are given back.
        let nr_reserve = (nr_total / 16).min(1024);
        let index = |frame: u64| u32::try_from(frame - base).unwrap_or(NIL);
        let mut pool = Self {
            memory,
            base: Gfn(base),
            table,
            // The last run is taken first, from its start.
            fresh: runs.iter().rev().map(|&(start, end)| (index(start), index(end))).collect(),
            free_head: NIL,
            nr_free: nr_total,
            nr_total,
            nr_reserve,
            nr_reads: 0,
            read_epoch: 0,
            limbo: Limbo::EMPTY,
            doomed: Limbo::EMPTY,
            zero,
        };
        pool.memory.zero(FrameAddr::start_of(zero), PAGE_SIZE);
        Ok(pool)
    }

    /// Pages that disks can have in all.
    #[must_use]
    pub const fn nr_total(&self) -> u64 {
        self.nr_total
    }

    /// Pages that nobody has.
    #[must_use]
    pub const fn nr_free(&self) -> u64 {
        self.nr_free
    }

    /// Pages that are kept back for exchanges.
    #[must_use]
    pub const fn nr_reserve(&self) -> u64 {
        self.nr_reserve
    }

    /// Raises the reserve to `nr_pages` pages, what the largest request can touch, or to a quarter
    /// of the pool where that is less. Before there are disks, which must fit into the rest.
    pub fn keep_back(&mut self, nr_pages: u64) {
        self.nr_reserve = self.nr_reserve.max(nr_pages.min(self.nr_total / 4));
    }

    /// Pages that disks can have and still be written when the pool is full.
    pub(crate) const fn nr_usable(&self) -> u64 {
        self.nr_total - self.nr_reserve
    }

    /// A page of zeroes that nobody writes.
    #[must_use]
    pub const fn zero_page(&self) -> Gfn {
        self.zero
    }

    /// The frames.
    #[must_use]
    pub const fn memory(&self) -> &M {
        &self.memory
    }

    /// The frames.
    pub const fn memory_mut(&mut self) -> &mut M {
        &mut self.memory
    }

    /// Takes a page, referred to once. What it holds is undefined: its former contents must not
    /// reach a guest.
    ///
    /// # Errors
    /// [`StoreError::NoMemory`].
    pub fn take(&mut self, want: Want) -> Result<Gfn, StoreError> {
        let (index, _) = self.take_free(want)?;
        self.set_word(index, 1);
        Ok(self.gfn(index))
    }

    /// Takes a frame, and says which one its word still names, or [`NIL`].
    #[inline(always)]
    fn take_free(&mut self, want: Want) -> Result<(u32, u32), StoreError> {
        let kept_back = match want {
            Want::More => self.nr_reserve,
            Want::Exchange => 0,
        };
        if self.nr_free <= kept_back {
            return Err(self.no_memory());
        }
        let taken = if self.free_head == NIL {
            let (next, end) = self
                .fresh
                .last_mut()
                .ok_or(StoreError::NoMemory { free: self.nr_free, total: self.nr_total })?;
            let index = *next;
            *next += 1;
            if next == end {
                self.fresh.pop();
            }
            (index, NIL)
        } else {
            let index = self.free_head;
            self.free_head = self.word(index);
            (index, self.free_head)
        };
        self.nr_free -= 1;
        Ok(taken)
    }

    /// Drops a reference to a page. When the last is gone the page is free, but not before the
    /// reads that are open have ended.
    pub fn release(&mut self, page: Gfn) {
        let index = self.index(page);
        let word = self.word(index);
        debug_assert!(word & !ERASE > 0, "page {page} is released more often than it was taken");
        if word & !ERASE > 1 {
            self.set_word(index, word - 1);
            return;
        }
        let doomed = word & ERASE > 0;
        if self.nr_reads > 0 {
            let limbo = if doomed { &mut self.doomed } else { &mut self.limbo };
            let last = core::mem::replace(&mut limbo.tail, index);
            limbo.nr += 1;
            if limbo.head == NIL {
                limbo.head = index;
            } else {
                self.set_word(last, index);
            }
            return;
        }
        if doomed {
            self.memory.zero(FrameAddr::start_of(page), PAGE_SIZE);
        }
        self.set_word(index, self.free_head);
        self.free_head = index;
        self.nr_free += 1;
        debug_assert!(self.nr_free <= self.nr_total, "more pages are free than there are");
    }

    /// Drops a reference to a page as [`release`](Self::release) does, one of several that are
    /// [put back](Self::put_back) together if they become free.
    #[inline(always)]
    pub(crate) fn release_to(&mut self, list: &mut Released, page: Gfn) {
        let index = self.index(page);
        if self.nr_reads > 0 || self.word(index) != 1 {
            self.release(page);
        } else if list.nr == 0 {
            *list = Released { first: index, last: index, nr: 1 };
        } else {
            self.set_word(list.last, index);
            list.last = index;
            list.nr += 1;
        }
    }

    /// Puts pages before all that are free, in the order in which they were released: so pages of
    /// a disk that follow each other in memory do so again when they are written anew.
    pub(crate) fn put_back(&mut self, list: &Released) {
        if list.nr > 0 {
            self.set_word(list.last, self.free_head);
            self.free_head = list.first;
            self.nr_free += u64::from(list.nr);
        }
        debug_assert!(self.nr_free <= self.nr_total, "more pages are free than there are");
    }

    /// Adds a reference to a page that has one.
    pub(crate) fn retain(&mut self, page: Gfn) {
        let index = self.index(page);
        let word = self.word(index);
        debug_assert!(word & !ERASE > 0, "page {page} is shared, but nobody has it");
        self.set_word(index, word + 1);
    }

    /// Whether a page has more than one reference.
    pub(crate) fn is_shared(&self, page: Gfn) -> bool {
        self.nr_refs(page) > 1
    }

    /// References to a page that has any.
    pub(crate) fn nr_refs(&self, page: Gfn) -> u32 {
        self.word(self.index(page)) & !ERASE
    }

    /// Has zeroes written over a page once its last reference is gone.
    pub(crate) fn doom(&mut self, page: Gfn) {
        let index = self.index(page);
        let word = self.word(index);
        self.set_word(index, word | ERASE);
    }

    /// Takes a page that nobody refers to yet, to end a list that goes on at `tail`.
    ///
    /// # Errors
    /// [`StoreError::NoMemory`].
    #[inline(always)]
    pub(crate) fn reserve(
        &mut self,
        want: Want,
        list: &mut Reserved,
        tail: &mut Tail,
    ) -> Result<Gfn, StoreError> {
        let (index, named) = self.take_free(want)?;
        if list.nr == 0 {
            list.first = index;
        } else if tail.named != index {
            self.set_word(tail.last, index);
        }
        list.nr += 1;
        *tail = Tail { last: index, named };
        Ok(self.gfn(index))
    }

    /// Takes the first page off a list of reserved ones. It is then referred to once.
    #[inline]
    pub(crate) fn take_reserved(&mut self, list: &mut Reserved) -> Option<Gfn> {
        list.nr = list.nr.checked_sub(1)?;
        let index = list.first;
        let at = self.word_at(index);
        list.first = self.memory.replace_u32(at, 1);
        Some(self.gfn(index))
    }

    /// The pages of a list of reserved ones.
    pub(crate) fn reserved(&self, list: &Reserved) -> impl Iterator<Item = Gfn> + '_ {
        let mut index = list.first;
        (0..list.nr).map(move |_| {
            let page = self.gfn(index);
            index = self.word(index);
            page
        })
    }

    /// Pages that are neither free nor referred to: they wait for open reads.
    pub(crate) const fn nr_limbo(&self) -> u64 {
        self.limbo.nr + self.doomed.nr
    }

    /// A number that is another one when the last open read has been ended: what an open read was
    /// told of in this epoch must stay as it is in it.
    pub(crate) const fn read_epoch(&self) -> u64 {
        self.read_epoch
    }

    /// Begins a read: from now on until [`end_read`](Self::end_read), a page that is released keeps
    /// its bytes.
    pub const fn begin_read(&mut self) -> OpenRead {
        self.nr_reads += 1;
        OpenRead { token: None, naming: Naming::Done }
    }

    /// Begins a read of what `name` names, unless that fails.
    pub(crate) fn try_read(
        &mut self,
        name: impl FnOnce(&mut Self) -> Result<(), StoreError>,
    ) -> Result<OpenRead, StoreError> {
        let read = self.begin_read();
        match name(self) {
            Ok(()) => Ok(read),
            Err(error) => {
                self.end_read(read);
                Err(error)
            }
        }
    }

    /// Ends a read.
    #[inline]
    pub fn end_read(&mut self, read: OpenRead) {
        let OpenRead { token, naming } = read;
        debug_assert!(token.is_none() && naming == Naming::Done, "not a read of the pool's");
        debug_assert!(self.nr_reads > 0, "more reads ended than begun");
        self.nr_reads = self.nr_reads.saturating_sub(1);
        if self.nr_reads > 0 {
            return;
        }
        self.read_epoch += 1;
        if self.doomed.nr > 0 {
            self.erase_doomed();
        }
        if self.limbo.nr > 0 {
            let limbo = core::mem::replace(&mut self.limbo, Limbo::EMPTY);
            self.set_word(limbo.tail, self.free_head);
            self.free_head = limbo.head;
            self.nr_free += limbo.nr;
        }
        debug_assert!(self.nr_free <= self.nr_total, "more pages are free than there are");
    }

    /// Moves what is to be erased to where nothing needs to be.
    fn erase_doomed(&mut self) {
        let doomed = core::mem::replace(&mut self.doomed, Limbo::EMPTY);
        let mut index = doomed.head;
        for _ in 0..doomed.nr {
            self.memory.zero(FrameAddr::start_of(self.gfn(index)), PAGE_SIZE);
            index = self.word(index);
        }
        self.set_word(doomed.tail, self.limbo.head);
        if self.limbo.head == NIL {
            self.limbo.tail = doomed.tail;
        }
        self.limbo.head = doomed.head;
        self.limbo.nr += doomed.nr;
    }

    /// The error of a pool that has no page to give.
    pub(crate) const fn no_memory(&self) -> StoreError {
        StoreError::NoMemory { free: self.nr_free, total: self.nr_total }
    }

    fn gfn(&self, index: u32) -> Gfn {
        Gfn(self.base.0 + u64::from(index))
    }

    fn index(&self, page: Gfn) -> u32 {
        debug_assert!(page >= self.base, "page {page} is not the pool's");
        // The pool is smaller than 2^32 frames.
        u32::try_from(page.0.wrapping_sub(self.base.0)).unwrap_or(NIL)
    }

    fn word_at(&self, index: u32) -> FrameAddr {
        self.table.after(index as usize * WORD_BYTES)
    }

    #[inline]
    fn word(&self, index: u32) -> u32 {
        self.memory.load_u32(self.word_at(index))
    }

    #[inline]
    fn set_word(&mut self, index: u32, value: u32) {
        let at = self.word_at(index);
        self.memory.store_u32(at, value);
    }
}

/// Why there can be no pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PoolError {
    /// No frames at all.
    #[error("there are no free frames")]
    Empty,
    /// More frames than the pool's words can count: more than 4 TiB, or one past 16 TiB.
    #[error("{nr_frames} frames are more than the pool can count")]
    TooLarge {
        /// From the first to the last.
        nr_frames: u64,
    },
    /// No run of frames holds the pool's own table.
    #[error("no run of frames has room for the pool's table of {nr_table} frames")]
    NoRoomForTable {
        /// Frames of the table.
        nr_table: u64,
    },
}
