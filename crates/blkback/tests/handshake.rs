//! The handshake, in every order that frontends in the field are known to go through it.

use blkback::{Action, Availability, Event, Handshake, Look, Online};
use proptest::prelude::*;
use xen_abi::XenbusState::{
    self, Closed, Closing, Connected, InitWait, Initialised, Initialising, Unknown,
};

/// A backend around the state machine whose xenstore and hypervisor do at once what is asked, and
/// that writes down what can be seen from outside.
struct Backend {
    machine: Handshake,
    look: Look,
    /// What happened: our states as digits, `+` and `-` for the ring mapped and unmapped, `x` for
    /// the directory removed, `.` for the record forgotten.
    log: String,
    /// Whether timers run out at once.
    patience: Patience,
    waiting: Vec<Event>,
    connects: Event,
}

#[derive(PartialEq, Eq)]
enum Patience {
    None,
    Until,
}

impl Backend {
    fn new() -> Self {
        Self {
            machine: Handshake::new(),
            look: Look { online: Online::Yes, frontend: Some(Initialising) },
            log: String::new(),
            patience: Patience::None,
            waiting: Vec::new(),
            connects: Event::Connected,
        }
    }

    fn handle(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for action in self.machine.handle(event) {
                let follows = match action {
                    Action::Publish => {
                        self.log.push('2');
                        Some(Event::Published)
                    }
                    Action::Settle => Some(Event::Settled),
                    Action::Linger => Some(Event::Lingered),
                    Action::Connect => {
                        self.log.push('+');
                        Some(self.connects)
                    }
                    Action::Disconnect => {
                        self.log.push('-');
                        None
                    }
                    Action::Write(state) => {
                        self.log.push_str(&state.to_string());
                        None
                    }
                    Action::Remove => {
                        self.log.push('x');
                        None
                    }
                    Action::Forget => {
                        self.log.push('.');
                        None
                    }
                };
                match follows {
                    Some(timer @ (Event::Settled | Event::Lingered))
                        if self.patience == Patience::Until =>
                    {
                        self.waiting.push(timer);
                    }
                    Some(event) => events.insert(0, event),
                    None => {}
                }
            }
        }
    }

    fn look(&mut self) {
        self.handle(Event::Looked(self.look));
    }

    fn frontend(&mut self, states: &[XenbusState]) -> &mut Self {
        for &state in states {
            self.look.frontend = Some(state);
            self.look();
        }
        self
    }

    /// The frontend's directory is gone.
    fn gone(&mut self) -> &mut Self {
        self.look.frontend = None;
        self.look();
        self
    }

    fn detach(&mut self) -> &mut Self {
        self.look.online = Online::No;
        self.look();
        self
    }

    /// What has happened since the last time.
    fn log(&mut self) -> String {
        std::mem::take(&mut self.log)
    }
}

/// What is seen of a backend whose frontend goes through these states.
fn seen(states: &[XenbusState]) -> String {
    Backend::new().frontend(states).log()
}

#[test]
fn linux() {
    let mut backend = Backend::new();
    assert_eq!(backend.frontend(&[Initialising]).log(), "2");
    assert!(!backend.machine.is_connected());
    assert_eq!(backend.frontend(&[Initialised]).log(), "+4");
    assert!(backend.machine.is_connected());
    assert_eq!(backend.frontend(&[Connected, Connected]).log(), "");
    // xl block-detach: the frontend closes when it sees our 5.
    assert_eq!(backend.detach().log(), "5");
    assert!(!backend.machine.is_connected());
    assert_eq!(backend.frontend(&[Closing]).log(), "");
    assert_eq!(backend.frontend(&[Closed]).log(), "-6x.");
}

#[test]
fn grub_does_not_wait_for_our_2_and_closes_without_5_and_linux_comes_after_it() {
    let mut backend = Backend::new();
    backend.look.frontend = Some(Initialised);
    backend.look();
    assert_eq!(backend.log(), "2+4");
    assert_eq!(backend.frontend(&[Closed]).log(), "5-6");
    assert_eq!(backend.frontend(&[Initialising]).log(), "2");
    assert_eq!(backend.frontend(&[Initialised, Connected]).log(), "+4");
}

#[test]
fn ovmf_and_mini_os_are_at_4_at_once_and_see_5_then_6_then_2() {
    assert_eq!(seen(&[Connected]), "2+4");
    assert_eq!(seen(&[Connected, Closing]), "2+45");
    assert_eq!(seen(&[Connected, Closing, Closed]), "2+45-6");
    assert_eq!(seen(&[Connected, Closing, Closed, Initialising]), "2+45-62");
    assert_eq!(seen(&[Connected, Closing, Closed, Initialising, Connected]), "2+45-62+4");
}

#[test]
fn bsd_drains_on_our_5_and_writes_6() {
    let mut backend = Backend::new();
    backend.frontend(&[Initialising, Initialised, Connected]);
    backend.log();
    assert_eq!(backend.detach().log(), "5");
    // The ring is served until it lets go.
    assert!(backend.machine.has_ring());
    assert_eq!(backend.frontend(&[Closed]).log(), "-6x.");
    assert!(!backend.machine.has_ring());
}

#[test]
fn windows_goes_through_5_and_6_before_its_first_use() {
    assert_eq!(seen(&[Closing]), "25");
    assert_eq!(seen(&[Closing, Closed]), "256");
    assert_eq!(seen(&[Closing, Closed, Initialising, InitWait]), "2562");
    assert_eq!(seen(&[Closing, Closed, Initialising, Initialised]), "2562+4");
}

#[test]
fn a_kexec_that_closes_and_one_that_does_not() {
    assert_eq!(seen(&[Initialised, Connected, Closing, Closed, Initialising]), "2+45-62");
    assert_eq!(seen(&[Initialised, Connected, Initialising]), "2+45-62");
    assert_eq!(seen(&[Initialised, Connected, Initialising, Initialised]), "2+45-62+4");
}

#[test]
fn no_ring_is_had_before_libxl_has_seen_our_2() {
    let mut backend = Backend::new();
    backend.patience = Patience::Until;
    assert_eq!(backend.frontend(&[Initialising, Initialised, Connected]).log(), "2");
    assert_eq!(backend.waiting, [Event::Settled]);
    backend.handle(Event::Settled);
    assert_eq!(backend.log(), "+4");
}

#[test]
fn the_directory_goes_after_libxl_has_seen_our_6() {
    let mut backend = Backend::new();
    backend.frontend(&[Initialising]);
    backend.patience = Patience::Until;
    assert_eq!(backend.detach().log(), "256");
    assert_eq!(backend.waiting, [Event::Lingered]);
    backend.look();
    assert_eq!(backend.log(), "");
    backend.handle(Event::Lingered);
    assert_eq!(backend.log(), "x.");
}

#[test]
fn a_guest_that_is_destroyed_is_let_go_at_once() {
    let mut backend = Backend::new();
    backend.frontend(&[Initialised, Connected]);
    backend.log();
    assert_eq!(backend.gone().log(), "5-6");
    assert_eq!(backend.detach().log(), "x.");

    let mut backend = Backend::new();
    backend.frontend(&[Initialised, Connected]);
    backend.log();
    backend.look.online = Online::No;
    assert_eq!(backend.gone().log(), "5-6x.");
}

#[test]
fn a_device_that_is_detached_before_we_come_to_it() {
    let mut backend = Backend::new();
    assert_eq!(backend.detach().log(), "56x.");
}

#[test]
fn a_directory_that_vanishes_takes_the_ring_with_it() {
    let mut backend = Backend::new();
    backend.frontend(&[Initialised, Connected]);
    backend.log();
    backend.handle(Event::Vanished);
    assert_eq!(backend.log(), "-.");
    backend.look();
    assert_eq!(backend.log(), "");
}

#[test]
fn what_cannot_be_served_waits_at_6_for_its_detach() {
    let mut backend = Backend::new();
    backend.handle(Event::Refused);
    assert_eq!(backend.log(), "56");
    assert_eq!(backend.frontend(&[Initialising, Initialised, Initialising]).log(), "");
    assert_eq!(backend.detach().log(), "x.");
}

#[test]
fn a_ring_that_cannot_be_had_closes_and_may_be_tried_again() {
    let mut backend = Backend::new();
    backend.connects = Event::NotConnected;
    assert_eq!(backend.frontend(&[Initialised, Initialised]).log(), "2+56");
    backend.connects = Event::Connected;
    assert_eq!(backend.frontend(&[Initialising, Initialised]).log(), "2+4");
}

#[test]
fn a_broken_ring_closes_its_vbd() {
    let mut backend = Backend::new();
    backend.frontend(&[Initialised, Connected]);
    backend.log();
    backend.handle(Event::Broken);
    assert_eq!(backend.log(), "5-6");
    assert_eq!(backend.frontend(&[Connected]).log(), "");
    assert_eq!(backend.detach().log(), "x.");
}

#[test]
fn a_ring_that_breaks_while_it_closes_is_let_go() {
    let mut backend = Backend::new();
    backend.frontend(&[Initialised, Connected, Closing]);
    backend.log();
    backend.handle(Event::Broken);
    assert_eq!(backend.log(), "-");
    assert_eq!(backend.frontend(&[Closed]).log(), "6");
}

#[test]
fn what_a_disk_is_on_goes_and_comes_back() {
    let mut backend = Backend::new();
    backend.handle(Event::Withdrawn);
    assert_eq!(backend.frontend(&[Initialised, Connected]).log(), "2+4");
    // The ring is there until the frontend lets go of it: requests are still answered.
    backend.handle(Event::Withdrawn);
    assert_eq!(backend.log(), "5");
    assert_eq!(backend.frontend(&[Closed]).log(), "-6");
    assert_eq!(backend.frontend(&[Initialising, Initialised]).log(), "2+4");
    assert_eq!(backend.gone().detach().log(), "5-6x.");
}

#[test]
fn events_that_come_too_late_change_nothing() {
    let mut backend = Backend::new();
    for event in
        [Event::Published, Event::Connected, Event::NotConnected, Event::Broken, Event::Lingered]
    {
        backend.handle(event);
    }
    // All that they did was to let the first step be taken.
    assert_eq!(backend.log(), "2");
    backend.frontend(&[Initialised, Connected]);
    assert_eq!(backend.log(), "+4");
    backend.handle(Event::Refused);
    backend.handle(Event::Published);
    assert_eq!(backend.log(), "");
}

#[test]
fn a_disk_that_is_taken_is_waited_for_in_2() {
    let mut backend = Backend::new();
    backend.handle(Event::Disk(Availability::Taken));
    assert_eq!(backend.frontend(&[Initialised, Connected]).log(), "2");
    backend.handle(Event::Disk(Availability::Free));
    assert_eq!(backend.log(), "+4");
    // It is ours now; whoever else wants it waits.
    backend.handle(Event::Disk(Availability::Taken));
    assert_eq!(backend.log(), "");
}

#[test]
fn a_disk_that_another_takes_first_is_waited_for() {
    let mut backend = Backend::new();
    backend.connects = Event::Disk(Availability::Taken);
    assert_eq!(backend.frontend(&[Initialised, Connected]).log(), "2+");
    assert!(!backend.machine.has_ring());
    backend.connects = Event::Connected;
    backend.handle(Event::Disk(Availability::Free));
    assert_eq!(backend.log(), "+4");
}

#[test]
fn whoever_waits_for_a_disk_may_go() {
    let mut backend = Backend::new();
    backend.handle(Event::Disk(Availability::Taken));
    assert_eq!(backend.frontend(&[Initialised]).log(), "2");
    assert_eq!(backend.gone().detach().log(), "56x.");
}

fn state() -> impl Strategy<Value = Option<XenbusState>> {
    proptest::sample::select(vec![
        None,
        Some(Unknown),
        Some(Initialising),
        Some(InitWait),
        Some(Initialised),
        Some(Connected),
        Some(Closing),
        Some(Closed),
    ])
}

#[derive(Clone, Debug)]
enum Step {
    Frontend(Option<XenbusState>),
    Event(Event),
    Timer,
}

fn step() -> impl Strategy<Value = Step> {
    let events = vec![
        Event::Broken,
        Event::Withdrawn,
        Event::Published,
        Event::Connected,
        Event::NotConnected,
        Event::Disk(Availability::Taken),
        Event::Disk(Availability::Free),
    ];
    prop_oneof![
        8 => state().prop_map(Step::Frontend),
        1 => proptest::sample::select(events).prop_map(Step::Event),
        2 => Just(Step::Timer),
    ]
}

proptest! {
    /// Whatever a frontend does: a ring is mapped at most once at a time, our states go 2, 4, 5, 6
    /// and begin anew only from 6, and a detach with the frontend gone always ends it.
    #[test]
    fn no_order_of_states_confuses_it(
        steps in proptest::collection::vec(step(), 0..40),
        fails in any::<bool>(),
    ) {
        let mut backend = Backend::new();
        backend.patience = Patience::Until;
        if fails {
            backend.connects = Event::NotConnected;
        }
        for step in steps {
            match step {
                Step::Frontend(state) => {
                    backend.look.frontend = state;
                    backend.look();
                }
                Step::Event(event) => backend.handle(event),
                Step::Timer => {
                    if let Some(event) = backend.waiting.pop() {
                        backend.handle(event);
                    }
                }
            }
        }
        backend.look = Look { online: Online::No, frontend: None };
        backend.look();
        while let Some(event) = backend.waiting.pop() {
            backend.handle(event);
        }
        let log = backend.log();
        prop_assert!(log.ends_with("6x."), "{log}");
        let mut states = log.chars().filter(char::is_ascii_digit).collect::<Vec<_>>();
        states.insert(0, '6');
        for pair in states.windows(2) {
            prop_assert!(
                matches!(pair, ['6', '2' | '5'] | ['2', '4' | '5'] | ['4', '5'] | ['5', '6']),
                "{pair:?} in {log}"
            );
        }
        let mut mapped = 0;
        for what in log.chars() {
            match what {
                '+' if !fails => mapped += 1,
                '-' => mapped -= 1,
                _ => {}
            }
            prop_assert!((0..=1).contains(&mapped), "{log}");
        }
        prop_assert_eq!(mapped, 0);
    }
}
