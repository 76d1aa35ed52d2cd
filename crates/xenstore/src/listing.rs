//! A directory whose names do not fit one message, read in parts (`XS_DIRECTORY_PART`).

use alloc::string::String;
use alloc::vec::Vec;

use crate::error::Error;
use crate::transaction::MAX_TRIES;
use crate::wire::parse_decimal;

/// The names read so far.
#[derive(Debug)]
pub(crate) struct Listing {
    pub(crate) path: String,
    /// The node's generation when the first part was read.
    generation: Option<u64>,
    names: Vec<u8>,
    tries: u32,
}

/// Whether there is more to read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Progress {
    More,
    Complete,
}

impl Listing {
    pub(crate) fn new(path: String) -> Self {
        Self { path, generation: None, names: Vec::new(), tries: 1 }
    }

    /// Length of the names so far, which is also the offset of the part to ask for.
    pub(crate) fn len_bytes(&self) -> usize {
        self.names.len()
    }

    /// The names, each followed by a NUL.
    pub(crate) fn into_names(self) -> Vec<u8> {
        self.names
    }

    /// Takes the answer for the part at [`len_bytes`](Self::len_bytes): the generation, names, and
    /// an empty name after the last. Begins again if the directory has changed meanwhile.
    pub(crate) fn add(&mut self, part: &[u8]) -> Result<Progress, Error> {
        let nul = part.iter().position(|byte| *byte == 0).ok_or(Error::BadReply)?;
        let generation = parse_decimal(&part[..nul]).ok_or(Error::BadReply)?;
        let names = &part[nul + 1..];
        if *self.generation.get_or_insert(generation) != generation {
            return self.begin_again();
        }
        let (names, progress) = match names {
            [0] => (&names[..0], Progress::Complete),
            [rest @ .., 0] if rest.ends_with(b"\0") => (rest, Progress::Complete),
            [.., 0] => (names, Progress::More),
            _ => return Err(Error::BadReply),
        };
        self.names.extend_from_slice(names);
        Ok(progress)
    }

    fn begin_again(&mut self) -> Result<Progress, Error> {
        if self.tries == MAX_TRIES {
            return Err(Error::Eagain);
        }
        self.tries += 1;
        self.generation = None;
        self.names.clear();
        Ok(Progress::More)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing() -> Listing {
        Listing::new("backend/vbd".into())
    }

    #[test]
    fn parts_are_joined() {
        let mut listing = listing();
        assert_eq!(listing.add(b"5\0a\0bc\0"), Ok(Progress::More));
        assert_eq!(listing.len_bytes(), 5);
        assert_eq!(listing.add(b"5\0def\0\0"), Ok(Progress::Complete));
        assert_eq!(listing.into_names(), b"a\0bc\0def\0");
    }

    #[test]
    fn the_end_may_come_as_a_part_without_names() {
        let mut listing = listing();
        assert_eq!(listing.add(b"5\0a\0"), Ok(Progress::More));
        assert_eq!(listing.add(b"5\0\0"), Ok(Progress::Complete));
        assert_eq!(listing.into_names(), b"a\0");
    }

    #[test]
    fn a_changed_directory_is_read_again_from_the_start() {
        let mut listing = listing();
        assert_eq!(listing.add(b"5\0a\0"), Ok(Progress::More));
        assert_eq!(listing.add(b"6\0b\0\0"), Ok(Progress::More));
        assert_eq!(listing.len_bytes(), 0);
        assert_eq!(listing.add(b"7\0c\0\0"), Ok(Progress::Complete));
        assert_eq!(listing.into_names(), b"c\0");
    }

    #[test]
    fn a_directory_that_keeps_changing_is_given_up() {
        let mut listing = listing();
        for _ in 1..MAX_TRIES {
            assert_eq!(listing.add(b"1\0a\0"), Ok(Progress::More));
            assert_eq!(listing.add(b"2\0a\0"), Ok(Progress::More));
        }
        assert_eq!(listing.add(b"1\0a\0"), Ok(Progress::More));
        assert_eq!(listing.add(b"2\0a\0"), Err(Error::Eagain));
    }

    #[test]
    fn malformed_parts_are_refused() {
        for part in [&b""[..], b"5", b"5\0", b"\0a\0\0", b"x\0a\0\0", b"5\0a"] {
            assert_eq!(listing().add(part), Err(Error::BadReply), "{part:?}");
        }
    }
}
