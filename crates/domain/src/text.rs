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

    /// Says a line, where one may be said now. Whether it was.
    pub fn say(
        &mut self,
        now: Instant,
        line: fmt::Arguments<'_>,
        log: impl FnOnce(fmt::Arguments<'_>),
    ) -> bool {
        if now >= self.next {
            self.left = self.left.max(1);
        }
        let Some(left) = self.left.checked_sub(1) else {
            self.nr_dropped += 1;
            return false;
        };
        self.left = left;
        self.next = now.after(Self::INTERVAL);
        self.say_anyway(line, log);
        true
    }

    /// Says a line that does not count, and how many were not said before it.
    pub fn say_anyway(&mut self, line: fmt::Arguments<'_>, log: impl FnOnce(fmt::Arguments<'_>)) {
        match core::mem::take(&mut self.nr_dropped) {
            0 => log(line),
            nr => log(format_args!("{line} ({nr} more before)")),
        }
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
        let mut said = Vec::new();
        for (n, at_s) in [1, 1, 1, 1, 1, 1, 1, 1, 10, 11, 12, 21, 22].into_iter().enumerate() {
            let now = Instant::from_ns(at_s * 1_000_000_000);
            let nr_said = said.len();
            let was_said =
                limit.say(now, format_args!("{n}: failed"), |line| said.push(line.to_string()));
            assert_eq!(was_said, said.len() > nr_said);
        }
        limit.say_anyway(format_args!("the end"), |line| said.push(line.to_string()));
        limit.say_anyway(format_args!("and over"), |line| said.push(line.to_string()));
        let five = ["0: failed", "1: failed", "2: failed", "3: failed", "4: failed"];
        assert_eq!(said[..5], five);
        let others = ["9: failed (4 more before)", "11: failed (1 more before)"];
        assert_eq!(said[5..7], others);
        assert_eq!(said[7..], ["the end (1 more before)", "and over"]);
    }
}
