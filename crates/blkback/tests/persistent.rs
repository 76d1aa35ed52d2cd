//! The pages that stay mapped, where the hypervisor maps some of a batch and not others.

#![allow(clippy::unwrap_used, reason = "a test may")]
mod mapped;

use blkif::Operation;
use mapped::{Lab, NR_PAGES};
use xen_abi::GntStatus;

#[test]
fn every_page_of_a_batch_that_maps_stays_mapped() {
    let mut lab = Lab::new(8);
    let pages = lab.pages(&[1, 2, 3, 4, 5, 6]);
    lab.serve(Operation::Write, &pages);
    assert_eq!(lab.nr_mapped(), (6, 6));
    lab.check_disk(&pages);
    // The 2 that were free, and the 4 that were not used for longest.
    assert_eq!(lab.nr_mapped(), (8, 8));
}

/// What Xen still maps behind a grant that found no space has no room in the cache any more: it
/// would take the place of a page that is in use in this round, or, in an empty one, of none.
#[test]
fn a_page_mapped_behind_one_that_found_no_space_goes_at_once() {
    for nr_before in 0..NR_PAGES {
        let mut lab = Lab::new(8);
        let pages = lab.pages(&[1, 2, 3, 4, 5, 6]);
        let nth = u64::try_from(nr_before).unwrap() + 1;
        lab.machine.grants().map_faults.fail_nth(nth, GntStatus::NO_SPACE);
        lab.serve(Operation::Write, &pages);
        assert_eq!(lab.nr_mapped(), (nr_before, nr_before));
        lab.check_disk(&pages);
        // No more are asked for.
        assert_eq!(lab.nr_mapped(), (nr_before, nr_before));
    }
}

#[test]
fn a_page_that_fails_alone_is_copied_and_the_others_stay_mapped() {
    for nth in 1..=6 {
        let mut lab = Lab::new(8);
        let pages = lab.pages(&[1, 2, 3, 4, 5, 6]);
        lab.machine.grants().map_faults.fail_nth(nth, GntStatus::GENERAL_ERROR);
        lab.serve(Operation::Write, &pages);
        assert_eq!(lab.nr_mapped(), (5, 5), "fails on grant {nth}");
        lab.check_disk(&pages);
    }
}
