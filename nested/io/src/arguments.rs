//! Options `--name value`, each taken at most once.

use std::str::FromStr;

use crate::Error;
use crate::bound::Bound;
use crate::device::{BLOCK_BYTES, Device};

/// The options that no command has asked for yet.
#[derive(Debug)]
pub struct Arguments(Vec<(String, String)>);

impl Arguments {
    pub fn parse(words: &[String]) -> Result<Self, Error> {
        let mut options: Vec<(String, String)> = Vec::new();
        for pair in words.chunks(2) {
            let [name, value] = pair else {
                return Err(Error::Usage(format!("{} has no value", pair[0])));
            };
            let Some(name) = name.strip_prefix("--") else {
                return Err(Error::Usage(format!("{name} is no option")));
            };
            if options.iter().any(|(other, _)| other == name) {
                return Err(Error::Usage(format!("--{name} stands there twice")));
            }
            options.push((name.to_owned(), value.clone()));
        }
        Ok(Self(options))
    }

    /// An option's value, if it is given.
    pub fn take(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(other, _)| other == name)?;
        Some(self.0.swap_remove(at).1)
    }

    /// A number of at least `least`.
    pub fn number<N: FromStr + PartialOrd + Copy>(
        &mut self,
        name: &str,
        otherwise: N,
        least: N,
    ) -> Result<N, Error> {
        let Some(text) = self.take(name) else { return Ok(otherwise) };
        match text.parse() {
            Ok(number) if number >= least => Ok(number),
            _ => Err(Error::Usage(format!("--{name} {text}"))),
        }
    }

    /// `--size`: bytes, a positive multiple of [`BLOCK_BYTES`].
    pub fn size(&mut self, otherwise: usize) -> Result<usize, Error> {
        let size = self.number("size", otherwise, BLOCK_BYTES)?;
        if size % BLOCK_BYTES == 0 {
            Ok(size)
        } else {
            Err(Error::Usage(format!("--size {size} is no multiple of {BLOCK_BYTES}")))
        }
    }

    pub fn device(&mut self) -> Result<Device, Error> {
        let path = self.take("device").ok_or(Error::Usage("no --device".to_owned()))?;
        Device::open(path)
    }

    pub fn bound(&mut self) -> Result<Bound, Error> {
        let given = [self.take("count"), self.take("seconds"), self.take("while")];
        match given {
            [Some(count), None, None] => count.parse().ok().map(Bound::count),
            [None, Some(seconds), None] => seconds.parse().ok().map(Bound::seconds),
            [None, None, Some(path)] => Some(Bound::file(path.into())),
            _ => None,
        }
        .ok_or(Error::Usage("one of --count N, --seconds N and --while PATH".to_owned()))
    }

    /// Nothing is left that nobody asked for.
    pub fn end(self) -> Result<(), Error> {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => Err(Error::Usage(format!("no option --{name} here"))),
        }
    }
}
