//! Base address registers: where a function's registers are in memory.

use alloc::vec::Vec;
use core::ops::Range;

use xen_abi::PAGE_SIZE;

use super::{ConfigSpace, Function};

/// Offset of the first of six.
const FIRST: u8 = 0x10;
const NR_BARS: u8 = 6;

/// Of ports and not of memory.
const IO: u32 = 1 << 0;
const TYPE: u32 = 0b110;
/// The next one is its upper half.
const TYPE_64: u32 = 0b100;
/// The lowest bits say what kind of memory it is.
const FLAGS: u32 = 0xf;

/// A range of memory that a function answers to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Bar {
    pub(crate) paddr: u64,
    /// A power of two, at least 16.
    pub(crate) size_bytes: u64,
    /// 0 to 5.
    pub(crate) index: u8,
    is_64: bool,
}

impl Bar {
    /// All of memory that the function has, in their order: enabling it enables all of them. The
    /// function answers to no address meanwhile.
    pub(crate) fn all(config: &mut impl ConfigSpace, function: Function) -> Vec<Self> {
        let mut bars = Vec::new();
        let mut index = 0;
        while index < NR_BARS {
            let bar = Self::find(config, function, index);
            index += if bar.is_some_and(|bar| bar.is_64) { 2 } else { 1 };
            bars.extend(bar);
        }
        bars
    }

    /// The function's BAR of this number, 0 to 5, if it is there and of memory. The function answers
    /// to no address meanwhile.
    pub(crate) fn find(
        config: &mut impl ConfigSpace,
        function: Function,
        index: u8,
    ) -> Option<Self> {
        if index >= NR_BARS {
            return None;
        }
        let offset = FIRST + 4 * index;
        let low = config.read(function.at, offset);
        if low & IO != 0 {
            return None;
        }
        let is_64 = low & TYPE == TYPE_64 && index + 1 < NR_BARS;
        let high = if is_64 { config.read(function.at, offset + 4) } else { 0 };
        let bar = Self { paddr: joined(low, high), size_bytes: 0, index, is_64 };
        // Of all ones, as many stick as its size leaves.
        bar.write(config, function, u64::MAX);
        let low = config.read(function.at, offset);
        let high = if is_64 { config.read(function.at, offset + 4) } else { u32::MAX };
        bar.write(config, function, bar.paddr);
        let size_bytes = joined(low, high).wrapping_neg();
        (low & !FLAGS != 0 || is_64 && high != 0)
            .then_some(Self { size_bytes, ..bar })
            .filter(|bar| bar.size_bytes.is_power_of_two())
    }

    /// Gives it another address. The function answers to none meanwhile.
    fn move_to(&mut self, config: &mut impl ConfigSpace, function: Function, paddr: u64) {
        self.write(config, function, paddr);
        self.paddr = paddr;
    }

    #[expect(clippy::cast_possible_truncation, reason = "halves")]
    fn write(self, config: &mut impl ConfigSpace, function: Function, paddr: u64) {
        let offset = FIRST + 4 * self.index;
        config.write(function.at, offset, paddr as u32);
        if self.is_64 {
            config.write(function.at, offset + 4, (paddr >> 32) as u32);
        }
    }
}

fn joined(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low & !FLAGS)
}

/// Where registers may be, so that nothing else is there.
///
/// Under hvmloader they lie where it put them. Without it they lie where the host has them, for the
/// device model begins with that: nearly always below 4 GiB, where a domain has no memory, but
/// nothing makes it so.
#[derive(Debug)]
pub(crate) struct Placement {
    /// Ranges where something is.
    taken: Vec<Range<u64>>,
}

/// Below are registers of devices; here begin those of the interrupt controllers, and then Xen's special
/// pages.
const END: u64 = 0xfec0_0000;
/// Where libxc leaves room for them at the least (`HVM_BELOW_4G_MMIO_START`), up to what it puts
/// ACPI's tables from.
const HOLE: Range<u64> = 0xf000_0000..0xfc00_0000;

impl Placement {
    /// Anywhere but in these ranges.
    pub(crate) fn beside(taken: impl Iterator<Item = Range<u64>>) -> Self {
        Self { taken: taken.collect() }
    }

    /// Leaves registers where they are, or moves them to where they may be. The function answers to no
    /// address meanwhile.
    pub(crate) fn place(
        &mut self,
        config: &mut impl ConfigSpace,
        function: Function,
        bar: &mut Bar,
    ) -> Result<Placed, NoRoom> {
        let mut placed = Placed::Left;
        if !self.allows(bar) {
            let from = bar.paddr;
            let to = self.find(bar.size_bytes).ok_or(NoRoom { bar: bar.index })?;
            bar.move_to(config, function, to);
            placed = Placed::Moved { from };
        }
        self.taken.push(bar.paddr..bar.paddr + bar.size_bytes);
        Ok(placed)
    }

    /// As [`place`](Self::place), for what nobody accesses: it may be above 4 GiB, too.
    pub(crate) fn place_unused(
        &mut self,
        config: &mut impl ConfigSpace,
        function: Function,
        bar: &mut Bar,
    ) -> Result<Placed, NoRoom> {
        let range = bar.paddr..bar.paddr.saturating_add(bar.size_bytes);
        if range.start >= 1 << 32 && self.conflict(&range).is_none() {
            self.taken.push(range);
            return Ok(Placed::Left);
        }
        self.place(config, function, bar)
    }

    fn allows(&self, bar: &Bar) -> bool {
        let end = bar.paddr.checked_add(bar.size_bytes).filter(|&end| end <= END);
        let has_own_pages = bar.paddr != 0 && bar.paddr.is_multiple_of(PAGE_SIZE as u64);
        has_own_pages && end.is_some_and(|end| self.conflict(&(bar.paddr..end)).is_none())
    }

    /// The lowest address that is free.
    fn find(&self, size_bytes: u64) -> Option<u64> {
        // Nothing else shares a page with registers.
        let size_bytes = size_bytes.max(PAGE_SIZE as u64);
        let mut at = HOLE.start;
        loop {
            at = at.checked_next_multiple_of(size_bytes)?;
            let end = at.checked_add(size_bytes).filter(|&end| end <= HOLE.end)?;
            match self.conflict(&(at..end)) {
                Some(taken) => at = taken.end,
                None => return Some(at),
            }
        }
    }

    fn conflict(&self, range: &Range<u64>) -> Option<&Range<u64>> {
        self.taken.iter().find(|taken| taken.start < range.end && range.start < taken.end)
    }
}

/// What became of registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Placed {
    Left,
    Moved { from: u64 },
}

/// There is no room for a BAR below 4 GiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("there is no room for its BAR {bar} below 4 GiB")]
pub(crate) struct NoRoom {
    pub(crate) bar: u8,
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::super::fake::Fake;
    use super::super::{Bdf, Function, functions};
    use super::{Bar, NoRoom, Placed, Placement};

    const AT: Bdf = Bdf { bus: 0, device: 5, function: 0 };

    fn function(fake: &mut Fake) -> Function {
        fake.add(AT, 0x0010_1b36, 0x01_08_02);
        let mut found = None;
        functions(fake, |_, function| found = Some(function));
        found.unwrap()
    }

    /// One of 64 bits and 16 KiB at `paddr`.
    fn wide(fake: &mut Fake, paddr: u64) -> (Function, Bar) {
        let function = function(fake);
        fake.set(AT, 0x10, (paddr & 0xffff_c000) as u32 | 4);
        fake.set(AT, 0x14, (paddr >> 32) as u32);
        fake.make_writable(0x10, 0xffff_c000);
        let bar = Bar::find(fake, function, 0).unwrap();
        assert_eq!((bar.paddr, bar.size_bytes), (paddr, 0x4000));
        (function, bar)
    }

    #[test]
    fn a_bar_has_its_size_and_keeps_its_address() {
        let mut fake = Fake::default();
        let (function, bar) = wide(&mut fake, 0x12_febd_4000);
        assert_eq!(Bar::find(&mut fake, function, 0), Some(bar));
        // 32 bits, and the last of six.
        fake.set(AT, 0x24, 0xfebf_0000);
        fake.make_writable(0x24, 0xffff_f000);
        let narrow = Bar::find(&mut fake, function, 5).unwrap();
        assert_eq!((narrow.paddr, narrow.size_bytes), (0xfebf_0000, 0x1000));
        assert_eq!(Bar::find(&mut fake, function, 5), Some(narrow));
    }

    #[test]
    fn what_is_no_memory_is_no_bar() {
        let mut fake = Fake::default();
        let function = function(&mut fake);
        fake.set(AT, 0x10, 0xc001);
        // One that is not there reads as 0, whatever is written.
        fake.make_writable(0x18, 0);
        for index in [0, 2, 6, 255] {
            assert_eq!(Bar::find(&mut fake, function, index), None, "{index}");
        }
        assert!(fake.writes.iter().all(|&(_, offset, _)| offset == 0x18), "{:?}", fake.writes);
        // 4 GiB: nothing of the lower half can be written.
        fake.set(AT, 0x1c, 4);
        fake.make_writable(0x1c, 0);
        let bar = Bar::find(&mut fake, function, 3).unwrap();
        assert_eq!((bar.paddr, bar.size_bytes), (0, 1 << 32));
    }

    #[test]
    fn registers_stay_where_nothing_else_is() {
        let mut fake = Fake::default();
        let (function, mut bar) = wide(&mut fake, 0xfebd_4000);
        let mut placement = Placement::beside([0x10_0000..0x800_0000].into_iter());
        assert_eq!(placement.place(&mut fake, function, &mut bar), Ok(Placed::Left));
        assert_eq!(bar.paddr, 0xfebd_4000);
        // A second time they would lie over themselves.
        let moved = Placed::Moved { from: 0xfebd_4000 };
        assert_eq!(placement.place(&mut fake, function, &mut bar), Ok(moved));
        assert_eq!(bar.paddr, 0xf000_0000);
    }

    #[test]
    fn registers_that_are_in_the_way_are_moved() {
        let ram = || [0x10_0000..0xf000_0000, 0xf000_0000..0xf000_1000].into_iter();
        for from in [0, 0x10_0000, 0xefff_c000, 0xfec0_0000, 0xffff_c000, 0x1_0000_0000, 1 << 62] {
            let mut fake = Fake::default();
            let (function, mut bar) = wide(&mut fake, from);
            let mut placement = Placement::beside(ram());
            let moved = Ok(Placed::Moved { from });
            assert_eq!(placement.place(&mut fake, function, &mut bar), moved, "{from:#x}");
            assert_eq!(Bar::find(&mut fake, function, 0), Some(bar));
            assert_eq!(bar.paddr, 0xf000_4000);
        }
    }

    #[test]
    fn a_page_with_registers_has_nothing_else() {
        let mut fake = Fake::default();
        let function = function(&mut fake);
        fake.set(AT, 0x10, 0xfebd_4800);
        fake.make_writable(0x10, 0xffff_fc00);
        let mut bar = Bar::find(&mut fake, function, 0).unwrap();
        let mut placement = Placement::beside([0xf000_0000..0xf000_0001].into_iter());
        let moved = Ok(Placed::Moved { from: 0xfebd_4800 });
        assert_eq!(placement.place(&mut fake, function, &mut bar), moved);
        assert_eq!((bar.paddr, bar.size_bytes), (0xf000_1000, 1024));
    }

    #[test]
    fn all_bars_are_found_and_placed_beside_each_other() {
        let mut fake = Fake::default();
        // The upper half of the first looks like a BAR of its own.
        let (function, first) = wide(&mut fake, 0x12_febd_4000);
        fake.set(AT, 0x18, 0xc001);
        fake.make_writable(0x1c, 0);
        fake.set(AT, 0x20, 0x10_0000);
        fake.make_writable(0x20, 0xffff_f000);
        fake.make_writable(0x24, 0);
        let mut bars = Bar::all(&mut fake, function);
        let found: Vec<_> = bars.iter().map(|bar| (bar.index, bar.size_bytes)).collect();
        assert_eq!((bars[0], &found[..]), (first, &[(0, 0x4000), (4, 0x1000)][..]));
        let mut placement = Placement::beside([0..0x800_0000].into_iter());
        let placed: Vec<_> =
            bars.iter_mut().map(|bar| placement.place(&mut fake, function, bar)).collect();
        let moved = [0x12_febd_4000, 0x10_0000].map(|from| Ok(Placed::Moved { from }));
        assert_eq!(placed, moved);
        assert_eq!(Bar::all(&mut fake, function), bars);
        assert_eq!((bars[0].paddr, bars[1].paddr), (0xf000_0000, 0xf000_4000));
    }

    #[test]
    fn what_is_unused_is_left_above_4_gib_where_nothing_else_is() {
        let ram = || [0..0xf000_0000, 0x1_0000_0000..0x2_0000_0000].into_iter();
        for (from, placed, to) in [
            (0x2_0000_0000, Placed::Left, 0x2_0000_0000),
            (0x1_ffff_c000, Placed::Moved { from: 0x1_ffff_c000 }, 0xf000_0000),
            (0x10_0000, Placed::Moved { from: 0x10_0000 }, 0xf000_0000),
            (0xfec0_0000, Placed::Moved { from: 0xfec0_0000 }, 0xf000_0000),
            (0xf001_0000, Placed::Left, 0xf001_0000),
        ] {
            let mut fake = Fake::default();
            let (function, mut bar) = wide(&mut fake, from);
            let mut placement = Placement::beside(ram());
            assert_eq!(placement.place_unused(&mut fake, function, &mut bar), Ok(placed));
            assert_eq!(bar.paddr, to, "{from:#x}");
            // Nothing else comes there.
            let again = placement.place_unused(&mut fake, function, &mut bar);
            assert_eq!(again, Ok(Placed::Moved { from: to }));
        }
    }

    #[test]
    fn there_may_be_no_room() {
        let mut fake = Fake::default();
        let (function, mut bar) = wide(&mut fake, 0);
        let mut placement = Placement::beside([0..0xfc00_0000].into_iter());
        assert_eq!(placement.place(&mut fake, function, &mut bar), Err(NoRoom { bar: 0 }));
        let mut placement = Placement::beside([0..0xfbff_8001, 0xfbff_ffff..u64::MAX].into_iter());
        assert_eq!(placement.place(&mut fake, function, &mut bar), Err(NoRoom { bar: 0 }));
    }
}
