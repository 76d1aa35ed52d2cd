//! The options behind the word that says which disk.

use crate::definition::ImageFormat;
use crate::name::Name;
use crate::size;
use crate::target::{Access, GrantUse, Handover};
use crate::virtual_device::VirtualDevice;
use crate::word::{Error, Expected, Problem, key_value, number};

/// What options said; `None` is nothing.
#[derive(Default)]
pub(crate) struct Options<'a> {
    /// `size=`, with the word.
    pub(crate) size_bytes: Option<(u64, &'a str)>,
    pub(crate) offset_bytes: Option<u64>,
    /// `dev=`
    pub(crate) device: Option<VirtualDevice>,
    pub(crate) cap_bytes: Option<u64>,
    pub(crate) block_bytes: Option<u32>,
    pub(crate) cow: Option<()>,
    /// `cow=NAME`
    pub(crate) cow_name: Option<Name<'a>>,
    pub(crate) access: Option<Access>,
    pub(crate) grants: Option<GrantUse>,
    pub(crate) handover: Option<Handover>,
    pub(crate) module: Option<u32>,
    pub(crate) file: Option<&'a str>,
    pub(crate) format: Option<ImageFormat>,
}

impl<'a> Options<'a> {
    /// Reads options, each at most once, in any order. `allowed` are the keys that may stand here.
    pub(crate) fn read(
        words: impl Iterator<Item = &'a str>,
        allowed: &'static [&'static str],
    ) -> Result<Self, Error<'a>> {
        let mut options = Self::default();
        for word in words {
            options.read_one(word, allowed).map_err(|problem| problem.of(word))?;
        }
        Ok(options)
    }

    fn read_one(&mut self, word: &'a str, allowed: &'static [&'static str]) -> Result<(), Problem> {
        let (key, value) = key_value(word);
        let unknown = Problem::UnknownOption(Expected(allowed));
        match key {
            _ if !allowed.contains(&key) => Err(unknown),
            "size=" => once(&mut self.size_bytes, (size::parse(value)?, word)),
            "offset=" => once(&mut self.offset_bytes, size::parse_offset(value)?),
            "dev=" => once(&mut self.device, VirtualDevice::parse(value)?),
            "cap=" => once(&mut self.cap_bytes, size::parse(value)?),
            "block=" => once(&mut self.block_bytes, block_bytes(value)?),
            "cow" => once(&mut self.cow, ()),
            "cow=" => once(&mut self.cow_name, Name::parse(value)?),
            "ro" => once(&mut self.access, Access::ReadOnly),
            "grants=" => once(&mut self.grants, grant_use(value)?),
            "handover" => once(&mut self.handover, Handover::Waits),
            "module=" => once(&mut self.module, number(value, 0, u32::MAX)?),
            "file=" if value.is_empty() => Err(Problem::Missing("a path")),
            "file=" => once(&mut self.file, value),
            "format=" => once(&mut self.format, ImageFormat::parse(value)?),
            _ => Err(unknown),
        }
    }
}

fn once<T>(said: &mut Option<T>, value: T) -> Result<(), Problem> {
    match said.replace(value) {
        None => Ok(()),
        Some(_) => Err(Problem::Twice),
    }
}

fn grant_use(text: &str) -> Result<GrantUse, Problem> {
    match text {
        "copy" => Ok(GrantUse::Copy),
        "persistent" => Ok(GrantUse::Persistent),
        _ => Err(Problem::Value(Expected(&["grants=copy", "grants=persistent"]))),
    }
}

fn block_bytes(text: &str) -> Result<u32, Problem> {
    match text {
        "512" => Ok(512),
        "4096" => Ok(4096),
        _ => Err(Problem::Value(Expected(&["block=512", "block=4096"]))),
    }
}
