//! Where lines go: the PV console, port 0xE9 before it is up, a serial port where there is no Xen.

use core::fmt::{self, Write};
use core::time::Duration;

use spin::Mutex;
use uart_16550::SerialPort;
use x86_64::instructions::port::PortWriteOnly;
use xen_abi::EvtchnPort;

use crate::console_ring::ConsoleRing;
use crate::hypercall::Hypercalls;
use crate::region::Region;
use crate::time::Clock;

/// Begins each line, so that it is told from others' in `xl dmesg` and in logs.
const PREFIX: &str = "granary: ";

/// Xen's debug port: a line appears in `xl dmesg`.
const DEBUG_PORT: u16 = 0xe9;

/// The first serial port of a PC.
const SERIAL_PORT: u16 = 0x3f8;

static PV: Mutex<Option<PvConsole>> = Mutex::new(None);

struct PvConsole {
    ring: ConsoleRing<Region>,
    port: EvtchnPort,
    hypercalls: Hypercalls,
}

impl PvConsole {
    fn line(&mut self, line: fmt::Arguments<'_>) {
        self.ring.line(format_args!("{PREFIX}{line}"));
        self.notify();
    }

    fn notify(&self) {
        // A console nobody is behind is no error of ours.
        let _ = self.hypercalls.send(self.port);
    }
}

/// Lines go to the PV console from now on.
pub(crate) fn set_pv(hypercalls: Hypercalls, page: Region, port: EvtchnPort) {
    *PV.lock() = Some(PvConsole { ring: ConsoleRing::new(page), port, hypercalls });
}

/// Says one line.
pub(crate) fn line(line: fmt::Arguments<'_>) {
    match &mut *PV.lock() {
        Some(pv) => pv.line(line),
        None => raw_line(line),
    }
}

/// Says one line on every console there is. For use when nothing is sure any more.
pub(crate) fn line_everywhere(line: fmt::Arguments<'_>) {
    raw_line(line);
    // Taken where the failure was in the console itself.
    if let Some(mut pv) = PV.try_lock()
        && let Some(pv) = &mut *pv
    {
        pv.line(line);
    }
}

/// Answers an event of the console's port: throws away what was typed.
pub(crate) fn on_event() {
    if let Some(pv) = &mut *PV.lock() {
        pv.ring.drain_input();
        pv.notify();
    }
}

/// Gives the console daemon until `limit` to take what was said, before the domain ends.
pub(crate) fn flush(clock: Clock, limit: Duration) {
    let deadline = clock.now().after(limit);
    let Some(pv) = PV.try_lock() else { return };
    let Some(pv) = &*pv else { return };
    while !pv.ring.is_drained() && clock.now() < deadline {
        pv.hypercalls.yield_now();
    }
}

fn raw_line(line: fmt::Arguments<'_>) {
    // Neither writer fails.
    let _ = if Hypercalls::get().is_some() {
        writeln!(DebugPort(PortWriteOnly::new(DEBUG_PORT)), "{PREFIX}{line}")
    } else {
        // SAFETY: without Xen the machine is a PC, or has nothing at this port, which then reads
        // as ready.
        let mut serial = unsafe { SerialPort::new(SERIAL_PORT) };
        serial.init();
        write!(serial, "{PREFIX}{line}\r\n")
    };
}

struct DebugPort(PortWriteOnly<u8>);

impl Write for DebugPort {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // SAFETY: Xen prints what is written to this port.
            unsafe { self.0.write(byte) };
        }
        Ok(())
    }
}
