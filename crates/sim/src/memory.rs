//! Memory: a guest's pages, which peers reach by grants, and the driver domain's own frames.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::ops::Range;
use std::rc::Rc;

use store::{FrameAddr, FrameMemory};
use xen_abi::{Gfn, PAGE_SIZE, SharedMemory};

/// What a peer did to a watched page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// It fetched these bytes.
    Fetch {
        /// First byte within the page.
        offset: usize,
        /// How many.
        len_bytes: usize,
    },
    /// It stored these bytes.
    Store {
        /// First byte within the page.
        offset: usize,
        /// How many.
        len_bytes: usize,
    },
}

type Hook = Rc<dyn Fn(&Page, Access)>;

/// One page of a domain. Clones are the same page.
///
/// Its owner uses [`Page::read`] and [`Page::write`]; what peers do through a mapping or a grant
/// copy is counted and shown to the hook, if there is one.
#[derive(Clone)]
pub struct Page(Rc<PageInner>);

struct PageInner {
    bytes: RefCell<Box<[u8; PAGE_SIZE]>>,
    watched: Cell<bool>,
    fetches: RefCell<Vec<u32>>,
    hook: RefCell<Option<Hook>>,
}

impl Default for Page {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Page({:p})", Rc::as_ptr(&self.0))
    }
}

impl Page {
    /// A zeroed page.
    #[must_use]
    pub fn new() -> Self {
        Self(Rc::new(PageInner {
            bytes: RefCell::new(Box::new([0; PAGE_SIZE])),
            watched: Cell::new(false),
            fetches: RefCell::new(Vec::new()),
            hook: RefCell::new(None),
        }))
    }

    /// Whether both are the same page.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }

    /// The owner reads.
    pub fn read(&self, offset: usize, into: &mut [u8]) {
        into.copy_from_slice(&self.0.bytes.borrow()[offset..offset + into.len()]);
    }

    /// The owner writes.
    pub fn write(&self, offset: usize, from: &[u8]) {
        self.0.bytes.borrow_mut()[offset..offset + from.len()].copy_from_slice(from);
    }

    /// The owner fills the page with one byte.
    pub fn fill(&self, byte: u8) {
        self.0.bytes.borrow_mut().fill(byte);
    }

    /// The owner's copy of `range`.
    #[must_use]
    pub fn bytes(&self, range: Range<usize>) -> Vec<u8> {
        self.0.bytes.borrow()[range].to_vec()
    }

    /// The owner loads an index.
    #[must_use]
    pub fn load_u32(&self, offset: usize) -> u32 {
        let mut word = [0; 4];
        self.read(offset, &mut word);
        u32::from_ne_bytes(word)
    }

    /// The owner stores an index.
    pub fn store_u32(&self, offset: usize, value: u32) {
        self.write(offset, &value.to_ne_bytes());
    }

    /// Counts the peers' fetches of each byte from now on.
    pub fn count_fetches(&self) {
        *self.0.fetches.borrow_mut() = vec![0; PAGE_SIZE];
        self.0.watched.set(true);
    }

    /// How often peers fetched each byte of `range` since [`Page::count_fetches`].
    #[must_use]
    pub fn fetches(&self, range: Range<usize>) -> Vec<u32> {
        self.0.fetches.borrow()[range].to_vec()
    }

    /// Calls `hook` after each access of a peer: what it changes is what the next fetch sees.
    pub fn set_hook(&self, hook: impl Fn(&Page, Access) + 'static) {
        *self.0.hook.borrow_mut() = Some(Rc::new(hook));
        self.0.watched.set(true);
    }

    /// Takes the hook off.
    pub fn clear_hook(&self) {
        *self.0.hook.borrow_mut() = None;
    }

    /// A peer reads.
    pub(crate) fn peer_read(&self, offset: usize, into: &mut [u8]) {
        self.read(offset, into);
        if self.0.watched.get() {
            self.seen(Access::Fetch { offset, len_bytes: into.len() });
        }
    }

    /// A peer writes.
    pub(crate) fn peer_write(&self, offset: usize, from: &[u8]) {
        self.write(offset, from);
        if self.0.watched.get() {
            self.seen(Access::Store { offset, len_bytes: from.len() });
        }
    }

    fn seen(&self, access: Access) {
        if let Access::Fetch { offset, len_bytes } = access {
            let mut fetches = self.0.fetches.borrow_mut();
            if !fetches.is_empty() {
                for count in &mut fetches[offset..offset + len_bytes] {
                    *count += 1;
                }
            }
        }
        // The hook may use the page, so nothing of it is borrowed here.
        let hook = self.0.hook.borrow().clone();
        if let Some(hook) = hook {
            hook(self, access);
        }
    }
}

/// Who looks at a [`Region`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Side {
    Peer,
    Owner,
}

/// Pages one behind the other.
#[derive(Clone, Debug)]
pub struct Region {
    pages: Vec<Page>,
    side: Side,
}

impl Region {
    /// The region as a peer sees it that mapped these pages.
    #[must_use]
    pub fn mapped(pages: Vec<Page>) -> Self {
        Self { pages, side: Side::Peer }
    }

    /// The region as the pages' owner sees it.
    #[must_use]
    pub fn owned(pages: Vec<Page>) -> Self {
        Self { pages, side: Side::Owner }
    }

    fn read_page(&self, index: usize, offset: usize, into: &mut [u8]) {
        match self.side {
            Side::Peer => self.pages[index].peer_read(offset, into),
            Side::Owner => self.pages[index].read(offset, into),
        }
    }

    fn write_page(&self, index: usize, offset: usize, from: &[u8]) {
        match self.side {
            Side::Peer => self.pages[index].peer_write(offset, from),
            Side::Owner => self.pages[index].write(offset, from),
        }
    }

    fn check(&self, offset: usize, len_bytes: usize) {
        let end = offset.checked_add(len_bytes).expect("an offset past the address space");
        assert!(
            end <= self.len_bytes(),
            "access to bytes {offset}..{end} of a shared region of {} bytes",
            self.len_bytes()
        );
    }

    fn check_word(&self, offset: usize) {
        self.check(offset, 4);
        assert!(offset.is_multiple_of(4), "index at unaligned offset {offset}");
    }
}

impl SharedMemory for Region {
    fn len_bytes(&self) -> usize {
        self.pages.len() * PAGE_SIZE
    }

    fn load_u32(&self, offset: usize) -> u32 {
        self.check_word(offset);
        let mut word = [0; 4];
        self.read_page(offset / PAGE_SIZE, offset % PAGE_SIZE, &mut word);
        u32::from_ne_bytes(word)
    }

    fn store_u32(&self, offset: usize, value: u32) {
        self.check_word(offset);
        self.write_page(offset / PAGE_SIZE, offset % PAGE_SIZE, &value.to_ne_bytes());
    }

    fn read(&self, offset: usize, into: &mut [u8]) {
        self.check(offset, into.len());
        let mut at = offset;
        let mut rest = into;
        while !rest.is_empty() {
            let len = rest.len().min(PAGE_SIZE - at % PAGE_SIZE);
            let (part, behind) = rest.split_at_mut(len);
            self.read_page(at / PAGE_SIZE, at % PAGE_SIZE, part);
            rest = behind;
            at += len;
        }
    }

    fn write(&self, offset: usize, from: &[u8]) {
        self.check(offset, from.len());
        let mut at = offset;
        let mut rest = from;
        while !rest.is_empty() {
            let len = rest.len().min(PAGE_SIZE - at % PAGE_SIZE);
            let (part, behind) = rest.split_at(len);
            self.write_page(at / PAGE_SIZE, at % PAGE_SIZE, part);
            rest = behind;
            at += len;
        }
    }
}

/// What the driver domain's free frames hold at its start: whatever was there before it, and
/// never zeroes, so that a page handed out unwritten shows.
pub const STALE_BYTE: u8 = 0xa5;

/// The driver domain's own frames: runs of them, with holes between as a memory map has. Clones
/// are the same memory.
#[derive(Clone, Debug)]
pub struct OwnFrames {
    runs: Rc<[Run]>,
}

#[derive(Debug)]
struct Run {
    first: Gfn,
    pages: Vec<Page>,
}

impl OwnFrames {
    /// Frames in these runs (first frame, number of frames), which neither touch nor overlap,
    /// all filled with [`STALE_BYTE`].
    #[must_use]
    pub fn new(runs: &[(Gfn, u64)]) -> Self {
        let stale = |_| {
            let page = Page::new();
            page.fill(STALE_BYTE);
            page
        };
        let run = |&(first, nr_frames)| Run { first, pages: (0..nr_frames).map(stale).collect() };
        Self { runs: runs.iter().map(run).collect() }
    }

    fn find(&self, gfn: Gfn) -> Option<&Page> {
        self.runs.iter().find_map(|run| {
            let nth = usize::try_from(gfn.0.checked_sub(run.first.0)?).ok()?;
            run.pages.get(nth)
        })
    }

    /// The page in a frame.
    ///
    /// # Panics
    /// Where there is no such frame.
    #[must_use]
    pub fn page(&self, gfn: Gfn) -> &Page {
        self.find(gfn).unwrap_or_else(|| panic!("frame {gfn} is not ours"))
    }

    /// Whether the page at `gfn` is ours.
    #[must_use]
    pub fn holds(&self, gfn: Gfn) -> bool {
        self.find(gfn).is_some()
    }

    /// The pages that `len_bytes` bytes at `at` lie in, and where in each.
    fn parts(
        &self,
        at: FrameAddr,
        len_bytes: usize,
    ) -> impl Iterator<Item = (&Page, Range<usize>)> {
        let mut left_bytes = len_bytes;
        let mut offset = usize::from(at.offset());
        (at.gfn().0..).map_while(move |gfn| {
            let part = offset..(offset + left_bytes).min(PAGE_SIZE);
            if part.is_empty() {
                return None;
            }
            left_bytes -= part.len();
            offset = 0;
            let outside = || panic!("{len_bytes} bytes at {at:?} are outside our memory");
            Some((self.find(Gfn(gfn)).unwrap_or_else(outside), part))
        })
    }
}

impl FrameMemory for OwnFrames {
    fn read(&self, at: FrameAddr, into: &mut [u8]) {
        let mut rest = into;
        for (page, part) in self.parts(at, rest.len()) {
            let (bytes, behind) = rest.split_at_mut(part.len());
            page.read(part.start, bytes);
            rest = behind;
        }
    }

    fn write(&mut self, at: FrameAddr, from: &[u8]) {
        let mut rest = from;
        for (page, part) in self.parts(at, from.len()) {
            let (bytes, behind) = rest.split_at(part.len());
            page.write(part.start, bytes);
            rest = behind;
        }
    }

    fn zero(&mut self, at: FrameAddr, len_bytes: usize) {
        for (page, part) in self.parts(at, len_bytes) {
            page.write(part.start, &[0; PAGE_SIZE][..part.len()]);
        }
    }

    fn copy(&mut self, from: FrameAddr, to: FrameAddr, len_bytes: usize) {
        let bytes_of = |at: FrameAddr| (at.gfn().0 << 12) + u64::from(at.offset());
        let apart = bytes_of(from).abs_diff(bytes_of(to)) >= len_bytes as u64;
        assert!(apart, "copy of {len_bytes} bytes from {from:?} to {to:?} overlaps");
        let mut bytes = vec![0; len_bytes];
        self.read(from, &mut bytes);
        self.write(to, &bytes);
    }

    fn load_u32(&self, at: FrameAddr) -> u32 {
        assert!(at.offset().is_multiple_of(4), "word at unaligned offset {}", at.offset());
        self.page(at.gfn()).load_u32(at.offset().into())
    }

    fn store_u32(&mut self, at: FrameAddr, value: u32) {
        assert!(at.offset().is_multiple_of(4), "word at unaligned offset {}", at.offset());
        self.page(at.gfn()).store_u32(at.offset().into(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_reads_and_writes_across_its_pages() {
        let pages = [Page::new(), Page::new()];
        let region = Region::mapped(pages.to_vec());
        region.write(4094, &[1, 2, 3, 4]);
        assert_eq!(pages[0].bytes(4092..4096), [0, 0, 1, 2]);
        assert_eq!(pages[1].bytes(0..4), [3, 4, 0, 0]);
        let mut back = [0; 4];
        region.read(4094, &mut back);
        assert_eq!(back, [1, 2, 3, 4]);
        region.store_u32(4096, 7);
        assert_eq!(pages[1].load_u32(0), 7);
        assert_eq!(region.len_bytes(), 8192);
    }

    #[test]
    #[should_panic(expected = "access to bytes 4093..4097 of a shared region of 4096 bytes")]
    fn a_region_ends() {
        Region::mapped(vec![Page::new()]).write(4093, &[0; 4]);
    }

    #[test]
    fn fetches_are_counted_byte_by_byte_and_the_owners_are_not() {
        let page = Page::new();
        let region = Region::mapped(vec![page.clone()]);
        region.read(0, &mut [0; 8]);
        page.count_fetches();
        region.read(2, &mut [0; 3]);
        let _ = region.load_u32(4);
        page.read(0, &mut [0; 16]);
        region.write(0, &[9; 16]);
        assert_eq!(page.fetches(0..9), [0, 0, 1, 1, 2, 1, 1, 1, 0]);
    }

    #[test]
    fn a_hook_changes_what_the_second_fetch_sees() {
        let page = Page::new();
        page.write(0, &[1]);
        page.set_hook(|page, access| {
            if access == (Access::Fetch { offset: 0, len_bytes: 1 }) {
                page.write(0, &[2]);
            }
        });
        let region = Region::mapped(vec![page.clone()]);
        let mut byte = [0];
        region.read(0, &mut byte);
        assert_eq!(byte, [1]);
        region.read(0, &mut byte);
        assert_eq!(byte, [2]);
    }

    #[test]
    fn own_frames_are_stale_at_first_and_run_over_frame_ends() {
        let mut frames = OwnFrames::new(&[(Gfn(16), 2), (Gfn(100), 1)]);
        let mut bytes = [0; 4];
        frames.read(FrameAddr::new(Gfn(16), 4094), &mut bytes);
        assert_eq!(bytes, [STALE_BYTE; 4]);
        frames.write(FrameAddr::new(Gfn(16), 4094), &[1, 2, 3, 4]);
        frames.copy(FrameAddr::new(Gfn(16), 4094), FrameAddr::new(Gfn(100), 8), 4);
        frames.zero(FrameAddr::new(Gfn(17), 0), 1);
        assert_eq!(frames.load_u32(FrameAddr::new(Gfn(100), 8)), 0x0403_0201);
        frames.read(FrameAddr::new(Gfn(16), 4094), &mut bytes);
        assert_eq!(bytes, [1, 2, 0, 4]);
        assert!(frames.holds(Gfn(17)) && !frames.holds(Gfn(18)) && frames.holds(Gfn(100)));
    }

    #[test]
    #[should_panic(expected = "are outside our memory")]
    fn a_range_that_leaves_its_run_is_a_bug() {
        OwnFrames::new(&[(Gfn(16), 2)]).read(FrameAddr::new(Gfn(17), 4095), &mut [0; 2]);
    }
}
