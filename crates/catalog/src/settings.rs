//! The domain's command line (`cmdline=` in its xl.cfg).

use core::time::Duration;

use crate::word::{Error, Expected, Problem, key_value, number};

const WORDS: Expected = Expected(&[
    "settle-ms=",
    "drain-s=",
    "indirect=",
    "ring-order=",
    "queues=",
    "persistent=",
    "vbd-pages=",
    "copy=",
    "disk=",
]);

const COPIES: Expected = Expected(&["copy=auto", "copy=u64", "copy=sse", "copy=erms"]);

/// What the command line sets, in words separated by blanks. Its `disk=` words are passed over: they
/// are [`definitions`](crate::definitions).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// `settle-ms=N`, 0 to 10000: how long a backend stands in InitWait at least, even if its
    /// frontend is ready, so that libxl sees it there. Slow hosts need more than fast ones.
    pub settle: Duration,
    /// `drain-s=N`, 0 to 3600: how long a domain that is asked to end (`xl shutdown`) waits for the
    /// detach of what is attached, before it stays after all. With 0 it does not wait.
    pub drain: Duration,
    /// `indirect=N`, 0 to 4096: how many segments an indirect request may have
    /// (`feature-max-indirect-segments`). 0 offers none.
    pub max_indirect_segments: u16,
    /// `ring-order=N`, 0 to 5: the largest ring, in log2 of its pages (`max-ring-page-order`).
    pub max_ring_order: u32,
    /// `queues=N`, 1 to 16: how many rings a frontend may have (`multi-queue-max-queues`).
    pub max_queues: u32,
    /// `persistent=N`, 0 to 65535: how many pages of a frontend stay mapped for each ring, if it
    /// uses the same ones again and again (`feature-persistent`). With 0 all data is copied by the
    /// hypervisor.
    pub max_persistent: u16,
    /// `vbd-pages=N`, 32 to 4096: how many pages of the pool carry the data of each disk that
    /// another domain serves to ours. If not said, an eighth of the pool, 264 to 1024.
    pub nr_upstream_pages: Option<u16>,
    /// `copy=`: how data is copied.
    pub copy: CopyRoutine,
}

/// What copies data between a disk's pages and mapped pages of a frontend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CopyRoutine {
    /// `copy=auto`: what CPUID says is best.
    Auto,
    /// `copy=u64`: words of 64 bits.
    U64,
    /// `copy=sse`: registers of 128 bits.
    Sse,
    /// `copy=erms`: one string instruction.
    Erms,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            settle: Duration::from_millis(200),
            drain: Duration::from_secs(60),
            max_indirect_segments: 256,
            max_ring_order: 5,
            max_queues: 4,
            max_persistent: 1056,
            nr_upstream_pages: None,
            copy: CopyRoutine::Auto,
        }
    }
}

impl Settings {
    /// Reads a command line. A word that cannot be understood goes to `report` and changes
    /// nothing: a storage domain starts in spite of it.
    pub fn parse<'a>(text: &'a str, mut report: impl FnMut(Error<'a>)) -> Self {
        let mut settings = Self::default();
        for word in text.split_ascii_whitespace() {
            if let Err(error) = settings.set(word) {
                report(error);
            }
        }
        settings
    }

    fn set<'a>(&mut self, word: &'a str) -> Result<(), Error<'a>> {
        self.set_to(key_value(word)).map_err(|problem| problem.of(word))
    }

    fn set_to(&mut self, (key, value): (&str, &str)) -> Result<(), Problem> {
        match key {
            "settle-ms=" => {
                self.settle = Duration::from_millis(number::<u16>(value, 0, 10_000)?.into());
            }
            "drain-s=" => self.drain = Duration::from_secs(number::<u16>(value, 0, 3600)?.into()),
            "indirect=" => self.max_indirect_segments = number(value, 0, 4096)?,
            "ring-order=" => self.max_ring_order = number(value, 0, 5)?,
            "queues=" => self.max_queues = number(value, 1, 16)?,
            "persistent=" => self.max_persistent = number(value, 0, u16::MAX)?,
            "vbd-pages=" => self.nr_upstream_pages = Some(number(value, 32, 4096)?),
            "copy=" => {
                self.copy = match value {
                    "auto" => CopyRoutine::Auto,
                    "u64" => CopyRoutine::U64,
                    "sse" => CopyRoutine::Sse,
                    "erms" => CopyRoutine::Erms,
                    _ => return Err(Problem::Value(COPIES)),
                };
            }
            // The definitions of disks, and the kernel's own word.
            "disk=" | "selftest=" => {}
            _ => return Err(Problem::UnknownOption(WORDS)),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::{COPIES, CopyRoutine, Settings, WORDS};
    use crate::{Error, Problem};
    use core::time::Duration;
    use std::vec::Vec;

    fn parse(text: &str) -> (Settings, Vec<Error<'_>>) {
        let mut errors = Vec::new();
        let settings = Settings::parse(text, |error| errors.push(error));
        (settings, errors)
    }

    #[test]
    fn nothing_said_is_the_default() {
        assert_eq!(parse("  "), (Settings::default(), Vec::new()));
    }

    #[test]
    fn words_set_what_they_name() {
        let (settings, errors) = parse("settle-ms=1000  indirect=4096\tselftest=ports disk=1,2");
        assert_eq!(settings.settle, Duration::from_secs(1));
        assert_eq!(settings.max_indirect_segments, 4096);
        assert_eq!(errors, []);
        let (settings, errors) =
            parse("ring-order=0 queues=16 persistent=65535 drain-s=3600 vbd-pages=32");
        assert_eq!((settings.max_ring_order, settings.max_queues), (0, 16));
        assert_eq!(settings.max_persistent, 65535);
        assert_eq!(settings.nr_upstream_pages, Some(32));
        assert_eq!(settings.drain, Duration::from_hours(1));
        assert_eq!(errors, []);
        assert_eq!(settings.copy, CopyRoutine::Auto);
        for (text, copy) in [
            ("copy=u64", CopyRoutine::U64),
            ("copy=sse", CopyRoutine::Sse),
            ("copy=erms", CopyRoutine::Erms),
            ("copy=sse copy=auto", CopyRoutine::Auto),
        ] {
            assert_eq!(parse(text), (Settings { copy, ..Settings::default() }, Vec::new()));
        }
    }

    #[test]
    fn a_bad_word_is_reported_and_changes_nothing() {
        let (settings, errors) = parse(
            "settle-ms=10001 indirect=-1 indirect= loglevel=9 settle-ms=5 ring-order=6 queues=0 \
             persistent=65536 drain-s=3601 vbd-pages=31 copy=avx",
        );
        assert_eq!(settings, Settings { settle: Duration::from_millis(5), ..Settings::default() });
        let segments = Problem::Number { min: 0, max: 4096 };
        assert_eq!(
            errors,
            [
                Problem::Number { min: 0, max: 10_000 }.of("settle-ms=10001"),
                segments.of("indirect=-1"),
                segments.of("indirect="),
                Problem::UnknownOption(WORDS).of("loglevel=9"),
                Problem::Number { min: 0, max: 5 }.of("ring-order=6"),
                Problem::Number { min: 1, max: 16 }.of("queues=0"),
                Problem::Number { min: 0, max: 65535 }.of("persistent=65536"),
                Problem::Number { min: 0, max: 3600 }.of("drain-s=3601"),
                Problem::Number { min: 32, max: 4096 }.of("vbd-pages=31"),
                Problem::Value(COPIES).of("copy=avx"),
            ]
        );
    }
}
