//! What a disk has to hold.

use blkif::SECTOR_SIZE;

/// Bytes of a sector.
pub const SECTOR: usize = SECTOR_SIZE as usize;

/// What is known of a sector.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Known {
    /// It holds the model's bytes.
    Exactly,
    /// It was discarded: the model's bytes, zeroes or what lies below it.
    Discarded,
    /// Nobody knows.
    Nothing,
}

/// A model of a disk's contents.
#[derive(Clone, Debug)]
pub struct Model {
    bytes: Vec<u8>,
    known: Vec<Known>,
    /// The image that the disk is an overlay of.
    image: Option<Vec<u8>>,
}

impl Model {
    /// A disk that holds `bytes`, a multiple of 512 of them.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        assert!(bytes.len().is_multiple_of(SECTOR), "{} bytes are no sectors", bytes.len());
        let known = vec![Known::Exactly; bytes.len() / SECTOR];
        Self { bytes, known, image: None }
    }

    /// An overlay of an image, a multiple of 512 bytes.
    #[must_use]
    pub fn overlay(image: Vec<u8>) -> Self {
        Self { image: Some(image.clone()), ..Self::new(image) }
    }

    /// A disk of zeroes.
    #[must_use]
    pub fn zeroed(nr_sectors: u64) -> Self {
        Self::new(vec![0; usize::try_from(nr_sectors).expect("fits our memory") * SECTOR])
    }

    /// Sectors of the disk.
    #[must_use]
    pub fn nr_sectors(&self) -> u64 {
        self.known.len() as u64
    }

    /// The disk is `nr_sectors` large from now on; what is new is zero.
    pub fn resize(&mut self, nr_sectors: u64) {
        let nr_sectors = usize::try_from(nr_sectors).expect("fits our memory");
        self.bytes.resize(nr_sectors * SECTOR, 0);
        self.known.resize(nr_sectors, Known::Exactly);
    }

    /// A write was done.
    pub fn write(&mut self, sector: u64, data: &[u8]) {
        let first = usize::try_from(sector).expect("within the disk");
        self.bytes[first * SECTOR..][..data.len()].copy_from_slice(data);
        self.known[first..first + data.len() / SECTOR].fill(Known::Exactly);
    }

    /// A discard was done.
    pub fn discard(&mut self, sector: u64, nr_sectors: u64) {
        let first = usize::try_from(sector).expect("within the disk");
        let nr = usize::try_from(nr_sectors).expect("within the disk");
        let known = self.known[first..first + nr].iter_mut();
        known.filter(|known| **known != Known::Nothing).for_each(|known| *known = Known::Discarded);
    }

    /// What a disk holds is not known any more: writes have failed.
    pub fn forget(&mut self) {
        self.known.fill(Known::Nothing);
    }

    /// Checks what a read got.
    ///
    /// # Errors
    /// The first sector that the disk cannot hold.
    pub fn check(&self, sector: u64, data: &[u8]) -> Result<(), u64> {
        let first = usize::try_from(sector).expect("within the disk");
        let expected = &self.bytes[first * SECTOR..][..data.len()];
        if expected == data {
            return Ok(());
        }
        let pairs = expected.chunks(SECTOR).zip(data.chunks(SECTOR));
        for (n, (expected, found)) in pairs.enumerate() {
            let below = self.image.as_ref().and_then(|image| image.chunks(SECTOR).nth(first + n));
            let discarded = self.known[first + n] == Known::Discarded
                && (found.iter().all(|&b| b == 0) || below == Some(found));
            let unknown = self.known[first + n] == Known::Nothing;
            if found != expected && !discarded && !unknown {
                return Err(sector + n as u64);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_discarded_sector_is_old_or_zero_until_it_is_written() {
        let mut model = Model::zeroed(4);
        model.write(1, &[7; 2 * SECTOR]);
        assert_eq!(model.check(0, &[0; SECTOR]), Ok(()));
        assert_eq!(model.check(0, &[0; 2 * SECTOR]), Err(1));
        assert_eq!(model.check(1, &[7; 2 * SECTOR]), Ok(()));
        model.discard(2, 1);
        assert_eq!(model.check(2, &[0; SECTOR]), Ok(()));
        assert_eq!(model.check(2, &[7; SECTOR]), Ok(()));
        assert_eq!(model.check(2, &[8; SECTOR]), Err(2));
        model.write(2, &[8; SECTOR]);
        assert_eq!(model.check(2, &[0; SECTOR]), Err(2));
        let mut over = Model::overlay(vec![9; 2 * SECTOR]);
        over.write(0, &[8; 2 * SECTOR]);
        assert_eq!(over.check(1, &[9; SECTOR]), Err(1));
        over.discard(1, 1);
        assert_eq!(over.check(0, &[9; SECTOR]), Err(0));
        assert_eq!(over.check(1, &[9; SECTOR]), Ok(()));
        model.forget();
        assert_eq!(model.check(0, &[5; SECTOR]), Ok(()));
        model.write(1, &[8; SECTOR]);
        model.discard(0, 1);
        assert_eq!(model.check(0, &[5; 2 * SECTOR]), Err(1));
        model.resize(5);
        assert_eq!((model.nr_sectors(), model.check(4, &[0; SECTOR])), (5, Ok(())));
    }
}
