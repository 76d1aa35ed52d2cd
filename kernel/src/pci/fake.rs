//! Configuration space for the tests: words, and BARs that know their size.

use std::collections::BTreeMap;
use std::vec::Vec;

use super::{Bdf, ConfigSpace};

#[derive(Default)]
pub(super) struct Fake {
    words: BTreeMap<(u8, u8, u8, u8), u32>,
    /// Bits of a word that can be written; all of one that is not here.
    writable: BTreeMap<u8, u32>,
    pub(super) writes: Vec<(Bdf, u8, u32)>,
}

impl Fake {
    pub(super) fn add(&mut self, at: Bdf, id: u32, class: u32) {
        self.set(at, 0x00, id);
        self.set(at, 0x08, class << 8);
    }

    pub(super) fn set(&mut self, at: Bdf, offset: u8, word: u32) {
        self.words.insert((at.bus, at.device, at.function, offset), word);
    }

    pub(super) fn make_writable(&mut self, offset: u8, bits: u32) {
        self.writable.insert(offset, bits);
    }
}

impl ConfigSpace for Fake {
    fn read(&mut self, at: Bdf, offset: u8) -> u32 {
        let exists = self.words.contains_key(&(at.bus, at.device, at.function, 0));
        let none = if exists { 0 } else { u32::MAX };
        *self.words.get(&(at.bus, at.device, at.function, offset)).unwrap_or(&none)
    }

    fn write(&mut self, at: Bdf, offset: u8, value: u32) {
        self.writes.push((at, offset, value));
        let bits = *self.writable.get(&offset).unwrap_or(&u32::MAX);
        let old = self.read(at, offset);
        self.set(at, offset, old & !bits | value & bits);
    }
}
