//! The pool's books, counted anew.

use alloc::collections::{BTreeMap, BTreeSet};

use xen_abi::Gfn;

use crate::block_store::OpenWrite;
use crate::memory::FrameMemory;
use crate::page_disk::{PageDisk, Usage};
use crate::pool::PagePool;
use crate::table::entries;

/// Counts every reference to a page anew, and holds the result against the books. For tests and
/// simulations: it takes memory and time for every page that is in use.
///
/// What has pages of the pool is told first, all of it, then [`finish`](Self::finish) compares.
#[derive(Debug, Default)]
pub struct Audit {
    /// References to each page.
    refs: BTreeMap<Gfn, u32>,
    /// Pages and nodes below each node, itself included.
    nodes: BTreeMap<Gfn, (u64, u64)>,
    /// Pages that open writes have reserved.
    reserved: BTreeSet<Gfn>,
}

/// What is wrong with the books.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Mismatch {
    /// Pages are referred to more or less often than the pool knows.
    #[error("page {page} is referred to {found} times, the pool says {booked}")]
    References {
        /// Which page.
        page: Gfn,
        /// References that there are.
        found: u32,
        /// References that the pool knows of.
        booked: u32,
    },
    /// A disk has more or fewer pages or nodes than it says.
    #[error("a disk with {found:?} says it has {booked:?}")]
    Disk {
        /// What is reached from its root.
        found: Usage,
        /// What it says.
        booked: Usage,
    },
    /// Free and used pages are not all pages.
    #[error("{free} free + {used} used + {limbo} in limbo are not {total} pages")]
    Total {
        /// Pages that nobody has.
        free: u64,
        /// Pages that somebody has.
        used: u64,
        /// Pages that wait for open reads.
        limbo: u64,
        /// All pages.
        total: u64,
    },
}

impl Audit {
    /// Nobody has any page.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts what a disk has.
    ///
    /// # Errors
    /// [`Mismatch::Disk`].
    pub fn disk<M: FrameMemory>(
        &mut self,
        pool: &PagePool<M>,
        disk: &PageDisk,
    ) -> Result<(), Mismatch> {
        let ([table, dropped], booked) = disk.trees();
        if let Some(tree) = dropped {
            self.tree(pool, tree.root, tree.level);
        }
        let (nr_pages, nr_nodes) =
            table.map_or((0, 0), |tree| self.tree(pool, tree.root, tree.level));
        let found = Usage { nr_pages, nr_nodes, ..booked };
        if found == booked { Ok(()) } else { Err(Mismatch::Disk { found, booked }) }
    }

    /// Counts what an open write has reserved.
    pub fn write<M: FrameMemory>(&mut self, pool: &PagePool<M>, write: &OpenWrite) {
        self.reserved.extend(pool.reserved(&write.reserved));
    }

    /// Counts a page that somebody took by itself.
    pub fn page(&mut self, page: Gfn) {
        *self.refs.entry(page).or_default() += 1;
    }

    /// Compares what was counted with the pool's own books.
    ///
    /// # Errors
    /// [`Mismatch::References`] or [`Mismatch::Total`].
    pub fn finish<M: FrameMemory>(self, pool: &PagePool<M>) -> Result<(), Mismatch> {
        for (&page, &found) in &self.refs {
            let booked = pool.nr_refs(page);
            if found != booked {
                return Err(Mismatch::References { page, found, booked });
            }
        }
        let used = self.refs.len() as u64 + self.reserved.len() as u64;
        let (free, limbo, total) = (pool.nr_free(), pool.nr_limbo(), pool.nr_total());
        if free + used + limbo == total {
            Ok(())
        } else {
            Err(Mismatch::Total { free, used, limbo, total })
        }
    }

    /// Counts a reference to a tree, and those below it, which stand there once whoever has the
    /// tree. Gives its pages and nodes.
    fn tree<M: FrameMemory>(&mut self, pool: &PagePool<M>, node: Gfn, level: u32) -> (u64, u64) {
        self.page(node);
        if let Some(&counted) = self.nodes.get(&node) {
            return counted;
        }
        let (mut nr_pages, mut nr_nodes) = (0, 1);
        for below in entries(pool, node) {
            if level > 0 {
                let (pages, nodes) = self.tree(pool, below, level - 1);
                nr_pages += pages;
                nr_nodes += nodes;
            } else {
                self.page(below);
                nr_pages += 1;
            }
        }
        self.nodes.insert(node, (nr_pages, nr_nodes));
        (nr_pages, nr_nodes)
    }
}
