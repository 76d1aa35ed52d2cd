//! Types of disks, the part that `disk=`, `target=` and `create` have in common.

use crate::name::Name;
use crate::options::Options;
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
}

/// What is written to a disk whose base is an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Overlay<'a> {
    /// The base.
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
}

impl Grammar {
    pub(crate) const fn unknown_disk(&self) -> Problem {
        Problem::UnknownDisk(Expected(self.first))
    }
}

/// The grammar of a disk alone.
pub(crate) const DISK: Grammar = Grammar {
    first: &["ram", "null", "an image"],
    ram: &["size=", "cap=", "block="],
    null: &["size=", "block="],
    overlay: &["cow", "cap="],
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
        Ok(match first {
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
    use super::{DiskType, Overlay};
    use crate::{Error, Expected, Name, Problem, SizeError};

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
    fn the_offending_word_is_named() {
        let disk = Problem::UnknownDisk(Expected(&["ram", "null", "an image"]));
        for text in ["", "vbd", "nvme", "a/b", "size=8M", "ram size=8M"] {
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
