//! What the controller says of itself and of its namespaces (base specification 1.4, section 5.15):
//! allegations, until they are checked here.

use alloc::string::String;
use core::fmt;

use store::{Access, BlockSize, DiscardLimits, Flushing, Geometry, SecureDiscard};
use thiserror::Error;

use crate::Status;

/// The identifier of a namespace (NSID), from 1 on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NamespaceId(pub u32);

impl fmt::Display for NamespaceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Bytes of the Identify Controller data structure that are looked at.
pub const CONTROLLER_LEN: usize = 528;

/// Bytes of the Identify Namespace data structure that are looked at.
pub const NAMESPACE_LEN: usize = 192;

/// Most pages of a command: 2 MiB. One PRP list names them.
const MAX_PAGES: u16 = 512;

/// Most sectors that a disk can have: 8 EiB.
const MAX_SECTORS: u64 = 1 << 54;

/// Largest physical block in bytes.
const MAX_PHYSICAL_BYTES: u32 = 1 << 20;

/// Whether the controller has something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Support {
    /// It has.
    Offered,
    /// It has not.
    No,
}

impl Support {
    const fn bit(field: u16, bit: u32) -> Self {
        if field >> bit & 1 == 1 { Self::Offered } else { Self::No }
    }
}

/// A controller, as it identifies itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Serial number (SN), printable.
    pub serial: String,
    /// Model number (MN), printable.
    pub model: String,
    /// Firmware revision (FR), printable.
    pub firmware: String,
    /// Most pages of a command, 1 to 512, of MDTS.
    pub(crate) max_pages: u16,
    /// RTD3E: how long a shutdown may take, in microseconds; 0 where it does not say.
    pub(crate) shutdown_us: u32,
    /// NN: no namespace's identifier is above it.
    pub(crate) nr_namespaces: u32,
    /// Dataset Management (ONCS).
    pub(crate) dataset_management: Support,
    /// Write Zeroes (ONCS).
    pub(crate) write_zeroes: Support,
    /// A volatile write cache (VWC).
    pub(crate) write_cache: Support,
}

/// Why a controller cannot be used for what it says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("queue entries of 2^{sqes} and 2^{cqes} bytes are needed, 2^6 and 2^4 are known")]
pub struct EntrySizes {
    /// The least of a submission queue's (SQES).
    pub sqes: u8,
    /// The least of a completion queue's (CQES).
    pub cqes: u8,
}

impl Identity {
    /// Reads the first bytes of the Identify Controller data structure.
    ///
    /// # Errors
    /// The queues' entries have other sizes than all controllers must know.
    pub fn parse(data: &[u8; CONTROLLER_LEN]) -> Result<Self, EntrySizes> {
        let (sqes, cqes) = (data[512], data[513]);
        let range = |sizes: u8| sizes & 0xf..=sizes >> 4;
        if !range(sqes).contains(&6) || !range(cqes).contains(&4) {
            return Err(EntrySizes { sqes: sqes & 0xf, cqes: cqes & 0xf });
        }
        let max_pages = match data[77] {
            0 => MAX_PAGES,
            mdts => 1u16.checked_shl(mdts.into()).unwrap_or(MAX_PAGES).min(MAX_PAGES),
        };
        let oncs = u16_at(data, 520);
        Ok(Self {
            serial: printable(&data[4..24]),
            model: printable(&data[24..64]),
            firmware: printable(&data[64..72]),
            max_pages,
            shutdown_us: u32_at(data, 88),
            nr_namespaces: u32_at(data, 516),
            dataset_management: Support::bit(oncs, 2),
            write_zeroes: Support::bit(oncs, 3),
            write_cache: Support::bit(data[525].into(), 0),
        })
    }

    /// Whether it is the controller that it was before a reset.
    pub(crate) fn is_still(&self, before: &Self) -> bool {
        // A reset may activate other firmware.
        Self { firmware: before.firmware.clone(), ..self.clone() } == *before
    }
}

/// Bytes that are looked at of the I/O Command Set Specific Identify Controller data structure.
pub(crate) const LIMITS_LEN: usize = 16;

/// Most blocks that a command with one range deallocates (NVM command set specification 1.0, Identify
/// with CNS 06h: DMRSL, DMSL).
pub(crate) fn max_deallocated(data: &[u8; LIMITS_LEN]) -> u64 {
    let range_size = u64::from(u32_at(data, 4));
    let size = u64::from(u32_at(data, 8)) | u64::from(u32_at(data, 12)) << 32;
    // 0 is no limit.
    [range_size, size].into_iter().filter(|&limit| limit > 0).min().unwrap_or(u64::MAX)
}

/// A namespace that can be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Disk {
    /// Its size (NSZE), its blocks (LBADS, NPWG), what discards free (NPDG), and whether it is write
    /// protected (NSATTR).
    pub geometry: Geometry,
    /// Whether completed writes must be flushed to be durable: there is a volatile write cache (VWC).
    /// Where there is none, they are durable.
    pub flushing: Flushing,
    /// Whether Write Zeroes is taken.
    pub write_zeroes: Support,
}

/// Why a namespace cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum Unusable {
    /// It was not identified.
    #[error("it cannot be identified: {0}")]
    Status(Status),
    /// It has no blocks: it is not active.
    #[error("it is not active")]
    Inactive,
    /// FLBAS names a format that is not there, or past the first 16.
    #[error("its format {format} is none of 0 to {last}, or past 15")]
    Format {
        /// FLBAS.
        format: u8,
        /// NLBAF.
        last: u8,
    },
    /// Its blocks are neither 512 nor 4096 bytes.
    #[error("its blocks are of 2^{shift} bytes, not 2^9 or 2^12")]
    BlockSize {
        /// LBADS.
        shift: u8,
    },
    /// Its blocks have metadata, or protection information.
    #[error("its blocks have {bytes} bytes of metadata, protection type {protection}")]
    Metadata {
        /// MS.
        bytes: u16,
        /// DPS.
        protection: u8,
    },
    /// It has more sectors than a disk can have.
    #[error("it has {nr_blocks} blocks of 2^{shift} bytes, more than 8 EiB")]
    TooLarge {
        /// NSZE.
        nr_blocks: u64,
        /// LBADS.
        shift: u8,
    },
    /// After a reset it is gone, or not what it was.
    #[error("it is gone, or has changed")]
    Changed,
}

impl Disk {
    /// Reads the first bytes of the Identify Namespace data structure.
    ///
    /// # Errors
    /// Why the namespace cannot be used.
    pub fn parse(data: &[u8; NAMESPACE_LEN], controller: &Identity) -> Result<Self, Unusable> {
        let nr_blocks = u64::from(u32_at(data, 0)) | u64::from(u32_at(data, 4)) << 32;
        if nr_blocks == 0 {
            return Err(Unusable::Inactive);
        }
        // 2.0 has 64 formats, and the upper part of their numbers in bits that were 0 before. Those from
        // the 17th on lie behind what is looked at.
        let (format, last) = (data[26] & 0xf | (data[26] & 0x60) >> 1, data[25]);
        if format > last.min(15) {
            return Err(Unusable::Format { format, last });
        }
        let lbaf = u32_at(data, 128 + 4 * usize::from(format)).to_le_bytes();
        let (bytes, shift) = (u16::from_le_bytes([lbaf[0], lbaf[1]]), lbaf[2]);
        let protection = data[29] & 0b111;
        if bytes != 0 || protection != 0 {
            return Err(Unusable::Metadata { bytes, protection });
        }
        let logical = match shift {
            9 => BlockSize::B512,
            12 => BlockSize::B4096,
            _ => return Err(Unusable::BlockSize { shift }),
        };
        let nr_sectors = nr_blocks
            .checked_mul(logical.sectors())
            .filter(|&nr_sectors| nr_sectors <= MAX_SECTORS)
            .ok_or(Unusable::TooLarge { nr_blocks, shift })?;
        // NPWG and NPDG count from 0, and are there only where NSFEAT says so.
        let optimal = |at| match data[24] >> 4 & 1 {
            1 => (u32::from(u16_at(data, at)) + 1) * logical.bytes(),
            _ => logical.bytes(),
        };
        let physical_bytes = optimal(64);
        let sane = physical_bytes.is_power_of_two() && physical_bytes <= MAX_PHYSICAL_BYTES;
        let limits = DiscardLimits { granularity_bytes: optimal(68), secure: SecureDiscard::No };
        let geometry = Geometry {
            nr_sectors,
            logical,
            physical_bytes: if sane { physical_bytes } else { logical.bytes() },
            access: if data[99] & 1 == 0 { Access::ReadWrite } else { Access::ReadOnly },
            discard: (controller.dataset_management == Support::Offered).then_some(limits),
        };
        let flushing = match controller.write_cache {
            Support::Offered => Flushing::Offered,
            Support::No => Flushing::No,
        };
        Ok(Self { geometry, flushing, write_zeroes: controller.write_zeroes })
    }
}

fn u16_at(data: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([data[at], data[at + 1]])
}

fn u32_at(data: &[u8], at: usize) -> u32 {
    u32::from(u16_at(data, at)) | u32::from(u16_at(data, at + 2)) << 16
}

/// A string of ASCII that is filled up with blanks, or zeroes; whatever else is in it becomes a
/// question mark.
fn printable(bytes: &[u8]) -> String {
    let shown = |&byte: &u8| match byte {
        b' '..=b'~' => char::from(byte),
        _ => '?',
    };
    let text = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
    text.trim_ascii().iter().map(shown).collect()
}
