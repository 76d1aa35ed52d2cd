//! Names of disks and images.

use core::fmt;

use crate::ground::Namespace;
use crate::word::Problem;

/// The first words that mean a type of disk, the two upstream ones included: a disk by such a name
/// could not be asked for.
const TYPES: [&str; 4] = ["ram", "null", "vbd", "nvme"];

/// A disk's or an image's name: 1 to 40 characters of `A-Z a-z 0-9 . _ -` that begin with a letter
/// or a digit, and no word for a type of disk. So it can stand unquoted in xenstore, in a path and
/// in a list.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Name<'a>(&'a str);

impl<'a> Name<'a> {
    /// Characters of a name, which are bytes, at most.
    pub const MAX_LEN: usize = 40;

    /// Reads a name, for instance that of an archive's member.
    ///
    /// # Errors
    /// [`Problem::Name`] or [`Problem::Reserved`].
    pub fn parse(text: &'a str) -> Result<Self, Problem> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        let begins = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        if !begins || text.len() > Self::MAX_LEN || !text.bytes().all(allowed) {
            Err(Problem::Name)
        } else if TYPES.contains(&text) || Namespace::parse(text).is_some() {
            Err(Problem::Reserved)
        } else {
            Ok(Self(text))
        }
    }

    /// The name's text.
    #[must_use]
    pub const fn as_str(&self) -> &'a str {
        self.0
    }
}

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::Name;
    use crate::Problem;
    use std::string::ToString;

    #[test]
    fn what_a_name_is_made_of() {
        for text in ["a", "0", "gold.img", "A-1_b.", "rams", "RAM", &"x".repeat(40)] {
            let name = Name::parse(text);
            assert_eq!(name.map(|name| name.as_str()), Ok(text));
            assert_eq!(name.unwrap().to_string(), text);
        }
        for text in ["", ".a", "-a", "_a", "a b", "a/b", "a,b", "a=b", "ä", &"x".repeat(41)] {
            assert_eq!(Name::parse(text), Err(Problem::Name), "{text:?}");
        }
        for text in ["ram", "null", "vbd", "nvme", "nvme0n1"] {
            assert_eq!(Name::parse(text), Err(Problem::Reserved), "{text}");
        }
    }
}
