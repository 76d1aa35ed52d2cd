//! A block device without the page cache.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use compio_buf::{IoBuf, Slice};

use crate::Error;

/// What addresses, lengths and places on the device are multiples of: the largest logical block.
pub const BLOCK_BYTES: usize = 4096;

/// `O_DIRECT` of Linux on x86 (asm-generic/fcntl.h).
const O_DIRECT: i32 = 0o40000;

#[derive(Clone, Copy, Debug)]
pub enum Op {
    Read,
    Write,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
        })
    }
}

/// A device that is open for reading, and for writing if it may be written.
#[derive(Debug)]
pub struct Device {
    path: String,
    file: File,
    /// Whole blocks.
    nr_blocks: u64,
}

impl Device {
    pub fn open(path: String) -> Result<Self, Error> {
        let open =
            |write| OpenOptions::new().read(true).write(write).custom_flags(O_DIRECT).open(&path);
        let opened = open(true).or_else(|_| open(false)).and_then(|mut file| {
            let bytes = file.seek(SeekFrom::End(0))?;
            Ok((file, bytes / BLOCK_BYTES as u64))
        });
        match opened {
            Ok((file, nr_blocks)) => Ok(Self { path, file, nr_blocks }),
            Err(error) => Err(Error::Request(format!("{path}: {error}"))),
        }
    }

    pub fn nr_blocks(&self) -> u64 {
        self.nr_blocks
    }

    pub fn path(&self) -> &str {
        &self.path
    }

    /// Reads whole blocks into an aligned buffer.
    pub fn read(&self, block: u64, into: &mut [u8]) -> Result<(), Error> {
        let done = self.file.read_exact_at(into, byte_of(block));
        done.map_err(|error| self.failed(Op::Read, block, into.len(), &error))
    }

    /// Writes whole blocks from an aligned buffer.
    pub fn write(&self, block: u64, from: &[u8]) -> Result<(), Error> {
        let done = self.file.write_all_at(from, byte_of(block));
        done.map_err(|error| self.failed(Op::Write, block, from.len(), &error))
    }

    /// Reads into or writes from an aligned buffer of whole blocks.
    pub fn request(&self, op: Op, block: u64, buffer: &mut [u8]) -> Result<(), Error> {
        match op {
            Op::Read => self.read(block, buffer),
            Op::Write => self.write(block, buffer),
        }
    }

    pub fn flush(&self) -> Result<(), Error> {
        let done = self.file.sync_data();
        done.map_err(|error| Error::Request(format!("{}: flush: {error}", self.path)))
    }

    /// Why a request did not succeed.
    pub fn failed(&self, op: Op, block: u64, bytes: usize, error: &std::io::Error) -> Error {
        let (path, at) = (&self.path, byte_of(block));
        Error::Request(format!("{path}: {op} of {bytes} bytes at byte {at}: {error}"))
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Where a block begins.
pub fn byte_of(block: u64) -> u64 {
    block * BLOCK_BYTES as u64
}

/// Memory as `O_DIRECT` wants it: it begins at a multiple of [`BLOCK_BYTES`].
#[derive(Debug)]
pub struct Buffer {
    memory: Vec<u8>,
    start: usize,
    len_bytes: usize,
}

impl Buffer {
    pub fn new(len_bytes: usize) -> Self {
        let memory = vec![0; len_bytes + BLOCK_BYTES];
        let start = memory.as_ptr().align_offset(BLOCK_BYTES);
        Self { memory, start, len_bytes }
    }

    /// The same bytes for a request that owns them while it is under way.
    pub fn into_slice(self) -> Slice<Vec<u8>> {
        self.memory.slice(self.start..self.start + self.len_bytes)
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..][..self.len_bytes]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..][..self.len_bytes]
    }
}
