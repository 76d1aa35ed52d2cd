//! A disk's `target=`.

use crate::disk_type::{DiskType, Grammar, Overlay, first_word, is_type};
use crate::name::Name;
use crate::options::Options;
use crate::word::{Error, key_value};

/// What a vbd shall serve, as `target=` in the guest's disk line says it.
///
/// Words separated by commas; blanks around a word do not count. The first names the disk, the
/// others are its options. No colon can stand in it: libxl cuts off what is before one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Target<'a> {
    /// The disk.
    pub served: Served<'a>,
    /// `ro`: what the guest may do, whatever its disk line's `access=` says.
    pub access: Access,
    /// `grants=`: how the guest's pages are reached.
    pub grants: GrantUse,
    /// `handover`: what becomes of the vbd while another one writes to the disk.
    pub handover: Handover,
}

/// The disk that a vbd serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Served<'a> {
    /// One that lives as long as its vbd.
    Private(DiskType<'a>),
    /// One with a name, which lives as long as the domain.
    Named {
        /// A disk's name; an image's too, if there is no overlay.
        name: Name<'a>,
        /// `IMAGE,cow=NAME[,cap=SIZE]`: what the disk is made of if there is none of that name.
        overlay: Option<Overlay<'a>>,
    },
}

/// What a guest may do with a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Read.
    ReadOnly,
    /// Read and write.
    ReadWrite,
}

/// How the pages are reached that a guest grants for its data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GrantUse {
    /// `grants=persistent`: those of a guest that uses them again and again stay mapped
    /// (`feature-persistent`), the others' data is copied by the hypervisor.
    Persistent,
    /// `grants=copy`: all data is copied by the hypervisor (`GNTTABOP_copy`).
    Copy,
}

/// What becomes of a vbd whose disk another one writes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Handover {
    /// It is refused.
    Refused,
    /// It waits until the other has closed, as a migration within the host needs it.
    Waits,
}

/// The grammar of a disk that lives as long as its vbd.
const PRIVATE: Grammar = Grammar {
    first: &["ram", "null", "vbd", "a disk", "an image"],
    ram: &["size=", "cap=", "block=", "ro", "grants="],
    null: &["size=", "block=", "ro", "grants="],
    overlay: &["cow", "cap=", "ro", "grants="],
    vbd: &["dev=", "offset=", "size=", "cow", "cap=", "ro", "grants="],
    namespace: &["offset=", "size=", "cow", "cap=", "ro", "grants="],
};
const NAMED: &[&str] = &["cow", "cow=", "ro", "grants=", "handover"];
const NAMED_OVERLAY: &[&str] = &["cow=", "cap=", "ro", "grants=", "handover"];

impl<'a> Target<'a> {
    /// Reads a target.
    ///
    /// # Errors
    /// The first word that cannot be understood.
    pub fn parse(text: &'a str) -> Result<Self, Error<'a>> {
        let (first, words) = first_word(text);
        // The options may come in any order, so the one that says what they are about is sought.
        let is_private = is_type(first) || words.clone().any(|word| word == "cow");
        let (served, options) = if is_private {
            let (disk, options) = DiskType::read(first, words, &PRIVATE)?;
            (Served::Private(disk), options)
        } else {
            let name = Name::parse(first).map_err(|_| PRIVATE.unknown_disk().of(first))?;
            let is_overlay = words.clone().any(|word| key_value(word).0 == "cow=");
            let options = Options::read(words, if is_overlay { NAMED_OVERLAY } else { NAMED })?;
            let served = match options.cow_name {
                None => Served::Named { name, overlay: None },
                Some(overlay_name) => Served::Named {
                    name: overlay_name,
                    overlay: Some(Overlay { image: name, cap_bytes: options.cap_bytes }),
                },
            };
            (served, options)
        };
        Ok(Self {
            served,
            access: options.access.unwrap_or(Access::ReadWrite),
            grants: options.grants.unwrap_or(GrantUse::Persistent),
            handover: options.handover.unwrap_or(Handover::Refused),
        })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::{Access, GrantUse, Handover, Served, Target};
    use crate::{DiskType, Error, Expected, Name, Overlay, Problem, SizeError};
    use std::string::ToString;

    const RAM: DiskType<'_> =
        DiskType::Ram { size_bytes: 8 << 20, cap_bytes: 8 << 20, block_bytes: 512 };

    fn name(text: &str) -> Name<'_> {
        Name::parse(text).unwrap()
    }

    fn writable(served: Served<'_>) -> Target<'_> {
        Target {
            served,
            access: Access::ReadWrite,
            grants: GrantUse::Persistent,
            handover: Handover::Refused,
        }
    }

    fn refused(text: &str) -> (&str, Problem) {
        let Error { word, problem } = Target::parse(text).unwrap_err();
        (word, problem)
    }

    #[test]
    fn a_disk_type_is_the_vbds_own() {
        let target = writable(Served::Private(RAM));
        assert_eq!(Target::parse(" ram , size=8M "), Ok(target));
        let read_only = Target { access: Access::ReadOnly, ..target };
        assert_eq!(Target::parse("ram,ro,size=8M"), Ok(read_only));
        let null = DiskType::Null { size_bytes: 512, block_bytes: 512 };
        let target = Target { access: Access::ReadOnly, ..writable(Served::Private(null)) };
        assert_eq!(Target::parse("null,size=512,ro"), Ok(target));
        let overlay = Overlay { image: name("gold"), cap_bytes: Some(1024) };
        let target = writable(Served::Private(DiskType::Overlay(overlay)));
        assert_eq!(Target::parse("gold,cow,cap=1K"), Ok(target));
        assert_eq!(Target::parse("gold,cap=1K,cow"), Ok(target));
        let read_only = Target { access: Access::ReadOnly, ..target };
        assert_eq!(Target::parse("gold,ro,cow,cap=1K"), Ok(read_only));
        let upstream = DiskType::parse("vbd/xvdb,offset=1M,cow").unwrap();
        let target = Target { access: Access::ReadOnly, ..writable(Served::Private(upstream)) };
        assert_eq!(Target::parse("vbd/xvdb,ro,cow,offset=1M"), Ok(target));
        let namespace = DiskType::parse("nvme0n1,offset=1M,size=2M").unwrap();
        let target = writable(Served::Private(namespace));
        assert_eq!(Target::parse("nvme0n1,size=2M,offset=1M"), Ok(target));
    }

    #[test]
    fn a_name_alone_is_a_disk_or_an_image() {
        let target = writable(Served::Named { name: name("gold"), overlay: None });
        assert_eq!(Target::parse("gold"), Ok(target));
        let waits = Target { handover: Handover::Waits, ..target };
        assert_eq!(Target::parse("gold,handover"), Ok(waits));
        let both = Target { access: Access::ReadOnly, ..waits };
        assert_eq!(Target::parse("gold, ro, handover"), Ok(both));
    }

    #[test]
    fn an_overlay_may_have_a_name() {
        let overlay = Overlay { image: name("gold"), cap_bytes: None };
        let target = writable(Served::Named { name: name("fork"), overlay: Some(overlay) });
        assert_eq!(Target::parse("gold,cow=fork"), Ok(target));
        let overlay = Overlay { cap_bytes: Some(4096), ..overlay };
        let target = Target {
            served: Served::Named { name: name("fork"), overlay: Some(overlay) },
            access: Access::ReadOnly,
            grants: GrantUse::Copy,
            handover: Handover::Waits,
        };
        assert_eq!(Target::parse("gold,handover,cap=4K,cow=fork,ro,grants=copy"), Ok(target));
    }

    #[test]
    fn any_disk_says_how_grants_are_used() {
        for disk in ["ram,size=8M", "null,size=8M", "vbd/xvdb", "gold,cow", "gold,cow=fork", "gold"]
        {
            let parse = |grants: &str| {
                let text = std::format!("{disk},grants={grants}");
                Target::parse(&text).unwrap().grants
            };
            assert_eq!(Target::parse(disk).unwrap().grants, GrantUse::Persistent);
            assert_eq!(parse("persistent"), GrantUse::Persistent);
            assert_eq!(parse("copy"), GrantUse::Copy);
        }
        let value = Problem::Value(Expected(&["grants=copy", "grants=persistent"]));
        assert_eq!(refused("gold,grants=map"), ("grants=map", value));
        assert_eq!(refused("gold,grants="), ("grants=", value));
        assert_eq!(refused("gold,grants=copy,grants=copy"), ("grants=copy", Problem::Twice));
    }

    #[test]
    fn the_offending_word_is_named() {
        let disk = Problem::UnknownDisk(Expected(&["ram", "null", "vbd", "a disk", "an image"]));
        assert_eq!(refused(""), ("", disk));
        assert_eq!(refused(",size=8M"), ("", disk));
        assert_eq!(refused("vbds/0"), ("vbds/0", disk));
        assert_eq!(refused("nvme,cow"), ("nvme", disk));
        let ram = Problem::UnknownOption(Expected(&["size=", "cap=", "block=", "ro", "grants="]));
        assert_eq!(refused("ram,size=8M,cow"), ("cow", ram));
        assert_eq!(refused("ram,size=8M,handover"), ("handover", ram));
        let null = Problem::UnknownOption(Expected(&["size=", "block=", "ro", "grants="]));
        assert_eq!(refused("null,size=8M,cap=8M"), ("cap=8M", null));
        let vbd = &["dev=", "offset=", "size=", "cow", "cap=", "ro", "grants="];
        let vbd = Problem::UnknownOption(Expected(vbd));
        assert_eq!(refused("vbd/xvdb,handover"), ("handover", vbd));
        assert_eq!(refused("vbd/xvdb,cow=fork"), ("cow=fork", vbd));
        assert_eq!(refused("vbd,cow"), ("vbd", Problem::Missing("dev=")));
        let private = Problem::UnknownOption(Expected(&["cow", "cap=", "ro", "grants="]));
        assert_eq!(refused("gold,cow,handover"), ("handover", private));
        assert_eq!(refused("gold,cow=fork,cow"), ("cow=fork", private));
        let named = Problem::UnknownOption(Expected(&["cow", "cow=", "ro", "grants=", "handover"]));
        assert_eq!(refused("gold,cap=1M"), ("cap=1M", named));
        assert_eq!(refused("gold,"), ("", named));
        let overlay =
            Problem::UnknownOption(Expected(&["cow=", "cap=", "ro", "grants=", "handover"]));
        assert_eq!(refused("gold,cow=fork,size=1M"), ("size=1M", overlay));
        assert_eq!(refused("gold,cow="), ("cow=", Problem::Name));
        assert_eq!(refused("gold,cow=ram"), ("cow=ram", Problem::Reserved));
        assert_eq!(refused("gold,cow=a,cow=b"), ("cow=b", Problem::Twice));
        assert_eq!(refused("gold,cow=a,cap=0"), ("cap=0", Problem::Size(SizeError::Zero)));
        assert_eq!(refused("gold,ro,ro"), ("ro", Problem::Twice));
        assert_eq!(refused("gold,handover,handover"), ("handover", Problem::Twice));
    }

    #[test]
    fn an_error_reads_as_a_sentence() {
        let text = |target| Target::parse(target).unwrap_err().to_string();
        assert_eq!(text(""), "``: no such disk, expected ram, null, vbd, a disk or an image");
        assert_eq!(text("ram,size=0"), "`size=0`: a size of 0");
        assert_eq!(text("ram"), "`ram`: needs size=");
        assert_eq!(
            text("null,size=8M,rw"),
            "`rw`: unknown option, expected size=, block=, ro or grants="
        );
        assert_eq!(text("ram,size=513"), "`size=513`: 513 bytes are not a multiple of 512");
        assert_eq!(text("null,block=1"), "`block=1`: expected block=512 or block=4096");
        assert_eq!(text("gold,cow=ram"), "`cow=ram`: not a name but a type of disk");
    }
}
