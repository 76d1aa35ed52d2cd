//! The loader's record of what it loaded (`arch-x86/hvm/start_info.h`).

use core::fmt;

use crate::{PhysicalMemory, Unreadable};

/// `XEN_HVM_START_MAGIC_VALUE`.
const MAGIC: u32 = 0x336e_c578;

/// Size of `struct hvm_start_info` as version 0 has it, in bytes.
const V0_BYTES: usize = 40;
/// What version 1 appends.
const V1_EXTRA_BYTES: usize = 16;
/// Size of `struct hvm_modlist_entry`.
const MODULE_BYTES: usize = 32;
/// Size of `struct hvm_memmap_table_entry`.
const RANGE_BYTES: usize = 24;

/// A run of guest physical memory (`struct hvm_memmap_table_entry`).
#[doc(alias = "hvm_memmap_table_entry")]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MemoryRange {
    /// First byte.
    pub paddr: u64,
    /// Length in bytes; `paddr + size_bytes` does not overflow.
    pub size_bytes: u64,
    /// What is there.
    pub kind: MemoryKind,
}

/// What a [`MemoryRange`] is for (`XEN_HVM_MEMMAP_TYPE_*`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryKind(pub u32);

impl MemoryKind {
    /// Ordinary memory.
    pub const RAM: Self = Self(1);
    /// Not for use.
    pub const RESERVED: Self = Self(2);
}

impl Default for MemoryKind {
    fn default() -> Self {
        Self::RESERVED
    }
}

/// A file that the toolstack loaded beside the image, as xl.cfg's `ramdisk=`
/// (`struct hvm_modlist_entry`).
#[doc(alias = "hvm_modlist_entry")]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Module {
    /// First byte.
    pub paddr: u64,
    /// Length in bytes; `paddr + size_bytes` does not overflow.
    pub size_bytes: u64,
}

/// Why the loader's record cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StartInfoError {
    /// It does not begin with the magic number: no PVH loader wrote it.
    #[error("start_info begins with {found:#x}, not with {MAGIC:#x}")]
    BadMagic {
        /// What stands there.
        found: u32,
    },
    /// It, or something it points at, lies where nothing can be read.
    #[error("start_info: {0}")]
    Unreadable(#[from] Unreadable),
    /// More modules than we keep.
    #[error("start_info has {count} modules, more than {}", StartInfo::MAX_MODULES)]
    TooManyModules {
        /// How many it claims.
        count: u32,
    },
    /// A longer memory map than we keep.
    #[error("start_info's memory map has {count} entries, more than {}", StartInfo::MAX_RANGES)]
    TooManyRanges {
        /// How many it claims.
        count: u32,
    },
    /// A longer command line than we keep.
    #[error("the command line is longer than {} bytes", StartInfo::MAX_COMMAND_LINE)]
    CommandLineTooLong,
    /// A module or a run of memory that goes past the end of the address space.
    #[error("start_info: {size_bytes:#x} bytes at {paddr:#x} pass the end of the address space")]
    Overflow {
        /// Its first byte.
        paddr: u64,
        /// Its length in bytes.
        size_bytes: u64,
    },
}

/// The loader's record, copied out so that the memory it lay in can be used.
#[doc(alias = "hvm_start_info")]
#[derive(Clone, PartialEq, Eq)]
pub struct StartInfo {
    ranges: Array<MemoryRange, { Self::MAX_RANGES }>,
    modules: Array<Module, { Self::MAX_MODULES }>,
    command_line: Array<u8, { Self::MAX_COMMAND_LINE }>,
}

impl StartInfo {
    /// How long a memory map is taken: as long as Xen makes one (`E820MAX`).
    pub const MAX_RANGES: usize = 128;
    /// How many modules are taken.
    pub const MAX_MODULES: usize = 32;
    /// How long a command line is taken, in bytes without its closing NUL.
    pub const MAX_COMMAND_LINE: usize = 4096;

    /// Reads the record at `paddr`, and all it points at.
    ///
    /// Version 0 has no memory map; later versions only append, so any other is read as version 1.
    ///
    /// # Errors
    /// As [`StartInfoError`] lists them: nothing of a record with an error in it is used.
    pub fn read(memory: &impl PhysicalMemory, paddr: u64) -> Result<Self, StartInfoError> {
        let mut header = [0; V0_BYTES];
        memory.read(paddr, &mut header)?;
        let magic = u32_at(&header, 0);
        if magic != MAGIC {
            return Err(StartInfoError::BadMagic { found: magic });
        }
        let version = u32_at(&header, 4);
        let count = u32_at(&header, 12);
        if count as usize > Self::MAX_MODULES {
            return Err(StartInfoError::TooManyModules { count });
        }
        let modules = read_list(memory, u64_at(&header, 16), count as usize, decode_module)?;
        let command_line = read_command_line(memory, u64_at(&header, 24))?;

        let mut ranges = Array::default();
        if version >= 1 {
            let mut extra = [0; V1_EXTRA_BYTES];
            // The header may end with the address space.
            let len_bytes = V0_BYTES + V1_EXTRA_BYTES;
            let extra_at = paddr.checked_add(V0_BYTES as u64);
            memory.read(extra_at.ok_or(Unreadable { paddr, len_bytes })?, &mut extra)?;
            let count = u32_at(&extra, 8);
            if count as usize > Self::MAX_RANGES {
                return Err(StartInfoError::TooManyRanges { count });
            }
            ranges = read_list(memory, u64_at(&extra, 0), count as usize, decode_range)?;
        }
        Ok(Self { ranges, modules, command_line })
    }

    /// The memory map; empty where the loader gave none.
    #[must_use]
    pub fn memory_map(&self) -> &[MemoryRange] {
        self.ranges.as_slice()
    }

    /// The modules, in the toolstack's order.
    #[must_use]
    pub fn modules(&self) -> &[Module] {
        self.modules.as_slice()
    }

    /// The command line without its NUL; empty where there is none.
    #[must_use]
    pub fn command_line(&self) -> &[u8] {
        self.command_line.as_slice()
    }
}

impl fmt::Debug for StartInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StartInfo")
            .field("memory_map", &self.memory_map())
            .field("modules", &self.modules())
            .field("command_line", &self.command_line().escape_ascii())
            .finish()
    }
}

/// Reads `count` entries of `ENTRY_BYTES` each, which the caller has checked to be at most `N`.
fn read_list<T: Copy + Default, const N: usize, const ENTRY_BYTES: usize>(
    memory: &impl PhysicalMemory,
    paddr: u64,
    count: usize,
    decode: impl Fn(&[u8; ENTRY_BYTES]) -> Result<T, StartInfoError>,
) -> Result<Array<T, N>, StartInfoError> {
    let size_bytes = (count * ENTRY_BYTES) as u64;
    check_range(paddr, size_bytes)?;
    let mut list = Array::default();
    let mut entry = [0; ENTRY_BYTES];
    for index in 0..count {
        memory.read(paddr + (index * ENTRY_BYTES) as u64, &mut entry)?;
        list.push(decode(&entry)?);
    }
    Ok(list)
}

fn decode_module(entry: &[u8; MODULE_BYTES]) -> Result<Module, StartInfoError> {
    let (paddr, size_bytes) = (u64_at(entry, 0), u64_at(entry, 8));
    check_range(paddr, size_bytes)?;
    Ok(Module { paddr, size_bytes })
}

fn decode_range(entry: &[u8; RANGE_BYTES]) -> Result<MemoryRange, StartInfoError> {
    let (paddr, size_bytes) = (u64_at(entry, 0), u64_at(entry, 8));
    check_range(paddr, size_bytes)?;
    Ok(MemoryRange { paddr, size_bytes, kind: MemoryKind(u32_at(entry, 16)) })
}

fn read_command_line(
    memory: &impl PhysicalMemory,
    paddr: u64,
) -> Result<Array<u8, { StartInfo::MAX_COMMAND_LINE }>, StartInfoError> {
    let mut line = Array::default();
    // "Nothing will be loaded at physical address 0": there is none.
    if paddr == 0 {
        return Ok(line);
    }
    // Byte by byte: only the NUL tells how far memory must be readable.
    for at in paddr..=u64::MAX {
        let mut byte = [0];
        memory.read(at, &mut byte)?;
        if byte == [0] {
            break;
        }
        if line.len == StartInfo::MAX_COMMAND_LINE {
            return Err(StartInfoError::CommandLineTooLong);
        }
        line.push(byte[0]);
    }
    Ok(line)
}

fn check_range(paddr: u64, size_bytes: u64) -> Result<(), StartInfoError> {
    match paddr.checked_add(size_bytes) {
        Some(_) => Ok(()),
        None => Err(StartInfoError::Overflow { paddr, size_bytes }),
    }
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[offset..offset + 4]);
    u32::from_le_bytes(field)
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[offset..offset + 8]);
    u64::from_le_bytes(field)
}

/// A list of at most `N`, for use before there is a heap.
#[derive(Clone, PartialEq, Eq)]
struct Array<T, const N: usize> {
    items: [T; N],
    len: usize,
}

impl<T: Copy + Default, const N: usize> Default for Array<T, N> {
    fn default() -> Self {
        Self { items: [T::default(); N], len: 0 }
    }
}

impl<T, const N: usize> Array<T, N> {
    fn push(&mut self, item: T) {
        self.items[self.len] = item;
        self.len += 1;
    }

    fn as_slice(&self) -> &[T] {
        &self.items[..self.len]
    }
}

#[cfg(test)]
mod tests;
