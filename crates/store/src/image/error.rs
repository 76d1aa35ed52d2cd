//! Why an image is refused.

use alloc::string::String;

use crate::image::ImageFormat;

/// Why there is no image in a file. A sentence about it that follows its name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ImageError {
    /// A disk of no bytes.
    #[error("it is a disk of no bytes")]
    Empty,
    /// Not what its format begins or ends with.
    #[error("it has no {what}")]
    Missing {
        /// What is not there.
        what: &'static str,
    },
    /// Past the end of the file: it is truncated, or the place is wrong.
    #[error(
        "{what}, {len_bytes} bytes at byte {at}, is past the end of a file of {file_bytes} bytes"
    )]
    PastEnd {
        /// What should be there.
        what: &'static str,
        /// Its first byte.
        at: u64,
        /// Its length.
        len_bytes: u64,
        /// The file's length.
        file_bytes: u64,
    },
    /// Not at a multiple of what the format asks for.
    #[error("{what} is at byte {at}, which is no multiple of {align_bytes}")]
    Unaligned {
        /// What lies there.
        what: &'static str,
        /// Its first byte.
        at: u64,
        /// What it should be a multiple of.
        align_bytes: u64,
    },
    /// Two parts of the file share bytes.
    #[error("two of its parts overlap at byte {at}")]
    Overlap {
        /// The first byte that they share.
        at: u64,
    },
    /// A checksum is not that of the bytes.
    #[error("the checksum of {what} is wrong")]
    Checksum {
        /// What it is the sum of.
        what: &'static str,
    },
    /// A number that the format does not allow, or that cannot be meant.
    #[error("{what} is {value}; {allowed}")]
    Value {
        /// What it is the number of.
        what: &'static str,
        /// The number.
        value: u64,
        /// What it may be.
        allowed: &'static str,
    },
    /// Bits that are reserved are set.
    #[error("{what} at byte {at} is {value:#x}, which has reserved bits set")]
    Reserved {
        /// What they are set in.
        what: &'static str,
        /// Where it lies.
        at: u64,
        /// All of it.
        value: u64,
    },
    /// Something that is not text where a name should be.
    #[error("{what} is no text")]
    NotText {
        /// What should be text.
        what: &'static str,
    },
    /// A part of the format that is not served.
    #[error("it has {what}, which is not served")]
    Unsupported {
        /// Which part.
        what: &'static str,
    },
    /// Features that nobody here knows.
    #[error("it needs features that are not known here, bits {bits:#x}")]
    UnknownFeatures {
        /// As in its header.
        bits: u64,
    },
    /// Whoever wrote it marked it.
    #[error("it is marked as corrupt")]
    MarkedCorrupt,
    /// An image of this name is there already.
    #[error("there is another image of this name")]
    DuplicateName,
    /// The parent is not among the images.
    #[error("its parent `{parent}` is not among the images")]
    ParentMissing {
        /// Its file name.
        parent: String,
    },
    /// The parent is among the images, and was refused.
    #[error("its parent `{parent}` was refused")]
    ParentRefused {
        /// Its file name.
        parent: String,
    },
    /// The parent has not the format that it must have.
    #[error("its parent `{parent}` should be {wanted}, and is {found}")]
    ParentFormat {
        /// The parent's file name.
        parent: String,
        /// The format that this image says.
        wanted: ImageFormat,
        /// The format that the parent has.
        found: ImageFormat,
    },
    /// The parent should have a format that is not served.
    #[error("its parent `{parent}` should be {wanted}, which is not served")]
    ParentUnserved {
        /// The parent's file name.
        parent: String,
        /// The format that this image says.
        wanted: String,
    },
    /// The parent is another one than that this image was made over.
    #[error("its parent `{parent}` is not the one that it was made over: the unique ids differ")]
    ParentId {
        /// The parent's file name.
        parent: String,
    },
    /// The chain of parents never ends.
    #[error("the chain of its parents, `{parent}` the first, goes round in a loop")]
    Loop {
        /// The parent's file name.
        parent: String,
    },
    /// The chain of parents is too long.
    #[error("it stands on more than {max} parents")]
    TooDeep {
        /// How many there can be.
        max: usize,
    },
    /// The heap has no room for what must be kept of it.
    #[error("no memory for {what}, {len_bytes} bytes")]
    NoMemory {
        /// What there is no room for.
        what: &'static str,
        /// Its length.
        len_bytes: usize,
    },
    /// The pool has not the pages that its compressed clusters need.
    #[error("its compressed clusters need {needed} pages, {free} are free")]
    NoPages {
        /// Pages that must be set aside.
        needed: u64,
        /// Pages that are free.
        free: u64,
    },
}
