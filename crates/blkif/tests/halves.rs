//! Both halves of a ring against each other.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "helpers of tests, too")]

mod common;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use blkif::layout::{REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD};
use blkif::{
    Abi, BackRing, FinalCheck, FrontRing, MaxIndirectSegments, Notify, OpCode, Operation, Request,
    RequestId, Response, RingOrder, Sector, Segment, Segments, Status, Transfer,
};
use common::{AtomicMemory, CountingMemory, RacyMemory, Rng};
use xen_abi::{GrantRef, SharedMemory};

const ABIS: [Abi; 2] = [Abi::X86_64, Abi::X86_32];

fn request(id: u64, rng: &mut Rng) -> Request {
    let list: Vec<_> = (0..=rng.below(11))
        .map(|n| Segment { gref: GrantRef(n), first_sect: 1, last_sect: rng.next() as u8 })
        .take(11)
        .collect();
    let transfer = Transfer { sector: Sector(rng.next()), segments: Segments::new(&list).unwrap() };
    let op = match rng.below(5) {
        0 => Operation::Read(transfer),
        1 => Operation::Write(transfer),
        2 => Operation::Barrier(transfer),
        3 => Operation::Discard {
            sector: Sector(id),
            nr_sectors: rng.next(),
            secure: id.is_multiple_of(2),
        },
        _ => Operation::Unknown { code: OpCode(77) },
    };
    Request { id: RequestId(id), handle: 7, op }
}

/// A frontend that sends `total` requests and checks that each is answered once, in order.
struct Frontend<M> {
    ring: FrontRing<M>,
    rng: Rng,
    total: u64,
    nr_sent: u64,
    nr_answered: u64,
    asleep: bool,
    sent: VecDeque<Request>,
}

impl<M: SharedMemory> Frontend<M> {
    fn new(ring: FrontRing<M>, seed: u64, total: u64) -> Self {
        let (rng, sent) = (Rng(seed), VecDeque::new());
        Self { ring, rng, total, nr_sent: 0, nr_answered: 0, asleep: false, sent }
    }

    /// Sends some, takes some; whether the backend is to be notified. Sleeps by the rules.
    fn turn(&mut self) -> Notify {
        let burst = self.rng.below(self.ring.nr_entries() + 2);
        for _ in 0..burst {
            if self.nr_sent == self.total || self.ring.free() == 0 {
                break;
            }
            let request = request(self.nr_sent, &mut self.rng);
            self.ring.push(&request).unwrap();
            self.sent.push_back(request);
            self.nr_sent += 1;
        }
        let notify = self.ring.publish();
        self.ring.unconsumed().unwrap();
        while let Some(response) = self.ring.consume() {
            let request = self.sent.pop_front().unwrap();
            assert_eq!(response, answer(&request));
            self.nr_answered += 1;
        }
        let can_send = self.nr_sent < self.total && self.ring.free() > 0;
        self.asleep = !can_send && self.ring.final_check() == Ok(FinalCheck::Idle);
        notify
    }

    fn is_done(&self) -> bool {
        self.nr_answered == self.total
    }
}

/// What the backend answers: something of the request, to prove that it arrived.
fn answer(request: &Request) -> Response {
    let status = match request.op {
        Operation::Read(t) | Operation::Write(t) => Status(t.segments.nr().into()),
        Operation::Unknown { .. } => Status::EOPNOTSUPP,
        _ => Status::OKAY,
    };
    request.response(status)
}

/// A backend that leaves some requests for later, and answers in request order.
struct Backend<M> {
    ring: BackRing<M>,
    rng: Rng,
    in_flight: VecDeque<Response>,
    asleep: bool,
}

impl<M: SharedMemory> Backend<M> {
    fn new(ring: BackRing<M>, seed: u64) -> Self {
        Self { ring, rng: Rng(seed), in_flight: VecDeque::new(), asleep: false }
    }

    fn turn(&mut self) -> Notify {
        self.ring.unconsumed().unwrap();
        for _ in 0..self.rng.below(self.ring.nr_entries() + 2) {
            let Some(request) = self.ring.consume() else { break };
            self.in_flight.push_back(answer(&request.unwrap()));
        }
        assert_eq!(self.ring.outstanding() as usize, self.in_flight.len());
        for _ in 0..self.rng.below(self.ring.nr_entries() + 2) {
            let Some(response) = self.in_flight.pop_front() else { break };
            self.ring.push(&response).unwrap();
        }
        let notify = self.ring.publish();
        self.asleep = self.in_flight.is_empty() && self.ring.final_check() == Ok(FinalCheck::Idle);
        notify
    }
}

fn prepare(order: u32, start: u32) -> CountingMemory {
    let memory = CountingMemory::new(RingOrder::new(order).unwrap(), 0xaa);
    for offset in [REQ_PROD, RSP_PROD] {
        memory.poke_u32(offset, start);
    }
    for offset in [REQ_EVENT, RSP_EVENT] {
        memory.poke_u32(offset, start.wrapping_add(1));
    }
    memory
}

/// Each half sleeps when its final check allows, and wakes only by a notification: one lost, and
/// both sleep for ever.
#[test]
fn every_request_is_answered_at_any_interleaving_of_turns() {
    for abi in ABIS {
        for order in 0..=5 {
            for seed in 0..6 {
                let nr_entries = abi.nr_entries(RingOrder::new(order).unwrap());
                let start = u32::MAX - nr_entries / 2 - u32::try_from(seed).unwrap();
                let memory = prepare(order, start);
                let front = FrontRing::attach_at(&memory, abi, start).unwrap();
                let back =
                    BackRing::attach_at(&memory, abi, MaxIndirectSegments::NONE, start).unwrap();
                let mut front = Frontend::new(front, seed, u64::from(nr_entries) * 6);
                let mut back = Backend::new(back, seed ^ 0xb);
                let mut rng = Rng(seed ^ 0xc);
                while !front.is_done() {
                    assert!(!front.asleep || !back.asleep, "{abi:?} {order} {seed}: both asleep");
                    let fronts_turn = back.asleep || (!front.asleep && rng.below(2) == 0);
                    if fronts_turn {
                        if front.turn() == Notify::Needed {
                            back.asleep = false;
                        }
                    } else if back.turn() == Notify::Needed {
                        front.asleep = false;
                    }
                }
                assert_eq!(front.ring.free(), nr_entries);
            }
        }
    }
}

/// The same with the frontend's turns falling between any two accesses of the backend to the ring.
#[test]
fn every_request_is_answered_with_a_frontend_between_any_two_accesses() {
    for seed in 0..300 {
        let abi = ABIS[seed as usize % 2];
        let order = u32::try_from(seed % 3).unwrap();
        let start = u32::MAX - 40;
        let memory = prepare(order, start);
        let front = FrontRing::attach_at(&memory, abi, start).unwrap();
        let front = RefCell::new(Frontend::new(front, seed, 300));
        let rng = RefCell::new(Rng(seed));
        let notified = std::cell::Cell::new(false);
        let peer = || {
            let mut front = front.borrow_mut();
            if !front.asleep && rng.borrow_mut().below(3) == 0 && front.turn() == Notify::Needed {
                notified.set(true);
            }
        };
        let racy = RacyMemory { inner: &memory, peer };
        let back = BackRing::attach_at(racy, abi, MaxIndirectSegments::NONE, start).unwrap();
        let mut back = Backend::new(back, seed ^ 0xb);
        while !front.borrow().is_done() {
            // Events are kept while their domain is awake, and merge.
            if notified.take() {
                back.asleep = false;
            }
            if !back.asleep {
                if back.turn() == Notify::Needed {
                    front.borrow_mut().asleep = false;
                }
                continue;
            }
            assert!(!front.borrow().asleep, "{seed}: both asleep");
            if front.borrow_mut().turn() == Notify::Needed {
                notified.set(true);
            }
        }
    }
}

/// And the reverse: backend's turns between any two accesses of the frontend.
#[test]
fn every_request_is_answered_with_a_backend_between_any_two_accesses() {
    for seed in 0..300 {
        let abi = ABIS[seed as usize % 2];
        let order = u32::try_from(seed % 3).unwrap();
        let start = u32::MAX - 40;
        let memory = prepare(order, start);
        let back = BackRing::attach_at(&memory, abi, MaxIndirectSegments::NONE, start).unwrap();
        let back = RefCell::new(Backend::new(back, seed ^ 0xb));
        let rng = RefCell::new(Rng(seed));
        let notified = std::cell::Cell::new(false);
        let peer = || {
            let mut back = back.borrow_mut();
            if !back.asleep && rng.borrow_mut().below(3) == 0 && back.turn() == Notify::Needed {
                notified.set(true);
            }
        };
        let racy = RacyMemory { inner: &memory, peer };
        let front = FrontRing::attach_at(racy, abi, start).unwrap();
        let mut front = Frontend::new(front, seed, 300);
        while !front.is_done() {
            if notified.take() {
                front.asleep = false;
            }
            if !front.asleep {
                if front.turn() == Notify::Needed {
                    back.borrow_mut().asleep = false;
                }
                continue;
            }
            assert!(!back.borrow().asleep, "{seed}: both asleep");
            if back.borrow_mut().turn() == Notify::Needed {
                notified.set(true);
            }
        }
    }
}

/// An event channel: events merge, none is lost.
fn notify(port: &SyncSender<()>) {
    match port.try_send(()) {
        // The peer has gone when all is done.
        Ok(()) | Err(TrySendError::Full(()) | TrySendError::Disconnected(())) => {}
    }
}

/// False when the peer has gone.
fn wait(port: &Receiver<()>) -> bool {
    match port.recv_timeout(Duration::from_secs(60)) {
        Ok(()) => true,
        Err(RecvTimeoutError::Disconnected) => false,
        Err(RecvTimeoutError::Timeout) => panic!("a notification was lost"),
    }
}

/// Two threads that sleep and wake as two domains do.
#[test]
fn every_request_is_answered_across_threads() {
    // Under Miri a turn takes milliseconds.
    let few = if cfg!(miri) { 300 } else { 1 };
    for (abi, order, total) in [(Abi::X86_64, 0, 60_000 / few), (Abi::X86_32, 3, 30_000 / few)] {
        let memory = AtomicMemory::new(RingOrder::new(order).unwrap());
        let (to_back, from_front) = sync_channel(1);
        let (to_front, from_back) = sync_channel(1);
        let front = FrontRing::init(&memory, abi).unwrap();
        let back = BackRing::attach(&memory, abi, MaxIndirectSegments::NONE).unwrap();
        thread::scope(|scope| {
            scope.spawn(move || {
                let mut front = Frontend::new(front, 1, total);
                while !front.is_done() {
                    if front.turn() == Notify::Needed {
                        notify(&to_back);
                    }
                    if front.asleep && !front.is_done() {
                        assert!(wait(&from_back), "the backend is gone");
                    }
                }
            });
            scope.spawn(move || {
                let mut back = Backend::new(back, 2);
                loop {
                    if back.turn() == Notify::Needed {
                        notify(&to_front);
                    }
                    if back.asleep && !wait(&from_front) {
                        break;
                    }
                }
            });
        });
    }
}

/// Lets two threads go on at almost the same moment, once a round.
struct StartLine(AtomicU32);

impl StartLine {
    fn meet(&self, round: u32) {
        self.0.fetch_add(1, Ordering::SeqCst);
        let begin = Instant::now();
        let mut spins = 0_u32;
        while self.0.load(Ordering::SeqCst) < 2 * (round + 1) {
            spins += 1;
            if spins.is_multiple_of(1000) {
                // The other thread may have no CPU, or have failed.
                thread::yield_now();
                assert!(begin.elapsed() < Duration::from_secs(60), "the other half is gone");
            }
            std::hint::spin_loop();
        }
    }
}

/// One half publishes while the other one checks whether it may sleep. Each stores, then looks at
/// what the other stored; without a full fence in both, both may miss it: the entry is there, its
/// consumer sleeps, nobody notifies. Once for requests and once for responses a round.
/// A missing fence shows in most runs, not in each; a right one never fails.
#[test]
fn an_entry_published_during_a_final_check_is_seen_or_notified() {
    const ROUNDS: u32 = if cfg!(miri) { 100 } else { 40_000 };
    let memory = AtomicMemory::new(RingOrder::ONE_PAGE);
    let mut front = FrontRing::init(&memory, Abi::X86_64).unwrap();
    let mut back = BackRing::attach(&memory, Abi::X86_64, MaxIndirectSegments::NONE).unwrap();
    let transfer = Transfer { sector: Sector(0), segments: Segments::EMPTY };
    let flush = Request { id: RequestId(1), handle: 0, op: Operation::Flush(transfer) };
    let line = StartLine(AtomicU32::new(0));
    let line = &line;
    let ((requests_notified, responses_seen), (responses_notified, requests_seen)) =
        thread::scope(|scope| {
            let front = scope.spawn(move || {
                let (mut notified, mut seen) = (Vec::new(), Vec::new());
                for round in 0..ROUNDS {
                    front.push(&flush).unwrap();
                    line.meet(3 * round);
                    notified.push(front.publish());
                    line.meet(3 * round + 1);
                    seen.push(front.final_check().unwrap());
                    line.meet(3 * round + 2);
                    assert_eq!(front.unconsumed(), Ok(1));
                    assert_eq!(front.consume(), Some(flush.response(Status::OKAY)));
                }
                (notified, seen)
            });
            let back = scope.spawn(move || {
                let (mut notified, mut seen) = (Vec::new(), Vec::new());
                for round in 0..ROUNDS {
                    line.meet(3 * round);
                    seen.push(back.final_check().unwrap());
                    // The request is there for certain once the frontend says so.
                    while back.unconsumed() == Ok(0) {
                        thread::yield_now();
                    }
                    assert_eq!(back.consume(), Some(Ok(flush)));
                    back.push(&flush.response(Status::OKAY)).unwrap();
                    line.meet(3 * round + 1);
                    notified.push(back.publish());
                    line.meet(3 * round + 2);
                }
                (notified, seen)
            });
            (front.join().unwrap(), back.join().unwrap())
        });
    for (notified, seen) in
        [(requests_notified, requests_seen), (responses_notified, responses_seen)]
    {
        let rounds = || notified.iter().zip(&seen);
        let lost = rounds().filter(|r| *r == (&Notify::NotNeeded, &FinalCheck::Idle)).count();
        assert_eq!(lost, 0, "of {ROUNDS}");
    }
}
