//! A loader's record in any memory.

use xen_abi::PAGE_SIZE;
use xen_pvh_boot::{
    FreeFrames, MemoryKind, MemoryRange, Module, PhysicalMemory, StartInfo, StartInfoError,
    Unreadable,
};

use crate::input::Input;

/// Where the input lies in memory.
const LOW: u64 = 0x1000;

/// Memory that holds the input from [`LOW`] on and, so that sums overflow, up to the end of the
/// address space.
struct Memory(Vec<u8>);

impl Memory {
    fn byte(&self, paddr: u64) -> Option<u8> {
        let index = match paddr.checked_sub(LOW) {
            Some(low) if low < self.0.len() as u64 => low,
            _ => (self.0.len() as u64).checked_sub(1)?.checked_sub(u64::MAX - paddr)?,
        };
        self.0.get(usize::try_from(index).ok()?).copied()
    }
}

impl PhysicalMemory for Memory {
    fn read(&self, paddr: u64, into: &mut [u8]) -> Result<(), Unreadable> {
        let unreadable = Unreadable { paddr, len_bytes: into.len() };
        for (n, byte) in (0..).zip(into) {
            let at = paddr.checked_add(n).ok_or(unreadable)?;
            *byte = self.byte(at).ok_or(unreadable)?;
        }
        Ok(())
    }
}

/// First where the record is said to be, then what is in memory.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let at = u64::from(input.u16());
    let memory = Memory(input.take(usize::MAX));
    // Low addresses, or those that end at the end of the address space.
    let paddr = if at & 0x8000 == 0 { LOW + at } else { u64::MAX - (at & 0x7fff) };
    let result = StartInfo::read(&memory, paddr);
    assert_eq!(StartInfo::read(&memory, paddr), result, "the same memory read again");
    match result {
        Ok(info) => check_record(&info, &memory, paddr),
        Err(error) => check_error(&error, &memory, paddr),
    }
}

fn word<const N: usize>(memory: &Memory, paddr: u64) -> [u8; N] {
    let mut word = [0; N];
    memory.read(paddr, &mut word).unwrap_or_else(|error| panic!("{error}, and yet was read"));
    word
}

fn u32_at(memory: &Memory, paddr: u64) -> u32 {
    u32::from_le_bytes(word(memory, paddr))
}

fn u64_at(memory: &Memory, paddr: u64) -> u64 {
    u64::from_le_bytes(word(memory, paddr))
}

/// Everything again, by the offsets of `arch-x86/hvm/start_info.h`.
fn check_record(info: &StartInfo, memory: &Memory, paddr: u64) {
    assert_eq!(u32_at(memory, paddr), 0x336e_c578);
    assert_eq!(info.modules().len(), u32_at(memory, paddr + 12) as usize);
    for (n, module) in (0..).zip(info.modules()) {
        let at = u64_at(memory, paddr + 16) + 32 * n;
        let size_bytes = u64_at(memory, at + 8);
        assert_eq!(*module, Module { paddr: u64_at(memory, at), size_bytes });
        assert!(module.paddr.checked_add(size_bytes).is_some());
    }
    if u32_at(memory, paddr + 4) == 0 {
        assert_eq!(info.memory_map(), []);
    } else {
        assert_eq!(info.memory_map().len(), u32_at(memory, paddr + 48) as usize);
    }
    for (n, range) in (0..).zip(info.memory_map()) {
        let at = u64_at(memory, paddr + 40) + 24 * n;
        let size_bytes = u64_at(memory, at + 8);
        let kind = MemoryKind(u32_at(memory, at + 16));
        assert_eq!(*range, MemoryRange { paddr: u64_at(memory, at), size_bytes, kind });
        assert!(range.paddr.checked_add(size_bytes).is_some());
    }
    let line = info.command_line();
    assert!(line.len() <= StartInfo::MAX_COMMAND_LINE && !line.contains(&0));
    let line_at = u64_at(memory, paddr + 24);
    for (n, byte) in (0..).zip(line) {
        assert_eq!(memory.byte(line_at + n), Some(*byte));
    }
    check_free_frames(info);
}

/// What the kernel makes of it: frames that are RAM, listed once, and not a module's.
fn check_free_frames(info: &StartInfo) {
    const END: u64 = 4 << 30;
    let Ok(mut free) = FreeFrames::new(info.memory_map(), END) else { return };
    for module in info.modules() {
        if free.reserve(module.paddr, module.size_bytes).is_err() {
            return;
        }
    }
    let mut runs = free.as_slice().to_vec();
    runs.sort_unstable();
    let mut previous_end = 0;
    for (first, nr) in runs {
        assert!(nr > 0 && first.0 >= previous_end, "runs overlap");
        previous_end = first.0 + nr;
        let (start, end) = (first.0 * PAGE_SIZE as u64, previous_end * PAGE_SIZE as u64);
        assert!(end <= END);
        let ram = info.memory_map().iter().filter(|range| range.kind == MemoryKind::RAM);
        let mut in_ram = ram.filter(|range| range.paddr < end);
        assert!(in_ram.any(|range| range.paddr + range.size_bytes > start), "no RAM");
        for module in info.modules().iter().filter(|module| module.size_bytes > 0) {
            let module_end = module.paddr + module.size_bytes;
            assert!(module.paddr >= end || module_end <= start, "a module's frame is free");
        }
    }
}

fn check_error(error: &StartInfoError, memory: &Memory, paddr: u64) {
    match *error {
        StartInfoError::BadMagic { found } => {
            assert_eq!(found, u32_at(memory, paddr));
            assert_ne!(found, 0x336e_c578);
        }
        StartInfoError::Unreadable(Unreadable { paddr, len_bytes }) => {
            let mut bytes = vec![0; len_bytes];
            assert!(memory.read(paddr, &mut bytes).is_err(), "{error}, but can be read");
        }
        StartInfoError::TooManyModules { count } => {
            assert_eq!(count, u32_at(memory, paddr + 12));
            assert!(count as usize > StartInfo::MAX_MODULES);
        }
        StartInfoError::TooManyRanges { count } => {
            assert_eq!(count, u32_at(memory, paddr + 48));
            assert!(count as usize > StartInfo::MAX_RANGES);
        }
        StartInfoError::CommandLineTooLong => {
            let at = u64_at(memory, paddr + 24);
            let line = (0..=StartInfo::MAX_COMMAND_LINE as u64).map(|n| memory.byte(at + n));
            assert!(line.into_iter().all(|byte| byte.is_some_and(|byte| byte != 0)));
        }
        StartInfoError::Overflow { paddr, size_bytes } => {
            assert_eq!(paddr.checked_add(size_bytes), None);
        }
    }
}
