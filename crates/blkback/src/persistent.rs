//! The pages of a frontend that stay mapped (`feature-persistent`).
//!
//! One cache a queue, shared by nothing. It holds a limited number of pages; the one that was not
//! used for longest makes room for a new one, unless it is in use: in this very round, or lent to a
//! device. To find a page is what nearly always happens, and takes a few instructions; which page is
//! the one to go is looked for when there must be one.

use alloc::collections::{BinaryHeap, TryReserveError};
use alloc::vec::Vec;
use core::ops::Range;

use store::Lease;
use xen_abi::{DomId, GntStatus, GrantRef};

use crate::Grants;

/// Pages that go for others in one round at most. A frontend that has more pages in use than may
/// stay mapped would otherwise have each of them mapped and unmapped every time, which costs more
/// than to copy.
const MAX_EVICTED: usize = 16;

/// The end of a chain of slots.
const NIL: u32 = u32::MAX;

/// Where a mapped page is in its cache, for the length of a round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place(u32);

/// Mapped pages by their grant reference.
#[derive(Debug)]
pub struct Persistent<M> {
    max_pages: usize,
    slots: Vec<Slot<M>>,
    /// For each remainder of a reference by their number, a power of two that is at least that of
    /// the slots: the first slot of a chain. References are small and dense, so that chains are
    /// short; a frontend that chooses them has none longer than the square root of its grants.
    chains: Vec<u32>,
    round: u64,
    /// Pages that were used in this round or later ones stay.
    kept_from: u64,
    /// Of all pages that are lent to devices.
    lease: Lease,
    /// Grants that were looked for and not found in this round.
    missing: Vec<GrantRef>,
    /// Slots that are to be used anew in this round, the first of them last.
    victims: Vec<u32>,
    /// Pages that had to go.
    evicted: Vec<M>,
}

#[derive(Debug)]
struct Slot<M> {
    gref: GrantRef,
    page: M,
    /// The round that used it last.
    round: u64,
    /// The next slot of the chain.
    next: u32,
}

impl<M> Persistent<M> {
    /// An empty cache for `max_pages` pages.
    #[must_use]
    pub fn new(max_pages: usize) -> Self {
        Self {
            max_pages: max_pages.min(NIL as usize),
            slots: Vec::new(),
            chains: Vec::new(),
            round: 0,
            kept_from: 0,
            lease: Lease::default(),
            missing: Vec::new(),
            victims: Vec::new(),
            evicted: Vec::new(),
        }
    }

    /// Pages that are mapped.
    #[must_use]
    pub fn nr_pages(&self) -> usize {
        self.slots.len()
    }

    /// All pages, to be unmapped when the lease is over.
    #[must_use]
    pub fn into_pages(self) -> (Vec<M>, Lease) {
        let slots = self.slots.into_iter().map(|slot| slot.page);
        (slots.chain(self.evicted).collect(), self.lease)
    }

    /// Begins a round: places that were given out are void. Requests in flight had pages lent in the rounds
    /// `lent`.
    pub(crate) fn begin(&mut self, lent: impl Iterator<Item = u64>) {
        self.round += 1;
        self.missing.clear();
        self.kept_from = self.round;
        if !self.lease.is_over() {
            let (mut nr_lent, mut oldest) = (0, self.round);
            for round in lent {
                (nr_lent, oldest) = (nr_lent + 1, oldest.min(round));
            }
            // Which pages those have that are not in flight any more is not known.
            self.kept_from = if self.lease.nr_users() > nr_lent { 0 } else { oldest };
        }
    }

    /// This round.
    pub(crate) const fn round(&self) -> u64 {
        self.round
    }

    /// What says how long pages are lent.
    pub(crate) const fn lease(&self) -> &Lease {
        &self.lease
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
        missing.truncate(self.make_room(missing.len()));
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
    #[inline]
    pub(crate) fn find(&mut self, gref: GrantRef) -> Option<Place> {
        let mut at = *self.chains.get(self.chain(gref))?;
        loop {
            let slot = self.slots.get_mut(at as usize)?;
            if slot.gref == gref {
                slot.round = self.round;
                return Some(Place(at));
            }
            at = slot.next;
        }
    }

    /// A mapped page.
    #[inline]
    pub(crate) fn page(&self, place: Place) -> &M {
        &self.slots[place.0 as usize].page
    }

    /// Prepares for `nr_wanted` pages to be added in this round: for how many of them there is
    /// room, and memory to remember them.
    fn make_room(&mut self, nr_wanted: usize) -> usize {
        let nr_free = self.max_pages.saturating_sub(self.slots.len());
        if self.reserve(nr_wanted.min(nr_free), nr_wanted).is_err() {
            return 0;
        }
        self.victims.clear();
        if nr_wanted > nr_free {
            self.find_victims();
        }
        nr_wanted.min(nr_free + self.victims.len())
    }

    /// Gets memory for more slots and for as many pages that have to go.
    fn reserve(&mut self, nr_slots: usize, nr_evicted: usize) -> Result<(), TryReserveError> {
        self.evicted.try_reserve(nr_evicted)?;
        self.victims.try_reserve(MAX_EVICTED)?;
        self.slots.try_reserve(nr_slots)?;
        let nr_chains = (self.slots.len() + nr_slots).next_power_of_two();
        if let Some(nr_more @ 1..) = nr_chains.checked_sub(self.chains.len()) {
            self.chains.try_reserve(nr_more)?;
            self.chains.clear();
            self.chains.resize(nr_chains, NIL);
            self.places().for_each(|at| self.link(at));
        }
        Ok(())
    }

    /// Looks for the slots that were not used for longest, none of which is in use.
    fn find_victims(&mut self) {
        let places = self.places();
        let Self { slots, victims, .. } = self;
        let round = |at: u32| slots[at as usize].round;
        for at in places.filter(|&at| round(at) < self.kept_from) {
            if victims.len() == MAX_EVICTED {
                if round(victims[0]) <= round(at) {
                    continue;
                }
                victims.remove(0);
            }
            let place = victims.partition_point(|&other| round(other) > round(at));
            victims.insert(place, at);
        }
    }

    /// Adds a page that was just mapped, and gives the one that has to go for it, if any. Room was
    /// made for it, and it is not in already.
    fn add(&mut self, gref: GrantRef, page: M) -> Option<M> {
        let slot = Slot { gref, page, round: self.round, next: NIL };
        if self.slots.len() < self.max_pages {
            let at = self.places().end;
            self.slots.push(slot);
            self.link(at);
            return None;
        }
        let Some(at) = self.victims.pop() else {
            debug_assert!(false, "no room was made for grant {gref}");
            return Some(slot.page);
        };
        self.unlink(at);
        let evicted = core::mem::replace(&mut self.slots[at as usize], slot);
        self.link(at);
        Some(evicted.page)
    }

    /// All slots.
    fn places(&self) -> Range<u32> {
        // Fewer than NIL.
        0..u32::try_from(self.slots.len()).unwrap_or(NIL)
    }

    /// Which chain a grant is in.
    #[inline]
    fn chain(&self, gref: GrantRef) -> usize {
        gref.0 as usize & self.chains.len().wrapping_sub(1)
    }

    /// Puts a slot at the start of its chain.
    fn link(&mut self, at: u32) {
        let chain = self.chain(self.slots[at as usize].gref);
        self.slots[at as usize].next = core::mem::replace(&mut self.chains[chain], at);
    }

    /// Takes a slot out of its chain.
    fn unlink(&mut self, at: u32) {
        let Slot { gref, next, .. } = self.slots[at as usize];
        let chain = self.chain(gref);
        if self.chains[chain] == at {
            self.chains[chain] = next;
            return;
        }
        let mut before = self.chains[chain];
        while let Some(slot) = self.slots.get_mut(before as usize) {
            if slot.next == at {
                slot.next = next;
                return;
            }
            before = slot.next;
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::{GrantRef, MAX_EVICTED, Persistent};
    use core::iter;
    use std::vec::Vec;

    /// Adds a page as it is done when it is the only one that is missing.
    fn add(cache: &mut Persistent<u32>, n: u32) -> Option<u32> {
        assert_eq!(cache.make_room(1), 1);
        cache.add(GrantRef(n), n)
    }

    fn grefs(cache: &Persistent<u32>) -> Vec<u32> {
        let mut pages: Vec<u32> = cache.slots.iter().map(|slot| slot.page).collect();
        pages.sort_unstable();
        pages
    }

    #[test]
    fn the_page_not_used_for_longest_makes_room() {
        let mut cache = Persistent::new(3);
        for n in 1..=3 {
            cache.begin(iter::empty());
            assert_eq!(add(&mut cache, n), None);
        }
        cache.begin(iter::empty());
        let place = cache.find(GrantRef(1)).unwrap();
        assert_eq!(*cache.page(place), 1);
        assert_eq!(cache.make_room(3), 2);
        assert_eq!(cache.add(GrantRef(4), 4), Some(2));
        assert_eq!(cache.add(GrantRef(5), 5), Some(3));
        // All three are in use in this round.
        assert_eq!(cache.make_room(1), 0);
        assert_eq!(cache.find(GrantRef(2)), None);
        assert_eq!(grefs(&cache), [1, 4, 5]);
        cache.begin(iter::empty());
        assert_eq!(cache.make_room(4), 3);
        assert_eq!(cache.add(GrantRef(2), 2), Some(1));
        assert_eq!(cache.into_pages().0.len(), 3);
    }

    #[test]
    fn a_round_has_room_for_what_is_free_and_a_few_more() {
        let mut cache = Persistent::new(64);
        cache.begin(iter::empty());
        assert_eq!(cache.make_room(60), 60);
        (0..60).for_each(|n| assert_eq!(cache.add(GrantRef(n), n), None));
        cache.begin(iter::empty());
        assert_eq!(cache.make_room(3), 3);
        assert_eq!(cache.make_room(100), 4 + MAX_EVICTED);
    }

    #[test]
    fn a_cache_without_room_holds_nothing() {
        let mut cache = Persistent::<u32>::new(0);
        cache.begin(iter::empty());
        assert_eq!((cache.make_room(1), cache.nr_pages()), (0, 0));
        assert_eq!(cache.find(GrantRef(1)), None);
    }

    #[test]
    fn references_of_one_chain_are_told_apart() {
        let mut cache = Persistent::new(4);
        for n in 1..=4 {
            cache.begin(iter::empty());
            assert_eq!(add(&mut cache, n << 16), None);
        }
        let found = |cache: &mut Persistent<u32>| -> Vec<u32> {
            (1..=6).filter(|n| cache.find(GrantRef(n << 16)).is_some()).collect()
        };
        assert_eq!(found(&mut cache), [1, 2, 3, 4]);
        // One from the middle of the chain goes, then one from its end.
        for (used, new, gone) in [([1, 3, 4], 5, 2), ([3, 4, 5], 6, 1)] {
            cache.begin(iter::empty());
            used.iter().for_each(|n| assert!(cache.find(GrantRef(n << 16)).is_some()));
            assert_eq!(add(&mut cache, new << 16), Some(gone << 16));
        }
        assert_eq!(found(&mut cache), [3, 4, 5, 6]);
    }

    #[test]
    fn what_goes_is_what_was_not_used_for_longest_in_any_order_of_use() {
        let mut cache = Persistent::new(8);
        let mut model: Vec<u32> = Vec::new();
        let mut state = 1u32;
        for _ in 0..10_000 {
            cache.begin(iter::empty());
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let n = state >> 28;
            let known = model.iter().position(|&other| other == n);
            assert_eq!(cache.find(GrantRef(n)).is_some(), known.is_some());
            if let Some(at) = known {
                model.remove(at);
            } else {
                let evicted = (model.len() == 8).then(|| model.remove(0));
                assert_eq!(add(&mut cache, n), evicted);
            }
            model.push(n);
        }
    }
}
