//! Transfers in pages that are not the controller's own.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod simulated;

use nvme::{Error, State};
use sim::Page;
use simulated::{DMA_BASE, Lab, NR_LENT, NS1, Sqe, device};
use store::{Completion, Failure, Request};
use xen_abi::{Gfn, PAGE_SIZE};

/// Four pages a command, and 24 of its own. It does what the test has it do.
fn lab() -> Lab {
    let bus = device(1, 24);
    bus.device().mdts = 2;
    bus.device().vwc = 0;
    bus.device().manual = true;
    Lab::new(bus)
}

fn address(frame: Gfn) -> u64 {
    DMA_BASE + frame.0 * PAGE_SIZE as u64
}

/// What a list holds.
fn list(lab: &Lab, sqe: &Sqe, nr: usize) -> Vec<u64> {
    let mut bytes = vec![0; 8 * nr];
    lab.device().dma_read(sqe.prp[1], &mut bytes);
    bytes.as_chunks().0.iter().map(|&entry| u64::from_le_bytes(entry)).collect()
}

fn finish(lab: &mut Lab, pages: &[(Gfn, Page)]) {
    lab.step();
    lab.device().run(usize::MAX);
    let [Completion { result: Ok(()), .. }] = &lab.completions(NS1)[..] else { panic!() };
    pages.iter().for_each(|(frame, _)| lab.device().unmap(*frame));
}

#[test]
fn a_command_names_the_pages_themselves() {
    for (nr_sectors, nr_pages) in [(1, 1), (8, 1), (9, 2), (16, 2), (17, 3), (32, 4)] {
        let mut lab = lab();
        let (buffer, pages) = lab.lend(nr_sectors).unwrap();
        pages.iter().for_each(|(_, page)| page.fill(0x3c));
        lab.submit(Request::Write { sector: 5, buffer });
        lab.step();
        lab.device().fetch();
        let [sqe] = lab.device().log[..] else { panic!() };
        let expected: Vec<u64> = pages.iter().map(|(frame, _)| address(*frame)).collect();
        assert_eq!(expected.len(), nr_pages);
        assert_eq!(sqe.prp[0], expected[0]);
        match nr_pages {
            1 => assert_eq!(sqe.prp[1], 0),
            2 => assert_eq!(sqe.prp[1], expected[1]),
            _ => assert_eq!(list(&lab, &sqe, nr_pages - 1), expected[1..]),
        }
        finish(&mut lab, &pages);
        let media = &lab.device().namespaces[0].media[5 * 512..];
        let len_bytes = nr_sectors as usize * 512;
        assert!(media[..len_bytes].iter().all(|&byte| byte == 0x3c) && media[len_bytes] == 0);
    }
}

#[test]
fn parts_of_a_long_one_have_lists_of_ours() {
    let mut lab = lab();
    let (buffer, pages) = lab.lend(8 * 10 + 3).unwrap();
    lab.submit(Request::Read { sector: 0, buffer });
    lab.step();
    lab.device().fetch();
    let sqes = lab.device().log.clone();
    let expected: Vec<u64> = pages.iter().map(|(frame, _)| address(*frame)).collect();
    assert_eq!(
        sqes.iter().map(|sqe| sqe.prp[0]).collect::<Vec<_>>(),
        [0, 4, 8].map(|n| expected[n])
    );
    for (sqe, rest) in sqes.iter().zip([&expected[1..4], &expected[5..8], &expected[9..11]]) {
        assert!(sqe.prp[1] < address(pages[0].0), "the list is in a page of ours");
        assert_eq!(list(&lab, sqe, rest.len()), rest);
    }
    finish(&mut lab, &pages);
}

#[test]
fn there_are_as_many_as_there_is_room_for_beside_its_own() {
    let mut lab = lab();
    assert!(lab.lend(8 * u32::try_from(NR_LENT).unwrap() + 1).is_none());
    assert!(lab.lend(0).is_none());
    assert!(lab.controller.lend(&[Gfn(1)], 9).is_none(), "not all pages");
    let lent: Vec<_> = std::iter::from_fn(|| lab.lend(8 * 4)).collect();
    // A list each; of its own pages there are 24.
    assert_eq!(lent.len(), 24);
    assert!(lab.controller.reserve(1).is_none());
    let (buffer, pages) = lab.lend(16).unwrap();
    lab.controller.give_back(buffer);
    pages.iter().for_each(|(frame, _)| lab.device().unmap(*frame));
    lent.into_iter().for_each(|(buffer, _)| lab.controller.give_back(buffer));
    let own = lab.controller.reserve(8 * 19).unwrap();
    // 5 pages are lists.
    assert_eq!(lab.controller.frames(&own).count(), 19);
    assert!(lab.controller.reserve(1).is_none() && lab.lend(8 * 4).is_none());
    assert!(lab.lend(16).is_some());
    lab.controller.give_back(own);
    assert!(lab.lend(8 * 98).is_some());
}

/// A read and a write under way in pages that are lent, when the controller is given up.
fn given_up(resists: bool, fail: impl FnOnce(&mut Lab)) -> (Lab, Vec<(Gfn, Page)>) {
    let mut lab = lab();
    lab.device().resists = resists;
    let (to, read) = lab.lend(8 * 6).unwrap();
    let (from, written) = lab.lend(8).unwrap();
    lab.submit(Request::Read { sector: 0, buffer: to });
    lab.submit(Request::Write { sector: 100, buffer: from });
    lab.step();
    lab.device().fetch();
    fail(&mut lab);
    (lab, [read, written].concat())
}

#[test]
fn it_is_cut_off_before_its_requests_are_said_to_be_over() {
    type Fails = (fn(&mut Lab), Error);
    let fails: [Fails; 3] = [
        (
            |lab| {
                lab.device().stuck = true;
                lab.after(33);
            },
            Error::NotDisabled { timeout_ms: 1000 },
        ),
        (
            |lab| {
                lab.device().gone = true;
                lab.after(3);
            },
            Error::Gone,
        ),
        (|lab| lab.controller.abandon(), Error::Gone),
    ];
    for (fail, error) in fails {
        let (mut lab, pages) = given_up(false, fail);
        assert_eq!(lab.controller.state(), State::Failed(error));
        assert!(!lab.device().bus_master);
        let completions = lab.completions(NS1);
        assert_eq!(completions.len(), 2);
        for Completion { result, buffer, .. } in completions {
            assert_eq!(result, Err(Failure::Gone));
            lab.controller.give_back(buffer.unwrap());
        }
        pages.iter().for_each(|(frame, _)| lab.device().unmap(*frame));
        assert!(lab.controller.lend(&[Gfn(1)], 8).is_none(), "it takes no more");
        assert!(lab.controller.retire().is_some());
    }
}

#[test]
fn one_that_cannot_be_cut_off_keeps_what_it_was_lent() {
    let (mut lab, _) = given_up(true, |lab| lab.controller.abandon());
    assert!(lab.device().bus_master);
    let completions = lab.completions(NS1);
    assert_eq!(completions.len(), 2);
    assert!(completions.iter().all(|completion| completion.buffer.is_none()));
    assert_eq!(lab.controller.retire(), None);
}

#[test]
fn a_reset_sends_again_what_is_lent() {
    let mut lab = lab();
    let (buffer, pages) = lab.lend(8 * 6).unwrap();
    pages.iter().for_each(|(_, page)| page.fill(0x77));
    lab.submit(Request::Write { sector: 0, buffer });
    lab.step();
    lab.device().fetch();
    lab.device().csts |= 2;
    lab.after(3);
    lab.settle();
    assert_eq!(lab.controller.resets().0, 1);
    finish(&mut lab, &pages);
    assert!(lab.device().namespaces[0].media[..48 * 512].iter().all(|&byte| byte == 0x77));
}
