//! Blocks that say what they are.

use std::fmt;

use crate::device::BLOCK_BYTES;
use crate::rng::Rng;

const WORDS: usize = BLOCK_BYTES / 8;

/// What a block holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Contents {
    Zeroes,
    /// Every byte follows from these.
    Written(Stamp),
    /// It is neither: its first words, taken as a stamp, and the first byte that does not follow.
    Torn(Stamp, usize),
}

/// What is written into a block.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Stamp {
    pub seed: u64,
    pub block: u64,
    /// From 1, counted for each block.
    pub generation: u64,
}

impl Stamp {
    /// The stamp, then noise that follows from it.
    fn words(self) -> impl Iterator<Item = u64> {
        let stamp = [self.seed, self.block, self.generation];
        let mut rng = Rng::new(stamp.iter().fold(0, |sum, word| Rng::new(sum ^ word).next_u64()));
        stamp.into_iter().chain(std::iter::repeat_with(move || rng.next_u64())).take(WORDS)
    }

    pub fn write(self, into: &mut [u8]) {
        for (bytes, word) in into.chunks_exact_mut(8).zip(self.words()) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
    }
}

impl Contents {
    pub fn read(from: &[u8]) -> Self {
        let mut words = from
            .chunks_exact(8)
            .map(|bytes| bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte)));
        if words.clone().all(|word| word == 0) {
            return Self::Zeroes;
        }
        let [seed, block, generation] = std::array::from_fn(|_| words.next().unwrap_or(0));
        let stamp = Stamp { seed, block, generation };
        let right = stamp.words().flat_map(u64::to_le_bytes);
        match from.iter().zip(right).position(|(&found, right)| found != right) {
            None => Self::Written(stamp),
            Some(at) => Self::Torn(stamp, at),
        }
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, block, generation } = self;
        write!(f, "seed {seed} block {block} generation {generation}")
    }
}

impl fmt::Display for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zeroes => f.write_str("zeroes"),
            Self::Written(stamp) => stamp.fmt(f),
            Self::Torn(stamp, at) => write!(f, "no whole block: {stamp} up to byte {at}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{BLOCK_BYTES, Contents, Stamp};

    const STAMP: Stamp = Stamp { seed: 1, block: 2, generation: 3 };

    fn written() -> Vec<u8> {
        let mut block = vec![0; BLOCK_BYTES];
        STAMP.write(&mut block);
        block
    }

    #[test]
    fn a_block_says_what_was_written() {
        assert_eq!(Contents::read(&written()), Contents::Written(STAMP));
        assert_eq!(Contents::read(&[0; BLOCK_BYTES]), Contents::Zeroes);
    }

    #[test]
    fn any_byte_of_it_counts() {
        for at in [24, 511, 512, BLOCK_BYTES - 1] {
            let mut block = written();
            block[at] ^= 1;
            assert_eq!(Contents::read(&block), Contents::Torn(STAMP, at));
        }
        let mut block = written();
        block[BLOCK_BYTES / 2..].fill(0);
        assert_eq!(
            Contents::read(&block).to_string(),
            "no whole block: seed 1 block 2 generation 3 up to byte 2048"
        );
    }
}
