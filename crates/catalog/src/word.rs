//! Words and what can be wrong with one.

use core::fmt;
use core::str::FromStr;

use crate::size::SizeError;

/// A word that cannot be understood.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{word}`: {problem}")]
pub struct Error<'a> {
    /// The word.
    pub word: &'a str,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a word.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Problem {
    /// The word that says which disk names no type and nothing else that it could.
    #[error("no such disk, expected {0}")]
    UnknownDisk(Expected),
    /// An option that does not stand here.
    #[error("unknown option, expected {0}")]
    UnknownOption(Expected),
    /// A command that there is not.
    #[error("unknown command, expected {0}")]
    UnknownCommand(Expected),
    /// One of a few values, and none of them.
    #[error("expected {0}")]
    Value(Expected),
    /// An option given twice.
    #[error("given twice")]
    Twice,
    /// What must follow does not.
    #[error("needs {0}")]
    Missing(&'static str),
    /// A command has fewer words.
    #[error("one word too many")]
    Surplus,
    /// No name.
    #[error(
        "not a name, expected 1 to 40 of A-Z a-z 0-9 . _ - that begin with a letter or a digit"
    )]
    Name,
    /// A name that means a type of disk.
    #[error("not a name but a type of disk")]
    Reserved,
    /// No id of a control request.
    #[error("not an id, expected 1 to 16 of A-Z a-z 0-9 -")]
    Id,
    /// A size that is none.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// A size that is not whole logical blocks.
    #[error("not a multiple of the block size, {block_bytes}")]
    PartOfABlock {
        /// Logical block size in bytes.
        block_bytes: u32,
    },
    /// A number that is none, or too large.
    #[error("expected a number from {min} to {max}")]
    Number {
        /// The least.
        min: u32,
        /// The largest.
        max: u32,
    },
}

impl Problem {
    pub(crate) const fn of(self, word: &str) -> Error<'_> {
        Error { word, problem: self }
    }
}

/// What could stand in a word's place; prints as "a, b or c".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Expected(pub &'static [&'static str]);

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last = self.0.len().saturating_sub(1);
        for (n, word) in self.0.iter().enumerate() {
            f.write_str(match n {
                0 => "",
                _ if n == last => " or ",
                _ => ", ",
            })?;
            f.write_str(word)?;
        }
        Ok(())
    }
}

/// The parts of `key=value`: the key with its `=`, so that `ro` and `ro=` are two keys.
pub(crate) fn key_value(word: &str) -> (&str, &str) {
    let value_at = word.find('=').map_or(word.len(), |at| at + 1);
    word.split_at_checked(value_at).unwrap_or((word, ""))
}

/// The words of a disk: between commas, blanks around a word do not count.
pub(crate) fn disk_words(text: &str) -> impl Iterator<Item = &str> + Clone {
    text.split(',').map(str::trim_ascii)
}

/// Reads decimal digits.
pub(crate) fn number<N>(text: &str, min: N, max: N) -> Result<N, Problem>
where
    N: FromStr + PartialOrd + Into<u32>,
{
    let number = text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    match number {
        Some(number) if min <= number && number <= max => Ok(number),
        _ => Err(Problem::Number { min: min.into(), max: max.into() }),
    }
}
