//! Configuration space: which functions there are, and what each of them is.

use core::fmt;

/// Where a function is: bus, device, function.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Bdf {
    pub(crate) bus: u8,
    /// 0 to 31.
    pub(crate) device: u8,
    /// 0 to 7.
    pub(crate) function: u8,
}

/// As Linux and `xl pci-list` have it.
impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.bus, self.device, self.function)
    }
}

/// The seam to the functions' first 256 bytes.
pub(crate) trait ConfigSpace {
    /// Reads the word at `offset`, a multiple of 4: all ones where there is no function.
    fn read(&mut self, at: Bdf, offset: u8) -> u32;

    /// Writes the word at `offset`, a multiple of 4.
    fn write(&mut self, at: Bdf, offset: u8, value: u32);
}

/// What a function is for: base class, sub-class, programming interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Class(u32);

impl Class {
    /// An NVM Express controller that is used as a disk.
    pub(crate) const NVME: Self = Self(0x01_08_02);
    /// A bridge to another bus, whatever its programming interface.
    const BRIDGE: u32 = 0x06_04;
}

/// Offsets of words.
const ID: u8 = 0x00;
const COMMAND: u8 = 0x04;
const CLASS: u8 = 0x08;
const HEADER_TYPE: u8 = 0x0c;
/// Of a bridge alone.
const BUS_NUMBERS: u8 = 0x18;
const CAPABILITIES: u8 = 0x34;

/// The function answers to its memory addresses.
const MEMORY_SPACE: u32 = 1 << 1;
/// It may access memory by itself.
const BUS_MASTER: u32 = 1 << 2;
/// Bits of the command that read as 0, but as 1 where a function is gone. A device model may answer for it in
/// some of the others.
const COMMAND_RESERVED: u32 = 0xf800;
/// It does not pull an interrupt line.
const INTX_DISABLE: u32 = 1 << 10;
/// In the word of the command: the function has a list of capabilities.
const HAS_CAPABILITIES: u32 = 1 << (16 + 4);
const MULTI_FUNCTION: u32 = 1 << (16 + 7);

/// As many capabilities as fit.
const MAX_CAPABILITIES: usize = 48;

/// A function that is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Function {
    pub(crate) at: Bdf,
    pub(crate) class: Class,
    pub(crate) vendor: u16,
    pub(crate) device: u16,
}

impl Function {
    #[expect(clippy::cast_possible_truncation, reason = "halves of a word")]
    fn find(config: &mut impl ConfigSpace, at: Bdf) -> Option<Self> {
        let id = config.read(at, ID);
        // Vendor 0xffff is no function.
        if id & 0xffff == 0xffff {
            return None;
        }
        let class = Class(config.read(at, CLASS) >> 8);
        Some(Self { at, class, vendor: id as u16, device: (id >> 16) as u16 })
    }

    /// Has it answer to no address of memory: for as long as addresses change.
    pub(crate) fn disable_memory(self, config: &mut impl ConfigSpace) {
        let command = config.read(self.at, COMMAND);
        // The upper half is the status: a bit of it is cleared by writing 1.
        config.write(self.at, COMMAND, command & 0xffff & !MEMORY_SPACE);
    }

    /// Has it answer to its addresses and access memory; it makes no interrupt but by messages.
    pub(crate) fn enable(self, config: &mut impl ConfigSpace) {
        let command = config.read(self.at, COMMAND) & 0xffff;
        config.write(self.at, COMMAND, command | MEMORY_SPACE | BUS_MASTER | INTX_DISABLE);
    }

    /// Has it access no memory any more. Whether that is so: nobody is there, or it says so itself. The answer
    /// comes behind what it had written before.
    pub(crate) fn disable_bus_master(self, config: &mut impl ConfigSpace) -> bool {
        let command = config.read(self.at, COMMAND) & 0xffff;
        config.write(self.at, COMMAND, command & !BUS_MASTER);
        let command = config.read(self.at, COMMAND);
        command & BUS_MASTER == 0 || command & COMMAND_RESERVED == COMMAND_RESERVED
    }

    /// Where the capability of this id begins.
    pub(crate) fn capability(self, config: &mut impl ConfigSpace, id: u8) -> Option<u8> {
        if config.read(self.at, COMMAND) & HAS_CAPABILITIES == 0 {
            return None;
        }
        let mut offset = config.read(self.at, CAPABILITIES).to_le_bytes()[0] & !3;
        // A list that bites its tail ends, too.
        for _ in 0..MAX_CAPABILITIES {
            if offset == 0 {
                return None;
            }
            let [found, next, ..] = config.read(self.at, offset).to_le_bytes();
            if found == id {
                return Some(offset);
            }
            offset = next & !3;
        }
        None
    }
}

/// Looks at every function: those of bus 0, and of the buses that bridges lead to. They must have
/// their numbers, from firmware.
pub(crate) fn functions<C: ConfigSpace>(config: &mut C, mut each: impl FnMut(&mut C, Function)) {
    let mut last_bus = 0;
    let mut bus = 0;
    while bus <= last_bus {
        for device in 0..32 {
            let mut nr_functions = 1;
            let mut nth = 0;
            while nth < nr_functions {
                let at = Bdf { bus, device, function: nth };
                nth += 1;
                let Some(function) = Function::find(config, at) else { continue };
                if config.read(at, HEADER_TYPE) & MULTI_FUNCTION != 0 {
                    nr_functions = 8;
                }
                if function.class.0 >> 8 == Class::BRIDGE {
                    let [_, _, subordinate, _] = config.read(at, BUS_NUMBERS).to_le_bytes();
                    last_bus = last_bus.max(subordinate);
                }
                each(config, function);
            }
        }
        let Some(next) = bus.checked_add(1) else { break };
        bus = next;
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::super::fake::Fake;
    use super::{Bdf, Class, ConfigSpace, Function, functions};

    const fn bdf(bus: u8, device: u8, function: u8) -> Bdf {
        Bdf { bus, device, function }
    }

    fn found(fake: &mut Fake) -> Vec<(Bdf, Class)> {
        let mut found = Vec::new();
        functions(fake, |_, function| found.push((function.at, function.class)));
        found
    }

    #[test]
    fn functions_are_found_behind_bridges_and_beside_the_first() {
        let mut fake = Fake::default();
        fake.add(bdf(0, 0, 0), 0x1237_8086, 0x06_00_00);
        // Not the first of its device, which says that there are more.
        fake.add(bdf(0, 1, 0), 0x7000_8086, 0x06_01_00);
        fake.set(bdf(0, 1, 0), 0x0c, 0x0080_0000);
        fake.add(bdf(0, 1, 3), 0x7113_8086, 0x06_80_00);
        // One that its device does not tell of is none.
        fake.add(bdf(0, 2, 0), 0x5853_5853, 0xff_80_00);
        fake.add(bdf(0, 2, 1), 0x5853_5853, 0xff_80_00);
        fake.add(bdf(0, 31, 0), 0x0001_1b36, 0x06_04_00);
        fake.set(bdf(0, 31, 0), 0x18, 0x0003_0100);
        fake.add(bdf(3, 5, 0), 0x0010_1b36, 0x01_08_02);
        fake.add(bdf(4, 0, 0), 0x0010_1b36, 0x01_08_02);
        let at: Vec<Bdf> = found(&mut fake).into_iter().map(|(at, _)| at).collect();
        assert_eq!(
            at,
            [bdf(0, 0, 0), bdf(0, 1, 0), bdf(0, 1, 3), bdf(0, 2, 0), bdf(0, 31, 0), bdf(3, 5, 0)]
        );
        assert_eq!(found(&mut fake)[5].1, Class::NVME);
    }

    #[test]
    fn the_last_bus_is_the_last() {
        let mut fake = Fake::default();
        fake.add(bdf(0, 0, 0), 0x0001_1b36, 0x06_04_00);
        fake.set(bdf(0, 0, 0), 0x18, 0x00ff_0100);
        fake.add(bdf(255, 31, 0), 0x0010_1b36, 0x01_08_02);
        assert_eq!(found(&mut fake)[1], (bdf(255, 31, 0), Class::NVME));
    }

    #[test]
    fn a_function_is_enabled_and_its_status_is_left_alone() {
        let mut fake = Fake::default();
        fake.add(bdf(0, 5, 0), 0x0010_1b36, 0x01_08_02);
        fake.set(bdf(0, 5, 0), 0x04, 0xf010_0107);
        let function = Function::find(&mut fake, bdf(0, 5, 0)).unwrap();
        assert_eq!((function.vendor, function.device), (0x1b36, 0x0010));
        function.disable_memory(&mut fake);
        assert_eq!(fake.writes.pop(), Some((bdf(0, 5, 0), 0x04, 0x0105)));
        function.enable(&mut fake);
        assert_eq!(fake.writes.pop(), Some((bdf(0, 5, 0), 0x04, 0x0507)));
    }

    #[test]
    fn bus_mastering_is_off_when_it_reads_so() {
        let mut fake = Fake::default();
        let at = bdf(0, 5, 0);
        fake.add(at, 0x0010_1b36, 0x01_08_02);
        fake.set(at, 0x04, 0x0010_0506);
        let function = Function::find(&mut fake, at).unwrap();
        assert!(function.disable_bus_master(&mut fake));
        assert_eq!(fake.writes.pop(), Some((at, 0x04, 0x0502)));
        // One that does not obey.
        fake.make_writable(0x04, !4);
        fake.set(at, 0x04, 0x0010_0506);
        assert!(!function.disable_bus_master(&mut fake));
        // One that is gone, where a device model still answers for some bits.
        fake.make_writable(0x04, 0);
        fake.set(at, 0x04, 0xffff_fcbe);
        assert!(function.disable_bus_master(&mut fake));
    }

    #[test]
    fn a_capability_is_found_in_a_list_that_may_never_end() {
        let mut fake = Fake::default();
        let at = bdf(0, 5, 0);
        fake.add(at, 0x0010_1b36, 0x01_08_02);
        fake.set(at, 0x34, 0x43);
        fake.set(at, 0x40, 0x0000_6001);
        fake.set(at, 0x60, 0x0040_4111);
        let function = Function::find(&mut fake, at).unwrap();
        // As long as the status says that there is none, there is none.
        assert_eq!(function.capability(&mut fake, 0x11), None);
        fake.set(at, 0x04, 0x0010_0000);
        assert_eq!(function.capability(&mut fake, 0x11), Some(0x60));
        assert_eq!(function.capability(&mut fake, 0x05), None);
        assert_eq!(fake.read(bdf(0, 6, 0), 0), u32::MAX);
    }
}
