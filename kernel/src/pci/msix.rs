//! MSI-X: interrupts that a function makes by writing to memory.

use xen_abi::PAGE_SIZE;

use super::{Bar, ConfigSpace, Function};

/// The capability's id.
const ID: u8 = 0x11;

const ENABLE: u32 = 1 << 31;
const MASK_ALL: u32 = 1 << 30;

/// The table has entries of four words: address, its upper half, data, control.
const ENTRY_BYTES: u64 = 16;

/// A function's MSI-X capability.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Msix {
    offset: u8,
    /// The BAR that the table is in.
    pub(crate) bar: u8,
    /// Where in it.
    pub(crate) table_offset: u32,
}

impl Msix {
    /// The function's, if it has one.
    pub(crate) fn find(config: &mut impl ConfigSpace, function: Function) -> Option<Self> {
        let offset = function.capability(config, ID).filter(|&offset| offset <= 0xf4)?;
        let table = config.read(function.at, offset + 4);
        Some(Self { offset, bar: (table & 7) as u8, table_offset: table & !7 })
    }

    /// The page that the table's first entry is in, and where it is there. `None` where it is not
    /// within the BAR, or not within a page.
    pub(crate) fn first_entry(self, table: &Bar) -> Option<(u64, usize)> {
        const PAGE: u64 = PAGE_SIZE as u64;
        let offset = u64::from(self.table_offset);
        let at = table.paddr.checked_add(offset)?;
        let within = at % PAGE;
        let is_there = offset + ENTRY_BYTES <= table.size_bytes && within + ENTRY_BYTES <= PAGE;
        Some((at - within, usize::try_from(within).ok()?)).filter(|_| is_there)
    }

    /// Has the function make interrupts by messages, from now on.
    pub(crate) fn enable(self, config: &mut impl ConfigSpace, function: Function) {
        let control = config.read(function.at, self.offset);
        config.write(function.at, self.offset, control & !MASK_ALL | ENABLE);
    }

    /// Has it make no interrupts by messages.
    pub(crate) fn disable(self, config: &mut impl ConfigSpace, function: Function) {
        let control = config.read(function.at, self.offset);
        config.write(function.at, self.offset, control & !ENABLE);
    }
}

/// What an interrupt writes, and where, as an entry of the table has it: the address, its upper half,
/// the data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Message(pub(crate) [u32; 3]);

/// Where the local APICs listen.
const LOCAL_APICS: u32 = 0xfee0_0000;

impl Message {
    /// The message that interrupts the vCPU whose local APIC has this id, by a vector.
    pub(crate) const fn to_vector(apic: u8, vector: u8) -> Self {
        Self([LOCAL_APICS | (apic as u32) << 12, 0, vector as u32])
    }

    /// The message that asks for `pirq` of our own domain, instead of naming a vector. The vector is
    /// 0, and where the id of a local APIC stands is the pirq's number, its bits from 8 on in the
    /// address's upper half: that is what the device model takes it from (QEMU's `msi_msix_setup`,
    /// and Xen's `hvm_inject_msi`).
    pub(crate) const fn to_pirq(pirq: u32) -> Self {
        const LEVEL_ASSERT: u32 = 1 << 14;
        // No mode of delivery that there is.
        const RESERVED_MODE: u32 = 3 << 8;
        Self([LOCAL_APICS | (pirq & 0xff) << 12, pirq & !0xff, LEVEL_ASSERT | RESERVED_MODE])
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::Fake;
    use super::super::{Bar, Bdf, functions};
    use super::{Message, Msix};

    const AT: Bdf = Bdf { bus: 0, device: 5, function: 0 };

    #[test]
    fn a_table_is_in_a_bar() {
        let mut fake = Fake::default();
        fake.add(AT, 0x0010_1b36, 0x01_08_02);
        fake.set(AT, 0x04, 0x0010_0000);
        fake.set(AT, 0x34, 0x40);
        fake.set(AT, 0x40, 0x4040_8011);
        fake.set(AT, 0x44, 0x0000_3004);
        functions(&mut fake, |config, function| {
            let msix = Msix::find(config, function).unwrap();
            assert_eq!((msix.bar, msix.table_offset), (4, 0x3000));
            msix.enable(config, function);
            assert_eq!(config.writes.pop(), Some((AT, 0x40, 0x8040_8011)));
            msix.disable(config, function);
            assert_eq!(config.writes.pop(), Some((AT, 0x40, 0x0040_8011)));
        });
        // At the end of the space there is no room for one.
        fake.set(AT, 0x34, 0xf8);
        fake.set(AT, 0xf8, 0x11);
        functions(&mut fake, |config, function| assert_eq!(Msix::find(config, function), None));
    }

    #[test]
    fn the_first_entry_is_within_a_page_of_the_bar() {
        let mut fake = Fake::default();
        fake.add(AT, 0x0010_1b36, 0x01_08_02);
        fake.set(AT, 0x10, 0xfebd_4000);
        fake.make_writable(0x10, 0xffff_e000);
        let mut bar = None;
        functions(&mut fake, |config, function| bar = Bar::find(config, function, 0));
        let bar = bar.unwrap();
        let at = |table_offset| Msix { offset: 0x40, bar: 0, table_offset }.first_entry(&bar);
        assert_eq!(at(0), Some((0xfebd_4000, 0)));
        assert_eq!(at(0xff0), Some((0xfebd_4000, 0xff0)));
        assert_eq!(at(0xff8), None, "it crosses into the next page");
        assert_eq!(at(0x1000), Some((0xfebd_5000, 0)));
        assert_eq!(at(0x1ff0), Some((0xfebd_5000, 0xff0)));
        for outside in [0x1ff8, 0x2000, !7] {
            assert_eq!(at(outside), None, "{outside:#x}");
        }
    }

    #[test]
    fn a_message_names_a_vector_or_its_pirq_where_the_apic_stands() {
        assert_eq!(Message::to_vector(0x12, 0x30), Message([0xfee1_2000, 0, 0x30]));
        assert_eq!(Message::to_pirq(55), Message([0xfee3_7000, 0, 0x4300]));
        let large = Message([0xfee7_8000, 0x1234_5600, 0x4300]);
        assert_eq!(Message::to_pirq(0x1234_5678), large);
    }
}
