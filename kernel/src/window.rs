//! Where grants are mapped: a window of guest frames that have no memory of their own.

use alloc::vec::Vec;

use xen_abi::GrantHandle;

/// Which frames of the window hold a mapping, by index. Packed: the lowest that is free goes
/// first, since every 2 MiB of the window that is used costs Xen a page table of ours.
#[derive(Debug)]
pub(crate) struct Window {
    /// Grows with the highest frame ever used, so that a large window costs nothing.
    slots: Vec<Slot>,
    max_slots: usize,
    /// No slot below is free.
    lowest_free: usize,
    nr_mapped: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Slot {
    Free,
    /// Given out, nothing mapped.
    Taken,
    Mapped(GrantHandle),
}

impl Window {
    pub(crate) const fn new(max_slots: usize) -> Self {
        Self { slots: Vec::new(), max_slots, lowest_free: 0, nr_mapped: 0 }
    }

    /// Takes `nr` free slots side by side: the first. `None` where there are none, or no memory to
    /// keep track of them.
    pub(crate) fn take(&mut self, nr: usize) -> Option<usize> {
        let first = self.find(nr);
        let end = first.checked_add(nr).filter(|&end| end <= self.max_slots)?;
        if end > self.slots.len() {
            self.slots.try_reserve(end - self.slots.len()).ok()?;
            self.slots.resize(end, Slot::Free);
        }
        self.slots[first..end].fill(Slot::Taken);
        if first == self.lowest_free {
            self.lowest_free = end;
        }
        Some(first)
    }

    /// Gives back a slot that was taken and has nothing mapped.
    pub(crate) fn give_back(&mut self, slot: usize) {
        if self.slots[slot] == Slot::Taken {
            self.slots[slot] = Slot::Free;
            self.lowest_free = self.lowest_free.min(slot);
        }
    }

    /// Notes what is mapped at a slot that was taken.
    pub(crate) fn set_mapped(&mut self, slot: usize, handle: GrantHandle) {
        self.slots[slot] = Slot::Mapped(handle);
        self.nr_mapped += 1;
    }

    /// Notes that nothing is mapped any more at a slot that was mapped.
    pub(crate) fn set_unmapped(&mut self, slot: usize) {
        if self.handle(slot).is_some() {
            self.slots[slot] = Slot::Taken;
            self.nr_mapped -= 1;
        }
    }

    /// What is mapped at a slot.
    pub(crate) fn handle(&self, slot: usize) -> Option<GrantHandle> {
        match self.slots.get(slot) {
            Some(&Slot::Mapped(handle)) => Some(handle),
            _ => None,
        }
    }

    /// How many slots hold a mapping.
    pub(crate) const fn nr_mapped(&self) -> usize {
        self.nr_mapped
    }

    /// The first of `nr` free slots side by side, the last of which may not exist yet.
    fn find(&self, nr: usize) -> usize {
        let mut first = self.lowest_free;
        for (index, slot) in self.slots.iter().enumerate().skip(self.lowest_free) {
            if *slot != Slot::Free {
                first = index + 1;
            } else if index + 1 - first == nr {
                break;
            }
        }
        first
    }
}

#[cfg(test)]
mod tests {
    use super::Window;
    use xen_abi::GrantHandle;

    #[test]
    fn the_lowest_run_that_is_long_enough_is_taken() {
        let mut window = Window::new(16);
        assert_eq!(window.take(4), Some(0));
        assert_eq!(window.take(4), Some(4));
        assert_eq!(window.take(1), Some(8));
        for slot in [1, 4, 5, 6] {
            window.give_back(slot);
        }
        assert_eq!(window.take(2), Some(4));
        assert_eq!(window.take(1), Some(1));
        assert_eq!(window.take(1), Some(6));
        assert_eq!(window.take(1), Some(9));
    }

    #[test]
    fn a_run_may_begin_in_what_was_used_before_and_go_past_it() {
        let mut window = Window::new(16);
        assert_eq!(window.take(4), Some(0));
        window.give_back(3);
        assert_eq!(window.take(3), Some(3));
        assert_eq!(window.take(1), Some(6));
    }

    #[test]
    fn a_full_window_gives_nothing() {
        let mut window = Window::new(4);
        assert_eq!(window.take(5), None);
        assert_eq!(window.take(usize::MAX), None);
        assert_eq!(window.take(3), Some(0));
        assert_eq!(window.take(2), None);
        assert_eq!(window.take(1), Some(3));
        assert_eq!(window.take(1), None);
    }

    #[test]
    fn a_slot_with_a_mapping_is_not_given_back() {
        let mut window = Window::new(4);
        assert_eq!(window.take(2), Some(0));
        window.set_mapped(0, GrantHandle(7));
        window.set_mapped(1, GrantHandle(8));
        assert_eq!((window.handle(0), window.nr_mapped()), (Some(GrantHandle(7)), 2));
        window.give_back(0);
        window.set_unmapped(1);
        window.give_back(1);
        assert_eq!((window.handle(1), window.nr_mapped()), (None, 1));
        assert_eq!(window.take(1), Some(1));
        assert_eq!(window.take(1), Some(2));
        window.set_unmapped(3);
        assert_eq!((window.handle(99), window.nr_mapped()), (None, 1));
    }
}
