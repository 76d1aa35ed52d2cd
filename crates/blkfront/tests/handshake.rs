//! The handshake, with every backend that there may be.

use blkback::{Action as BackAction, Event as BackEvent, Handshake as Backend, Look, Online};
use blkfront::Action::{Abandon, Announce, Connect, Disconnect, Drain, Forget, Resize, Write};
use blkfront::{Action, Event, Handshake};
use proptest::prelude::*;
use xen_abi::XenbusState::{
    self, Closed, Closing, Connected, InitWait, Initialised, Initialising, Reconfiguring, Unknown,
};

fn looked(state: XenbusState) -> Event {
    Event::Looked(Some(state))
}

const GONE: Event = Event::Looked(None);

/// Runs a history: each event, and what it must lead to.
fn history(steps: &[(Event, &[Action])]) -> Handshake {
    let mut machine = Handshake::new();
    for (n, &(event, expected)) in steps.iter().enumerate() {
        assert_eq!(machine.handle(event), expected, "step {n}: {event:?} in {machine:?}");
    }
    machine
}

/// How a device gets as far as a phase.
const ANNOUNCING: &[(Event, &[Action])] = &[(Event::Looked(Some(InitWait)), &[Announce])];
const ANNOUNCED: &[(Event, &[Action])] =
    &[(Event::Looked(Some(InitWait)), &[Announce]), (Event::Announced, &[])];
const CONNECTING: &[(Event, &[Action])] = &[
    (Event::Looked(Some(InitWait)), &[Announce]),
    (Event::Announced, &[]),
    (Event::Looked(Some(Connected)), &[Connect]),
];
const CONNECTED: &[(Event, &[Action])] = &[
    (Event::Looked(Some(InitWait)), &[Announce]),
    (Event::Announced, &[]),
    (Event::Looked(Some(Connected)), &[Connect]),
    (Event::Connected, &[Write(Connected)]),
];

fn after(start: &[(Event, &[Action])], steps: &[(Event, &[Action])]) -> Handshake {
    history(&[start, steps].concat())
}

#[test]
fn it_connects() {
    let machine = after(CONNECTED, &[]);
    assert!(machine.is_connected() && !machine.is_closed() && !machine.is_closing());
}

#[test]
fn nothing_happens_before_the_backend_is_ready() {
    history(&[
        (looked(Initialising), &[]),
        (looked(Initialised), &[]),
        (looked(InitWait), &[Announce]),
        (looked(InitWait), &[]),
    ]);
    after(ANNOUNCED, &[(looked(Initialising), &[]), (looked(Initialised), &[])]);
}

#[test]
fn what_is_seen_while_xenstore_answers_counts_when_it_has() {
    after(ANNOUNCING, &[(looked(Connected), &[]), (Event::Announced, &[Connect])]);
    after(
        ANNOUNCING,
        &[
            (looked(Closing), &[]),
            (Event::Announced, &[Write(Closing), Write(Closed)]),
            (looked(Closed), &[Disconnect]),
        ],
    );
    after(
        ANNOUNCING,
        &[(GONE, &[]), (Event::Announced, &[Write(Closing), Write(Closed), Disconnect])],
    );
    // A backend that closes while its disk is being read was never in use.
    after(
        CONNECTING,
        &[
            (looked(Closing), &[]),
            (Event::Connected, &[Write(Closing), Write(Closed)]),
            (looked(Closed), &[Disconnect]),
        ],
    );
    after(
        CONNECTING,
        &[(GONE, &[]), (Event::Connected, &[Write(Closing), Write(Closed), Disconnect])],
    );
}

#[test]
fn a_state_that_is_written_again_is_a_new_size() {
    after(CONNECTED, &[(looked(Connected), &[Resize]), (looked(Connected), &[Resize])]);
    // Also where it comes while the old one is being read.
    after(CONNECTING, &[(looked(Connected), &[]), (Event::Connected, &[Write(Connected), Resize])]);
}

#[test]
fn a_backend_that_closes_has_its_requests_drained() {
    let machine = after(
        CONNECTED,
        &[
            (looked(Closing), &[Drain]),
            (looked(Closing), &[]),
            (Event::Drained, &[Write(Closing), Write(Closed)]),
            (looked(Closing), &[]),
            (looked(Closed), &[Disconnect]),
            (looked(Closed), &[]),
            (Event::Vanished, &[Forget]),
        ],
    );
    assert!(machine.is_closed());
}

#[test]
fn a_backend_that_is_gone_answers_nothing() {
    for gone in [GONE, looked(Unknown), looked(Closed), looked(Initialising)] {
        let all = [Abandon, Write(Closing), Write(Closed), Disconnect];
        let machine = after(CONNECTED, &[(gone, &all), (Event::Drained, &[])]);
        assert!(machine.is_closed(), "{gone:?}");
        after(CONNECTED, &[(looked(Closing), &[Drain]), (gone, &all)]);
    }
}

#[test]
fn states_that_a_backend_never_has_change_nothing() {
    after(CONNECTED, &[(looked(Initialised), &[]), (looked(Reconfiguring), &[])]);
}

#[test]
fn we_close_by_our_own_wish() {
    let closes: &[(Event, &[Action])] = &[
        (Event::Close, &[Drain]),
        (Event::Drained, &[Write(Closing)]),
        (looked(Connected), &[]),
        (looked(Closing), &[Write(Closed)]),
        (looked(Closed), &[Disconnect]),
    ];
    after(CONNECTED, closes);
    history(&[(Event::Close, &[Write(Closing), Write(Closed)]), (looked(InitWait), &[])]);
    after(
        ANNOUNCING,
        &[
            (Event::Close, &[]),
            (looked(InitWait), &[]),
            (Event::Announced, &[Write(Closing), Write(Closed)]),
            (looked(Closed), &[Disconnect]),
        ],
    );
    after(
        ANNOUNCED,
        &[
            // It may be mapping the ring.
            (Event::Close, &[Write(Closing), Write(Closed)]),
            (looked(InitWait), &[]),
            (looked(Closed), &[Disconnect]),
        ],
    );
    after(
        CONNECTING,
        &[
            (Event::Close, &[]),
            (Event::Connected, &[Write(Closing)]),
            (looked(Closing), &[Write(Closed)]),
        ],
    );
}

#[test]
fn a_ring_that_is_broken_is_waited_for_by_nobody_but_its_grants() {
    after(
        CONNECTED,
        &[
            (Event::Broken, &[Abandon, Write(Closing)]),
            (looked(Connected), &[]),
            (looked(Closing), &[Write(Closed)]),
            (looked(Closing), &[]),
            (looked(Closed), &[Disconnect]),
        ],
    );
    after(CONNECTED, &[(Event::Close, &[Drain]), (Event::Broken, &[Abandon, Write(Closing)])]);
}

#[test]
fn a_backend_that_never_follows_is_left() {
    let left = after(
        CONNECTED,
        &[
            (Event::Close, &[Drain]),
            (Event::TimedOut, &[Abandon, Write(Closing), Write(Closed), Disconnect]),
            (looked(Connected), &[]),
        ],
    );
    assert!(left.is_closed() && !left.is_closing());
    let closing: &[(Event, &[Action])] = &[(Event::Broken, &[Abandon, Write(Closing)])];
    let machine = after(CONNECTED, closing);
    assert!(machine.is_closing());
    after(CONNECTED, &[closing, &[(Event::TimedOut, &[Write(Closed), Disconnect])]].concat());
    after(
        CONNECTED,
        &[closing, &[(looked(Closing), &[Write(Closed)]), (Event::TimedOut, &[Disconnect])]]
            .concat(),
    );
    // Nobody is waited for: a late timer.
    after(CONNECTED, &[(Event::TimedOut, &[])]);
}

#[test]
fn a_backend_that_refuses_us_is_closed() {
    for state in [Closing, Closed] {
        history(&[(looked(state), &[Write(Closing), Write(Closed)])]);
    }
    after(ANNOUNCED, &[(looked(Closed), &[Write(Closing), Write(Closed), Disconnect])]);
    after(
        ANNOUNCED,
        &[(looked(Closing), &[Write(Closing), Write(Closed)]), (looked(Closed), &[Disconnect])],
    );
    assert!(history(&[(GONE, &[Write(Closing), Write(Closed)])]).is_closed());
}

#[test]
fn what_cannot_be_used_closes() {
    after(ANNOUNCING, &[(Event::NotAnnounced, &[Write(Closing), Write(Closed)])]);
    after(
        CONNECTING,
        &[
            (Event::NotConnected, &[Write(Closing)]),
            (looked(Closing), &[Write(Closed)]),
            (looked(Closed), &[Disconnect]),
        ],
    );
}

#[test]
fn it_opens_again() {
    let closed: &[(Event, &[Action])] = &[
        (Event::Close, &[Drain]),
        (Event::Drained, &[Write(Closing)]),
        (looked(Closing), &[Write(Closed)]),
        (looked(Closed), &[Disconnect]),
    ];
    let again: &[(Event, &[Action])] = &[
        (Event::Reopen, &[Write(Initialising)]),
        // It has not seen our 1 yet.
        (looked(Closed), &[]),
        (looked(InitWait), &[Announce]),
        (Event::Announced, &[]),
        (looked(Connected), &[Connect]),
        (Event::Connected, &[Write(Connected)]),
    ];
    let machine = after(CONNECTED, &[closed, again, closed, again].concat());
    assert!(machine.is_connected());
    // Wished before it is closed.
    after(
        CONNECTED,
        &[
            (looked(Closing), &[Drain]),
            (Event::Reopen, &[]),
            (Event::Drained, &[Write(Closing), Write(Closed)]),
            (looked(Closed), &[Disconnect, Write(Initialising)]),
        ],
    );
    // A backend that was started anew stands there already.
    after(
        CONNECTED,
        &[
            (looked(InitWait), &[Abandon, Write(Closing), Write(Closed)]),
            (Event::TimedOut, &[Disconnect]),
            (Event::Reopen, &[Write(Initialising), Announce]),
        ],
    );
}

#[test]
fn a_ring_of_our_former_life_is_closed_first() {
    history(&[
        (looked(Connected), &[Write(Closing)]),
        (looked(Closing), &[Write(Closed)]),
        (looked(Closed), &[Write(Initialising)]),
        (looked(Closed), &[]),
        (looked(InitWait), &[Announce]),
    ]);
}

#[test]
fn when_our_directory_is_gone_all_is_over() {
    history(&[(Event::Vanished, &[Forget]), (Event::Vanished, &[])]);
    after(ANNOUNCED, &[(Event::Vanished, &[Disconnect, Forget])]);
    after(CONNECTED, &[(Event::Vanished, &[Abandon, Disconnect, Forget])]);
    after(
        CONNECTED,
        &[(Event::Close, &[Drain]), (Event::Vanished, &[Abandon, Disconnect, Forget])],
    );
    // Announced all the same: what was granted is taken back.
    after(
        ANNOUNCING,
        &[(Event::Vanished, &[Forget]), (Event::Announced, &[Disconnect]), (looked(Closed), &[])],
    );
    after(CONNECTING, &[(Event::Vanished, &[Disconnect, Forget]), (Event::Connected, &[])]);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    FrontLooks,
    BackLooks,
    FrontAnswers,
    BackAnswers,
    Close,
    Reopen,
    Broken,
    Detach,
}

/// Both halves, and a xenstore between them that tells late.
struct Both {
    front: Handshake,
    back: Backend,
    front_state: XenbusState,
    back_state: Option<XenbusState>,
    online: Online,
    front_due: Vec<Event>,
    back_due: Vec<BackEvent>,
    granted: bool,
    mapped: bool,
}

impl Both {
    fn new() -> Self {
        Self {
            front: Handshake::new(),
            back: Backend::new(),
            front_state: Initialising,
            back_state: Some(Initialising),
            online: Online::Yes,
            front_due: Vec::new(),
            back_due: Vec::new(),
            granted: false,
            mapped: false,
        }
    }

    fn front(&mut self, event: Event) {
        for action in self.front.handle(event) {
            match action {
                Announce => {
                    assert!(!self.granted, "two rings");
                    self.granted = true;
                    self.front_state = Initialised;
                    self.front_due.push(Event::Announced);
                }
                Connect => self.front_due.push(Event::Connected),
                Drain => self.front_due.push(Event::Drained),
                Resize | Abandon => {}
                Disconnect => {
                    assert!(std::mem::take(&mut self.granted), "no ring");
                    assert!(!self.mapped, "a ring is taken back that is mapped");
                }
                Write(state) => self.front_state = state,
                Forget => panic!("our directory is there"),
            }
        }
    }

    fn back(&mut self, event: BackEvent) {
        for action in self.back.handle(event) {
            match action {
                BackAction::Publish => {
                    self.back_state = Some(InitWait);
                    self.back_due.push(BackEvent::Published);
                }
                BackAction::Settle => self.back_due.push(BackEvent::Settled),
                BackAction::Connect => {
                    let event = if self.granted {
                        self.mapped = true;
                        BackEvent::Connected
                    } else {
                        BackEvent::NotConnected
                    };
                    self.back_due.push(event);
                }
                BackAction::Disconnect => self.mapped = false,
                BackAction::Write(state) => self.back_state = Some(state),
                BackAction::Linger => self.back_due.push(BackEvent::Lingered),
                BackAction::Remove => self.back_state = None,
                BackAction::Forget => {}
            }
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::FrontLooks => self.front(Event::Looked(self.back_state)),
            Step::BackLooks if self.back_state.is_some() => {
                let look = Look { online: self.online, frontend: Some(self.front_state) };
                self.back(BackEvent::Looked(look));
            }
            Step::FrontAnswers if !self.front_due.is_empty() => {
                let event = self.front_due.remove(0);
                self.front(event);
            }
            Step::BackAnswers if !self.back_due.is_empty() => {
                let event = self.back_due.remove(0);
                self.back(event);
            }
            Step::Close => self.front(Event::Close),
            Step::Reopen => self.front(Event::Reopen),
            Step::Broken => self.front(Event::Broken),
            Step::Detach => self.online = Online::No,
            _ => {}
        }
    }

    /// Everybody hears everything.
    fn settle(&mut self) {
        for _ in 0..100 {
            self.step(Step::BackLooks);
            self.step(Step::BackAnswers);
            // Written again and again it is a new size; that ends nowhere.
            self.step(Step::FrontLooks);
            self.step(Step::FrontAnswers);
        }
        assert!(self.front_due.is_empty() && self.back_due.is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn with_our_own_backend_it_always_comes_to_an_end(
        steps in prop::collection::vec(
            prop_oneof![
                20 => prop_oneof![
                    Just(Step::FrontLooks),
                    Just(Step::BackLooks),
                    Just(Step::FrontAnswers),
                    Just(Step::BackAnswers),
                ],
                2 => prop_oneof![Just(Step::Close), Just(Step::Reopen), Just(Step::Broken)],
            ],
            0..120,
        ),
        detached in any::<bool>(),
    ) {
        let mut both = Both::new();
        for step in steps {
            both.step(step);
        }
        both.settle();
        if both.front.is_closed() {
            prop_assert!(!both.granted && !both.mapped, "{:?}", both.front);
            both.step(Step::Reopen);
            both.settle();
        }
        prop_assert!(both.front.is_connected(), "{:?} {:?}", both.front, both.back);
        prop_assert!(both.granted && both.mapped);
        both.step(if detached { Step::Detach } else { Step::Close });
        both.settle();
        prop_assert!(both.front.is_closed(), "{:?} {:?}", both.front, both.back);
        prop_assert!(!both.granted && !both.mapped);
        prop_assert_eq!(both.front_state, Closed);
        prop_assert_eq!(both.back_state.is_none(), detached);
    }
}
