//! Control requests, as dom0 writes them into `data/request`.

use core::fmt;
use core::str::SplitAsciiWhitespace;

use crate::disk_type::DiskType;
use crate::name::Name;
use crate::size;
use crate::word::{Error, Expected, Problem, number};

/// `ID COMMAND…` or `ID part N`, words separated by blanks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ControlRequest<'a> {
    /// Who asks.
    pub id: Id<'a>,
    /// What is asked. What cannot be understood is answered all the same, since there is an id.
    pub ask: Result<Ask<'a>, Error<'a>>,
}

/// A request's own id: 1 to 16 characters of `A-Z a-z 0-9 -`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Id<'a>(&'a str);

/// What is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ask<'a> {
    /// `part N`: that part of the answer, counted from 1; 0 says that no more is wanted.
    Part(u32),
    /// A command to run.
    Run(Command<'a>),
}

/// What dom0 can have done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command<'a> {
    /// `list`: the pool, the images and the disks.
    List,
    /// `stats`: what the vbds have done.
    Stats,
    /// `create NAME TYPE[,OPTION…]`
    Create {
        /// The new disk's name.
        name: Name<'a>,
        /// What it is.
        disk: DiskType<'a>,
    },
    /// `remove NAME`
    Remove(Name<'a>),
    /// `resize NAME SIZE`
    Resize {
        /// Which disk.
        name: Name<'a>,
        /// Its new capacity in bytes.
        size_bytes: u64,
    },
    /// `snapshot NAME AS`: what the disk holds now, to be read.
    Snapshot {
        /// Which disk.
        name: Name<'a>,
        /// The snapshot's name.
        to: Name<'a>,
    },
    /// `clone NAME AS`: what the disk holds now, to be written to on its own.
    Clone {
        /// Which disk.
        name: Name<'a>,
        /// The clone's name.
        to: Name<'a>,
    },
    /// `discard-all NAME`: all that the disk holds is given back.
    DiscardAll(Name<'a>),
}

const COMMANDS: Expected =
    Expected(&["list", "stats", "create", "remove", "resize", "snapshot", "clone", "discard-all"]);

impl<'a> ControlRequest<'a> {
    /// Reads a request.
    ///
    /// # Errors
    /// Without an id nobody can be answered: [`Problem::Id`], or [`Problem::Missing`] where there
    /// is no word at all.
    pub fn parse(text: &'a str) -> Result<Self, Error<'a>> {
        let mut words = text.split_ascii_whitespace();
        let id = words.next().ok_or(Problem::Missing("an id").of(text))?;
        let id = Id::parse(id).map_err(|problem| problem.of(id))?;
        Ok(Self { id, ask: Ask::parse(id, words) })
    }
}

impl<'a> Id<'a> {
    /// Characters of an id, which are bytes, at most.
    pub const MAX_LEN: usize = 16;

    fn parse(text: &'a str) -> Result<Self, Problem> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        let fits = (1..=Self::MAX_LEN).contains(&text.len());
        (fits && text.bytes().all(allowed)).then_some(Self(text)).ok_or(Problem::Id)
    }

    /// The id's text.
    #[must_use]
    pub const fn as_str(&self) -> &'a str {
        self.0
    }
}

impl fmt::Display for Id<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl<'a> Ask<'a> {
    fn parse(id: Id<'a>, words: SplitAsciiWhitespace<'a>) -> Result<Self, Error<'a>> {
        let mut words = Words { verb: id.0, words };
        words.verb = words.next("a command")?;
        let ask = match words.verb {
            "part" => Self::Part(words.read("a number", |text| number(text, 0, u32::MAX))?),
            _ => Self::Run(Command::parse(&mut words)?),
        };
        match words.words.next() {
            None => Ok(ask),
            Some(word) => Err(Problem::Surplus.of(word)),
        }
    }
}

impl<'a> Command<'a> {
    fn parse(words: &mut Words<'a>) -> Result<Self, Error<'a>> {
        Ok(match words.verb {
            "list" => Self::List,
            "stats" => Self::Stats,
            "create" => {
                let name = words.name("NAME")?;
                Self::Create { name, disk: DiskType::parse(words.next("a type of disk")?)? }
            }
            "remove" => Self::Remove(words.name("NAME")?),
            "resize" => {
                let name = words.name("NAME")?;
                Self::Resize {
                    name,
                    size_bytes: words.read("SIZE", |text| Ok(size::parse(text)?))?,
                }
            }
            "snapshot" => Self::Snapshot { name: words.name("NAME")?, to: words.name("AS")? },
            "clone" => Self::Clone { name: words.name("NAME")?, to: words.name("AS")? },
            "discard-all" => Self::DiscardAll(words.name("NAME")?),
            verb => return Err(Problem::UnknownCommand(COMMANDS).of(verb)),
        })
    }
}

/// A verb and the words behind it.
struct Words<'a> {
    verb: &'a str,
    words: SplitAsciiWhitespace<'a>,
}

impl<'a> Words<'a> {
    /// The next word, which `what` calls if it is missing.
    fn next(&mut self, what: &'static str) -> Result<&'a str, Error<'a>> {
        self.words.next().ok_or(Problem::Missing(what).of(self.verb))
    }

    fn read<T>(
        &mut self,
        what: &'static str,
        parse: impl FnOnce(&'a str) -> Result<T, Problem>,
    ) -> Result<T, Error<'a>> {
        let word = self.next(what)?;
        parse(word).map_err(|problem| problem.of(word))
    }

    fn name(&mut self, what: &'static str) -> Result<Name<'a>, Error<'a>> {
        self.read(what, Name::parse)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::{Ask, COMMANDS, Command, ControlRequest, Id};
    use crate::{DiskType, Error, Expected, Name, Problem, SizeError};
    use std::string::ToString;

    fn run(text: &str) -> Command<'_> {
        match ControlRequest::parse(text) {
            Ok(ControlRequest { id: Id("id"), ask: Ok(Ask::Run(command)) }) => command,
            other => panic!("{other:?}"),
        }
    }

    fn refused(text: &str) -> (&str, Problem) {
        let request = ControlRequest::parse(text).unwrap();
        assert_eq!(request.id.as_str(), "id");
        let Error { word, problem } = request.ask.unwrap_err();
        (word, problem)
    }

    #[test]
    fn every_command() {
        let name = |text| Name::parse(text).unwrap();
        let (a, b) = (name("a"), name("b"));
        assert_eq!(run("id list"), Command::List);
        assert_eq!(run("id stats"), Command::Stats);
        let disk = DiskType::Ram { size_bytes: 4096, cap_bytes: 512, block_bytes: 512 };
        assert_eq!(run("id create a ram,size=4K,cap=512"), Command::Create { name: a, disk });
        assert_eq!(run(" id\tremove  a\n"), Command::Remove(a));
        assert_eq!(run("id resize a 1G"), Command::Resize { name: a, size_bytes: 1 << 30 });
        assert_eq!(run("id snapshot a b"), Command::Snapshot { name: a, to: b });
        assert_eq!(run("id clone a b"), Command::Clone { name: a, to: b });
        assert_eq!(run("id discard-all a"), Command::DiscardAll(a));
    }

    #[test]
    fn a_part_of_an_answer() {
        for (text, part) in [("A-z0 part 0", 0), ("A-z0 part 4294967295", u32::MAX)] {
            let request = ControlRequest::parse(text);
            assert_eq!(request, Ok(ControlRequest { id: Id("A-z0"), ask: Ok(Ask::Part(part)) }));
        }
        let number = Problem::Number { min: 0, max: u32::MAX };
        assert_eq!(refused("id part -1"), ("-1", number));
        assert_eq!(refused("id part 4294967296"), ("4294967296", number));
        assert_eq!(refused("id part"), ("part", Problem::Missing("a number")));
        assert_eq!(refused("id part 1 2"), ("2", Problem::Surplus));
    }

    #[test]
    fn without_an_id_it_is_no_request() {
        assert_eq!(ControlRequest::parse(""), Err(Problem::Missing("an id").of("")));
        assert_eq!(ControlRequest::parse(" \n"), Err(Problem::Missing("an id").of(" \n")));
        for id in ["a_b", "ä", "a.b", "12345678901234567", "a,b"] {
            assert_eq!(ControlRequest::parse(&[id, " list"].concat()), Err(Problem::Id.of(id)));
        }
        let longest = ControlRequest::parse("1234567890-BCDEf list").unwrap();
        assert_eq!(longest.id.to_string(), "1234567890-BCDEf");
    }

    #[test]
    fn the_offending_word_is_named() {
        assert_eq!(refused("id"), ("id", Problem::Missing("a command")));
        assert_eq!(refused("id List"), ("List", Problem::UnknownCommand(COMMANDS)));
        assert_eq!(refused("id list all"), ("all", Problem::Surplus));
        assert_eq!(refused("id stats d"), ("d", Problem::Surplus));
        for verb in ["create", "remove", "resize", "snapshot", "clone", "discard-all"] {
            let missing = Problem::Missing("NAME").of(verb);
            let text = ["id ", verb].concat();
            assert_eq!(ControlRequest::parse(&text).unwrap().ask, Err(missing));
            let text = ["id ", verb, " ram x"].concat();
            assert_eq!(ControlRequest::parse(&text).unwrap().ask, Err(Problem::Reserved.of("ram")));
        }
        assert_eq!(refused("id create a"), ("create", Problem::Missing("a type of disk")));
        assert_eq!(refused("id resize a"), ("resize", Problem::Missing("SIZE")));
        assert_eq!(refused("id snapshot a"), ("snapshot", Problem::Missing("AS")));
        assert_eq!(refused("id clone a"), ("clone", Problem::Missing("AS")));
        assert_eq!(refused("id clone a b/c"), ("b/c", Problem::Name));
        assert_eq!(refused("id resize a 1X"), ("1X", Problem::Size(SizeError::NotANumber)));
        assert_eq!(refused("id create a ram,size=0"), ("size=0", Problem::Size(SizeError::Zero)));
        assert_eq!(refused("id create a null,size=1M now"), ("now", Problem::Surplus));
        let overlay = Problem::UnknownOption(Expected(&["cow", "cap="]));
        assert_eq!(refused("id create a gold,cow,ro"), ("ro", overlay));
    }

    #[test]
    fn an_error_reads_as_a_sentence() {
        let text = |request| ControlRequest::parse(request).unwrap().ask.unwrap_err().to_string();
        assert_eq!(text("id clone a"), "`clone`: needs AS");
        assert_eq!(text("id list all"), "`all`: one word too many");
        assert_eq!(
            text("id destroy a"),
            "`destroy`: unknown command, expected list, stats, create, remove, resize, snapshot, \
             clone or discard-all"
        );
        let no_id = ControlRequest::parse("a_b list").unwrap_err().to_string();
        assert_eq!(no_id, "`a_b`: not an id, expected 1 to 16 of A-Z a-z 0-9 -");
    }
}
