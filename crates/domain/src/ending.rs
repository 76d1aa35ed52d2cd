//! The domain's end, on the toolstack's word (`xl shutdown`): not before all is detached, since a
//! guest's data may be nowhere else.

use core::fmt;

use xen_abi::Instant;
use xenstore::Request;

use crate::domain::Domain;
use crate::inbox::Tag;
use crate::platform::{Platform, ShutdownReason};
use crate::text::Printable;
use crate::vbd::Vbd;

pub(crate) const SHUTDOWN: &str = "control/shutdown";

/// How far the end of the domain has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shutdown {
    /// Nobody has asked for it.
    No,
    /// What is attached is waited for.
    Draining { reason: ShutdownReason, until: Instant },
    /// Nothing is attached; what others serve to us is being closed.
    Closing(ShutdownReason),
    /// Nothing is held; xenstore is being told the last.
    Told(ShutdownReason),
    /// xenstore knows.
    Now(ShutdownReason),
}

impl Shutdown {
    /// When the domain no longer waits.
    pub(crate) const fn drains_until(&self) -> Option<Instant> {
        match *self {
            Self::Draining { until, .. } => Some(until),
            _ => None,
        }
    }

    /// Whether what others serve to us may still be of use.
    pub(crate) const fn keeps_upstreams(&self) -> bool {
        matches!(self, Self::No | Self::Draining { .. })
    }

    /// xenstore has answered the last request, and so all before it.
    pub(crate) const fn last_word_heard(&mut self) {
        if let Self::Told(reason) = *self {
            *self = Self::Now(reason);
        }
    }
}

impl<P: Platform> Domain<P> {
    /// The toolstack wants the domain to end. A word that is repeated is acknowledged, and changes
    /// nothing.
    pub(crate) fn asked_to_end(&mut self, platform: &mut P, reason: ShutdownReason) {
        if let Shutdown::Told(reason) = self.shutdown {
            // The last word may have found no room in xenstore's queue.
            return self.say_last_word(platform, reason);
        }
        if let Shutdown::No = self.shutdown {
            let (nr, drain) = (self.attached().count(), self.settings.drain);
            if nr == 0 {
                platform.log(format_args!("asked to end ({reason:?})"));
                return self.close_all(platform, reason);
            }
            platform.log(format_args!(
                "asked to end ({reason:?}): {} attached, waits up to {} s for them to go",
                NrVbds(nr),
                drain.as_secs(),
            ));
            let until = platform.now().after(drain);
            self.shutdown = Shutdown::Draining { reason, until };
            self.wake_at(until);
        }
        self.submit(platform, Request::Write(SHUTDOWN, b""), Tag::Control);
    }

    /// A vbd was detached: it may have been the last. Or one of our own has closed.
    pub(crate) fn end_if_drained(&mut self, platform: &mut P) {
        match self.shutdown {
            Shutdown::Draining { reason, .. } if self.attached().next().is_none() => {
                self.close_all(platform, reason);
            }
            Shutdown::Closing(reason) if self.has_closed_upstreams() => {
                self.say_last_word(platform, reason);
            }
            _ => {}
        }
    }

    /// Nobody has a disk any more: what our disks are on is made durable and let go.
    fn close_all(&mut self, platform: &mut P, reason: ShutdownReason) {
        self.shutdown = Shutdown::Closing(reason);
        self.close_upstreams(platform);
        self.end_if_drained(platform);
    }

    /// The time is over, and the domain goes on as if nobody had asked.
    pub(crate) fn stay(&mut self, platform: &mut P) {
        self.shutdown = Shutdown::No;
        let nr = self.attached().count();
        if let Some(first) = self.attached().next() {
            platform.log(format_args!("{} still attached, first {first}: not ending", NrVbds(nr)));
        }
    }

    /// The vbds that somebody has or may have something on: a guest that boots stands in state 2 or
    /// 6 for a while. One that was refused is none.
    fn attached(&self) -> impl Iterator<Item = &Vbd<P::Mapping>> {
        self.vbds.iter().filter(|vbd| vbd.disk().is_some())
    }

    /// Requests are answered in their order: with the answer to this one the last device's
    /// directory has gone.
    fn say_last_word(&mut self, platform: &mut P, reason: ShutdownReason) {
        self.shutdown = Shutdown::Told(reason);
        self.submit(platform, Request::Write(SHUTDOWN, b""), Tag::LastWord);
    }
}

/// How many vbds there are, as a sentence begins.
struct NrVbds(usize);

impl fmt::Display for NrVbds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            1 => f.write_str("1 vbd is"),
            nr => write!(f, "{nr} vbds are"),
        }
    }
}

/// The words of `control/shutdown` (`xen/docs/misc/xenstore-paths.pandoc`).
pub(crate) fn shutdown_reason(value: &[u8]) -> Result<Option<ShutdownReason>, Printable<'_>> {
    match value {
        b"" => Ok(None),
        b"poweroff" | b"halt" => Ok(Some(ShutdownReason::PowerOff)),
        b"reboot" => Ok(Some(ShutdownReason::Reboot)),
        other => Err(Printable(other)),
    }
}
