//! The controller's registers, in the first BAR (base specification 1.4, section 3.1).

use core::fmt;
use core::time::Duration;

/// A register of 32 bits, by its offset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reg32(usize);

impl Reg32 {
    /// Version (3.1.2).
    pub const VS: Self = Self(0x08);
    /// Controller Configuration (3.1.5).
    pub const CC: Self = Self(0x14);
    /// Controller Status (3.1.6).
    pub const CSTS: Self = Self(0x1c);
    /// Admin Queue Attributes (3.1.8).
    pub const AQA: Self = Self(0x24);

    /// Bytes from the start of the BAR; a multiple of 4.
    #[must_use]
    pub const fn offset(self) -> usize {
        self.0
    }
}

/// A register of 64 bits, by its offset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reg64(usize);

impl Reg64 {
    /// Controller Capabilities (3.1.1).
    pub const CAP: Self = Self(0x00);
    /// Admin Submission Queue Base Address (3.1.9).
    pub const ASQ: Self = Self(0x28);
    /// Admin Completion Queue Base Address (3.1.10).
    pub const ACQ: Self = Self(0x30);

    /// Bytes from the start of the BAR; a multiple of 8.
    #[must_use]
    pub const fn offset(self) -> usize {
        self.0
    }
}

/// The seam to the registers.
///
/// Each access is one access of the device, of the register's width, and none is left out or moved
/// before or behind another. What was written to memory before a register is written is seen by the
/// device first.
pub trait Registers {
    /// Length of the BAR in bytes. No register past it is accessed.
    fn len_bytes(&self) -> usize;

    /// Reads 32 bits.
    fn read32(&self, register: Reg32) -> u32;

    /// Reads 64 bits.
    fn read64(&self, register: Reg64) -> u64;

    /// Writes 32 bits.
    fn write32(&mut self, register: Reg32, value: u32);

    /// Writes 64 bits.
    fn write64(&mut self, register: Reg64, value: u64);

    /// Keeps the controller from memory for good, whatever it does: its bus mastering is turned off. Whether
    /// that is known to be so, and what it had written before is there.
    fn cut_off(&mut self) -> bool;
}

/// CAP, Controller Capabilities (3.1.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Cap(pub(crate) u64);

impl Cap {
    /// Most entries of a queue: MQES counts from 0.
    pub(crate) const fn max_queue_entries(self) -> u32 {
        (self.0 & 0xffff) as u32 + 1
    }

    /// TO: how long CSTS.RDY may take to follow CC.EN, in units of 500 ms.
    pub(crate) const fn timeout(self) -> Duration {
        let units = (self.0 >> 24) & 0xff;
        Duration::from_millis(500 * if units == 0 { 1 } else { units })
    }

    /// DSTRD: bytes from one doorbell to the next.
    const fn doorbell_stride(self) -> usize {
        4 << ((self.0 >> 32) & 0xf)
    }

    /// CSS: the command sets.
    #[expect(clippy::cast_possible_truncation, reason = "8 bits")]
    pub(crate) const fn command_sets(self) -> u8 {
        (self.0 >> 37) as u8
    }

    /// MPSMIN: the smallest page is 2^(12 + n) bytes.
    pub(crate) const fn min_page_shift(self) -> u32 {
        12 + ((self.0 >> 48) & 0xf) as u32
    }

    /// SQyTDBL (3.1.24): the tail of a submission queue.
    pub(crate) const fn tail_doorbell(self, queue: u16) -> Reg32 {
        Reg32(0x1000 + 2 * queue as usize * self.doorbell_stride())
    }

    /// CQyHDBL (3.1.25): the head of a completion queue.
    pub(crate) const fn head_doorbell(self, queue: u16) -> Reg32 {
        Reg32(0x1000 + (2 * queue as usize + 1) * self.doorbell_stride())
    }
}

/// VS, Version (3.1.2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Version(pub u32);

impl Version {
    /// The first one that has the list of active namespaces.
    pub(crate) const V1_1: Self = Self(0x0001_0100);
    /// The first one that has the limits of Dataset Management.
    pub(crate) const V2_0: Self = Self(0x0002_0000);
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0 >> 16, self.0 >> 8 & 0xff, self.0 & 0xff)
    }
}

/// CC, Controller Configuration (3.1.5): pages of 4096 bytes, the NVM command set, round robin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Cc;

impl Cc {
    /// EN.
    pub(crate) const ENABLE: u32 = 1;
    /// SHN: a normal shutdown is told of.
    pub(crate) const SHUTDOWN_NORMAL: u32 = 0b01 << 14;
    /// SHN, all of it.
    pub(crate) const SHUTDOWN_MASK: u32 = 0b11 << 14;
    /// IOSQES: entries of 2^6 bytes; IOCQES: entries of 2^4 bytes.
    pub(crate) const ENTRY_SIZES: u32 = 6 << 16 | 4 << 20;
}

/// CSTS, Controller Status (3.1.6).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Csts(pub(crate) u32);

impl Csts {
    /// No device answers: reads of nothing are all ones.
    pub(crate) const fn is_gone(self) -> bool {
        self.0 == u32::MAX
    }

    /// RDY.
    pub(crate) const fn is_ready(self) -> bool {
        self.0 & 1 != 0
    }

    /// CFS.
    pub(crate) const fn is_fatal(self) -> bool {
        self.0 & 1 << 1 != 0
    }

    /// SHST: shutdown processing is complete.
    pub(crate) const fn is_shut_down(self) -> bool {
        self.0 >> 2 & 0b11 == 0b10
    }
}
