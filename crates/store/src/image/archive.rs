//! Archives of images: cpio in the "new ASCII" format, as `cpio -H newc` makes them and Linux takes
//! them for its initial file system.
//!
//! A member is a header of 110 characters and its path, together filled up to a multiple of 4, and
//! its data, filled up likewise. The data lies as it is, so a member is a file of its own; it begins
//! at a page where whoever packed it filled up the path with NULs.

use alloc::string::{String, ToString};

use crate::image::ImageFile;
use crate::image::file::PastEnd;
use crate::memory::FrameMemory;

/// A header without and with the sums of its data's bytes, which nobody checks.
const MAGICS: [[u8; 6]; 2] = [*b"070701", *b"070702"];
const HEADER_BYTES: usize = 110;
const TRAILER: &str = "TRAILER!!!";
/// The longest path; what a path was filled up with does not count.
const MAX_PATH_BYTES: usize = 1024;
/// The longest path with what it is filled up with.
const MAX_FILLED_BYTES: u64 = 64 << 10;

/// The type in a member's mode (`S_IFMT`), and that of an ordinary file.
const FILE_TYPE: u32 = 0o170_000;
const REGULAR: u32 = 0o100_000;

/// A file in an archive.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// With folders, as the archive has it.
    pub path: String,
    /// Its bytes, where they lie.
    pub file: ImageFile,
}

impl Member {
    /// The path without folders.
    #[must_use]
    pub fn file_name(&self) -> &str {
        self.path.rsplit_once('/').map_or(&self.path, |(_, name)| name)
    }
}

/// Reads the ordinary files of an archive, or of several one after the other. Whatever else is in
/// it is passed over.
#[derive(Debug)]
pub struct Archive<'a, M> {
    memory: &'a M,
    file: ImageFile,
    /// The byte to go on at; `None` behind an error.
    at: Option<u64>,
    place: Place,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// In an archive that did not end yet.
    Inside,
    /// Behind the trailer of one.
    Between,
}

/// What a header says.
struct Header {
    mode: u32,
    len_bytes: u64,
    path_bytes: u64,
}

impl<'a, M: FrameMemory> Archive<'a, M> {
    /// The archive in a file; `None` where it does not begin as one.
    #[must_use]
    pub fn open(memory: &'a M, file: ImageFile) -> Option<Self> {
        let magic = file.bytes(memory, 0).ok()?;
        MAGICS.contains(&magic).then_some(Self { memory, file, at: Some(0), place: Place::Inside })
    }

    /// The next ordinary file at or behind byte `at`, and where to go on.
    fn member(&mut self, mut at: u64) -> Result<Option<(Member, u64)>, ArchiveError> {
        loop {
            if self.place == Place::Between {
                at = self.skip_zeroes(at)?;
            }
            if at >= self.file.len_bytes {
                return match self.place {
                    Place::Between => Ok(None),
                    Place::Inside => Err(ArchiveError::NoTrailer { at: self.file.len_bytes }),
                };
            }
            let header = self.header(at)?;
            let path_at = at + HEADER_BYTES as u64;
            let path = self.path(path_at, header.path_bytes)?;
            let data_at = at + (HEADER_BYTES as u64 + header.path_bytes).next_multiple_of(4);
            let data = self.file.part(data_at, header.len_bytes);
            if path == TRAILER {
                self.place = Place::Between;
                at = data_at;
                continue;
            }
            self.place = Place::Inside;
            let file =
                data.map_err(|_| ArchiveError::Truncated { what: "a file's data", at: data_at })?;
            let next = data_at + header.len_bytes.next_multiple_of(4);
            if header.mode & FILE_TYPE == REGULAR {
                return Ok(Some((Member { path, file }, next)));
            }
            at = next;
        }
    }

    fn header(&self, at: u64) -> Result<Header, ArchiveError> {
        let truncated = |_: PastEnd| ArchiveError::Truncated { what: "a header", at };
        let header: [u8; HEADER_BYTES] = self.file.bytes(self.memory, at).map_err(truncated)?;
        if !MAGICS.iter().any(|magic| header.starts_with(magic)) {
            return Err(ArchiveError::NoHeader { at });
        }
        // Thirteen numbers follow the magic, of eight hexadecimal digits each.
        let number = |index: usize| {
            let digits = &header[6 + 8 * index..][..8];
            digits.iter().try_fold(0, |number: u32, digit| {
                let digit = char::from(*digit).to_digit(16);
                let digit =
                    digit.ok_or(ArchiveError::BadNumber { at: at + 6 + 8 * index as u64 })?;
                Ok(number << 4 | digit)
            })
        };
        Ok(Header {
            mode: number(1)?,
            len_bytes: number(6)?.into(),
            path_bytes: number(11)?.into(),
        })
    }

    /// A path of `len_bytes` bytes, of which all from the first NUL on only fill it up.
    fn path(&self, at: u64, len_bytes: u64) -> Result<String, ArchiveError> {
        if len_bytes > MAX_FILLED_BYTES {
            return Err(ArchiveError::PathTooLong { at });
        }
        let filled = self.file.part(at, len_bytes);
        let filled = filled.map_err(|_| ArchiveError::Truncated { what: "a path", at })?;
        let mut path = [0; MAX_PATH_BYTES + 1];
        let len = usize::try_from(len_bytes).map_or(path.len(), |len| len.min(path.len()));
        let path = &mut path[..len];
        self.memory.read(filled.at, path);
        let end = path.iter().position(|byte| *byte == 0);
        let end = end.ok_or(ArchiveError::PathTooLong { at })?;
        let path = core::str::from_utf8(&path[..end]);
        path.map(ToString::to_string).map_err(|_| ArchiveError::PathNotText { at })
    }

    /// The first byte at or behind `at` that is not zero, or the end.
    fn skip_zeroes(&self, mut at: u64) -> Result<u64, ArchiveError> {
        let mut chunk = [0; 512];
        while at < self.file.len_bytes {
            let left = self.file.len_bytes - at;
            let len = usize::try_from(left).map_or(chunk.len(), |left| left.min(chunk.len()));
            let chunk = &mut chunk[..len];
            let read = self.file.read(self.memory, at, chunk);
            read.map_err(|_| ArchiveError::NoHeader { at })?;
            if let Some(nr) = chunk.iter().position(|byte| *byte != 0) {
                return Ok(at + nr as u64);
            }
            at += len as u64;
        }
        Ok(at)
    }
}

impl<M: FrameMemory> Iterator for Archive<'_, M> {
    type Item = Result<Member, ArchiveError>;

    fn next(&mut self) -> Option<Self::Item> {
        let at = self.at.take()?;
        match self.member(at) {
            Ok(Some((member, next))) => {
                self.at = Some(next);
                Some(Ok(member))
            }
            Ok(None) => None,
            Err(error) => Some(Err(error)),
        }
    }
}

/// What is wrong with an archive. What was read before is good.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It ends too early.
    #[error("the archive ends within {what} at byte {at}")]
    Truncated {
        /// What it ends in.
        what: &'static str,
        /// That part's first byte.
        at: u64,
    },
    /// It ends without a trailer.
    #[error("the archive ends at byte {at} without a trailer: it is truncated")]
    NoTrailer {
        /// Its end.
        at: u64,
    },
    /// No header where there should be one.
    #[error("there is no cpio header at byte {at} of the archive")]
    NoHeader {
        /// Where it should be.
        at: u64,
    },
    /// A number of a header is not in hexadecimal digits.
    #[error("there is no number at byte {at} of the archive")]
    BadNumber {
        /// Its first byte.
        at: u64,
    },
    /// A path that is longer than anybody's, or does not end.
    #[error("the path at byte {at} of the archive is too long")]
    PathTooLong {
        /// Its first byte.
        at: u64,
    },
    /// A path that is not UTF-8.
    #[error("the path at byte {at} of the archive is no text")]
    PathNotText {
        /// Its first byte.
        at: u64,
    },
}
