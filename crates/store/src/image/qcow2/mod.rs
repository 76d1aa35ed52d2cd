//! QEMU's qcow2, versions 2 and 3 (`docs/interop/qcow2.txt` of QEMU).
//!
//! The file is clusters. A table of tables, L1, says where the L2 tables are, and these where the
//! disk's clusters are. Reference counts and internal snapshots serve writers: they are not looked
//! at. This file reads the header, [`tables`] the rest.

mod tables;

pub(crate) use tables::Compressed;

use alloc::string::{String, ToString};
use alloc::vec;

use crate::image::file::{PastEnd, be_u32, be_u64};
use crate::image::set::{ParentLink, ParentMust, without_folders};
use crate::image::{ImageError, ImageFile, ImageFormat};
use crate::memory::FrameMemory;

pub(crate) const MAGIC: [u8; 4] = *b"QFI\xfb";

const V2_HEADER_BYTES: usize = 72;
const V3_HEADER_BYTES: usize = 104;
/// The longest name of a backing file.
const MAX_NAME_BYTES: usize = 1023;
/// Disks whose last byte an `off_t` counts.
const MAX_SIZE_BYTES: u64 = i64::MAX as u64;

/// Bits of the features without which a file cannot be read.
mod incompatible {
    /// Reference counts may be wrong, which concerns writers.
    pub(super) const DIRTY: u64 = 1 << 0;
    pub(super) const CORRUPT: u64 = 1 << 1;
    pub(super) const EXTERNAL_DATA: u64 = 1 << 2;
    pub(super) const COMPRESSION_TYPE: u64 = 1 << 3;
    pub(super) const EXTENDED_L2: u64 = 1 << 4;
    pub(super) const KNOWN: u64 = DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION_TYPE | EXTENDED_L2;
}

/// A header extension: the name of the backing file's format.
const BACKING_FORMAT: u32 = 0xe279_2aca;

/// A qcow2's map.
#[derive(Debug)]
pub(crate) struct Qcow2 {
    pub(crate) size_bytes: u64,
    version: Version,
    entries: Entries,
    compression: Compression,
    clusters: Clusters,
    /// log2 of the size of a cluster in bytes, 9 to 21.
    cluster_bits: u32,
    /// First byte of the L1 table.
    l1_at: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Version {
    V2,
    V3,
}

/// What an entry of an L2 table is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Entries {
    /// 8 bytes for a cluster.
    Standard,
    /// 16 bytes for a cluster, with two bits for each of its 32 subclusters.
    Extended,
}

/// What compressed clusters are compressed with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Compression {
    Deflate,
    Zstd,
}

/// What is among the clusters that the disk needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Clusters {
    /// None that is compressed.
    Plain,
    /// Some that are.
    Compressed,
}

impl Qcow2 {
    /// Reads what a file says of the disk in it, and checks all of it.
    pub(crate) fn open<M: FrameMemory>(
        memory: &M,
        file: &ImageFile,
    ) -> Result<(Self, Option<ParentLink>), ImageError> {
        let past_header = |past: PastEnd| past.of("the qcow2 header");
        let mut header = [0; V3_HEADER_BYTES];
        file.read(memory, 0, &mut header[..V2_HEADER_BYTES]).map_err(past_header)?;
        if !header.starts_with(&MAGIC) {
            return Err(ImageError::Missing { what: "qcow2 header" });
        }
        let version = match be_u32(&header, 4) {
            2 => Version::V2,
            3 => Version::V3,
            other => return Err(value("the qcow2's version", other, "2 and 3 are served")),
        };
        let cluster_bits = be_u32(&header, 20);
        if !(9..=21).contains(&cluster_bits) {
            return Err(value("log2 of its cluster size", cluster_bits, "it can be 9 to 21"));
        }
        if be_u32(&header, 32) != 0 {
            return Err(ImageError::Unsupported { what: "encryption" });
        }
        let mut qcow2 = Self {
            size_bytes: be_u64(&header, 24),
            version,
            entries: Entries::Standard,
            compression: Compression::Deflate,
            clusters: Clusters::Plain,
            cluster_bits,
            l1_at: be_u64(&header, 40),
        };
        if qcow2.size_bytes > MAX_SIZE_BYTES {
            return Err(ImageError::Value {
                what: "its size in bytes",
                value: qcow2.size_bytes,
                allowed: "a qcow2 has 2^63 - 1 at most",
            });
        }
        let header_bytes = match version {
            Version::V2 => V2_HEADER_BYTES as u64,
            Version::V3 => {
                file.read(memory, 0, &mut header).map_err(past_header)?;
                qcow2.read_v3(memory, file, &header)?
            }
        };
        let parent = qcow2.parent(memory, file, &header, header_bytes)?;
        qcow2.clusters = qcow2.check_tables(memory, file, be_u32(&header, 36).into())?;
        Ok((qcow2, parent))
    }

    /// Reads what only a header of version 3 has, and gives that header's length.
    fn read_v3<M: FrameMemory>(
        &mut self,
        memory: &M,
        file: &ImageFile,
        header: &[u8],
    ) -> Result<u64, ImageError> {
        let features = be_u64(header, 72);
        let has = |feature| features & feature != 0;
        if features & !incompatible::KNOWN != 0 {
            return Err(ImageError::UnknownFeatures { bits: features & !incompatible::KNOWN });
        }
        if has(incompatible::CORRUPT) {
            return Err(ImageError::MarkedCorrupt);
        }
        if has(incompatible::EXTERNAL_DATA) {
            return Err(ImageError::Unsupported { what: "an external data file" });
        }
        if has(incompatible::EXTENDED_L2) {
            if self.cluster_bits < 14 {
                const SUBCLUSTERS: &str = "log2 of its cluster size";
                return Err(value(
                    SUBCLUSTERS,
                    self.cluster_bits,
                    "with subclusters it is 14 to 21",
                ));
            }
            self.entries = Entries::Extended;
        }
        let header_bytes = be_u32(header, 100);
        let header_sizes = V3_HEADER_BYTES as u64..=self.cluster_bytes();
        if !header_sizes.contains(&header_bytes.into()) || !header_bytes.is_multiple_of(8) {
            const ALLOWED: &str = "it is a multiple of 8 from 104 to a cluster";
            return Err(value("the length of the qcow2 header", header_bytes, ALLOWED));
        }
        if has(incompatible::COMPRESSION_TYPE) {
            let [kind] = file.bytes(memory, 104).map_err(|past| past.of("the qcow2 header"))?;
            self.compression = match kind {
                0 => Compression::Deflate,
                1 => Compression::Zstd,
                other => return Err(value("its type of compression", other, "0 and 1 are known")),
            };
        }
        Ok(header_bytes.into())
    }

    /// Reads what the header says of the backing file.
    fn parent<M: FrameMemory>(
        &self,
        memory: &M,
        file: &ImageFile,
        header: &[u8],
        header_bytes: u64,
    ) -> Result<Option<ParentLink>, ImageError> {
        let (name_at, name_bytes) = (be_u64(header, 8), be_u32(header, 16));
        if name_at == 0 {
            return Ok(None);
        }
        let len = usize::try_from(name_bytes).unwrap_or(usize::MAX);
        if len == 0 || len > MAX_NAME_BYTES {
            const ALLOWED: &str = "it is 1 to 1023 bytes";
            return Err(value("the length of its backing file's name", name_bytes, ALLOWED));
        }
        let path = text(memory, file, name_at, len, "its backing file's name")?;
        // Extensions end where the name begins, if not before.
        let end = name_at.min(self.cluster_bytes());
        let name: String = without_folders(&path).into();
        let must = match self.backing_format(memory, file, header_bytes, end)?.as_deref() {
            None => ParentMust::Exist,
            Some("raw") => ParentMust::HaveFormat(ImageFormat::Raw),
            Some("qcow2") => ParentMust::HaveFormat(ImageFormat::Qcow2),
            Some("vpc") => ParentMust::HaveFormat(ImageFormat::Vhd),
            Some(other) => {
                return Err(ImageError::ParentUnserved { parent: name, wanted: other.into() });
            }
        };
        Ok(Some(ParentLink { name, must }))
    }

    /// Looks through the header's extensions, which begin at byte `at`.
    fn backing_format<M: FrameMemory>(
        &self,
        memory: &M,
        file: &ImageFile,
        mut at: u64,
        end: u64,
    ) -> Result<Option<String>, ImageError> {
        const WHAT: &str = "an extension of the qcow2 header";
        while at + 8 <= end {
            let kind = file.u32(memory, at).map_err(|past| past.of(WHAT))?;
            let len_bytes = file.u32(memory, at + 4).map_err(|past| past.of(WHAT))?;
            at += 8;
            if kind == 0 {
                break;
            }
            if u64::from(len_bytes) > end - at {
                let (file_bytes, len_bytes) = (end, len_bytes.into());
                return Err(ImageError::PastEnd { what: WHAT, at, len_bytes, file_bytes });
            }
            if kind == BACKING_FORMAT {
                let len = usize::try_from(len_bytes).unwrap_or(usize::MAX).min(MAX_NAME_BYTES);
                return text(memory, file, at, len, "its backing file's format").map(Some);
            }
            at += u64::from(len_bytes).next_multiple_of(8);
        }
        Ok(None)
    }

    /// The length of its compressed clusters when they are unpacked; `None` where it has none.
    pub(crate) fn compressed_bytes(&self) -> Option<usize> {
        // 2 MiB at most.
        (self.clusters == Clusters::Compressed).then_some(1 << self.cluster_bits)
    }

    const fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }
}

fn value(what: &'static str, value: impl Into<u64>, allowed: &'static str) -> ImageError {
    ImageError::Value { what, value: value.into(), allowed }
}

fn text<M: FrameMemory>(
    memory: &M,
    file: &ImageFile,
    at: u64,
    len: usize,
    what: &'static str,
) -> Result<String, ImageError> {
    let mut bytes = vec![0; len];
    file.read(memory, at, &mut bytes).map_err(|past| past.of(what))?;
    core::str::from_utf8(&bytes).map(ToString::to_string).map_err(|_| ImageError::NotText { what })
}
