//! Mutations of a corpus, out of a seeded source.

use sim::Rng;

/// The longest input that is made.
const MAX_BYTES: usize = 4096;

/// Values that often lie at a bound.
const BOUNDS: [u8; 10] = [0, 1, 7, 8, 11, 12, 127, 128, 254, 255];

/// An input out of `corpus`, which is not empty: one of its files, or two joined, changed in one to
/// eight places.
pub fn mutate(corpus: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = corpus[rng.index(corpus.len())].clone();
    if rng.one_in(4) {
        let other = &corpus[rng.index(corpus.len())];
        bytes.truncate(rng.index(bytes.len() + 1));
        bytes.extend(&other[rng.index(other.len() + 1)..]);
    }
    for _ in 0..rng.between(1, 8) {
        change(&mut bytes, rng);
    }
    bytes.truncate(MAX_BYTES);
    bytes
}

fn change(bytes: &mut Vec<u8>, rng: &mut Rng) {
    let at = rng.index(bytes.len() + 1);
    let end = at + rng.index((bytes.len() - at).min(16) + 1);
    let [random, ..] = rng.next_u64().to_le_bytes();
    match rng.below(6) {
        0 => bytes.insert(at, random),
        1 => drop(bytes.drain(at..end)),
        2 => {
            let copy = bytes[at..end].to_vec();
            let to = rng.index(bytes.len() + 1);
            bytes.splice(to..to, copy);
        }
        kind => {
            let Some(byte) = bytes.get_mut(at) else { return bytes.push(random) };
            *byte = match kind {
                3 => *byte ^ (1 << (random % 8)),
                4 => BOUNDS[usize::from(random) % BOUNDS.len()],
                _ => random,
            };
        }
    }
}
