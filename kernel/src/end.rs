//! The domain's end.

use core::fmt;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use x86_64::instructions::{hlt, interrupts};

use crate::abi::ShutdownCode;
use crate::console;
use crate::hypercall::Hypercalls;

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    static PANICKED: AtomicBool = AtomicBool::new(false);
    // A second one came while the first was told.
    if !PANICKED.swap(true, Ordering::Relaxed) {
        let message = info.message();
        match info.location() {
            Some(place) => console::line_everywhere(format_args!("panic at {place}: {message}")),
            None => console::line_everywhere(format_args!("panic: {message}")),
        }
    }
    crash()
}

/// Ends the domain, which cannot start for the reason given.
pub(crate) fn refuse(reason: fmt::Arguments<'_>) -> ! {
    console::line_everywhere(format_args!("cannot start: {reason}"));
    crash()
}

/// Ends the domain as crashed.
pub(crate) fn crash() -> ! {
    match Hypercalls::get() {
        Some(hypercalls) => hypercalls.shutdown(ShutdownCode::Crash),
        None => halt(),
    }
}

/// Stops the CPU for good.
pub(crate) fn halt() -> ! {
    interrupts::disable();
    loop {
        hlt();
    }
}
