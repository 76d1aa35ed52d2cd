//! Tests that the real image runs on itself, where the command line asks for them.

use core::hint::black_box;
use core::time::Duration;

use domain::HypercallError;
use xen_abi::{DomId, EvtchnPort};

use crate::console;
use crate::events::Events;
use crate::hypercall::Hypercalls;
use crate::time::Clock;

/// One more than `SCHEDOP_poll` would take.
const NR_PORTS: usize = 129;

/// What hangs, if the test fails, is longer than this.
const LIMIT: Duration = Duration::from_secs(10);

/// Runs the tests that `command_line` asks for by `selftest=<name>`: `ports`, `panic`, `stack`.
/// The last two end the domain, as a failure does.
pub(crate) fn run(command_line: &[u8], hypercalls: Hypercalls, clock: Clock, events: &mut Events) {
    for word in command_line.split(u8::is_ascii_whitespace) {
        match word.strip_prefix(b"selftest=") {
            Some(b"ports") => match ports(hypercalls, clock, events) {
                Ok(()) => console::line(format_args!("selftest ports: ok")),
                Err(error) => panic!("selftest ports: {error}"),
            },
            Some(b"panic") => panic!("selftest panic"),
            Some(b"stack") => {
                console::line(format_args!("selftest stack: {}", overflow_stack(1)));
            }
            Some(name) => {
                console::line(format_args!("selftest {}: unknown", name.escape_ascii()));
            }
            None => {}
        }
    }
}

/// Must end in a fault at the page below the stack, and not anywhere else.
#[expect(unconditional_recursion, reason = "it is what is tested")]
fn overflow_stack(depth: u64) -> u64 {
    overflow_stack(black_box(depth) + 1) + black_box(depth)
}

/// Binds 129 ports to ourselves, and has each one end four waits, two of them while it is not hot: an
/// event that is sent after the last look at the pending bits must be found by the hypercall, and one
/// that goes with the wait, too. The ports stay bound beside those that the domain binds from now on.
fn ports(hypercalls: Hypercalls, clock: Clock, events: &mut Events) -> Result<(), HypercallError> {
    let mut pairs = [(EvtchnPort(0), EvtchnPort(0)); NR_PORTS];
    for pair in &mut pairs {
        let sender = hypercalls.alloc_unbound(DomId::SELF)?;
        let bound = hypercalls.bind_interdomain(DomId::SELF, sender)?;
        let added = events.add(bound);
        assert!(added.is_ok(), "selftest ports: {bound} is no port");
        *pair = (sender, bound);
    }
    // Binding makes an event.
    while events.take().is_some() {}

    for goes_with_wait in [false, true] {
        for (sender, bound) in pairs.into_iter().flat_map(|pair| [pair; 2]) {
            let deadline = clock.now().after(LIMIT);
            let mut sent = Ok(());
            if goes_with_wait {
                events.notify_with_wait(sender);
            }
            events.wait_after(Some(deadline), || {
                if !goes_with_wait {
                    sent = hypercalls.send(sender);
                }
            });
            sent?;
            assert!(clock.now() < deadline, "selftest ports: port {bound} did not end the wait");
            let taken = (events.take(), events.take());
            assert!(taken == (Some(bound), None), "selftest ports: {bound} gave {taken:?}");
        }
    }
    // Without an event the wait lasts.
    let end = clock.now().after(Duration::from_millis(20));
    while clock.now() < end {
        events.wait(Some(end));
        assert!(events.take().is_none(), "selftest ports: an event from nowhere");
    }
    Ok(())
}
