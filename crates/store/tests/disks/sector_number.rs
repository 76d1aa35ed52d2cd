//! A disk whose every sector is filled with its own number.

use store::{
    Access, BlockSize, BlockStore, Extent, ExtentSink, FrameAddr, FrameMemory, Geometry, OpenRead,
    PagePool, SECTOR_SIZE, SectorRange, StoreError, Want,
};
use xen_abi::PAGE_SIZE;

/// Sector n holds n in 64 little-endian bits, over and over. Read-only.
pub struct SectorNumberDisk {
    pub nr_sectors: u64,
}

impl<M: FrameMemory> BlockStore<M> for SectorNumberDisk {
    fn geometry(&self) -> Geometry {
        Geometry {
            nr_sectors: self.nr_sectors,
            logical: BlockSize::B512,
            physical_bytes: 512,
            access: Access::ReadOnly,
            discard: None,
        }
    }

    fn begin_read(
        &mut self,
        pool: &mut PagePool<M>,
        range: SectorRange,
        sink: &mut impl ExtentSink,
    ) -> Result<OpenRead, StoreError> {
        // From here on a page that is released keeps its bytes until the read ends.
        let read = pool.begin_read();
        let mut sector = range.first();
        while sector < range.end() {
            let page = match pool.take(Want::More) {
                Ok(page) => page,
                Err(error) => {
                    pool.end_read(read);
                    return Err(error);
                }
            };
            let (start, mut len_bytes) = (FrameAddr::start_of(page), 0);
            while len_bytes < PAGE_SIZE && sector < range.end() {
                let mut bytes = [0; SECTOR_SIZE];
                bytes.chunks_exact_mut(8).for_each(|n| n.copy_from_slice(&sector.to_le_bytes()));
                pool.memory_mut().write(start.after(len_bytes), &bytes);
                len_bytes += SECTOR_SIZE;
                sector += 1;
            }
            sink.extent(Extent::Frames { at: start, len_bytes });
            pool.release(page);
        }
        Ok(read)
    }
}
