//! Microsoft's Virtual Hard Disk ("Virtual Hard Disk Image Format Specification", version 1.0).
//!
//! A footer of 512 bytes ends the file. Of a fixed disk, the disk's bytes are before it. Otherwise
//! there is a copy of it at the start, a header, and a table with the first sector of each block
//! that the file has; a block begins with a bit for each of its sectors.

use alloc::string::String;
use core::ops::Range;

use crate::block_store::StoreError;
use crate::geometry::SECTOR_SIZE;
use crate::image::file::{PastEnd, be_u16, be_u32, be_u64};
use crate::image::regions::Regions;
use crate::image::set::{ParentLink, ParentMust, without_folders};
use crate::image::{ImageError, ImageFile, Run, Source};
use crate::memory::FrameMemory;

const SECTOR: u64 = SECTOR_SIZE as u64;
const FOOTER_BYTES: usize = 512;
const HEADER_BYTES: usize = 1024;
const FOOTER_COOKIE: &[u8] = b"conectix";
const HEADER_COOKIE: &[u8] = b"cxsparse";
const VERSION: u32 = 0x0001_0000;

/// What the format allows: 2040 GiB.
const MAX_SIZE_BYTES: u64 = 2040 << 30;
/// Far above what anybody uses; the usual is 2 MiB.
const MAX_BLOCK_BYTES: u32 = 256 << 20;

/// An entry of the table for a block that is not in the file.
const ABSENT: u32 = u32::MAX;

/// Programs that make the disk as large as its geometry says, which is not always the size beside
/// it. QEMU, which has the list, calls itself `qem2` where it goes by the size.
const GEOMETRY_COUNTS: [&[u8]; 3] = [b"vpc ", b"vs  ", b"qemu"];
/// The geometry of a disk that is too large to have one.
const MAX_GEOMETRY_SECTORS: u64 = 65535 * 16 * 255;

/// What tells one disk from all others.
pub(crate) type UniqueId = [u8; 16];

/// A VHD's map.
#[derive(Debug)]
pub(crate) struct Vhd {
    pub(crate) size_bytes: u64,
    pub(crate) id: UniqueId,
    /// `None` for a fixed disk.
    blocks: Option<Blocks>,
}

/// Where the blocks of a dynamic or differencing disk are.
#[derive(Debug)]
struct Blocks {
    /// The table's first byte.
    table_at: u64,
    /// A power of two.
    block_bytes: u64,
}

impl Blocks {
    /// Bytes of the bits before a block, a bit a sector and filled up to whole sectors.
    const fn bitmap_bytes(&self) -> u64 {
        (self.block_bytes / SECTOR).div_ceil(8).next_multiple_of(SECTOR)
    }

    /// A block's first byte, its bits; `None` where the file does not have it.
    fn block<M: FrameMemory>(
        &self,
        file: &ImageFile,
        memory: &M,
        number: u64,
    ) -> Result<Option<u64>, PastEnd> {
        let sector = file.u32(memory, self.table_at.saturating_add(number * 4))?;
        Ok((sector != ABSENT).then_some(u64::from(sector) * SECTOR))
    }
}

/// The footer, or the copy of it that begins all disks but fixed ones.
pub(crate) fn find_footer<M: FrameMemory>(
    memory: &M,
    file: &ImageFile,
) -> Option<[u8; FOOTER_BYTES]> {
    let end = file.len_bytes.checked_sub(FOOTER_BYTES as u64)?;
    [end, 0]
        .into_iter()
        .filter_map(|at| file.bytes(memory, at).ok())
        .find(|footer: &[u8; FOOTER_BYTES]| footer.starts_with(FOOTER_COOKIE))
}

impl Vhd {
    /// Reads what a file says of the disk in it, and checks all of it.
    pub(crate) fn open<M: FrameMemory>(
        memory: &M,
        file: &ImageFile,
    ) -> Result<(Self, Option<ParentLink>), ImageError> {
        let footer = find_footer(memory, file);
        let footer = footer.ok_or(ImageError::Missing { what: "VHD footer" })?;
        check_sum("the VHD footer", &footer, 64)?;
        check_version("the VHD footer's version", be_u32(&footer, 12))?;
        let size_bytes = size_bytes(&footer)?;
        let mut id = UniqueId::default();
        id.copy_from_slice(&footer[68..84]);

        let kind = be_u32(&footer, 60);
        match kind {
            2 => {
                let data_bytes = file.len_bytes.saturating_sub(FOOTER_BYTES as u64);
                let data = ImageFile { len_bytes: data_bytes, ..*file };
                data.check(0, size_bytes).map_err(|past| past.of("the disk's data"))?;
                Ok((Self { size_bytes, id, blocks: None }, None))
            }
            3 | 4 => {
                let header_at = be_u64(&footer, 16);
                let (blocks, header) = open_blocks(memory, file, header_at, size_bytes)?;
                let parent = (kind == 4).then(|| parent(&header)).transpose()?;
                Ok((Self { size_bytes, id, blocks: Some(blocks) }, parent))
            }
            kind => Err(ImageError::Value {
                what: "the VHD's type",
                value: kind.into(),
                allowed: "2, 3 and 4 are served, which are fixed, dynamic and differencing",
            }),
        }
    }

    /// As [`super::Map::find`].
    pub(crate) fn find<M: FrameMemory>(
        &self,
        file: &ImageFile,
        memory: &M,
        offset: u64,
        len_bytes: u64,
    ) -> Result<Run, StoreError> {
        let Some(blocks) = &self.blocks else {
            return Ok(Run { source: Source::File(offset), len_bytes });
        };
        let within = offset % blocks.block_bytes;
        let len_bytes = len_bytes.min(blocks.block_bytes - within);
        let Some(block_at) = blocks.block(file, memory, offset / blocks.block_bytes)? else {
            return Ok(Run { source: Source::Parent, len_bytes });
        };
        let sectors = within / SECTOR..(within + len_bytes).div_ceil(SECTOR);
        let first_at = sectors.start * SECTOR;
        let (bit, nr) = run_of_bits(file, memory, block_at, sectors)?;
        let len_bytes = len_bytes.min(first_at + nr * SECTOR - within);
        let source = match bit {
            Bit::Clear => Source::Parent,
            Bit::Set => {
                let at = block_at + blocks.bitmap_bytes() + within;
                file.check(at, len_bytes)?;
                Source::File(at)
            }
        };
        Ok(Run { source, len_bytes })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Bit {
    Clear,
    Set,
}

/// The first of a range of bits, and how many from there on are like it. The bitmap is at byte `at`,
/// a byte's highest bit is its first.
fn run_of_bits<M: FrameMemory>(
    file: &ImageFile,
    memory: &M,
    at: u64,
    bits: Range<u64>,
) -> Result<(Bit, u64), PastEnd> {
    let mut chunk = [0; 64];
    let mut bit = bits.start;
    let mut run = None;
    while bit < bits.end {
        let first_byte = bit / 8;
        let bytes = bits.end.div_ceil(8) - first_byte;
        let len = usize::try_from(bytes).map_or(chunk.len(), |bytes| bytes.min(chunk.len()));
        file.read(memory, at + first_byte, &mut chunk[..len])?;
        for byte in &chunk[..len] {
            let rest = byte << (bit % 8);
            let here = if rest & 0x80 == 0 { Bit::Clear } else { Bit::Set };
            if *run.get_or_insert(here) != here {
                return Ok((*run.get_or_insert(here), bit - bits.start));
            }
            let like = match here {
                Bit::Clear => rest.leading_zeros(),
                Bit::Set => rest.leading_ones(),
            };
            let in_byte = 8 - bit % 8;
            let like = u64::from(like).min(in_byte);
            bit += like;
            if like < in_byte {
                return Ok((here, bit.min(bits.end) - bits.start));
            }
        }
    }
    Ok((run.unwrap_or(Bit::Clear), bits.end - bits.start))
}

/// Checks the ones' complement of the sum of all bytes but its own four, which are at `at`.
fn check_sum(what: &'static str, header: &[u8], at: usize) -> Result<(), ImageError> {
    let sum = |bytes: &[u8]| bytes.iter().map(|&byte| u32::from(byte)).sum::<u32>();
    let expected = !(sum(header) - sum(&header[at..at + 4]));
    if be_u32(header, at) == expected { Ok(()) } else { Err(ImageError::Checksum { what }) }
}

fn check_version(what: &'static str, version: u32) -> Result<(), ImageError> {
    if version == VERSION {
        return Ok(());
    }
    Err(ImageError::Value { what, value: version.into(), allowed: "65536 is served, which is 1.0" })
}

/// The disk's size as the program that made it means it.
fn size_bytes(footer: &[u8]) -> Result<u64, ImageError> {
    let size_bytes = be_u64(footer, 48);
    let cylinders = u64::from(be_u16(footer, 56));
    let sectors = cylinders * u64::from(footer[58]) * u64::from(footer[59]);
    let by_geometry = GEOMETRY_COUNTS.contains(&&footer[28..32]) && sectors < MAX_GEOMETRY_SECTORS;
    let size_bytes = if by_geometry { sectors * SECTOR } else { size_bytes };
    if size_bytes > MAX_SIZE_BYTES {
        return Err(ImageError::Value {
            what: "its size in bytes",
            value: size_bytes,
            allowed: "a VHD has 2040 GiB at most",
        });
    }
    Ok(size_bytes)
}

/// Reads the header of a dynamic or differencing disk, and checks every block that the disk needs.
fn open_blocks<M: FrameMemory>(
    memory: &M,
    file: &ImageFile,
    header_at: u64,
    size_bytes: u64,
) -> Result<(Blocks, [u8; HEADER_BYTES]), ImageError> {
    const HEADER: &str = "the VHD header";
    let header: [u8; HEADER_BYTES] =
        file.bytes(memory, header_at).map_err(|past| past.of(HEADER))?;
    if !header.starts_with(HEADER_COOKIE) {
        return Err(ImageError::Missing { what: "VHD header" });
    }
    check_sum(HEADER, &header, 36)?;
    check_version("the VHD header's version", be_u32(&header, 24))?;
    let block_bytes = be_u32(&header, 32);
    let block_sizes = SECTOR_SIZE as u64..=u64::from(MAX_BLOCK_BYTES);
    if !block_bytes.is_power_of_two() || !block_sizes.contains(&block_bytes.into()) {
        return Err(ImageError::Value {
            what: "the VHD's block size in bytes",
            value: block_bytes.into(),
            allowed: "powers of two from 512 to 268435456 are served",
        });
    }
    let blocks = Blocks { table_at: be_u64(&header, 16), block_bytes: block_bytes.into() };
    let nr_blocks = size_bytes.div_ceil(blocks.block_bytes);
    let nr_entries = u64::from(be_u32(&header, 28));
    if nr_entries < nr_blocks {
        return Err(ImageError::Value {
            what: "the number of entries of its block table",
            value: nr_entries,
            allowed: "there is one for each block of the disk",
        });
    }
    let table_bytes = nr_blocks * 4;
    file.check(blocks.table_at, table_bytes).map_err(|past| past.of("its block table"))?;

    let mut regions = Regions::default();
    regions.add(0, FOOTER_BYTES as u64)?;
    regions.add(header_at, HEADER_BYTES as u64)?;
    regions.add(blocks.table_at, table_bytes)?;
    regions.check()?;
    for number in 0..nr_blocks {
        let past_end = |past: PastEnd| past.of("a block");
        let Some(at) = blocks.block(file, memory, number).map_err(past_end)? else { continue };
        let needed = blocks.block_bytes.min(size_bytes - number * blocks.block_bytes);
        let len_bytes = blocks.bitmap_bytes() + needed;
        file.check(at, len_bytes).map_err(past_end)?;
        regions.add(at, len_bytes)?;
    }
    regions.check()?;
    Ok((blocks, header))
}

/// What a differencing disk's header says of its parent.
fn parent(header: &[u8]) -> Result<ParentLink, ImageError> {
    let mut id = UniqueId::default();
    id.copy_from_slice(&header[40..56]);
    let (units, _) = header[64..576].as_chunks();
    let units = units.iter().map(|unit| u16::from_be_bytes(*unit)).take_while(|unit| *unit != 0);
    let path: Result<String, _> = char::decode_utf16(units).collect();
    let path = path.map_err(|_| ImageError::NotText { what: "its parent's name" })?;
    Ok(ParentLink { name: without_folders(&path).into(), must: ParentMust::HaveId(id) })
}
