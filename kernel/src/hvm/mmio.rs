//! Registers of devices, mapped uncached.

use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering, compiler_fence};

use x86_64::registers::control::Cr3;
use xen_abi::PAGE_SIZE;

/// Where registers are mapped: a second time, behind what `boot` maps. There they are cached as
/// memory is, which nothing uses.
const BASE: usize = 1 << 39;
const PML4_INDEX: usize = 1;

const TABLE_ENTRIES: usize = 512;

const PRESENT_WRITE: u64 = 0b11;
/// With the PAT as it is after a reset: uncached, whatever an MTRR says.
const UNCACHED: u64 = 0b1_1000;

#[repr(C, align(4096))]
struct Table([AtomicU64; TABLE_ENTRIES]);

impl Table {
    const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; TABLE_ENTRIES])
    }

    /// Its physical address, as all of the image has it.
    fn paddr(&'static self) -> u64 {
        ptr::from_ref(self).expose_provenance() as u64
    }
}

/// Tables for 2 MiB of registers.
static PDPT: Table = Table::new();
static DIRECTORY: Table = Table::new();
static PAGES: Table = Table::new();
/// How many of [`PAGES`] are in use.
static NR_PAGES: AtomicUsize = AtomicUsize::new(0);

/// A device's registers. Each access is one access of the device, and in the order of the program,
/// that of memory included.
#[derive(Debug)]
pub(crate) struct Mmio {
    base: NonNull<u8>,
    len_bytes: usize,
}

/// Too many registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("all devices have more than 2 MiB of registers")]
pub(crate) struct TooLarge;

impl Mmio {
    /// Maps `len_bytes` at `paddr`, which is a multiple of a page, for good.
    ///
    /// # Safety
    /// Registers are there, which nobody else accesses by this image's doing.
    pub(crate) unsafe fn map(paddr: u64, len_bytes: usize) -> Result<Self, TooLarge> {
        let nr_pages = len_bytes.div_ceil(PAGE_SIZE);
        let first = NR_PAGES.load(Ordering::Relaxed);
        let end =
            first.checked_add(nr_pages).filter(|&end| end <= TABLE_ENTRIES).ok_or(TooLarge)?;
        NR_PAGES.store(end, Ordering::Relaxed);
        for (nth, entry) in (0..).zip(&PAGES.0[first..end]) {
            let page = paddr + nth * PAGE_SIZE as u64;
            entry.store(page | PRESENT_WRITE | UNCACHED, Ordering::Relaxed);
        }
        DIRECTORY.0[0].store(PAGES.paddr() | PRESENT_WRITE, Ordering::Relaxed);
        PDPT.0[0].store(DIRECTORY.paddr() | PRESENT_WRITE, Ordering::Relaxed);
        let (pml4, _) = Cr3::read();
        let pml4 = usize::try_from(pml4.start_address().as_u64()).unwrap_or(0);
        let entry = ptr::with_exposed_provenance_mut::<u64>(pml4).wrapping_add(PML4_INDEX);
        // SAFETY: `boot`'s table, identity-mapped and aligned, of which it uses the first entry alone.
        // The CPU is told of a page before it is used: `Relaxed` is no weaker on it than what follows.
        unsafe { AtomicU64::from_ptr(entry) }
            .store(PDPT.paddr() | PRESENT_WRITE, Ordering::Release);
        let base = ptr::with_exposed_provenance_mut(BASE + first * PAGE_SIZE);
        NonNull::new(base).map(|base| Self { base, len_bytes }).ok_or(TooLarge)
    }

    /// How many bytes are mapped.
    pub(crate) const fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// Reads the register at `offset`, of `T`'s width.
    pub(crate) fn read<T: Register>(&self, offset: usize) -> T {
        let at = self.at::<T>(offset);
        compiler_fence(Ordering::SeqCst);
        // SAFETY: mapped for good and aligned, by `at`; any bits are good.
        let value = unsafe { at.read_volatile() };
        compiler_fence(Ordering::SeqCst);
        value
    }

    /// Writes it.
    pub(crate) fn write<T: Register>(&self, offset: usize, value: T) {
        let at = self.at::<T>(offset);
        compiler_fence(Ordering::SeqCst);
        // SAFETY: as in `read`. What the device does then is its driver's doing. The CPU makes
        // earlier stores visible before one to uncached memory.
        unsafe { at.write_volatile(value) };
        compiler_fence(Ordering::SeqCst);
    }

    fn at<T: Register>(&self, offset: usize) -> *mut T {
        let inside = offset.checked_add(size_of::<T>()).is_some_and(|end| end <= self.len_bytes);
        assert!(inside && offset.is_multiple_of(size_of::<T>()), "a register at {offset:#x}");
        self.base.as_ptr().wrapping_add(offset).cast()
    }
}

/// What a register can be as wide as.
pub(crate) trait Register: Copy {}
impl Register for u32 {}
impl Register for u64 {}
