//! The pages of a frontend that stay mapped (`feature-persistent`).
//!
//! One cache a queue, shared by nothing. It holds a limited number of pages; the one that was not
//! used for longest makes room for a new one, unless it is in use in this very round.

use alloc::collections::BinaryHeap;
use alloc::vec::Vec;

use hashbrown::HashTable;
use xen_abi::{DomId, GntStatus, GrantRef};

use crate::Grants;

/// Pages that go for others in one round at most. A frontend that has more pages in use than may
/// stay mapped would otherwise have each of them mapped and unmapped every time, which costs more
/// than to copy.
const MAX_EVICTED: usize = 16;

/// The end of the list of slots.
const NIL: u32 = u32::MAX;

/// Where a mapped page is in its cache, for the length of a round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place(u32);

/// Mapped pages by their grant reference.
#[derive(Debug)]
pub struct Persistent<M> {
    max_pages: usize,
    slots: Vec<Slot<M>>,
    by_gref: HashTable<u32>,
    /// The slot used last, and the one not used for longest.
    newest: u32,
    oldest: u32,
    round: u64,
    /// Grants that were looked for and not found in this round.
    missing: Vec<GrantRef>,
    /// Pages that had to go.
    evicted: Vec<M>,
}

#[derive(Debug)]
struct Slot<M> {
    gref: GrantRef,
    page: M,
    /// The round that used it last.
    round: u64,
    newer: u32,
    older: u32,
}

impl<M> Persistent<M> {
    /// An empty cache for `max_pages` pages.
    #[must_use]
    pub fn new(max_pages: usize) -> Self {
        Self {
            max_pages: max_pages.min(NIL as usize),
            slots: Vec::new(),
            by_gref: HashTable::new(),
            newest: NIL,
            oldest: NIL,
            round: 0,
            missing: Vec::new(),
            evicted: Vec::new(),
        }
    }

    /// Pages that are mapped.
    #[must_use]
    pub fn nr_pages(&self) -> usize {
        self.slots.len()
    }

    /// All pages, to be unmapped.
    #[must_use]
    pub fn into_pages(self) -> Vec<M> {
        let slots = self.slots.into_iter().map(|slot| slot.page);
        slots.chain(self.evicted).collect()
    }

    /// Begins a round: places that were given out are void.
    pub(crate) fn begin(&mut self) {
        self.round += 1;
        self.missing.clear();
    }

    /// Finds the page of a grant, and keeps it for this round; what is not there is mapped by the
    /// next [`map_missing`](Self::map_missing), unless there is no memory to remember it until then.
    #[inline]
    pub(crate) fn want(&mut self, gref: GrantRef) -> Option<Place> {
        let place = self.find(gref);
        if place.is_none() && self.missing.try_reserve(1).is_ok() {
            self.missing.push(gref);
        }
        place
    }

    /// Maps the pages that were wanted and not there, as far as there is room, in one hypercall.
    /// One that cannot be mapped is left out: its data is copied by the hypervisor instead.
    /// Places that were found in this round stay good. Whether any was missing.
    pub(crate) fn map_missing<G: Grants<Mapping = M>>(
        &mut self,
        grants: &mut G,
        peer: DomId,
    ) -> bool {
        if self.missing.is_empty() {
            return false;
        }
        let mut missing = core::mem::take(&mut self.missing);
        // A heap sorts in place as `sort_unstable` does, in a tenth of its code.
        missing = BinaryHeap::from(missing).into_sorted_vec();
        missing.dedup();
        missing.truncate(self.room());
        // Without memory to remember them the pages are copied, too.
        let growth = missing.len().min(self.max_pages.saturating_sub(self.slots.len()));
        if self.by_gref.try_reserve(missing.len(), rehash(&self.slots)).is_err()
            || self.slots.try_reserve(growth).is_err()
            || self.evicted.try_reserve(missing.len()).is_err()
        {
            missing.clear();
        }
        if !missing.is_empty() {
            let mut full = false;
            grants.map_each(peer, &missing, |gref, mapped| match mapped {
                // There is no room for it any more; another one's may be in use in this round.
                Ok(page) if full => self.evicted.push(page),
                Ok(page) => {
                    let evicted = self.add(gref, page);
                    self.evicted.extend(evicted);
                }
                // There will be no more page tables for it later either: do not ask again.
                Err(GntStatus::NO_SPACE) => {
                    self.max_pages = self.slots.len();
                    full = true;
                }
                Err(_) => {}
            });
            missing.clear();
        }
        self.missing = missing;
        true
    }

    /// Unmaps the pages that had to go, in one hypercall.
    ///
    /// # Errors
    /// What Xen said of the first that it did not unmap.
    pub(crate) fn unmap_evicted<G: Grants<Mapping = M>>(
        &mut self,
        grants: &mut G,
    ) -> Result<(), GntStatus> {
        if self.evicted.is_empty() { Ok(()) } else { grants.unmap_each(&mut self.evicted) }
    }

    /// Finds the page of a grant, and keeps it for this round.
    pub(crate) fn find(&mut self, gref: GrantRef) -> Option<Place> {
        let slots = &self.slots;
        let at = *self.by_gref.find(hash(gref), |&at| slots[at as usize].gref == gref)?;
        if self.slots[at as usize].round != self.round {
            self.slots[at as usize].round = self.round;
            self.unlink(at);
            self.link_newest(at);
        }
        Some(Place(at))
    }

    /// A mapped page.
    pub(crate) fn page(&self, place: Place) -> &M {
        &self.slots[place.0 as usize].page
    }

    /// How many pages can be added in this round.
    pub(crate) fn room(&self) -> usize {
        let free = self.max_pages.saturating_sub(self.slots.len());
        let mut evictable = 0;
        let mut at = self.oldest;
        while evictable < MAX_EVICTED
            && let Some(slot) = self.slots.get(at as usize)
            && slot.round != self.round
        {
            evictable += 1;
            at = slot.newer;
        }
        free + evictable
    }

    /// Adds a page that was just mapped, and gives the one that has to go for it, if any. There is
    /// [`room`](Self::room) for it, and it is not in already.
    pub(crate) fn add(&mut self, gref: GrantRef, page: M) -> Option<M> {
        let slot = Slot { gref, page, round: self.round, newer: NIL, older: NIL };
        let (at, evicted) = if self.slots.len() < self.max_pages {
            // Fewer than NIL.
            let at = u32::try_from(self.slots.len()).unwrap_or(NIL);
            self.slots.push(slot);
            (at, None)
        } else {
            let at = self.oldest;
            self.unlink(at);
            let evicted = core::mem::replace(&mut self.slots[at as usize], slot);
            if let Ok(entry) = self.by_gref.find_entry(hash(evicted.gref), |&other| other == at) {
                entry.remove();
            }
            (at, Some(evicted.page))
        };
        self.by_gref.insert_unique(hash(gref), at, rehash(&self.slots));
        self.link_newest(at);
        evicted
    }

    #[inline]
    fn unlink(&mut self, at: u32) {
        let Slot { newer, older, .. } = self.slots[at as usize];
        match self.slots.get_mut(newer as usize) {
            Some(slot) => slot.older = older,
            None => self.newest = older,
        }
        match self.slots.get_mut(older as usize) {
            Some(slot) => slot.newer = newer,
            None => self.oldest = newer,
        }
    }

    #[inline]
    fn link_newest(&mut self, at: u32) {
        let second = self.newest;
        self.slots[at as usize].older = second;
        self.slots[at as usize].newer = NIL;
        match self.slots.get_mut(second as usize) {
            Some(slot) => slot.newer = at,
            None => self.oldest = at,
        }
        self.newest = at;
    }
}

/// The hashes of slots. The one type of them all: for each the table's growth is compiled anew.
fn rehash<M>(slots: &[Slot<M>]) -> impl Fn(&u32) -> u64 {
    |&at| hash(slots[at as usize].gref)
}

/// Spreads references, which are small and dense, over the table. Only grants that could be mapped
/// are in it, so a frontend that chooses them gains nothing.
const fn hash(gref: GrantRef) -> u64 {
    (gref.0 as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::{GrantRef, Persistent};
    use std::vec::Vec;

    fn grefs(cache: &Persistent<u32>) -> Vec<u32> {
        let mut pages: Vec<u32> = cache.slots.iter().map(|slot| slot.page).collect();
        pages.sort_unstable();
        pages
    }

    #[test]
    fn the_page_not_used_for_longest_makes_room() {
        let mut cache = Persistent::new(3);
        for n in 1..=3 {
            cache.begin();
            assert_eq!(cache.add(GrantRef(n), n), None);
        }
        cache.begin();
        let place = cache.find(GrantRef(1)).unwrap();
        assert_eq!(*cache.page(place), 1);
        assert_eq!(cache.room(), 2);
        assert_eq!(cache.add(GrantRef(4), 4), Some(2));
        assert_eq!(cache.add(GrantRef(5), 5), Some(3));
        // All three are in use in this round.
        assert_eq!(cache.room(), 0);
        assert_eq!(cache.find(GrantRef(2)), None);
        assert_eq!(grefs(&cache), [1, 4, 5]);
        cache.begin();
        assert_eq!(cache.room(), 3);
        assert_eq!(cache.add(GrantRef(2), 2), Some(1));
        assert_eq!(cache.into_pages().len(), 3);
    }

    #[test]
    fn a_cache_without_room_holds_nothing() {
        let mut cache = Persistent::<u32>::new(0);
        cache.begin();
        assert_eq!((cache.room(), cache.nr_pages()), (0, 0));
        assert_eq!(cache.find(GrantRef(1)), None);
    }

    #[test]
    fn any_order_of_use_keeps_the_list_whole() {
        let mut cache = Persistent::new(8);
        let mut model: Vec<u32> = Vec::new();
        let mut state = 1u32;
        for _ in 0..10_000 {
            cache.begin();
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let n = state >> 28;
            let known = model.iter().position(|&other| other == n);
            assert_eq!(cache.find(GrantRef(n)).is_some(), known.is_some());
            if let Some(at) = known {
                model.remove(at);
            } else {
                let evicted = (model.len() == 8).then(|| model.remove(0));
                assert_eq!(cache.add(GrantRef(n), n), evicted);
            }
            model.push(n);
        }
    }
}
