extern crate std;
use std::vec;
use std::vec::Vec;

use super::{MemoryKind, MemoryRange, Module, StartInfo, StartInfoError};
use crate::{PhysicalMemory, Unreadable};

const RECORD: u64 = 0x1000;
const MODULES: u64 = 0x2000;
const RANGES: u64 = 0x4000;
const COMMAND_LINE: u64 = 0x6000;

/// Memory from address 0 on; past its end nothing can be read.
struct Bytes(Vec<u8>);

impl PhysicalMemory for Bytes {
    fn read(&self, paddr: u64, into: &mut [u8]) -> Result<(), Unreadable> {
        let unreadable = Unreadable { paddr, len_bytes: into.len() };
        let start = usize::try_from(paddr).map_err(|_| unreadable)?;
        let end = start.checked_add(into.len()).ok_or(unreadable)?;
        into.copy_from_slice(self.0.get(start..end).ok_or(unreadable)?);
        Ok(())
    }
}

impl Bytes {
    fn put(&mut self, paddr: u64, bytes: &[u8]) {
        let start = usize::try_from(paddr).unwrap();
        self.0[start..start + bytes.len()].copy_from_slice(bytes);
    }

    fn put_u32(&mut self, paddr: u64, value: u32) {
        self.put(paddr, &value.to_le_bytes());
    }

    fn put_u64(&mut self, paddr: u64, value: u64) {
        self.put(paddr, &value.to_le_bytes());
    }

    fn put_module(&mut self, index: u64, paddr: u64, size_bytes: u64) {
        self.put_u64(MODULES + index * 32, paddr);
        self.put_u64(MODULES + index * 32 + 8, size_bytes);
    }

    fn put_range(&mut self, index: u64, paddr: u64, size_bytes: u64, kind: u32) {
        self.put_u64(RANGES + index * 24, paddr);
        self.put_u64(RANGES + index * 24 + 8, size_bytes);
        self.put_u32(RANGES + index * 24 + 16, kind);
    }
}

/// A record of version 1 with two modules, three runs of memory and a command line.
fn good() -> Bytes {
    let mut memory = Bytes(vec![0; 0x8000]);
    memory.put_u32(RECORD, 0x336e_c578);
    memory.put_u32(RECORD + 4, 1);
    memory.put_u32(RECORD + 12, 2);
    memory.put_u64(RECORD + 16, MODULES);
    memory.put_u64(RECORD + 24, COMMAND_LINE);
    memory.put_u64(RECORD + 40, RANGES);
    memory.put_u32(RECORD + 48, 3);
    memory.put_module(0, 0x10_0000, 0x123);
    memory.put_module(1, 0x20_0000, 0);
    memory.put_range(0, 0, 0x400_0000, 1);
    memory.put_range(1, 0xfc00_0000, 0x1000, 3);
    memory.put_range(2, 0xfeff_8000, 0x8000, 2);
    memory.put(COMMAND_LINE, b"disk=gold,module=0\0garbage");
    memory
}

fn read(memory: &Bytes) -> Result<StartInfo, StartInfoError> {
    StartInfo::read(memory, RECORD)
}

#[test]
fn a_record_of_version_1_is_read_whole() {
    let info = read(&good()).unwrap();
    assert_eq!(
        info.modules(),
        [
            Module { paddr: 0x10_0000, size_bytes: 0x123 },
            Module { paddr: 0x20_0000, size_bytes: 0 },
        ]
    );
    assert_eq!(
        info.memory_map(),
        [
            MemoryRange { paddr: 0, size_bytes: 0x400_0000, kind: MemoryKind::RAM },
            MemoryRange { paddr: 0xfc00_0000, size_bytes: 0x1000, kind: MemoryKind(3) },
            MemoryRange { paddr: 0xfeff_8000, size_bytes: 0x8000, kind: MemoryKind::RESERVED },
        ]
    );
    assert_eq!(info.command_line(), b"disk=gold,module=0");
}

#[test]
fn version_0_has_no_memory_map_though_something_stands_there() {
    let mut memory = good();
    memory.put_u32(RECORD + 4, 0);
    let info = read(&memory).unwrap();
    assert_eq!(info.memory_map(), []);
    assert_eq!(info.modules().len(), 2);
    assert_eq!(info.command_line(), b"disk=gold,module=0");
}

#[test]
fn version_0_may_end_where_memory_ends() {
    let mut memory = Bytes(vec![0; 0x1000 + 40]);
    memory.put_u32(RECORD, 0x336e_c578);
    assert_eq!(read(&memory).unwrap().memory_map(), []);
    memory.put_u32(RECORD + 4, 1);
    let unreadable = Unreadable { paddr: 0x1028, len_bytes: 16 };
    assert_eq!(read(&memory), Err(StartInfoError::Unreadable(unreadable)));
}

#[test]
fn a_later_version_reads_as_version_1() {
    let mut memory = good();
    memory.put_u32(RECORD + 4, 77);
    assert_eq!(read(&memory), read(&good()));
}

#[test]
fn another_magic_is_no_record() {
    let mut memory = good();
    memory.put_u32(RECORD, 0x336e_c579);
    assert_eq!(read(&memory), Err(StartInfoError::BadMagic { found: 0x336e_c579 }));
}

#[test]
fn nothing_is_read_where_there_is_no_memory() {
    for paddr in [0x8000, 0x7fff, u64::MAX, u64::MAX - 39] {
        let unreadable = Unreadable { paddr, len_bytes: 40 };
        assert_eq!(StartInfo::read(&good(), paddr), Err(StartInfoError::Unreadable(unreadable)));
    }
}

#[test]
fn absurd_counts_are_refused_before_anything_is_read() {
    let mut memory = good();
    for count in [33, u32::MAX] {
        memory.put_u32(RECORD + 12, count);
        assert_eq!(read(&memory), Err(StartInfoError::TooManyModules { count }));
    }
    let mut memory = good();
    for count in [129, u32::MAX] {
        memory.put_u32(RECORD + 48, count);
        assert_eq!(read(&memory), Err(StartInfoError::TooManyRanges { count }));
    }
}

#[test]
fn the_largest_counts_are_read() {
    let mut memory = good();
    memory.put_u32(RECORD + 12, 32);
    memory.put_u32(RECORD + 48, 128);
    memory.put_range(127, 5, 6, 7);
    let info = read(&memory).unwrap();
    assert_eq!(info.modules().len(), 32);
    assert_eq!(
        info.memory_map()[127],
        MemoryRange { paddr: 5, size_bytes: 6, kind: MemoryKind(7) }
    );
}

#[test]
fn lists_out_of_reach_are_refused() {
    let mut memory = good();
    memory.put_u64(RECORD + 16, 0x7ff0);
    let unreadable = Unreadable { paddr: 0x7ff0, len_bytes: 32 };
    assert_eq!(read(&memory), Err(StartInfoError::Unreadable(unreadable)));

    let mut memory = good();
    memory.put_u64(RECORD + 40, u64::MAX - 50);
    let overflow = StartInfoError::Overflow { paddr: u64::MAX - 50, size_bytes: 72 };
    assert_eq!(read(&memory), Err(overflow));
}

#[test]
fn a_module_or_a_range_past_the_end_of_addresses_is_refused() {
    let mut memory = good();
    memory.put_module(1, 0x1000, u64::MAX - 0xfff);
    let overflow = StartInfoError::Overflow { paddr: 0x1000, size_bytes: u64::MAX - 0xfff };
    assert_eq!(read(&memory), Err(overflow));

    let mut memory = good();
    memory.put_range(2, u64::MAX, 1, 1);
    let overflow = StartInfoError::Overflow { paddr: u64::MAX, size_bytes: 1 };
    assert_eq!(read(&memory), Err(overflow));
}

#[test]
fn a_command_line_is_as_long_as_its_limit_and_no_longer() {
    let mut memory = good();
    memory.put(COMMAND_LINE, &[b'x'; 4096]);
    memory.put(COMMAND_LINE + 4096, &[0]);
    assert_eq!(read(&memory).unwrap().command_line(), [b'x'; 4096]);
    memory.put(COMMAND_LINE + 4096, b"x\0");
    assert_eq!(read(&memory), Err(StartInfoError::CommandLineTooLong));
}

#[test]
fn a_command_line_that_never_ends_is_refused() {
    let mut memory = good();
    memory.put(0x7ff0, &[b'x'; 16]);
    memory.put_u64(RECORD + 24, 0x7ff0);
    let unreadable = Unreadable { paddr: 0x8000, len_bytes: 1 };
    assert_eq!(read(&memory), Err(StartInfoError::Unreadable(unreadable)));
    memory.put_u64(RECORD + 24, u64::MAX);
    let unreadable = Unreadable { paddr: u64::MAX, len_bytes: 1 };
    assert_eq!(read(&memory), Err(StartInfoError::Unreadable(unreadable)));
}

#[test]
fn no_command_line_is_an_empty_one() {
    let mut memory = good();
    memory.put_u64(RECORD + 24, 0);
    assert_eq!(read(&memory).unwrap().command_line(), b"");
}

#[test]
fn a_header_that_ends_with_the_address_space_has_nothing_behind_it() {
    struct Last40(Vec<u8>);
    const START: u64 = u64::MAX - 39;
    impl PhysicalMemory for Last40 {
        fn read(&self, paddr: u64, into: &mut [u8]) -> Result<(), Unreadable> {
            let unreadable = Unreadable { paddr, len_bytes: into.len() };
            let start = paddr.checked_sub(START).and_then(|start| usize::try_from(start).ok());
            let bytes = start.and_then(|start| self.0.get(start..start + into.len()));
            into.copy_from_slice(bytes.ok_or(unreadable)?);
            Ok(())
        }
    }
    let mut header = vec![0; 40];
    header[..4].copy_from_slice(&0x336e_c578_u32.to_le_bytes());
    assert!(StartInfo::read(&Last40(header.clone()), START).is_ok());
    header[4] = 1;
    let unreadable = Unreadable { paddr: START, len_bytes: 56 };
    assert_eq!(
        StartInfo::read(&Last40(header), START),
        Err(StartInfoError::Unreadable(unreadable))
    );
}
