//! Buffers against a model: the free pages in a list, the next to be used first.

#![allow(clippy::unwrap_used, reason = "a test may")]

use proptest::prelude::*;
use store::{Buffer, Buffers, PartLimits};

/// Numbers of the pages.
const NUMBERS: std::ops::Range<u32> = 3..40;

fn buffers() -> Buffers {
    Buffers::new(NUMBERS.start as usize..NUMBERS.end as usize)
}

/// Pages of the lists that name so many pages, as they are sent: part by part.
fn nr_lists(mut nr_pages: usize, limits: PartLimits) -> usize {
    let PartLimits { max_pages, max_direct } = limits;
    let mut nr_lists = 0;
    while nr_pages > 0 {
        let part = nr_pages.min(max_pages);
        nr_lists += usize::from(part > max_direct);
        nr_pages -= part;
    }
    nr_lists
}

/// All pages of a buffer, the lists' first.
fn pages(buffers: &Buffers, buffer: &Buffer, nr_lists: usize) -> Vec<u32> {
    let mut page = buffer.lists();
    let mut lists = Vec::new();
    for _ in 0..nr_lists {
        lists.push(page.0);
        page = buffers.after(page);
    }
    assert_eq!(page, buffer.data());
    lists.into_iter().chain(buffers.data(buffer).map(|page| page.0)).collect()
}

#[derive(Clone, Debug)]
enum Step {
    Reserve(u32),
    /// The buffer of this index, of those that are out.
    GiveBack(prop::sample::Index),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..150_u32).prop_map(Step::Reserve),
        2 => any::<prop::sample::Index>().prop_map(Step::GiveBack),
    ];
    prop::collection::vec(step, 1..100)
}

fn limits() -> impl Strategy<Value = PartLimits> {
    (1..20_usize, 1..20_usize)
        .prop_map(|(max_pages, max_direct)| PartLimits { max_pages, max_direct })
}

proptest! {
    #[test]
    fn pages_are_used_as_in_the_model(limits in limits(), steps in steps()) {
        let mut buffers = buffers();
        let mut free: Vec<u32> = NUMBERS.collect();
        let mut out: Vec<(Buffer, Vec<u32>)> = Vec::new();
        let longest = buffers.max_sectors(limits);
        for step in steps {
            match step {
                Step::Reserve(nr_sectors) => {
                    let nr_data = nr_sectors.div_ceil(8) as usize;
                    let nr_lists = nr_lists(nr_data, limits);
                    let fits = nr_data > 0 && nr_data + nr_lists <= free.len();
                    let buffer = buffers.reserve(nr_sectors, limits);
                    prop_assert_eq!(buffer.is_some(), fits);
                    if let Some(buffer) = buffer {
                        prop_assert_eq!(buffer.nr_sectors(), nr_sectors);
                        let taken: Vec<u32> = free.drain(..nr_data + nr_lists).collect();
                        prop_assert_eq!(&pages(&buffers, &buffer, nr_lists), &taken);
                        out.push((buffer, taken));
                    }
                }
                Step::GiveBack(index) if !out.is_empty() => {
                    let (buffer, taken) = out.swap_remove(index.index(out.len()));
                    buffers.give_back(buffer);
                    free.splice(..0, taken);
                }
                Step::GiveBack(_) => {}
            }
            // What the others have is still theirs.
            for (buffer, taken) in &out {
                let nr_lists = taken.len() - buffer.nr_sectors().div_ceil(8) as usize;
                prop_assert_eq!(&pages(&buffers, buffer, nr_lists), taken);
            }
        }
        for (buffer, _) in out {
            buffers.give_back(buffer);
        }
        let longest = u32::try_from(longest).unwrap();
        prop_assert_eq!(buffers.reserve(longest + 1, limits), None);
        prop_assert!(buffers.reserve(longest, limits).is_some());
    }
}

#[test]
fn the_longest_buffer_leaves_room_for_its_lists() {
    // 37 pages.
    for (max_pages, max_direct, nr_data) in [
        (256, 11, 36),
        (11, 11, 37),
        (1, 2, 37),
        // The last part has a page or two, and names them itself.
        (3, 2, 28),
        (4, 2, 30),
        (35, 2, 36),
    ] {
        let limits = PartLimits { max_pages, max_direct };
        assert_eq!(buffers().max_sectors(limits), nr_data * 8, "{limits:?}");
    }
}

#[test]
fn without_pages_there_are_no_buffers() {
    let limits = PartLimits { max_pages: 256, max_direct: 11 };
    for (first, end) in [(0, 0), (6, 6), (6, 5)] {
        let mut buffers = Buffers::new(first..end);
        assert_eq!(buffers.max_sectors(limits), 0);
        assert_eq!(buffers.reserve(1, limits), None);
    }
}
