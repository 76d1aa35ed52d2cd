//! Ring memory for tests.
#![allow(dead_code, reason = "each test crate uses its part")]

use std::cell::RefCell;
use std::sync::atomic::{AtomicU32, Ordering};

use blkif::RingOrder;
use xen_abi::SharedMemory;

/// Memory of one thread that counts how often each byte is fetched.
pub struct CountingMemory {
    bytes: RefCell<Vec<u8>>,
    fetches: RefCell<Vec<u32>>,
}

impl CountingMemory {
    /// A ring full of `fill`, which the code under test must not take for anything.
    pub fn new(order: RingOrder, fill: u8) -> Self {
        Self::of_len(order.len_bytes(), fill)
    }

    pub fn of_len(len_bytes: usize, fill: u8) -> Self {
        Self { bytes: vec![fill; len_bytes].into(), fetches: vec![0; len_bytes].into() }
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.bytes.borrow().clone()
    }

    /// Changes memory as the peer would.
    pub fn poke(&self, offset: usize, bytes: &[u8]) {
        self.bytes.borrow_mut()[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    pub fn poke_u32(&self, offset: usize, value: u32) {
        self.poke(offset, &value.to_le_bytes());
    }

    pub fn peek_u32(&self, offset: usize) -> u32 {
        let bytes = self.bytes.borrow();
        u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
    }

    pub fn fetches(&self) -> Vec<u32> {
        self.fetches.borrow().clone()
    }

    pub fn forget_fetches(&self) {
        self.fetches.borrow_mut().fill(0);
    }
}

impl SharedMemory for CountingMemory {
    fn len_bytes(&self) -> usize {
        self.bytes.borrow().len()
    }

    fn load_u32(&self, offset: usize) -> u32 {
        assert_eq!(offset % 4, 0);
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn store_u32(&self, offset: usize, value: u32) {
        assert_eq!(offset % 4, 0);
        self.poke_u32(offset, value);
    }

    fn read(&self, offset: usize, into: &mut [u8]) {
        into.copy_from_slice(&self.bytes.borrow()[offset..offset + into.len()]);
        for count in &mut self.fetches.borrow_mut()[offset..offset + into.len()] {
            *count += 1;
        }
    }

    fn write(&self, offset: usize, from: &[u8]) {
        self.poke(offset, from);
    }
}

/// Memory whose peer acts before each access to it.
pub struct RacyMemory<'a, F> {
    pub inner: &'a CountingMemory,
    pub peer: F,
}

impl<F: Fn()> SharedMemory for RacyMemory<'_, F> {
    fn len_bytes(&self) -> usize {
        self.inner.len_bytes()
    }

    fn load_u32(&self, offset: usize) -> u32 {
        (self.peer)();
        self.inner.load_u32(offset)
    }

    fn store_u32(&self, offset: usize, value: u32) {
        (self.peer)();
        self.inner.store_u32(offset, value);
    }

    fn read(&self, offset: usize, into: &mut [u8]) {
        (self.peer)();
        self.inner.read(offset, into);
    }

    fn write(&self, offset: usize, from: &[u8]) {
        (self.peer)();
        self.inner.write(offset, from);
    }
}

/// Memory of two threads.
pub struct AtomicMemory(Vec<AtomicU32>);

impl AtomicMemory {
    pub fn new(order: RingOrder) -> Self {
        Self((0..order.len_bytes() / 4).map(|_| AtomicU32::new(0)).collect())
    }
}

// All copies of a ring are of whole words.
impl SharedMemory for AtomicMemory {
    fn len_bytes(&self) -> usize {
        self.0.len() * 4
    }

    fn load_u32(&self, offset: usize) -> u32 {
        self.0[offset / 4].load(Ordering::Acquire)
    }

    fn store_u32(&self, offset: usize, value: u32) {
        self.0[offset / 4].store(value, Ordering::Release);
    }

    fn read(&self, offset: usize, into: &mut [u8]) {
        for (word, bytes) in self.0[offset / 4..].iter().zip(into.chunks_exact_mut(4)) {
            bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
        }
    }

    fn write(&self, offset: usize, from: &[u8]) {
        for (word, bytes) in self.0[offset / 4..].iter().zip(from.chunks_exact(4)) {
            word.store(u32::from_le_bytes(bytes.try_into().unwrap()), Ordering::Relaxed);
        }
    }
}

/// A small seeded generator (splitmix64).
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u32) -> u32 {
        u32::try_from(self.next() % u64::from(end)).unwrap()
    }
}
