//! The cache of what was unpacked of compressed clusters, one for all images.
//!
//! It has a fixed number of pages of the pool, set aside when images are loaded: a pool that is full
//! fails no read. An entry is a page of an image's disk. What a request is told of is pinned, that
//! is, stays as it is as long as a read is open; what else comes out of the same cluster is kept as
//! far as there is room.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::fmt;

use xen_abi::{Gfn, PAGE_SIZE};

use crate::block_store::StoreError;
use crate::geometry::SECTOR_SIZE;
use crate::image::inflate::{Inflater, reserve};
use crate::image::qcow2::Compressed;
use crate::image::{ImageError, ImageFile};
use crate::memory::{FrameAddr, FrameMemory};
use crate::pool::{PagePool, Want};

const PAGE: u64 = PAGE_SIZE as u64;

/// The end of a list of slots.
const NIL: usize = usize::MAX;

/// Where an image's unpacked clusters are kept.
#[derive(Clone)]
pub(crate) struct CacheOf {
    cache: Rc<RefCell<Cache>>,
    /// Tells the image from all others that use the cache.
    image: u32,
}

/// A compressed cluster.
#[derive(Clone, Copy)]
pub(crate) struct Cluster<'a> {
    pub(crate) file: &'a ImageFile,
    pub(crate) compressed: Compressed,
    /// Its first byte on the disk, a multiple of its length.
    pub(crate) offset: u64,
    /// Its length when it is unpacked, a power of two and at least a sector.
    pub(crate) len_bytes: usize,
}

/// How much a cache must hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Demand {
    /// The largest request.
    pub(crate) request_bytes: usize,
    /// The largest cluster.
    pub(crate) cluster_bytes: usize,
    /// Images whose compressed clusters are smaller than a page: a page of a disk that stands on
    /// several may have parts of each.
    pub(crate) nr_small: usize,
}

impl Demand {
    /// Pages for any request, wherever it begins, and for a cluster beside what it was told of
    /// already: the cluster's pages then take each other's places no more than what is pinned.
    fn nr_pages(self) -> usize {
        let request = self.request_bytes.div_ceil(PAGE_SIZE).saturating_add(1);
        let nr_sources = (1 + self.nr_small).min(PAGE_SIZE / SECTOR_SIZE);
        request.saturating_mul(nr_sources).saturating_add(self.cluster_bytes.div_ceil(PAGE_SIZE))
    }
}

struct Cache {
    inflater: Inflater,
    slots: Slots,
}

/// The pages, and what they hold.
struct Slots {
    slots: Vec<Slot>,
    /// First slot of each list of those whose keys fall together; a power of two of them.
    heads: Vec<usize>,
    /// The slot to look at first when one is wanted.
    hand: usize,
    /// Counts the clusters that were unpacked.
    fill: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    image: u32,
    /// Page of the disk.
    number: u64,
}

struct Slot {
    page: Gfn,
    key: Option<Key>,
    /// A bit for each sector that is there.
    sectors: u8,
    /// The [`PagePool::read_epoch`] in which a request was last told of it. In that epoch it keeps
    /// what it holds.
    pinned_in: Option<u64>,
    /// The cluster that it was last filled from.
    fill: u64,
    /// The next one in its list.
    next: usize,
}

impl CacheOf {
    /// Makes a cache; what it is for the image `image` comes from [`for_image`](Self::for_image).
    ///
    /// # Errors
    /// [`ImageError::NoMemory`] or [`ImageError::NoPages`].
    pub(crate) fn new<M: FrameMemory>(
        pool: &mut PagePool<M>,
        demand: Demand,
    ) -> Result<Self, ImageError> {
        let inflater = Inflater::new()?;
        let slots = Slots::new(pool, demand.nr_pages())?;
        Ok(Self { cache: Rc::new(RefCell::new(Cache { inflater, slots })), image: 0 })
    }

    /// The same cache, for another image.
    pub(crate) fn for_image(&self, image: u32) -> Self {
        Self { cache: Rc::clone(&self.cache), image }
    }

    /// Where page `number` of the disk is, as far as it is in `cluster`. It stays there as long as
    /// a read is open.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], or [`StoreError::Busy`] where open reads pin too much.
    // Out of line: the inflater would be most of the code and the stack of every read.
    #[inline(never)]
    pub(crate) fn page<M: FrameMemory>(
        &self,
        pool: &mut PagePool<M>,
        cluster: &Cluster<'_>,
        number: u64,
    ) -> Result<Gfn, StoreError> {
        let Cache { inflater, slots } = &mut *self.cache.borrow_mut();
        let key = Key { image: self.image, number };
        let start = cluster.offset.max(number * PAGE) % PAGE;
        let sectors = sectors(start, (cluster.len_bytes as u64).min(PAGE));
        if let Some(page) = slots.pin(key, sectors, pool.read_epoch()) {
            return Ok(page);
        }
        slots.fill += 1;
        let store = |pool: &mut PagePool<M>, at: usize, bytes: &[u8]| {
            slots.store(pool, self.image, cluster.offset + at as u64, bytes);
        };
        let &Cluster { file, compressed, len_bytes, .. } = cluster;
        let unpacked = inflater.inflate(pool, file, compressed, len_bytes, store);
        if let Err(error) = unpacked {
            // What came out before the damage is as good as what did not.
            slots.forget_last_fill();
            return Err(error);
        }
        slots.pin(key, sectors, pool.read_epoch()).ok_or(StoreError::Busy)
    }
}

impl fmt::Debug for CacheOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheOf").field("image", &self.image).finish_non_exhaustive()
    }
}

impl Slots {
    fn new<M: FrameMemory>(pool: &mut PagePool<M>, nr: usize) -> Result<Self, ImageError> {
        let mut slots = reserve(nr)?;
        let nr_heads = nr.next_power_of_two();
        let mut heads = reserve(nr_heads)?;
        heads.resize(nr_heads, NIL);
        for _ in 0..nr {
            let Ok(page) = pool.take(Want::More) else {
                for Slot { page, .. } in slots {
                    pool.release(page);
                }
                let free = pool.nr_free().saturating_sub(pool.nr_reserve());
                return Err(ImageError::NoPages { needed: nr as u64, free });
            };
            slots.push(Slot { page, key: None, sectors: 0, pinned_in: None, fill: 0, next: NIL });
        }
        Ok(Self { slots, heads, hand: 0, fill: 0 })
    }

    fn head(&mut self, key: Key) -> &mut usize {
        // Pages that follow each other fall side by side.
        let place = key.number.wrapping_add(u64::from(key.image).wrapping_mul(0x9e37_79b9));
        let place = place & (self.heads.len() as u64 - 1);
        &mut self.heads[usize::try_from(place).unwrap_or(0)]
    }

    fn find(&mut self, key: Key) -> Option<usize> {
        let mut at = *self.head(key);
        while at != NIL && self.slots[at].key != Some(key) {
            at = self.slots[at].next;
        }
        (at != NIL).then_some(at)
    }

    /// The page of a key, where it has these sectors; it stays as it is for this epoch.
    fn pin(&mut self, key: Key, sectors: u8, epoch: u64) -> Option<Gfn> {
        let at = self.find(key)?;
        let slot = &mut self.slots[at];
        if slot.sectors & sectors != sectors {
            return None;
        }
        slot.pinned_in = Some(epoch);
        Some(slot.page)
    }

    /// Keeps unpacked bytes, whole sectors from `offset` of the disk on, as far as there is room.
    fn store<M: FrameMemory>(
        &mut self,
        pool: &mut PagePool<M>,
        image: u32,
        mut offset: u64,
        mut bytes: &[u8],
    ) {
        while !bytes.is_empty() {
            let (number, start) = (offset / PAGE, offset % PAGE);
            let room = usize::try_from(PAGE - start).unwrap_or(PAGE_SIZE);
            let (now, later) = bytes.split_at(bytes.len().min(room));
            let key = Key { image, number };
            if let Some(at) = self.find(key).or_else(|| self.evict(key, pool.read_epoch())) {
                let slot = &mut self.slots[at];
                let sectors = sectors(start, now.len() as u64);
                // An open read may have been told of what is there, and it is the same.
                if slot.sectors & sectors != sectors {
                    let to = FrameAddr::start_of(slot.page);
                    pool.memory_mut().write(to.after(usize::try_from(start).unwrap_or(0)), now);
                    slot.sectors |= sectors;
                    slot.fill = self.fill;
                }
            }
            (offset, bytes) = (offset + now.len() as u64, later);
        }
    }

    /// Gives the slot that has kept what it holds for longest another key.
    fn evict(&mut self, key: Key, epoch: u64) -> Option<usize> {
        let nr = self.slots.len();
        let mut order = (self.hand..nr).chain(0..self.hand);
        let at = order.find(|at| self.slots[*at].pinned_in != Some(epoch))?;
        self.hand = (at + 1) % nr;
        self.unlink(at);
        let next = core::mem::replace(self.head(key), at);
        let slot = &mut self.slots[at];
        *slot = Slot { key: Some(key), sectors: 0, pinned_in: None, next, ..*slot };
        Some(at)
    }

    /// Takes a slot out of its list.
    fn unlink(&mut self, at: usize) {
        let Some(key) = self.slots[at].key.take() else { return };
        let next = self.slots[at].next;
        let head = self.head(key);
        if *head == at {
            *head = next;
            return;
        }
        let mut before = *head;
        while before != NIL {
            if self.slots[before].next == at {
                self.slots[before].next = next;
                return;
            }
            before = self.slots[before].next;
        }
    }

    fn forget_last_fill(&mut self) {
        for at in 0..self.slots.len() {
            if self.slots[at].fill == self.fill {
                self.unlink(at);
                self.slots[at].sectors = 0;
            }
        }
    }
}

/// A bit for each sector of a page that `len_bytes` bytes from `start` on are.
fn sectors(start: u64, len_bytes: u64) -> u8 {
    let sector = SECTOR_SIZE as u64;
    let (first, end) = (start / sector, (start + len_bytes) / sector);
    (first..end.min(8)).fold(0, |bits, number| bits | 1 << number)
}
