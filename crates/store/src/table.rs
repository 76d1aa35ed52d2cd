//! A disk's table of pages: a radix tree whose nodes are pages of the pool.
//!
//! A node holds 1024 entries of 32 bits, each the frame number of the node or page below it, or 0
//! for none. A fully written disk pays a word a page, an empty one nothing.
//!
//! Tables may have nodes and pages in common: what more than one entry or root refers to is never
//! written. A disk that wants to, copies the path down to it first and refers to all that hangs off
//! the path once more.

use core::ops::Range;

use xen_abi::{Gfn, PAGE_SIZE};

use crate::block_store::{Discard, Progress, Steps, StoreError};
use crate::memory::{FrameAddr, FrameMemory};
use crate::pool::{PagePool, Want};

const ENTRY_BYTES: u16 = 4;
const FANOUT_SHIFT: u32 = 10;
pub(crate) const FANOUT: u64 = 1 << FANOUT_SHIFT;

/// The pages of one disk, by their number on it.
#[derive(Debug)]
pub(crate) struct PageTable {
    root: Option<Gfn>,
    /// Levels of nodes, at least one; the lowest points at pages.
    nr_levels: u32,
    /// Pages and nodes that are reached from the root, whoever else has them.
    nr_pages: u64,
    nr_nodes: u64,
}

/// A node and all that is below it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tree {
    pub(crate) root: Gfn,
    /// Levels above the lowest.
    pub(crate) level: u32,
}

/// The lowest node for a run of pages: where they stand in the table.
#[derive(Clone, Copy)]
pub(crate) struct Leaf {
    node: Option<Gfn>,
    /// Which run of [`FANOUT`] pages.
    run: u64,
    /// Nodes on the way to here that there are not yet.
    nr_missing: u64,
}

impl Leaf {
    /// Whether the page at `number` stands here.
    pub(crate) const fn is_for(self, number: u64) -> bool {
        number >> FANOUT_SHIFT == self.run
    }

    /// Nodes that must be made before a page can stand here.
    pub(crate) const fn nr_missing(self) -> u64 {
        self.nr_missing
    }

    /// The page at `number`, if there is one.
    pub(crate) fn page<M: FrameMemory>(self, pool: &PagePool<M>, number: u64) -> Option<Gfn> {
        load(pool, entry(self.node?, 0, number))
    }
}

impl PageTable {
    /// An empty table for `nr_pages` pages.
    pub(crate) fn new(nr_pages: u64) -> Self {
        let mut nr_levels = 1;
        while nr_levels * FANOUT_SHIFT < u64::BITS && nr_pages > 1 << (nr_levels * FANOUT_SHIFT) {
            nr_levels += 1;
        }
        Self { root: None, nr_levels, nr_pages: 0, nr_nodes: 0 }
    }

    /// The same table for another disk. Takes the same time whatever is in it.
    pub(crate) fn share<M: FrameMemory>(&self, pool: &mut PagePool<M>) -> Self {
        if let Some(root) = self.root {
            pool.retain(root);
        }
        Self { ..*self }
    }

    /// Pages in the table.
    pub(crate) const fn nr_pages(&self) -> u64 {
        self.nr_pages
    }

    /// Nodes of the table.
    pub(crate) const fn nr_nodes(&self) -> u64 {
        self.nr_nodes
    }

    /// Nodes of a table whose first `nr_pages` pages are all written.
    pub(crate) fn nr_nodes_for(&self, nr_pages: u64) -> u64 {
        (1..=self.nr_levels)
            .map(|level| nr_pages.div_ceil(1 << (level * FANOUT_SHIFT).min(u64::BITS - 1)))
            .sum()
    }

    /// All of the table.
    pub(crate) fn tree(&self) -> Option<Tree> {
        self.root.map(|root| Tree { root, level: self.nr_levels - 1 })
    }

    /// Where to look for the page at `number`.
    #[inline]
    pub(crate) fn leaf<M: FrameMemory>(&self, pool: &PagePool<M>, number: u64) -> Leaf {
        let mut node = self.root;
        let mut nr_missing = u64::from(node.is_none());
        for level in (1..self.nr_levels).rev() {
            node = node.and_then(|node| load(pool, entry(node, level, number)));
            nr_missing += u64::from(node.is_none());
        }
        Leaf { node, run: number >> FANOUT_SHIFT, nr_missing }
    }

    /// Makes the place for the page at `number`, which no other table has. It stays until pages
    /// are removed or the table is shared.
    ///
    /// # Errors
    /// [`StoreError::NoMemory`].
    pub(crate) fn own_leaf<M: FrameMemory>(
        &mut self,
        pool: &mut PagePool<M>,
        number: u64,
    ) -> Result<Leaf, StoreError> {
        let mut node = self.own(pool, self.root)?;
        self.root = Some(node);
        for level in (1..self.nr_levels).rev() {
            let at = entry(node, level, number);
            let below = load(pool, at);
            node = self.own(pool, below)?;
            if below != Some(node) {
                store(pool, at, Some(node));
            }
        }
        Ok(Leaf { node: Some(node), run: number >> FANOUT_SHIFT, nr_missing: 0 })
    }

    /// The node to have in place of `found`: itself, or a copy where others have it, too.
    fn own<M: FrameMemory>(
        &mut self,
        pool: &mut PagePool<M>,
        found: Option<Gfn>,
    ) -> Result<Gfn, StoreError> {
        match found {
            Some(node) if pool.is_shared(node) => copy_node(pool, node, Want::More),
            Some(node) => Ok(node),
            None => {
                let node = new_node(pool)?;
                self.nr_nodes += 1;
                Ok(node)
            }
        }
    }

    /// Puts a page at `number` into its leaf, which was made by [`own_leaf`](Self::own_leaf), and
    /// gives the one that was there.
    #[inline]
    pub(crate) fn replace<M: FrameMemory>(
        &mut self,
        pool: &mut PagePool<M>,
        leaf: Leaf,
        number: u64,
        page: Gfn,
    ) -> Option<Gfn> {
        let Some(node) = leaf.node else {
            debug_assert!(false, "page {number} has no place");
            return Some(page);
        };
        let at = entry(node, 0, number);
        let old = page_of(pool.memory_mut().replace_u32(at, entry_of(Some(page))));
        self.nr_pages += u64::from(old.is_none());
        old
    }

    /// Takes the pages of a range out of the table and drops its reference to each, a step for
    /// every page and every node that goes. A lowest node that others have, too, goes as a whole.
    ///
    /// # Errors
    /// [`StoreError::NoMemory`] where a node has to be copied: others have it and keep it. All that
    /// needs no copy is gone then.
    pub(crate) fn remove<M: FrameMemory>(
        &mut self,
        pool: &mut PagePool<M>,
        range: &Range<u64>,
        discard: Discard,
        steps: &mut Steps,
    ) -> Result<Progress, StoreError> {
        let Some(mut root) = self.root.filter(|_| !range.is_empty()) else {
            return Ok(Progress::Done);
        };
        let mut node = Node { gfn: root, level: self.nr_levels - 1, first: 0 };
        if pool.is_shared(root) {
            if *range == (0..u64::MAX) && discard == Discard::Plain {
                // Nothing of it has to be looked at.
                let _ = self.take_tree();
                pool.release(root);
                return Ok(Progress::Done);
            }
            if !node.has_any(pool, range) {
                return Ok(Progress::Done);
            }
            if !steps.take_node() {
                return Ok(Progress::More);
            }
            root = copy_node(pool, root, node.want_copy(range))?;
            node.gfn = root;
            self.root = Some(root);
        }
        let nr_free = pool.nr_free();
        let mut removal = Removal { range, discard, steps, refused: None };
        match self.remove_below(pool, node, &mut removal) {
            (Progress::Done, Left::Nothing) if removal.steps.take() => {
                self.root = None;
                self.nr_nodes -= 1;
                pool.release(root);
                debug_assert_eq!((self.nr_pages, self.nr_nodes), (0, 0), "an empty table's books");
                Ok(Progress::Done)
            }
            (Progress::Done, Left::Something) => match removal.refused {
                Some(error) if pool.nr_free() <= nr_free => Err(error),
                // There may be room for the copy now.
                Some(_) => Ok(Progress::More),
                None => Ok(Progress::Done),
            },
            _ => Ok(Progress::More),
        }
    }

    /// Removes what a range covers below a node that no other table has. No deeper than the table
    /// has levels.
    fn remove_below<M: FrameMemory>(
        &mut self,
        pool: &mut PagePool<M>,
        node: Node,
        removal: &mut Removal<'_>,
    ) -> (Progress, Left) {
        const MORE: (Progress, Left) = (Progress::More, Left::Something);
        let Removal { range, discard, .. } = *removal;
        let mut left = Left::Nothing;
        for index in 0..FANOUT {
            let at = entry(node.gfn, 0, index);
            let Some(below) = load(pool, at) else { continue };
            let first = node.first + index * node.stride();
            if first >= range.end || first + node.stride() <= range.start {
                left = Left::Something;
                continue;
            }
            if node.level == 0 {
                if !removal.steps.take() {
                    return MORE;
                }
                store(pool, at, None);
                self.nr_pages -= 1;
                release(pool, below, discard);
                continue;
            }
            let mut child = Node { gfn: below, level: node.level - 1, first };
            if pool.is_shared(below) {
                if child.level == 0 && child.is_within(range) {
                    if !removal.steps.take_node() {
                        return MORE;
                    }
                    self.nr_pages -= child.look(pool, range, discard);
                    self.nr_nodes -= 1;
                    store(pool, at, None);
                    pool.release(below);
                    continue;
                }
                if !child.has_any(pool, range) {
                    left = Left::Something;
                    continue;
                }
                if removal.steps.are_used_up() {
                    return MORE;
                }
                match copy_node(pool, below, child.want_copy(range)) {
                    Ok(copy) => {
                        child.gfn = copy;
                        let _ = removal.steps.take_node();
                    }
                    // Takes no step: the next call would come no further.
                    Err(error) => {
                        removal.refused = Some(error);
                        left = Left::Something;
                        continue;
                    }
                }
                store(pool, at, Some(child.gfn));
            }
            match self.remove_below(pool, child, removal) {
                (Progress::Done, Left::Something) => left = Left::Something,
                (Progress::Done, Left::Nothing) => {
                    if !removal.steps.take() {
                        return MORE;
                    }
                    store(pool, at, None);
                    self.nr_nodes -= 1;
                    pool.release(child.gfn);
                }
                _ => return MORE,
            }
        }
        (Progress::Done, left)
    }

    /// Empties the table at once, and gives all that was in it, to be [dropped](drop_tree).
    pub(crate) fn take_tree(&mut self) -> Option<Tree> {
        let tree = self.tree();
        self.root = None;
        self.nr_pages = 0;
        self.nr_nodes = 0;
        tree
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
                self.nr_nodes += 1;
            }
            self.nr_levels += 1;
        }
        Ok(())
    }
}

/// Drops a reference to a tree, a step for every page and node that goes with it. What others have,
/// too, stays. The tree is `None` when it is done.
pub(crate) fn drop_tree<M: FrameMemory>(
    pool: &mut PagePool<M>,
    tree: &mut Option<Tree>,
    steps: &mut Steps,
) -> Progress {
    let Some(Tree { root, level }) = *tree else { return Progress::Done };
    if drop_below(pool, root, level, steps) == Progress::More || !steps.take() {
        return Progress::More;
    }
    *tree = None;
    pool.release(root);
    Progress::Done
}

/// Empties a node whose last reference is about to go. No deeper than a table has levels.
fn drop_below<M: FrameMemory>(
    pool: &mut PagePool<M>,
    node: Gfn,
    level: u32,
    steps: &mut Steps,
) -> Progress {
    if pool.is_shared(node) {
        return Progress::Done;
    }
    for index in 0..FANOUT {
        let at = entry(node, 0, index);
        let Some(below) = load(pool, at) else { continue };
        if level > 0 && drop_below(pool, below, level - 1, steps) == Progress::More {
            return Progress::More;
        }
        if !steps.take() {
            return Progress::More;
        }
        store(pool, at, None);
        pool.release(below);
    }
    Progress::Done
}

/// What is being removed.
struct Removal<'a> {
    range: &'a Range<u64>,
    discard: Discard,
    steps: &'a mut Steps,
    /// Why a node could not be copied. The rest goes all the same: that may make room for it.
    refused: Option<StoreError>,
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

    /// Whether a range covers all pages that can be below.
    const fn is_within(&self, range: &Range<u64>) -> bool {
        range.start <= self.first && self.first + self.stride() * FANOUT <= range.end
    }

    /// What a copy of it is wanted for when a range is removed: one that is emptied goes right
    /// after.
    const fn want_copy(&self, range: &Range<u64>) -> Want {
        if self.is_within(range) { Want::Exchange } else { Want::More }
    }

    /// Whether anything of a range is below it. Looks closer only where the range begins or ends.
    fn has_any<M: FrameMemory>(&self, pool: &PagePool<M>, range: &Range<u64>) -> bool {
        (0..FANOUT).any(|index| {
            let first = self.first + index * self.stride();
            if first >= range.end || first + self.stride() <= range.start {
                return false;
            }
            let Some(gfn) = load(pool, entry(self.gfn, 0, index)) else { return false };
            let Some(level) = self.level.checked_sub(1) else { return true };
            let child = Self { gfn, level, first };
            child.is_within(range) || child.has_any(pool, range)
        })
    }

    /// Counts the pages of a range in a lowest node. Those of a secure discard are to be erased
    /// once nobody has them.
    fn look<M: FrameMemory>(
        &self,
        pool: &mut PagePool<M>,
        range: &Range<u64>,
        discard: Discard,
    ) -> u64 {
        let numbers = range.start.max(self.first)..range.end.min(self.first + FANOUT);
        let mut nr_pages = 0;
        for number in numbers {
            let Some(page) = load(pool, entry(self.gfn, 0, number)) else { continue };
            nr_pages += 1;
            if discard == Discard::Secure {
                pool.doom(page);
            }
        }
        nr_pages
    }
}

/// Whether a node still has entries.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Left {
    Nothing,
    Something,
}

fn release<M: FrameMemory>(pool: &mut PagePool<M>, page: Gfn, discard: Discard) {
    if discard == Discard::Secure {
        pool.doom(page);
    }
    pool.release(page);
}

/// Where the entry for page `number` is, in a node `level` levels above the lowest.
#[inline]
fn entry(node: Gfn, level: u32, number: u64) -> FrameAddr {
    let index = (number >> (level * FANOUT_SHIFT) & (FANOUT - 1)) as u16;
    FrameAddr::new(node, index * ENTRY_BYTES)
}

#[inline]
fn load<M: FrameMemory>(pool: &PagePool<M>, at: FrameAddr) -> Option<Gfn> {
    page_of(pool.memory().load_u32(at))
}

fn store<M: FrameMemory>(pool: &mut PagePool<M>, at: FrameAddr, page: Option<Gfn>) {
    pool.memory_mut().store_u32(at, entry_of(page));
}

/// What an entry refers to.
const fn page_of(entry: u32) -> Option<Gfn> {
    match entry {
        0 => None,
        gfn => Some(Gfn(gfn as u64)),
    }
}

/// The entry that refers to a page or a node.
fn entry_of(page: Option<Gfn>) -> u32 {
    // The pool has no frame whose number needs more than 32 bits, and none with number 0.
    #[expect(clippy::cast_possible_truncation, reason = "checked when the pool was made")]
    page.map_or(0, |gfn| gfn.0 as u32)
}

/// What a node's entries refer to.
pub(crate) fn entries<M: FrameMemory>(
    pool: &PagePool<M>,
    node: Gfn,
) -> impl Iterator<Item = Gfn> + '_ {
    (0..FANOUT).filter_map(move |index| load(pool, entry(node, 0, index)))
}

fn new_node<M: FrameMemory>(pool: &mut PagePool<M>) -> Result<Gfn, StoreError> {
    let node = pool.take(Want::More)?;
    pool.memory_mut().zero(FrameAddr::start_of(node), PAGE_SIZE);
    Ok(node)
}

/// Exchanges a reference to a shared node for a node of the same entries.
fn copy_node<M: FrameMemory>(
    pool: &mut PagePool<M>,
    node: Gfn,
    want: Want,
) -> Result<Gfn, StoreError> {
    let copy = pool.take(want)?;
    pool.memory_mut().copy(FrameAddr::start_of(node), FrameAddr::start_of(copy), PAGE_SIZE);
    for index in 0..FANOUT {
        if let Some(below) = load(pool, entry(node, 0, index)) {
            pool.retain(below);
        }
    }
    pool.release(node);
    Ok(copy)
}
