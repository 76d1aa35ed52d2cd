//! Types of disks, the part that `disk=`, `target=` and `create` have in common.

use crate::ground::{Ground, Namespace};
use crate::name::Name;
use crate::options::Options;
use crate::virtual_device::VirtualDevice;
use crate::word::{Error, Expected, Problem, disk_words};

/// A disk that is made when it is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskType<'a> {
    /// `ram,size=SIZE[,cap=SIZE][,block=512|4096]`: a thin RAM disk.
    Ram {
        /// Capacity in bytes; whole logical blocks, at least one.
        size_bytes: u64,
        /// How much of it may be stored at a time, in bytes; as much as the capacity if not said.
        cap_bytes: u64,
        /// Logical block size in bytes, 512 or 4096.
        block_bytes: u32,
    },
    /// `null,size=SIZE[,block=512|4096]`: answers at once and keeps nothing.
    Null {
        /// Capacity in bytes; whole logical blocks, at least one.
        size_bytes: u64,
        /// Logical block size in bytes, 512 or 4096.
        block_bytes: u32,
    },
    /// `IMAGE,cow[,cap=SIZE]`: the image, with what is written kept apart.
    Overlay(Overlay<'a>),
    /// `vbd/DEV[,offset=SIZE][,size=SIZE][,cow[,cap=SIZE]]`, or `vbd,dev=DEV…`: a disk that another
    /// domain serves to ours. `nvme0n1[,offset=SIZE][,size=SIZE][,cow[,cap=SIZE]]`: a namespace of a
    /// controller that is passed through.
    Vbd(Upstream),
}

/// A disk that another domain serves to ours, or a part of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Upstream {
    /// What it is on: `dev=`, which of our own vbds; or a namespace.
    pub device: Ground,
    /// Which part of its disk.
    pub slice: Slice,
    /// `cow`: what is written is kept apart, and the disk is only read.
    pub cow: Option<Cow>,
}

/// A part of a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slice {
    /// `offset=`: where it begins, in bytes, whole sectors; 0 if not said.
    pub offset_bytes: u64,
    /// `size=`: its length in bytes, whole sectors, at least one; up to the disk's end if not said.
    pub size_bytes: Option<u64>,
}

/// What is kept apart of a disk that is only read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cow {
    /// `cap=`: how much may be stored at a time, in bytes, if that is limited.
    pub cap_bytes: Option<u64>,
}

/// What is written to a disk whose base has a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Overlay<'a> {
    /// The base: an image, or a disk of type `vbd`.
    pub image: Name<'a>,
    /// How much may be stored at a time, in bytes, if that is limited.
    pub cap_bytes: Option<u64>,
}

/// What may stand where a disk is described: which first words, and which options behind each.
pub(crate) struct Grammar {
    pub(crate) first: &'static [&'static str],
    pub(crate) ram: &'static [&'static str],
    pub(crate) null: &'static [&'static str],
    pub(crate) overlay: &'static [&'static str],
    pub(crate) vbd: &'static [&'static str],
    pub(crate) namespace: &'static [&'static str],
}

impl Grammar {
    pub(crate) const fn unknown_disk(&self) -> Problem {
        Problem::UnknownDisk(Expected(self.first))
    }
}

/// The grammar of a disk alone.
pub(crate) const DISK: Grammar = Grammar {
    first: &["ram", "null", "vbd", "an image"],
    ram: &["size=", "cap=", "block="],
    null: &["size=", "block="],
    overlay: &["cow", "cap="],
    vbd: &["dev=", "offset=", "size=", "cow", "cap="],
    namespace: &["offset=", "size=", "cow", "cap="],
};

impl<'a> DiskType<'a> {
    /// Reads the disk that `create` shall make.
    pub(crate) fn parse(text: &'a str) -> Result<Self, Error<'a>> {
        let (first, options) = first_word(text);
        Self::read(first, options, &DISK).map(|(disk, _)| disk)
    }

    /// Reads a disk's words. The options come along for those that are not the disk's own.
    pub(crate) fn read(
        first: &'a str,
        options: impl Iterator<Item = &'a str>,
        grammar: &Grammar,
    ) -> Result<(Self, Options<'a>), Error<'a>> {
        if let Some(namespace) = Namespace::parse(first) {
            let options = Options::read(options, grammar.namespace)?;
            return Ok((Self::Vbd(part(first, Ground::Namespace(namespace), &options)?), options));
        }
        Ok(match first {
            _ if is_vbd(first) => {
                let options = Options::read(options, grammar.vbd)?;
                (Self::Vbd(upstream(first, &options)?), options)
            }
            "ram" => {
                let options = Options::read(options, grammar.ram)?;
                let (size_bytes, block_bytes) = capacity(first, &options)?;
                let cap_bytes = options.cap_bytes.unwrap_or(size_bytes);
                (Self::Ram { size_bytes, cap_bytes, block_bytes }, options)
            }
            "null" => {
                let options = Options::read(options, grammar.null)?;
                let (size_bytes, block_bytes) = capacity(first, &options)?;
                (Self::Null { size_bytes, block_bytes }, options)
            }
            _ => {
                let image = Name::parse(first).map_err(|_| grammar.unknown_disk().of(first))?;
                let options = Options::read(options, grammar.overlay)?;
                options.cow.ok_or(Problem::Missing("cow").of(first))?;
                (Self::Overlay(Overlay { image, cap_bytes: options.cap_bytes }), options)
            }
        })
    }
}

/// Whether a first word begins a disk of type `vbd`.
fn is_vbd(first: &str) -> bool {
    first == "vbd" || first.starts_with("vbd/")
}

/// Whether a first word is a type of disk.
pub(crate) fn is_type(first: &str) -> bool {
    matches!(first, "ram" | "null") || is_vbd(first) || Namespace::parse(first).is_some()
}

/// An upstream disk. Which vbd it is stands behind the type's slash or in `dev=`.
fn upstream<'a>(first: &'a str, options: &Options<'a>) -> Result<Upstream, Error<'a>> {
    let device = match (first.strip_prefix("vbd/"), options.device) {
        (None, device) => device.ok_or(Problem::Missing("dev=").of(first))?,
        (Some(_), Some(_)) => return Err(Problem::Twice.of(first)),
        (Some(name), None) => VirtualDevice::parse(name).map_err(|problem| problem.of(first))?,
    };
    part(first, Ground::Vbd(device), options)
}

/// All or a part of a disk that is kept elsewhere.
fn part<'a>(first: &'a str, device: Ground, options: &Options<'a>) -> Result<Upstream, Error<'a>> {
    let slice = Slice {
        offset_bytes: options.offset_bytes.unwrap_or(0),
        size_bytes: options.size_bytes.map(|(bytes, _)| bytes),
    };
    let cow = match (options.cow, options.cap_bytes) {
        (Some(()), cap_bytes) => Some(Cow { cap_bytes }),
        (None, Some(_)) => return Err(Problem::Missing("cow").of(first)),
        (None, None) => None,
    };
    Ok(Upstream { device, slice, cow })
}

/// Size and logical block size in bytes.
fn capacity<'a>(first: &'a str, options: &Options<'a>) -> Result<(u64, u32), Error<'a>> {
    let (size_bytes, word) = options.size_bytes.ok_or(Problem::Missing("size=").of(first))?;
    let block_bytes = options.block_bytes.unwrap_or(512);
    if !size_bytes.is_multiple_of(block_bytes.into()) {
        return Err(Problem::PartOfABlock { block_bytes }.of(word));
    }
    Ok((size_bytes, block_bytes))
}

/// A disk's first word and the ones behind it.
pub(crate) fn first_word(text: &str) -> (&str, impl Iterator<Item = &str> + Clone) {
    let mut words = disk_words(text);
    // A split has at least one part.
    (words.next().unwrap_or(text), words)
}

#[cfg(test)]
mod tests {
    use super::{Cow, DiskType, Overlay, Slice, Upstream};
    use crate::{Error, Expected, Ground, Name, Namespace, Problem, SizeError, VirtualDevice};

    const BLOCKS: Problem = Problem::Value(Expected(&["block=512", "block=4096"]));

    fn refused(text: &str) -> (&str, Problem) {
        let Error { word, problem } = DiskType::parse(text).unwrap_err();
        (word, problem)
    }

    #[test]
    fn a_ram_disk_has_a_size_which_is_its_cap() {
        let ram = |size_bytes, cap_bytes, block_bytes| {
            Ok(DiskType::Ram { size_bytes, cap_bytes, block_bytes })
        };
        assert_eq!(DiskType::parse("ram,size=8M"), ram(8 << 20, 8 << 20, 512));
        assert_eq!(DiskType::parse(" ram , size=8M "), ram(8 << 20, 8 << 20, 512));
        assert_eq!(DiskType::parse("ram,block=512,size=8M"), ram(8 << 20, 8 << 20, 512));
        assert_eq!(DiskType::parse("ram,size=8M,block=4096"), ram(8 << 20, 8 << 20, 4096));
        assert_eq!(DiskType::parse("ram,cap=1M,size=8M"), ram(8 << 20, 1 << 20, 512));
        assert_eq!(DiskType::parse("ram,size=8M,cap=512"), ram(8 << 20, 512, 512));
        assert_eq!(DiskType::parse("ram,size=8M,cap=16M"), ram(8 << 20, 16 << 20, 512));
    }

    #[test]
    fn a_null_disk_has_no_cap() {
        let null = DiskType::Null { size_bytes: 1 << 30, block_bytes: 4096 };
        assert_eq!(DiskType::parse("null,size=1G,block=4096"), Ok(null));
        let null = DiskType::Null { size_bytes: 512, block_bytes: 512 };
        assert_eq!(DiskType::parse("null,size=512"), Ok(null));
        let unknown = Problem::UnknownOption(Expected(&["size=", "block="]));
        assert_eq!(refused("null,size=1G,cap=1M"), ("cap=1M", unknown));
        assert_eq!(refused("null"), ("null", Problem::Missing("size=")));
    }

    #[test]
    fn a_namespace_is_a_disk_or_parts_of_one() {
        let device = Ground::Namespace(Namespace { controller: 0, nsid: 1 });
        let whole = Slice { offset_bytes: 0, size_bytes: None };
        let upstream = Upstream { device, slice: whole, cow: None };
        assert_eq!(DiskType::parse("nvme0n1"), Ok(DiskType::Vbd(upstream)));
        let slice = Slice { offset_bytes: 1 << 20, size_bytes: Some(4096) };
        let part = DiskType::Vbd(Upstream { slice, ..upstream });
        assert_eq!(DiskType::parse("nvme0n1,size=4K,offset=1M"), Ok(part));
        let cow = Some(Cow { cap_bytes: Some(1 << 20) });
        let overlay = DiskType::Vbd(Upstream { cow, ..upstream });
        assert_eq!(DiskType::parse("nvme0n1,cow,cap=1M"), Ok(overlay));
        assert_eq!(refused("nvme0n1,cap=1M"), ("nvme0n1", Problem::Missing("cow")));
        let unknown = Problem::UnknownOption(Expected(&["offset=", "size=", "cow", "cap="]));
        assert_eq!(refused("nvme0n1,dev=xvdb"), ("dev=xvdb", unknown));
    }

    #[test]
    fn an_overlay_has_an_image() {
        let image = Name::parse("gold.img").unwrap();
        let overlay = |cap_bytes| Ok(DiskType::Overlay(Overlay { image, cap_bytes }));
        assert_eq!(DiskType::parse("gold.img,cow"), overlay(None));
        assert_eq!(DiskType::parse("gold.img,cow,cap=1M"), overlay(Some(1 << 20)));
        assert_eq!(DiskType::parse("gold.img,cap=1M,cow"), overlay(Some(1 << 20)));
        assert_eq!(refused("gold.img"), ("gold.img", Problem::Missing("cow")));
        assert_eq!(refused("gold.img,cap=1M"), ("gold.img", Problem::Missing("cow")));
        let unknown = Problem::UnknownOption(Expected(&["cow", "cap="]));
        for option in ["cow=fork", "cow=", "size=1M", "ro", "handover", "Cow", "cap"] {
            assert_eq!(DiskType::parse(&["gold,cow,", option].concat()), Err(unknown.of(option)));
        }
        assert_eq!(refused("gold,cow,cow"), ("cow", Problem::Twice));
        assert_eq!(refused("gold,cow,cap=0"), ("cap=0", Problem::Size(SizeError::Zero)));
    }

    #[test]
    fn an_upstream_disk_is_a_vbd_of_our_own() {
        let device = Ground::Vbd(VirtualDevice::parse("xvdb").unwrap());
        let whole = Slice { offset_bytes: 0, size_bytes: None };
        let upstream = Upstream { device, slice: whole, cow: None };
        assert_eq!(DiskType::parse("vbd,dev=xvdb"), Ok(DiskType::Vbd(upstream)));
        assert_eq!(DiskType::parse("vbd,dev=51728"), Ok(DiskType::Vbd(upstream)));
        assert_eq!(DiskType::parse(" vbd/xvdb ,offset=0"), Ok(DiskType::Vbd(upstream)));
        let slice = Slice { offset_bytes: 1 << 30, size_bytes: Some(4096) };
        let part = DiskType::Vbd(Upstream { slice, ..upstream });
        assert_eq!(DiskType::parse("vbd/xvdb,size=4K,offset=1G"), Ok(part));
        assert_eq!(DiskType::parse("vbd,offset=1G,dev=xvdb,size=4K"), Ok(part));
        for (text, cap_bytes) in [("vbd/xvdb,cow", None), ("vbd/xvdb,cow,cap=1M", Some(1 << 20))] {
            let cow = Some(Cow { cap_bytes });
            assert_eq!(DiskType::parse(text), Ok(DiskType::Vbd(Upstream { cow, ..upstream })));
        }

        assert_eq!(refused("vbd"), ("vbd", Problem::Missing("dev=")));
        assert_eq!(refused("vbd,cow"), ("vbd", Problem::Missing("dev=")));
        assert_eq!(refused("vbd/xvdb,dev=xvdb"), ("vbd/xvdb", Problem::Twice));
        assert_eq!(refused("vbd/xvdb,cap=1M"), ("vbd/xvdb", Problem::Missing("cow")));
        let device = Problem::Value(Expected(&["a name such as xvdb", "a number below 2^31"]));
        for text in ["vbd/", "vbd/0/51712", "vbd/hda", "vbd/xvdb1b"] {
            assert_eq!(refused(text), (text, device));
        }
        assert_eq!(refused("vbd,dev=sda"), ("dev=sda", device));
        assert_eq!(refused("vbd,dev=xvdb,dev=xvdb"), ("dev=xvdb", Problem::Twice));
        assert_eq!(refused("vbd/xvdb,size=0"), ("size=0", Problem::Size(SizeError::Zero)));
        let part = Problem::Size(SizeError::PartOfASector { bytes: 1 });
        assert_eq!(refused("vbd/xvdb,offset=1"), ("offset=1", part));
        let unknown = Expected(&["dev=", "offset=", "size=", "cow", "cap="]);
        for option in ["block=512", "ro", "cow=fork", "Dev=xvdb", ""] {
            let error = Problem::UnknownOption(unknown).of(option);
            assert_eq!(DiskType::parse(&["vbd/xvdb,", option].concat()), Err(error));
        }
    }

    #[test]
    fn the_offending_word_is_named() {
        let disk = Problem::UnknownDisk(Expected(&["ram", "null", "vbd", "an image"]));
        for text in ["", "nvme", "a/b", "size=8M", "ram size=8M"] {
            assert_eq!(refused(text), (text, disk));
        }
        assert_eq!(refused(",size=8M"), ("", disk));
        assert_eq!(refused("ram"), ("ram", Problem::Missing("size=")));
        assert_eq!(refused("ram,size=0"), ("size=0", Problem::Size(SizeError::Zero)));
        assert_eq!(refused("ram,size="), ("size=", Problem::Size(SizeError::NotANumber)));
        assert_eq!(refused("ram,size=many"), ("size=many", Problem::Size(SizeError::NotANumber)));
        assert_eq!(refused("ram,size=8M,size=8M"), ("size=8M", Problem::Twice));
        assert_eq!(refused("ram,size=8M,cap=1M,cap=2M"), ("cap=2M", Problem::Twice));
        assert_eq!(refused("ram,block=512,block=4096,size=8M"), ("block=4096", Problem::Twice));
        assert_eq!(refused("ram,size=8M,block=1024"), ("block=1024", BLOCKS));
        assert_eq!(refused("ram,block=,size=0"), ("block=", BLOCKS));
        let part = Problem::PartOfABlock { block_bytes: 4096 };
        assert_eq!(refused("ram,block=4096,size=6K"), ("size=6K", part));
        assert_eq!(refused("null,size=6K,block=4096"), ("size=6K", part));
        let unknown = Problem::UnknownOption(Expected(&["size=", "cap=", "block="]));
        assert_eq!(refused("ram,size=8M,cache=none"), ("cache=none", unknown));
        assert_eq!(refused("ram,size"), ("size", unknown));
        assert_eq!(refused("ram,size=8M,"), ("", unknown));
        assert_eq!(refused("ram,size=8M,ro"), ("ro", unknown));
    }
}
