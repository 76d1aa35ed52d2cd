//! Words and what can be wrong with one.

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
    /// A target of no words.
    #[error("the target is empty, expected ram,size=...")]
    EmptyTarget,
    /// The first word names no type of disk.
    #[error("no such disk, expected ram")]
    UnknownDisk,
    /// An option that this type of disk does not have.
    #[error("unknown option, expected {expected}")]
    UnknownOption {
        /// The options there are.
        expected: &'static str,
    },
    /// An option given twice.
    #[error("given twice")]
    Twice,
    /// An option that must be there is not.
    #[error("needs {option}")]
    Missing {
        /// The option.
        option: &'static str,
    },
    /// A size that is none.
    #[error("{0}")]
    Size(SizeError),
    /// A logical block size that there is not.
    #[error("expected block=512 or block=4096")]
    BlockSize,
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

/// The parts of `key=value`; the value is empty where there is no `=`.
pub(crate) fn key_value(word: &str) -> (&str, &str) {
    word.split_once('=').unwrap_or((word, ""))
}
