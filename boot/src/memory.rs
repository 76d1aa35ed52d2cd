//! The seam through which the loader's records are read.

use core::ptr;

/// Where the first GiB is mapped a second time on a CPU with 1 GiB pages, in GiB: the last entry of
/// the one table of such pages.
pub(crate) const LOW_GIB_AGAIN: u32 = 511;

/// Guest physical memory, for reading.
pub trait PhysicalMemory {
    /// Copies `into.len()` bytes at guest physical address `paddr`.
    ///
    /// # Errors
    /// Where a byte of the range cannot be read.
    fn read(&self, paddr: u64, into: &mut [u8]) -> Result<(), Unreadable>;
}

/// A range of guest physical memory that is out of reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{len_bytes} bytes at {paddr:#x} are out of reach")]
pub struct Unreadable {
    /// The range's first byte.
    pub paddr: u64,
    /// Its length in bytes.
    pub len_bytes: usize,
}

/// Guest physical memory below a limit, mapped at its own addresses.
#[derive(Clone, Copy, Debug)]
pub struct IdentityMap {
    end: u64,
}

impl IdentityMap {
    /// Memory from 0 to `end`.
    ///
    /// # Safety
    /// Every address below `end` is mapped for reading at itself. Nobody writes, while
    /// [`PhysicalMemory::read`] runs, what it reads.
    #[must_use]
    pub const unsafe fn new(end: u64) -> Self {
        Self { end }
    }

    /// The first address that is not mapped.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.end
    }

    /// Where the first GiB is mapped a second time, by a single page; `None` on a CPU without pages
    /// of that size. A hypervisor that follows a pointer of ours finds the way sooner there.
    #[must_use]
    pub const fn low_gib_again(&self) -> Option<u64> {
        let again = (LOW_GIB_AGAIN as u64) << 30;
        if self.end == again { Some(again) } else { None }
    }
}

impl PhysicalMemory for IdentityMap {
    fn read(&self, paddr: u64, into: &mut [u8]) -> Result<(), Unreadable> {
        let unreadable = Unreadable { paddr, len_bytes: into.len() };
        let range_end = u64::try_from(into.len()).ok().and_then(|len| paddr.checked_add(len));
        // The loader puts nothing at address 0, and a null pointer must not be read.
        if paddr == 0 || range_end.is_none_or(|range_end| range_end > self.end) {
            return Err(unreadable);
        }
        let source = usize::try_from(paddr).map_err(|_| unreadable)?;
        // SAFETY: the range is not null and below `end`, so by `new`'s contract it is mapped and
        // holds still. It may overlap `into` only if the loader claims our own stack, which
        // `copy` allows.
        unsafe {
            ptr::copy(ptr::with_exposed_provenance::<u8>(source), into.as_mut_ptr(), into.len());
        }
        Ok(())
    }
}
