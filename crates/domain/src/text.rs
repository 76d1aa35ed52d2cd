//! Text that others wrote, and lines that others cause.

use core::fmt;
use core::time::Duration;

use xen_abi::Instant;

/// Text from xenstore as it may stand on a console: one line, nothing but printable ASCII, and not
/// too long.
pub(crate) struct Printable<'a>(pub(crate) &'a [u8]);

const MAX_PRINTED: usize = 80;

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shown, more) = match self.0.get(..MAX_PRINTED) {
            Some(shown) if self.0.len() > MAX_PRINTED => (shown, "..."),
            _ => (self.0, ""),
        };
        write!(f, "{}{more}", shown.escape_ascii())
    }
}

/// How many lines a frontend or another peer may cause: a few at once, then one in ten seconds.
#[derive(Debug)]
pub struct LineLimit {
    left: u32,
    next: Instant,
    nr_dropped: u64,
}

impl LineLimit {
    const AT_ONCE: u32 = 5;
    const INTERVAL: Duration = Duration::from_secs(10);

    /// None was said yet.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "nobody needs one")]
    pub const fn new() -> Self {
        Self { left: Self::AT_ONCE, next: Instant::from_ns(0), nr_dropped: 0 }
    }

    /// Whether a line may be said now, and how many were not since the last.
    pub fn allow(&mut self, now: Instant) -> Option<u64> {
        if now >= self.next {
            self.left = self.left.max(1);
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                self.next = now.after(Self::INTERVAL);
                Some(core::mem::take(&mut self.nr_dropped))
            }
            None => {
                self.nr_dropped += 1;
                None
            }
        }
    }
}

/// What is said of lines that were not said: behind the next one.
#[derive(Debug)]
pub struct Dropped(pub u64);

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 > 0 { write!(f, " ({} more before)", self.0) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::{LineLimit, Printable};
    use std::string::{String, ToString};
    use std::vec::Vec;
    use xen_abi::Instant;

    #[test]
    fn foreign_text_stays_on_its_line() {
        assert_eq!(Printable(b"ram,\x1b[2Jsize\n\xff").to_string(), "ram,\\x1b[2Jsize\\n\\xff");
        let long = Printable(&[b'x'; 81]).to_string();
        assert_eq!(long, String::from_utf8([b'x'; 80].to_vec()).unwrap() + "...");
        assert_eq!(Printable(&[b'x'; 80]).to_string().len(), 80);
    }

    #[test]
    fn a_flood_of_lines_is_cut_and_counted() {
        let mut limit = LineLimit::new();
        let at = |s: u64| Instant::from_ns(s * 1_000_000_000);
        let said: Vec<_> = (0..8).map(|_| limit.allow(at(1))).collect();
        assert_eq!(said, [Some(0), Some(0), Some(0), Some(0), Some(0), None, None, None]);
        assert_eq!(limit.allow(at(10)), None);
        assert_eq!(limit.allow(at(11)), Some(4));
        assert_eq!(limit.allow(at(12)), None);
        assert_eq!(limit.allow(at(21)), Some(1));
    }
}
