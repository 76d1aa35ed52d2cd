//! The example of `docs/stores.md`: it does what it says, and it is what stands there.

#![allow(clippy::unwrap_used, reason = "a test may")]
#[path = "disks/sector_number.rs"]
mod sector_number;

mod frames;

use frames::{Frames, pool, read, write};
use sector_number::SectorNumberDisk;
use store::{BlockStore, SECTOR_SIZE, SectorRange, StoreError, Want};

#[test]
fn every_sector_holds_its_number() {
    let mut pool = pool(66);
    let free = pool.nr_free();
    let mut disk = SectorNumberDisk { nr_sectors: 1 << 40 };
    let first = (1 << 40) - 21;
    let bytes = read(&mut disk, &mut pool, first, 21);
    assert_eq!(bytes.len(), 21 * SECTOR_SIZE);
    for (sector, bytes) in (first..).zip(bytes.chunks_exact(SECTOR_SIZE)) {
        assert!(bytes.chunks_exact(8).all(|word| word == sector.to_le_bytes()), "sector {sector}");
    }
    assert_eq!(pool.nr_free(), free);
    assert_eq!(write(&mut disk, &mut pool, 0, &[0; SECTOR_SIZE]), Err(StoreError::ReadOnly));
}

#[test]
fn reads_that_are_open_together_keep_their_own_bytes() {
    let mut pool = pool(66);
    let mut disk = SectorNumberDisk { nr_sectors: 100 };
    let mut opened = Vec::new();
    for first in [0, 8, 16] {
        let range = SectorRange::on(&BlockStore::<Frames>::geometry(&disk), first, 8).unwrap();
        let mut extents = Vec::new();
        let open = disk.begin_read(&mut pool, range, &mut |extent| extents.push(extent)).unwrap();
        opened.push((first, extents, open));
    }
    for (first, extents, open) in opened {
        assert_eq!(frames::gather(&pool, &extents)[..8], u64::to_le_bytes(first));
        pool.end_read(open);
    }
}

#[test]
fn a_read_that_finds_no_memory_leaves_nothing_behind() {
    let mut pool = pool(66);
    let (free, total) = (pool.nr_free(), pool.nr_total());
    let mut disk = SectorNumberDisk { nr_sectors: 1000 };
    let range = SectorRange::on(&BlockStore::<Frames>::geometry(&disk), 0, 1000).unwrap();
    let reserve = pool.nr_reserve();
    let refused = disk.begin_read(&mut pool, range, &mut |_| ()).unwrap_err();
    assert_eq!(refused, StoreError::NoMemory { free: reserve, total });
    assert_eq!(pool.nr_free(), free);
    assert!(pool.take(Want::More).is_ok());
}

#[test]
fn the_documentation_has_the_example() {
    let docs = include_str!("../../../docs/stores.md");
    let example = include_str!("disks/sector_number.rs");
    assert!(example.lines().count() < 60, "an example of 60 lines is no small one");
    assert!(docs.contains(&format!("```rust\n{example}```\n")), "docs/stores.md has another");
}
