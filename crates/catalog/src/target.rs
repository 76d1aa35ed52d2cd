//! A disk's `target=`.

use crate::size;
use crate::word::{Error, Problem, key_value};

/// What a vbd shall serve, as `target=` in the guest's disk line says it.
///
/// Words separated by commas; blanks around a word do not count. The first names the disk, the
/// others are its options. No colon can stand in it: libxl cuts off what is before one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// `ram,size=SIZE[,block=512|4096]`: a thin RAM disk that lives as long as its vbd.
    Ram {
        /// Capacity in bytes; whole logical blocks, at least one.
        size_bytes: u64,
        /// Logical block size in bytes, 512 or 4096.
        block_bytes: u32,
    },
}

const RAM_OPTIONS: &str = "size= or block=";

impl Target {
    /// Reads a target.
    ///
    /// # Errors
    /// The first word that cannot be understood.
    pub fn parse(text: &str) -> Result<Self, Error<'_>> {
        let mut words = text.split(',').map(str::trim);
        let disk = words.next().unwrap_or_default();
        match disk {
            "" => Err(Problem::EmptyTarget.of(disk)),
            "ram" => parse_ram(disk, words),
            _ => Err(Problem::UnknownDisk.of(disk)),
        }
    }
}

fn parse_ram<'a>(
    disk: &'a str,
    options: impl Iterator<Item = &'a str>,
) -> Result<Target, Error<'a>> {
    let (mut size_bytes, mut block_bytes) = (None, None);
    for option in options {
        let (first_time, problem) = match key_value(option) {
            ("size", value) => match size::parse(value) {
                Ok(bytes) => (size_bytes.replace((bytes, option)).is_none(), None),
                Err(error) => (true, Some(Problem::Size(error))),
            },
            ("block", "512") => (block_bytes.replace(512).is_none(), None),
            ("block", "4096") => (block_bytes.replace(4096).is_none(), None),
            ("block", _) => (true, Some(Problem::BlockSize)),
            _ => (true, Some(Problem::UnknownOption { expected: RAM_OPTIONS })),
        };
        if let Some(problem) = problem.or((!first_time).then_some(Problem::Twice)) {
            return Err(problem.of(option));
        }
    }
    let block_bytes = block_bytes.unwrap_or(512);
    let (size_bytes, option) = size_bytes.ok_or(Problem::Missing { option: "size=" }.of(disk))?;
    if !size_bytes.is_multiple_of(block_bytes.into()) {
        return Err(Problem::PartOfABlock { block_bytes }.of(option));
    }
    Ok(Target::Ram { size_bytes, block_bytes })
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::Target;
    use crate::{Error, Problem, SizeError};
    use std::string::ToString;

    fn refused(text: &str) -> (&str, Problem) {
        let Error { word, problem } = Target::parse(text).unwrap_err();
        (word, problem)
    }

    #[test]
    fn a_ram_disk_has_a_size() {
        let ram = Target::Ram { size_bytes: 8 << 20, block_bytes: 512 };
        assert_eq!(Target::parse("ram,size=8M"), Ok(ram));
        assert_eq!(Target::parse(" ram , size=8M "), Ok(ram));
        assert_eq!(Target::parse("ram,block=512,size=8M"), Ok(ram));
        let large = Target::Ram { size_bytes: 8 << 20, block_bytes: 4096 };
        assert_eq!(Target::parse("ram,size=8M,block=4096"), Ok(large));
    }

    #[test]
    fn the_offending_word_is_named() {
        assert_eq!(refused(""), ("", Problem::EmptyTarget));
        assert_eq!(refused(",size=8M"), ("", Problem::EmptyTarget));
        assert_eq!(refused("floppy,size=8M"), ("floppy", Problem::UnknownDisk));
        assert_eq!(refused("ram"), ("ram", Problem::Missing { option: "size=" }));
        assert_eq!(refused("ram,size=0"), ("size=0", Problem::Size(SizeError::Zero)));
        assert_eq!(refused("ram,size"), ("size", Problem::Size(SizeError::NotANumber)));
        assert_eq!(refused("ram,size=many"), ("size=many", Problem::Size(SizeError::NotANumber)));
        assert_eq!(refused("ram,size=8M,size=8M"), ("size=8M", Problem::Twice));
        assert_eq!(refused("ram,size=8M,block=1024"), ("block=1024", Problem::BlockSize));
        assert_eq!(refused("ram,block=512,block=4096,size=8M"), ("block=4096", Problem::Twice));
        let part = Problem::PartOfABlock { block_bytes: 4096 };
        assert_eq!(refused("ram,block=4096,size=6K"), ("size=6K", part));
        let unknown = Problem::UnknownOption { expected: "size= or block=" };
        assert_eq!(refused("ram,size=8M,cache=none"), ("cache=none", unknown));
        assert_eq!(refused("ram,size=8M,"), ("", unknown));
    }

    #[test]
    fn an_error_reads_as_a_sentence() {
        let text = |target| Target::parse(target).unwrap_err().to_string();
        assert_eq!(text("ram,size=0"), "`size=0`: a size of 0");
        assert_eq!(text("ram,size=8M,ro"), "`ro`: unknown option, expected size= or block=");
        assert_eq!(text("ram,size=513"), "`size=513`: 513 bytes are not a multiple of 512");
    }
}
