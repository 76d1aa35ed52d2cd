//! The L1 and L2 tables: what each entry says, the check of all of them, and the look-up.

use crate::block_store::StoreError;
use crate::image::file::{PastEnd, be_u64};
use crate::image::regions::Regions;
use crate::image::{ImageError, ImageFile, Run, Source};
use crate::memory::FrameMemory;

use super::{Clusters, Compression, Entries, Qcow2, Version};

/// Bits 9 to 55 of an entry: a place in the file.
const PLACE: u64 = 0x00ff_ffff_ffff_fe00;
/// Bits 0 to 8 and 56 to 62 of an entry of L1.
const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;
/// Bits 1 to 8 and 56 to 61 of an entry of L2.
const L2_RESERVED: u64 = 0x3f00_0000_0000_01fe;
/// Of an entry of L2.
const COMPRESSED: u64 = 1 << 62;
/// Of a standard entry of L2, since version 3.
const ZERO: u64 = 1;

const NR_SUBCLUSTERS: u64 = 32;
/// Bytes of an entry of L1.
const L1_ENTRY_BYTES: u64 = 8;
/// Bytes of L2 tables that are read at once when they are checked.
const CHUNK_BYTES: usize = 512;

/// What an entry of L2 says of its cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Entry {
    /// The backing file has it.
    Absent,
    Zero,
    /// All of it, from this byte of the file on.
    Data(u64),
    Subclusters(Subclusters),
    Compressed(Compressed),
}

/// A cluster whose subclusters are each data, zero or absent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Subclusters {
    /// The cluster's first byte.
    at: u64,
    /// A bit for each that is in the file, the lowest for the first.
    data: u32,
    /// A bit for each that is zeroes.
    zero: u32,
}

/// Where a compressed cluster is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Compressed {
    /// Its first byte in the file.
    pub(crate) at: u64,
    /// Bytes in which it ends somewhere.
    pub(crate) len_bytes: u64,
}

/// What is wrong with an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    Reserved,
    Unaligned {
        at: u64,
    },
    /// A subcluster is said to be both data and zeroes, or data nowhere.
    Subclusters,
}

impl Entries {
    const fn bytes(self) -> u64 {
        match self {
            Self::Standard => 8,
            Self::Extended => 16,
        }
    }
}

impl Qcow2 {
    /// Entries of an L2 table, which is a cluster.
    const fn entries_per_table(&self) -> u64 {
        self.cluster_bytes() / self.entries.bytes()
    }

    /// Bytes of the disk that an entry of L1 stands for. No more than 2^39.
    const fn table_covers(&self) -> u64 {
        self.entries_per_table() << self.cluster_bits
    }

    const fn subcluster_bytes(&self) -> u64 {
        self.cluster_bytes() / NR_SUBCLUSTERS
    }

    /// Checks every entry that the disk needs, of L1 with `nr_l1` entries and of the L2 tables, and
    /// that no two tables overlap. Says what clusters there are.
    pub(super) fn check_tables<M: FrameMemory>(
        &self,
        memory: &M,
        file: &ImageFile,
        nr_l1: u64,
    ) -> Result<Clusters, ImageError> {
        let past_l1 = |past: PastEnd| past.of("the L1 table");
        let needed = self.size_bytes.div_ceil(self.table_covers());
        if nr_l1 < needed {
            return Err(ImageError::Value {
                what: "the number of entries of its L1 table",
                value: nr_l1,
                allowed: "they must cover the disk",
            });
        }
        self.check_aligned("the L1 table", self.l1_at)?;
        let l1_bytes = needed * L1_ENTRY_BYTES;
        file.check(self.l1_at, l1_bytes).map_err(past_l1)?;

        let mut tables = Regions::default();
        tables.add(0, self.cluster_bytes())?;
        tables.add(self.l1_at, l1_bytes)?;
        tables.check()?;
        for index in 0..needed {
            let at = self.l1_at + index * L1_ENTRY_BYTES;
            let entry = file.u64(memory, at).map_err(past_l1)?;
            if entry & L1_RESERVED != 0 {
                return Err(ImageError::Reserved { what: "an L1 entry", at, value: entry });
            }
            let table_at = entry & PLACE;
            if table_at != 0 {
                self.check_aligned("an L2 table", table_at)?;
                let past_l2 = |past: PastEnd| past.of("an L2 table");
                file.check(table_at, self.cluster_bytes()).map_err(past_l2)?;
                tables.add(table_at, self.cluster_bytes())?;
            }
        }
        // Before the rest, whose time the length of the file then bounds.
        tables.check()?;
        let mut clusters = Clusters::Plain;
        for index in 0..needed {
            let at = self.l1_at + index * L1_ENTRY_BYTES;
            let table_at = file.u64(memory, at).map_err(past_l1)? & PLACE;
            if table_at != 0 {
                let first = index * self.table_covers();
                if self.check_table(memory, file, table_at, first)? == Clusters::Compressed {
                    clusters = Clusters::Compressed;
                }
            }
        }
        Ok(clusters)
    }

    /// Checks the entries of the L2 table at `table_at`, whose first cluster is at byte `first` of
    /// the disk.
    fn check_table<M: FrameMemory>(
        &self,
        memory: &M,
        file: &ImageFile,
        table_at: u64,
        first: u64,
    ) -> Result<Clusters, ImageError> {
        let covered = self.table_covers().min(self.size_bytes - first);
        let end = table_at + covered.div_ceil(self.cluster_bytes()) * self.entries.bytes();
        let mut chunk = [0; CHUNK_BYTES];
        let mut at = table_at;
        let mut offset = first;
        let mut clusters = Clusters::Plain;
        while at < end {
            file.read(memory, at, &mut chunk).map_err(|past| past.of("an L2 table"))?;
            let entry_bytes = usize::try_from(self.entries.bytes()).unwrap_or(CHUNK_BYTES);
            for entry in chunk.chunks_exact(entry_bytes) {
                if at >= end {
                    break;
                }
                let word = be_u64(entry, 0);
                let bits = if entry_bytes > 8 { be_u64(entry, 8) } else { 0 };
                let needed = self.cluster_bytes().min(self.size_bytes - offset);
                let entry = self.check_entry(file, at, (word, bits), needed)?;
                if matches!(entry, Entry::Compressed(_)) {
                    clusters = Clusters::Compressed;
                }
                at += self.entries.bytes();
                offset = offset.saturating_add(self.cluster_bytes());
            }
        }
        Ok(clusters)
    }

    /// Checks the entry at byte `at` of the file, of whose cluster the disk needs `needed` bytes.
    fn check_entry(
        &self,
        file: &ImageFile,
        at: u64,
        (word, bits): (u64, u64),
        needed: u64,
    ) -> Result<Entry, ImageError> {
        let entry = self.entry(word, bits).map_err(|fault| match fault {
            Fault::Reserved => ImageError::Reserved { what: "an L2 entry", at, value: word },
            Fault::Unaligned { at } => self.unaligned("a cluster", at),
            Fault::Subclusters => {
                ImageError::Reserved { what: "the subclusters of an L2 entry", at, value: bits }
            }
        })?;
        let part = match entry {
            Entry::Absent | Entry::Zero => Ok(()),
            Entry::Data(at) => file.check(at, needed),
            Entry::Subclusters(Subclusters { at, data, .. }) => {
                // A writer need not have made the file longer than its last subcluster.
                let nr = u64::from(u32::BITS - data.leading_zeros());
                file.check(at, needed.min(nr * self.subcluster_bytes()))
            }
            Entry::Compressed(_) if self.compression == Compression::Zstd => {
                return Err(ImageError::Unsupported { what: "clusters compressed with zstd" });
            }
            // Its length is in whole sectors, and the file may end within the last.
            Entry::Compressed(Compressed { at, .. }) => file.check(at, 1),
        };
        part.map_err(|past| past.of("a cluster"))?;
        Ok(entry)
    }

    /// What an entry of L2 says.
    fn entry(&self, word: u64, bits: u64) -> Result<Entry, Fault> {
        if word & COMPRESSED != 0 {
            // Bits 0 to `place_bits` - 1 are the place, those from there to 61 how many sectors
            // there are behind the one that it is in.
            let place_bits = 62 - (self.cluster_bits - 8);
            let at = word & ((1 << place_bits) - 1);
            let nr_more = (word & (COMPRESSED - 1)) >> place_bits;
            return Ok(Entry::Compressed(Compressed {
                at,
                len_bytes: (nr_more + 1) * 512 - at % 512,
            }));
        }
        let has_zero_bit = self.version == Version::V3 && self.entries == Entries::Standard;
        if word & L2_RESERVED != 0 || (word & ZERO != 0 && !has_zero_bit) {
            return Err(Fault::Reserved);
        }
        let at = word & PLACE;
        if !at.is_multiple_of(self.cluster_bytes()) {
            return Err(Fault::Unaligned { at });
        }
        match self.entries {
            Entries::Standard if word & ZERO != 0 => Ok(Entry::Zero),
            Entries::Standard if at == 0 => Ok(Entry::Absent),
            Entries::Standard => Ok(Entry::Data(at)),
            Entries::Extended => {
                // The low half of the bits, and the high one.
                #[expect(clippy::cast_possible_truncation, reason = "halves of 64 bits")]
                let (data, zero) = (bits as u32, (bits >> 32) as u32);
                if data & zero != 0 || (at == 0 && data != 0) {
                    return Err(Fault::Subclusters);
                }
                Ok(Entry::Subclusters(Subclusters { at, data, zero }))
            }
        }
    }

    fn check_aligned(&self, what: &'static str, at: u64) -> Result<(), ImageError> {
        if at.is_multiple_of(self.cluster_bytes()) { Ok(()) } else { Err(self.unaligned(what, at)) }
    }

    const fn unaligned(&self, what: &'static str, at: u64) -> ImageError {
        ImageError::Unaligned { what, at, align_bytes: self.cluster_bytes() }
    }

    /// As [`crate::image::Map::find`].
    pub(crate) fn find<M: FrameMemory>(
        &self,
        file: &ImageFile,
        memory: &M,
        offset: u64,
        len_bytes: u64,
    ) -> Result<Run, StoreError> {
        let (index, in_table) = (offset / self.table_covers(), offset % self.table_covers());
        let l1_entry_at = self.l1_at + index * L1_ENTRY_BYTES;
        let table_at = file.u64(memory, l1_entry_at)? & PLACE;
        if table_at == 0 {
            let len_bytes = len_bytes.min(self.table_covers() - in_table);
            return Ok(Run { source: Source::Parent, len_bytes });
        }
        let at = table_at + (in_table >> self.cluster_bits) * self.entries.bytes();
        let word = file.u64(memory, at)?;
        let bits = match self.entries {
            Entries::Standard => 0,
            Entries::Extended => file.u64(memory, at + 8)?,
        };
        // All entries were checked, and nobody writes the file.
        let entry = self.entry(word, bits).map_err(|_| StoreError::Damaged { at })?;

        let within = offset % self.cluster_bytes();
        let mut len_bytes = len_bytes.min(self.cluster_bytes() - within);
        let source = match entry {
            Entry::Absent => Source::Parent,
            Entry::Zero => Source::Zero,
            Entry::Data(at) => Source::File(at + within),
            Entry::Subclusters(subclusters) => {
                let (source, end) = subclusters.find(within, self.subcluster_bytes());
                len_bytes = len_bytes.min(end - within);
                source
            }
            Entry::Compressed(packed) => {
                let cluster_bytes = 1 << self.cluster_bits;
                Source::Compressed { packed, offset: offset - within, cluster_bytes }
            }
        };
        if let Source::File(at) = source {
            file.check(at, len_bytes)?;
        }
        Ok(Run { source, len_bytes })
    }
}

impl Subclusters {
    /// Where byte `within` of the cluster is, and the end of the subclusters like its own.
    fn find(&self, within: u64, subcluster_bytes: u64) -> (Source, u64) {
        let number = within / subcluster_bytes;
        let has = |bits: u32| bits >> number & 1 != 0;
        let (source, like) = if has(self.data) {
            (Source::File(self.at + within), self.data)
        } else if has(self.zero) {
            (Source::Zero, self.zero)
        } else {
            (Source::Parent, !(self.data | self.zero))
        };
        let nr = u64::from((like >> number).trailing_ones());
        (source, (number + nr) * subcluster_bytes)
    }
}
