//! The command line's `disk=` words.

use crate::disk_type::{DISK, DiskType, Grammar, first_word};
use crate::name::Name;
use crate::options::Options;
use crate::word::{Error, Expected, Problem, disk_words, key_value};

/// `disk=NAME,…`: a disk or an image that is there from the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Definition<'a> {
    /// Its name.
    pub name: Name<'a>,
    /// What it is.
    pub defined: Defined<'a>,
}

/// What a `disk=` word defines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Defined<'a> {
    /// A disk.
    Disk(DiskType<'a>),
    /// `module=N[,file=PATH][,format=raw|vhd|qcow2]`: an image.
    Image {
        /// Which boot module holds it, from 0.
        module: u32,
        /// Which member of the archive that the module is; `None` if the module is the image.
        file: Option<&'a str>,
        /// Its format; `None` if the image's own magic tells.
        format: Option<ImageFormat>,
    },
}

/// How an image stores its disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ImageFormat {
    /// Byte by byte.
    Raw,
    /// VHD: fixed, dynamic or differencing.
    Vhd,
    /// qcow2, version 2 or 3.
    Qcow2,
}

impl ImageFormat {
    pub(crate) fn parse(text: &str) -> Result<Self, Problem> {
        match text {
            "raw" => Ok(Self::Raw),
            "vhd" => Ok(Self::Vhd),
            "qcow2" => Ok(Self::Qcow2),
            _ => Err(Problem::Value(Expected(&["format=raw", "format=vhd", "format=qcow2"]))),
        }
    }
}

/// What may stand behind `disk=NAME`.
const DEFINED: Grammar = Grammar { first: &["ram", "null", "vbd", "an image", "module="], ..DISK };
const IMAGE: &[&str] = &["module=", "file=", "format="];

/// The `disk=` words of a command line, in their order.
pub fn definitions(command_line: &str) -> impl Iterator<Item = Result<Definition<'_>, Error<'_>>> {
    let words = command_line.split_ascii_whitespace();
    words.filter_map(|word| word.strip_prefix("disk=")).map(Definition::parse)
}

impl<'a> Definition<'a> {
    fn parse(text: &'a str) -> Result<Self, Error<'a>> {
        let (name, disk) = text.split_once(',').unwrap_or((text, ""));
        let read_name = Name::parse(name).map_err(|problem| problem.of(name))?;
        if disk.is_empty() {
            return Err(Problem::Missing("a type of disk").of(name));
        }
        Ok(Self { name: read_name, defined: Defined::parse(disk)? })
    }
}

impl<'a> Defined<'a> {
    fn parse(text: &'a str) -> Result<Self, Error<'a>> {
        let (first, words) = first_word(text);
        if key_value(first).0 != "module=" {
            return DiskType::read(first, words, &DEFINED).map(|(disk, _)| Self::Disk(disk));
        }
        let Options { module, file, format, .. } = Options::read(disk_words(text), IMAGE)?;
        // It is the first word.
        let module = module.ok_or(Problem::Missing("module=").of(first))?;
        Ok(Self::Image { module, file, format })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::{Defined, Definition, ImageFormat, definitions};
    use crate::{DiskType, Error, Expected, Name, Overlay, Problem};
    use std::string::ToString;
    use std::vec::Vec;

    fn defined(text: &str) -> Result<Defined<'_>, Error<'_>> {
        Definition::parse(text).map(|Definition { name, defined }| {
            assert_eq!(name.as_str(), "d");
            defined
        })
    }

    fn refused(text: &str) -> (&str, Problem) {
        let Error { word, problem } = Definition::parse(text).unwrap_err();
        (word, problem)
    }

    #[test]
    fn the_disk_words_of_a_command_line() {
        let line = "queues=1 disk=gold,module=0\tmydisk=1 disk=1/2,ram disk=d,null,size=4K disk";
        let all: Vec<_> = definitions(line).collect();
        let image = Defined::Image { module: 0, file: None, format: None };
        let null = Defined::Disk(DiskType::Null { size_bytes: 4096, block_bytes: 512 });
        assert_eq!(
            all,
            [
                Ok(Definition { name: Name::parse("gold").unwrap(), defined: image }),
                Err(Problem::Name.of("1/2")),
                Ok(Definition { name: Name::parse("d").unwrap(), defined: null }),
            ]
        );
    }

    #[test]
    fn a_disk_or_an_image() {
        let ram = DiskType::Ram { size_bytes: 4096, cap_bytes: 512, block_bytes: 4096 };
        assert_eq!(defined("d,ram,size=4K,cap=512,block=4096"), Ok(Defined::Disk(ram)));
        let overlay = Overlay { image: Name::parse("gold").unwrap(), cap_bytes: None };
        assert_eq!(defined("d,gold,cow"), Ok(Defined::Disk(DiskType::Overlay(overlay))));
        let Ok(DiskType::Vbd(upstream)) = DiskType::parse("vbd/xvdb,cow") else { panic!() };
        assert_eq!(defined("d,vbd,dev=xvdb,cow"), Ok(Defined::Disk(DiskType::Vbd(upstream))));
        let image = |module, file, format| Ok(Defined::Image { module, file, format });
        assert_eq!(defined("d,module=4294967295"), image(u32::MAX, None, None));
        let text = "d,module=1,format=vhd,file=a/b=c.vhd";
        assert_eq!(defined(text), image(1, Some("a/b=c.vhd"), Some(ImageFormat::Vhd)));
        assert_eq!(defined("d,module=0,format=raw"), image(0, None, Some(ImageFormat::Raw)));
        assert_eq!(defined("d,module=0,format=qcow2"), image(0, None, Some(ImageFormat::Qcow2)));
    }

    #[test]
    fn the_offending_word_is_named() {
        assert_eq!(refused(""), ("", Problem::Name));
        assert_eq!(refused(",ram,size=1M"), ("", Problem::Name));
        assert_eq!(refused("ram,size=1M"), ("ram", Problem::Reserved));
        assert_eq!(refused("d"), ("d", Problem::Missing("a type of disk")));
        assert_eq!(refused("d,"), ("d", Problem::Missing("a type of disk")));
        let disk = Problem::UnknownDisk(Expected(&["ram", "null", "vbd", "an image", "module="]));
        assert_eq!(refused("d,file=a,module=0"), ("file=a", disk));
        assert_eq!(refused("d,module"), ("module", Problem::Missing("cow")));
        let number = Problem::Number { min: 0, max: u32::MAX };
        assert_eq!(refused("d,module="), ("module=", number));
        assert_eq!(refused("d,module=-1"), ("module=-1", number));
        assert_eq!(refused("d,module=4294967296"), ("module=4294967296", number));
        assert_eq!(refused("d,module=0,module=1"), ("module=1", Problem::Twice));
        assert_eq!(refused("d,module=0,file="), ("file=", Problem::Missing("a path")));
        assert_eq!(refused("d,module=0,file=a,file=b"), ("file=b", Problem::Twice));
        let formats = Problem::Value(Expected(&["format=raw", "format=vhd", "format=qcow2"]));
        assert_eq!(refused("d,module=0,format=vmdk"), ("format=vmdk", formats));
        let twice = "d,module=0,format=raw,format=vhd";
        assert_eq!(refused(twice), ("format=vhd", Problem::Twice));
        let image = Problem::UnknownOption(Expected(&["module=", "file=", "format="]));
        assert_eq!(refused("d,module=0,size=1M"), ("size=1M", image));
        let overlay = Problem::UnknownOption(Expected(&["cow", "cap="]));
        assert_eq!(refused("d,gold,cow=e"), ("cow=e", overlay));
    }

    #[test]
    fn an_error_reads_as_a_sentence() {
        let text = |definition| Definition::parse(definition).unwrap_err().to_string();
        assert_eq!(text("d,module=0,file="), "`file=`: needs a path");
        assert_eq!(
            text("-,ram"),
            "`-`: not a name, expected 1 to 40 of A-Z a-z 0-9 . _ - that begin with a letter or a \
             digit"
        );
    }
}
