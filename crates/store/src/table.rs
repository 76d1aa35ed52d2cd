//! A disk's table of pages: a radix tree whose nodes are pages of the pool.
//!
//! A node holds 1024 entries of 32 bits, each the frame number of the node or page below it, or 0
//! for none. A fully written disk pays a word a page, an empty one nothing.

use core::ops::Range;

use xen_abi::{Gfn, PAGE_SIZE};

use crate::block_store::{Progress, Steps, StoreError};
use crate::memory::{FrameAddr, FrameMemory};
use crate::pool::{PagePool, Want};

const ENTRY_BYTES: u16 = 4;
const FANOUT_SHIFT: u32 = 10;
const FANOUT: u64 = 1 << FANOUT_SHIFT;

/// The pages of one disk, by their number on it.
#[derive(Debug)]
pub(crate) struct PageTable {
    root: Option<Gfn>,
    /// Levels of nodes, at least one; the lowest points at pages.
    nr_levels: u32,
}

impl PageTable {
    /// An empty table for `nr_pages` pages.
    pub(crate) fn new(nr_pages: u64) -> Self {
        let mut nr_levels = 1;
        while nr_levels * FANOUT_SHIFT < u64::BITS && nr_pages > 1 << (nr_levels * FANOUT_SHIFT) {
            nr_levels += 1;
        }
        Self { root: None, nr_levels }
    }

    /// Nodes of a table whose first `nr_pages` pages are all written.
    pub(crate) fn nr_nodes(&self, nr_pages: u64) -> u64 {
        (1..=self.nr_levels)
            .map(|level| nr_pages.div_ceil(1 << (level * FANOUT_SHIFT).min(u64::BITS - 1)))
            .sum()
    }

    /// The page at `number`, if there is one.
    pub(crate) fn get<M: FrameMemory>(&self, pool: &PagePool<M>, number: u64) -> Option<Gfn> {
        let mut node = self.root?;
        for level in (0..self.nr_levels).rev() {
            node = load(pool, entry(node, level, number))?;
        }
        Some(node)
    }

    /// Makes sure that [`replace`](Self::replace) will find a place for the page at `number`.
    pub(crate) fn prepare<M: FrameMemory>(
        &mut self,
        pool: &mut PagePool<M>,
        number: u64,
    ) -> Result<(), StoreError> {
        let mut node = match self.root {
            Some(root) => root,
            None => *self.root.insert(new_node(pool)?),
        };
        for level in (1..self.nr_levels).rev() {
            let at = entry(node, level, number);
            node = match load(pool, at) {
                Some(below) => below,
                None => {
                    let below = new_node(pool)?;
                    store(pool, at, Some(below));
                    below
                }
            };
        }
        Ok(())
    }

    /// Puts a page at `number`, which was prepared, and gives the one that was there.
    pub(crate) fn replace<M: FrameMemory>(
        &mut self,
        pool: &mut PagePool<M>,
        number: u64,
        page: Gfn,
    ) -> Option<Gfn> {
        let mut node = self.root?;
        for level in (1..self.nr_levels).rev() {
            node = load(pool, entry(node, level, number))?;
        }
        let at = entry(node, 0, number);
        let old = load(pool, at);
        store(pool, at, Some(page));
        old
    }

    /// Takes the pages of a range out of the table, a step each, and gives them to `release`.
    /// Nodes with nothing but such pages below them go back to the pool.
    pub(crate) fn remove<M: FrameMemory>(
        &mut self,
        pool: &mut PagePool<M>,
        range: Range<u64>,
        steps: &mut Steps,
        release: &mut impl FnMut(&mut PagePool<M>, Gfn),
    ) -> Progress {
        let Some(root) = self.root else { return Progress::Done };
        let node = Node { gfn: root, level: self.nr_levels - 1, first: 0 };
        match remove_below(pool, node, &range, steps, release) {
            (Progress::Done, Left::Nothing) => {
                pool.release(root);
                self.root = None;
                Progress::Done
            }
            (progress, _) => progress,
        }
    }

    /// Makes room for `nr_pages` pages.
    pub(crate) fn grow<M: FrameMemory>(
        &mut self,
        pool: &mut PagePool<M>,
        nr_pages: u64,
    ) -> Result<(), StoreError> {
        let Self { nr_levels, .. } = Self::new(nr_pages);
        while self.nr_levels < nr_levels {
            if let Some(root) = self.root {
                let above = new_node(pool)?;
                store(pool, FrameAddr::start_of(above), Some(root));
                self.root = Some(above);
            }
            self.nr_levels += 1;
        }
        Ok(())
    }
}

/// A node and where it stands.
#[derive(Clone, Copy)]
struct Node {
    gfn: Gfn,
    /// Levels above the lowest.
    level: u32,
    /// The first page below it.
    first: u64,
}

impl Node {
    /// Pages below each of its entries.
    const fn stride(&self) -> u64 {
        1 << (self.level * FANOUT_SHIFT)
    }
}

/// Whether a node still has entries.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Left {
    Nothing,
    Something,
}

/// Removes what a range covers below a node. No deeper than the table has levels.
fn remove_below<M: FrameMemory>(
    pool: &mut PagePool<M>,
    node: Node,
    range: &Range<u64>,
    steps: &mut Steps,
    release: &mut impl FnMut(&mut PagePool<M>, Gfn),
) -> (Progress, Left) {
    let mut left = Left::Nothing;
    for index in 0..FANOUT {
        let first = node.first + index * node.stride();
        let at = entry(node.gfn, 0, index);
        let Some(below) = load(pool, at) else { continue };
        if first >= range.end || first + node.stride() <= range.start {
            left = Left::Something;
            continue;
        }
        if node.level > 0 {
            let child = Node { gfn: below, level: node.level - 1, first };
            match remove_below(pool, child, range, steps, release) {
                (Progress::More, _) => return (Progress::More, Left::Something),
                (Progress::Done, Left::Something) => {
                    left = Left::Something;
                    continue;
                }
                (Progress::Done, Left::Nothing) => {
                    store(pool, at, None);
                    pool.release(below);
                }
            }
        } else {
            if !steps.take() {
                return (Progress::More, Left::Something);
            }
            store(pool, at, None);
            release(pool, below);
        }
    }
    (Progress::Done, left)
}

/// Where the entry for page `number` is, in a node `level` levels above the lowest.
fn entry(node: Gfn, level: u32, number: u64) -> FrameAddr {
    let index = (number >> (level * FANOUT_SHIFT) & (FANOUT - 1)) as u16;
    FrameAddr { gfn: node, offset: index * ENTRY_BYTES }
}

fn load<M: FrameMemory>(pool: &PagePool<M>, at: FrameAddr) -> Option<Gfn> {
    match pool.memory().load_u32(at) {
        0 => None,
        gfn => Some(Gfn(u64::from(gfn))),
    }
}

fn store<M: FrameMemory>(pool: &mut PagePool<M>, at: FrameAddr, page: Option<Gfn>) {
    // The pool has no frame whose number needs more than 32 bits, and none with number 0.
    #[expect(clippy::cast_possible_truncation, reason = "checked when the pool was made")]
    let value = page.map_or(0, |gfn| gfn.0 as u32);
    pool.memory_mut().store_u32(at, value);
}

fn new_node<M: FrameMemory>(pool: &mut PagePool<M>) -> Result<Gfn, StoreError> {
    let node = pool.take(Want::More)?;
    pool.memory_mut().zero(FrameAddr::start_of(node), PAGE_SIZE);
    Ok(node)
}
