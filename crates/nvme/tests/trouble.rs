//! A controller that fails, hangs, lies or goes away; and its shutdown.

#![allow(clippy::cast_possible_truncation, clippy::unwrap_used, reason = "a test may")]

mod simulated;

use std::time::Duration;

use nvme::{Broken, Error, IoError, NamespaceId, State, Unusable};
use simulated::{Act, Bad, Lab, NS1, SimNamespace, Sqe, device};
use store::{Failure, Refusal, Request, Tag};
use xen_abi::Instant;

fn with(change: impl FnOnce(&mut simulated::Device)) -> Lab {
    let bus = device(1, 40);
    change(&mut bus.device());
    Lab::new(bus)
}

/// Ready, and I/O commands are done by hand.
fn by_hand() -> Lab {
    with(|device| device.manual = true)
}

/// An outcome for I/O commands that `which` names.
fn when(which: impl Fn(&Sqe) -> bool + 'static, act: Act) -> Box<dyn FnMut(&Sqe) -> Act> {
    Box::new(move |sqe| if sqe.queue == 1 && which(sqe) { act } else { Act::Do })
}

#[test]
fn what_is_not_answered_in_time_fails_and_the_rest_is_sent_again() {
    let mut lab = by_hand();
    let hung = lab.read(0, 8);
    lab.step();
    lab.after(20);
    let late = lab.write(8, 40, 3);
    lab.step();
    lab.device().fetch();
    assert_eq!(lab.device().log.len(), 2);
    lab.after(9);
    assert_eq!(lab.controller.state(), State::Ready, "29 s");
    assert_eq!(lab.results(), []);
    lab.after(4);
    assert_eq!(lab.controller.resets(), (1, Some(Error::Timeout)));
    lab.device().manual = false;
    lab.settle();
    lab.step();
    let mut results = lab.results();
    results.sort_unstable_by_key(|(tag, _)| tag.0);
    assert_eq!(results, [(hung, Err(Failure::TimedOut)), (late, Ok(()))]);
    let device = lab.device();
    assert_eq!(device.log.len(), 3);
    assert!(device.log[1..].iter().all(|sqe| sqe.slba() == 8 && sqe.nr_blocks() == 40));
    assert_ne!(device.log[1].cid, device.log[2].cid);
    drop(device);
    let tag = lab.read(0, 8);
    assert_eq!(lab.go(), [(tag, Ok(()))]);
}

#[test]
fn what_is_sent_again_has_all_its_time_again() {
    let mut lab = by_hand();
    let first = lab.read(0, 8);
    lab.step();
    lab.after(20);
    let second = lab.read(8, 8);
    lab.step();
    lab.after(13);
    lab.settle();
    assert_eq!(lab.results(), [(first, Err(Failure::TimedOut))]);
    lab.after(28);
    assert_eq!(lab.controller.resets(), (1, Some(Error::Timeout)));
    assert_eq!(lab.results(), []);
    lab.after(5);
    lab.settle();
    assert_eq!(lab.results(), [(second, Err(Failure::TimedOut))]);
}

#[test]
fn the_timeout_begins_when_the_command_was_sent() {
    // However long nothing was done before.
    let mut lab = by_hand();
    lab.after(10_000);
    let tag = lab.read(0, 1);
    lab.controller.publish();
    lab.now = lab.now.after(Duration::from_secs(500));
    assert_eq!(lab.step(), Some(lab.now.after(Duration::from_secs(1))));
    // An answer that is there is taken, however late it is seen.
    lab.device().run(1);
    lab.now = lab.now.after(Duration::from_secs(500));
    assert_eq!(lab.step(), None);
    assert_eq!(lab.results(), [(tag, Ok(()))]);
    assert_eq!(lab.controller.resets(), (0, None));
}

#[test]
fn no_frame_is_handed_back_before_the_controller_is_disabled() {
    let mut lab = by_hand();
    lab.device().ready_delay = 50;
    let hung = lab.read(0, 96);
    lab.step();
    lab.device().fetch();
    lab.after(31);
    assert_eq!(lab.controller.state(), State::Resetting(Error::Timeout));
    // The device may still write: whoever has its frames now would see it.
    assert!(!lab.device().frames_in_use().is_empty());
    for _ in 0..40 {
        lab.step();
        assert_eq!(lab.device().csts & 1, 1);
        assert_eq!(lab.results(), []);
        assert_eq!(lab.controller.reserve(30 * 8), None);
        let other = lab.filled(8, 0x11);
        assert_eq!(lab.contents(&other), [0x11; 4096]);
        lab.controller.give_back(other);
    }
    let mine = lab.filled(80, 0x22);
    lab.settle();
    // `completions` asserts that no frame is the device's any more.
    assert_eq!(lab.results(), [(hung, Err(Failure::TimedOut))]);
    assert!(lab.contents(&mine).iter().all(|&byte| byte == 0x22));
    lab.controller.give_back(mine);
    assert!(lab.controller.reserve(38 * 8).is_some(), "all are back");
}

#[test]
fn a_reset_that_hangs_keeps_the_frames() {
    let mut lab = by_hand();
    let hung = lab.read(0, 8);
    let waits = (0..62).map(|_| lab.submit(Request::Flush)).last().unwrap();
    lab.step();
    lab.device().stuck = true;
    lab.after(33);
    assert_eq!(lab.controller.state(), State::Failed(Error::NotDisabled { timeout_ms: 1000 }));
    let mut completions = lab.completions(NS1);
    completions.sort_unstable_by_key(|completion| completion.tag.0);
    assert_eq!(completions.len(), 63);
    assert_eq!((completions[0].tag, completions[62].tag), (hung, waits));
    assert!(completions.iter().all(|completion| completion.buffer.is_none()));
    assert!(completions.iter().all(|completion| completion.result == Err(Failure::Gone)));
    assert_eq!(lab.controller.nr_in_flight(), 0);
    let refused = lab.controller.submit(NS1, Tag(1), Request::Flush).unwrap_err();
    assert_eq!(refused.reason, Refusal::Failed(Failure::Gone));
    assert_eq!(lab.step(), None);
    assert_eq!(lab.controller.retire(), None);
}

#[test]
fn fatal_status_is_seen_within_a_second() {
    let mut lab = by_hand();
    let tag = lab.write(3, 1, 8);
    lab.step();
    lab.device().csts |= 2;
    lab.now = lab.now.after(Duration::from_secs(1));
    lab.step();
    assert_eq!(lab.controller.state(), State::Resetting(Error::Fatal));
    // What comes in the meantime waits.
    let flush = lab.submit(Request::Flush);
    lab.device().manual = false;
    lab.settle();
    lab.step();
    let mut results = lab.results();
    results.sort_unstable_by_key(|(tag, _)| tag.0);
    assert_eq!(results, [(tag, Ok(())), (flush, Ok(()))]);
    assert_eq!(lab.controller.resets(), (1, Some(Error::Fatal)));
}

#[test]
fn somebody_else_disables_it() {
    let mut lab = by_hand();
    let tag = lab.read(3, 1);
    lab.step();
    lab.device().cc = 0;
    lab.device().csts = 0;
    lab.device().pending.clear();
    lab.after(1);
    lab.device().manual = false;
    lab.settle();
    assert_eq!(lab.controller.resets(), (1, Some(Error::Disabled)));
    assert_eq!(lab.go(), [(tag, Ok(()))]);
}

#[test]
fn a_request_is_sent_again_after_one_reset_and_no_more() {
    let mut lab = by_hand();
    let tag = lab.read(0, 1);
    for nr in 1..=2 {
        lab.step();
        assert_eq!(lab.results(), []);
        lab.device().csts |= 2;
        lab.now = lab.now.after(Duration::from_secs(2));
        lab.step();
        lab.settle();
        assert_eq!(lab.controller.resets(), (nr, Some(Error::Fatal)));
    }
    assert_eq!(lab.results(), [(tag, Err(Failure::Device))]);
    assert_eq!(lab.controller.take_error(), Some((NS1, IoError::Reset)));
    assert_eq!(lab.device().log.len(), 0, "none was fetched");
}

#[test]
fn a_controller_that_does_nothing_is_given_up() {
    let mut lab = by_hand();
    let mut failed = Vec::new();
    let mut nr_taken = 0;
    while !matches!(lab.controller.state(), State::Failed(_)) {
        if let Some(buffer) = lab.controller.reserve(8) {
            let tag = lab.tag();
            match lab.controller.submit(NS1, tag, Request::Read { sector: 0, buffer }) {
                Ok(()) => nr_taken += 1,
                Err(refused) => {
                    let Request::Read { buffer, .. } = refused.request else { panic!() };
                    lab.controller.give_back(buffer);
                }
            }
        }
        lab.after(1);
        failed.extend(lab.results());
        assert!(lab.now < Instant::from_ns(200_000_000_000));
    }
    assert_eq!(lab.controller.resets().0, 3);
    assert_eq!(lab.controller.state(), State::Failed(Error::Timeout));
    failed.extend(lab.results());
    assert_eq!(failed.len(), nr_taken);
    assert!(failed.iter().all(|(_, result)| result.is_err()));
    assert_eq!(lab.device().csts, 0);
    assert_eq!(lab.controller.retire().map(|frames| frames.len()), Some(46));
}

#[test]
fn what_is_done_between_resets_makes_up_for_them() {
    let mut lab = with(|device| device.act = when(|sqe| sqe.slba() == 500, Act::Hang));
    for nr in 1..=10 {
        let bad = lab.read(500, 1);
        lab.step();
        lab.after(33);
        lab.settle();
        assert_eq!(lab.results(), [(bad, Err(Failure::TimedOut))]);
        assert_eq!(lab.controller.resets().0, nr);
        let good = lab.read(0, 1);
        assert_eq!(lab.go(), [(good, Ok(()))]);
    }
    assert_eq!(lab.controller.state(), State::Ready);
}

#[test]
fn it_is_removed() {
    let mut lab = by_hand();
    lab.step();
    lab.device().gone = true;
    assert_eq!(lab.step(), None, "nobody asks");
    let mine = lab.controller.reserve(8).unwrap();
    let tags = [lab.read(0, 8), lab.submit(Request::Flush)];
    lab.step();
    lab.now = lab.now.after(Duration::from_secs(1));
    assert_eq!(lab.step(), None);
    assert_eq!(lab.controller.state(), State::Failed(Error::Gone));
    let completions = lab.completions(NS1);
    let results: Vec<_> = completions.iter().map(|done| (done.tag, done.result)).collect();
    assert_eq!(results, tags.map(|tag| (tag, Err(Failure::Gone))));
    assert!(completions.iter().all(|done| done.buffer.is_none()));
    lab.controller.give_back(mine);
    assert_eq!(lab.controller.retire(), None, "who knows");

    // We are told.
    let mut lab = by_hand();
    let tag = lab.submit(Request::Flush);
    lab.controller.abandon();
    assert_eq!(lab.controller.state(), State::Failed(Error::Gone));
    assert_eq!(lab.go(), [(tag, Err(Failure::Gone))]);
    let nr_reads = lab.device().nr_status_reads;
    lab.after(10);
    assert_eq!(lab.device().nr_status_reads, nr_reads);
}

#[test]
fn what_was_never_sent_comes_back_with_its_buffer() {
    let mut lab = by_hand();
    let tag = lab.read(0, 8);
    lab.controller.abandon();
    let [completion] = &lab.completions(NS1)[..] else { panic!() };
    assert_eq!((completion.tag, completion.result), (tag, Err(Failure::Gone)));
    assert!(completion.buffer.is_some());
}

/// What no controller says, and what is made of it.
#[test]
fn a_completion_that_cannot_be_resets_the_controller() {
    type Lie = (fn(&mut simulated::Device, Sqe), fn(Sqe) -> Broken);
    let lies: [Lie; 7] = [
        // Of another submission queue.
        (
            |device, sqe| device.post(1, [0, 1 | 2 << 16], sqe.cid, 0),
            |_| Broken::Queue { queue: 1, sqid: 2 },
        ),
        // SQHD past the queue.
        (
            |device, sqe| device.post(1, [0, 64 | 1 << 16], sqe.cid, 0),
            |_| Broken::Head { queue: 1, head: 64, nr_entries: 64 },
        ),
        // Of a slot that is idle.
        (
            |device, sqe| device.post(1, [0, 1 | 1 << 16], sqe.cid ^ 5, 0),
            |sqe| Broken::Command { queue: 1, cid: sqe.cid ^ 5 },
        ),
        // Of a slot that there is none of.
        (
            |device, sqe| device.post(1, [0, 1 | 1 << 16], sqe.cid | 63, 0),
            |sqe| Broken::Command { queue: 1, cid: sqe.cid | 63 },
        ),
        (
            |device, _| device.post(1, [0, 1 | 1 << 16], 0xffff, 0),
            |_| Broken::Command { queue: 1, cid: 0xffff },
        ),
        // Of a former use of the slot.
        (
            |device, sqe| device.post(1, [0, 1 | 1 << 16], sqe.cid - 64, 0),
            |sqe| Broken::Command { queue: 1, cid: sqe.cid - 64 },
        ),
        // Twice.
        (
            |device, sqe| {
                device.pending.clear();
                device.post(1, [0, 1 | 1 << 16], sqe.cid, 0);
                device.post(1, [0, 1 | 1 << 16], sqe.cid, 0);
            },
            |sqe| Broken::Command { queue: 1, cid: sqe.cid },
        ),
    ];
    for (n, (lie, expected)) in lies.into_iter().enumerate() {
        for seen_by_complete in [false, true] {
            let mut lab = by_hand();
            let first = lab.read(0, 8);
            lab.step();
            lab.device().run(1);
            assert_eq!(lab.results(), [(first, Ok(()))]);
            let tag = lab.read(0, 8);
            lab.step();
            lab.device().fetch();
            let sqe = lab.device().pending[0];
            lie(&mut lab.device(), sqe);
            let doorbells = lab.device().nr_doorbells;
            let mut results = if seen_by_complete { lab.results() } else { Vec::new() };
            let flush = lab.submit(Request::Flush);
            if seen_by_complete {
                lab.controller.publish();
                assert_eq!(lab.device().nr_doorbells, doorbells, "it is not spoken to");
            }
            lab.step();
            let error = Error::Broken(expected(sqe));
            assert_eq!(lab.controller.state(), State::Resetting(error), "lie {n}");
            lab.device().manual = false;
            lab.settle();
            lab.step();
            results.extend(lab.results());
            results.sort_unstable_by_key(|(tag, _)| tag.0);
            assert_eq!(results, [(tag, Ok(())), (flush, Ok(()))], "lie {n}");
            assert_eq!(lab.controller.resets(), (1, Some(error)));
        }
    }
}

#[test]
fn an_admin_completion_that_cannot_be_is_no_answer() {
    let mut lab = Lab::attach(device(1, 8));
    lab.device().act = Box::new(|_| Act::Hang);
    while lab.device().pending.is_empty() {
        lab.now = lab.step().unwrap();
    }
    lab.device().post(0, [0, 0], 99, 0);
    lab.device().act = Box::new(|_| Act::Do);
    lab.settle();
    assert_eq!(lab.controller.state(), State::Ready);
    let error = Error::Broken(Broken::Command { queue: 0, cid: 99 });
    assert_eq!(lab.controller.resets(), (1, Some(error)));
}

#[test]
fn each_word_of_a_completion_is_fetched_once() {
    let mut lab = by_hand();
    let tags: Vec<Tag> = (0..5).map(|n| lab.read(n, 1)).collect();
    lab.step();
    let page = {
        let device = lab.device();
        let address = device.queues[&1].cq;
        device.page(address).clone()
    };
    page.count_fetches();
    lab.device().run(9);
    assert_eq!(lab.results().len(), tags.len());
    let fetches = page.fetches(0..96);
    for entry in fetches[..80].chunks(16) {
        assert_eq!(entry, [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]);
    }
    // Of the next its last word alone, for the phase tag, each time that none is there.
    assert_eq!(fetches[80..96], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 2, 2]);
}

#[test]
fn after_a_reset_namespaces_are_what_they_were_or_gone() {
    let mut lab = with(|device| {
        device.namespaces.extend((2..6).map(|nsid| SimNamespace::new(nsid, 9, 64)));
        device.manual = true;
    });
    let tags: Vec<Tag> = (1..6)
        .map(|nsid| {
            let buffer = lab.controller.reserve(8).unwrap();
            lab.submit_to(NamespaceId(nsid), Request::Write { sector: 0, buffer })
        })
        .collect();
    lab.step();
    // Waits.
    let waits = lab.submit_to(NamespaceId(3), Request::Flush);
    {
        let mut device = lab.device();
        device.csts |= 2;
        device.namespaces.remove(1);
        device.namespaces[1].nr_blocks = 63;
        device.namespaces[2].identify = vec![(130, vec![12])];
        device.namespaces.push(SimNamespace::new(7, 9, 64));
        device.manual = false;
    }
    lab.after(2);
    lab.settle();
    lab.step();
    let changed: Vec<_> = lab.controller.namespaces().iter().map(|ns| ns.disk.err()).collect();
    let gone = Some(Unusable::Changed);
    assert_eq!(changed, [None, gone, gone, gone, None]);
    for (n, nsid) in (1..6).enumerate() {
        let done: Vec<_> = lab
            .completions(NamespaceId(nsid))
            .into_iter()
            .map(|done| (done.tag, done.result, done.buffer.is_some()))
            .collect();
        match nsid {
            1 | 5 => assert_eq!(done, [(tags[n], Ok(()), true)]),
            3 => {
                let gone = Err(Failure::Gone);
                assert_eq!(done, [(tags[n], gone, true), (waits, gone, false)]);
            }
            _ => assert_eq!(done, [(tags[n], Err(Failure::Gone), true)]),
        }
    }
    let refused = lab.controller.submit(NamespaceId(2), Tag(1), Request::Flush).unwrap_err();
    assert_eq!(refused.reason, Refusal::Failed(Failure::Gone));
    assert!(lab.device().log.iter().all(|sqe| [1, 5].contains(&sqe.nsid)));
}

#[test]
fn after_a_reset_it_is_another_controller() {
    let mut lab = by_hand();
    let tag = lab.read(0, 1);
    lab.step();
    lab.device().identify = vec![(64, b"2.0     ".to_vec())];
    lab.device().csts |= 2;
    lab.after(2);
    lab.settle();
    assert_eq!(lab.controller.state(), State::Ready, "other firmware is no other controller");
    assert_eq!(lab.controller.identity().unwrap().firmware, "2.0");
    lab.device().identify = vec![(4, b"X".to_vec())];
    lab.device().csts |= 2;
    lab.step();
    lab.after(2);
    lab.settle();
    assert_eq!(lab.controller.state(), State::Failed(Error::Other));
    let [completion] = &lab.completions(NS1)[..] else { panic!() };
    assert_eq!((completion.tag, completion.result), (tag, Err(Failure::Device)));
    assert!(completion.buffer.is_some(), "it is disabled");
    assert_eq!(lab.device().csts, 0);
}

#[test]
fn a_shutdown_ends_what_was_taken_and_writes_the_cache() {
    let mut lab = by_hand();
    let tags: Vec<Tag> = (0..3).map(|n| lab.write(n * 8, 8, 0x77)).collect();
    lab.controller.shutdown();
    let refused = lab.controller.submit(NS1, Tag(1), Request::Flush).unwrap_err();
    assert_eq!(refused.reason, Refusal::Failed(Failure::Gone));
    assert!(lab.step().is_some());
    assert_eq!(lab.controller.state(), State::Stopping);
    assert_eq!(lab.device().cc >> 14 & 3, 0, "not before they are done");
    lab.device().manual = false;
    lab.settle();
    assert_eq!(lab.controller.state(), State::Off);
    let mut results = lab.results();
    results.sort_unstable_by_key(|(tag, _)| tag.0);
    assert_eq!(results, tags.iter().map(|&tag| (tag, Ok(()))).collect::<Vec<_>>());
    let mut device = lab.device();
    assert_eq!(device.cc_log[3..], [0x0046_4001, 0x0046_0000]);
    device.lose_power();
    assert_eq!(device.namespaces[0].media[..24 * 512], [0x77; 24 * 512]);
    drop(device);
    assert_eq!(lab.step(), None);
    assert_eq!(lab.controller.retire().map(|frames| frames.len()), Some(46));
}

#[test]
fn a_shutdown_has_an_end() {
    // RTD3E, in microseconds, and what it is given.
    for (told, seconds) in [(0, 5), (1_000_000, 5), (8_000_000, 8), (u32::MAX, 60)] {
        let mut lab = with(|device| {
            device.identify = vec![(88, told.to_le_bytes().to_vec())];
            device.stuck_shutdown = true;
        });
        let begin = lab.now;
        lab.controller.shutdown();
        lab.settle();
        let timeout_ms = seconds * 1000;
        assert_eq!(
            lab.controller.state(),
            State::Failed(Error::NotShutDown { timeout_ms: timeout_ms.into() })
        );
        let least = begin.after(Duration::from_millis(timeout_ms));
        assert!(lab.now >= least && lab.now <= least.after(Duration::from_millis(5)));
        assert!(lab.controller.retire().is_some());
    }
}

#[test]
fn a_shutdown_comes_in_a_reset_or_before_it_is_ready() {
    let mut lab = by_hand();
    let tag = lab.write(0, 8, 5);
    lab.step();
    lab.device().csts |= 2;
    lab.now = lab.now.after(Duration::from_secs(2));
    lab.step();
    lab.controller.shutdown();
    lab.device().manual = false;
    lab.settle();
    assert_eq!(lab.controller.state(), State::Off);
    assert_eq!(lab.results(), [(tag, Ok(()))]);
    assert_eq!(lab.device().namespaces[0].media[..4096], [5; 4096]);

    let mut lab = Lab::attach(device(1, 8));
    lab.step();
    lab.controller.shutdown();
    lab.settle();
    assert_eq!(lab.controller.state(), State::Off);
}

#[test]
fn only_what_was_flushed_outlives_a_loss_of_power() {
    let mut lab = with(|_| ());
    let first = lab.write(0, 8, 1);
    assert_eq!(lab.go(), [(first, Ok(()))]);
    let flush = lab.submit(Request::Flush);
    assert_eq!(lab.go(), [(flush, Ok(()))]);
    let second = lab.write(8, 8, 2);
    assert_eq!(lab.go(), [(second, Ok(()))]);
    lab.device().lose_power();
    let media = &lab.device().namespaces[0].media;
    assert_eq!((media[0], media[4096]), (1, 0));
}

#[test]
fn a_failed_flush_has_failed() {
    let mut lab =
        with(|device| device.act = when(|sqe| sqe.opcode == 0, Act::Fail(Bad(0, 6, false))));
    let flush = lab.submit(Request::Flush);
    let mut results = Vec::new();
    for _ in 0..4 {
        results.extend(lab.go());
    }
    assert_eq!(results, [(flush, Err(Failure::Device))]);
}

#[test]
fn a_fetch_that_is_lost_is_made_up_by_the_next_second() {
    // An interrupt that never comes: the completion is seen at the next step at the latest.
    let mut lab = by_hand();
    let tag = lab.read(0, 1);
    let next = lab.step().unwrap();
    assert_eq!(next, lab.now.after(Duration::from_secs(1)));
    lab.device().run(1);
    lab.now = next;
    assert_eq!(lab.step(), None);
    assert_eq!(lab.results(), [(tag, Ok(()))]);
}
