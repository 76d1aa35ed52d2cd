//! The conversation with dom0: one answer at a time, told in parts.
//!
//! dom0 asks in one node and reads in another; whoever comes while an answer is being read waits.
//! What is run, and how it is said to xenstore, is not known here.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;

use catalog::{Ask, Command, ControlRequest, Id};
use xen_abi::Instant;

use crate::refusal::Refusal;

/// A part's length in bytes at most, its first line included.
const MAX_PART: usize = 1500;

/// What of it the longest first line leaves to the lines of the answer.
pub(crate) const ROOM: usize = MAX_PART - "1234567890123456 9999/9999 error\n".len();

/// How long an answer waits for its reader.
const PATIENCE: Duration = Duration::from_secs(10);

/// What dom0's words call for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Turn<'a> {
    /// Nothing was asked.
    Nothing,
    /// Nobody can be answered.
    Nonsense(catalog::Error<'a>),
    /// An answer is being read: look again when it is closed.
    Wait,
    /// Run this, and [`Conversation::answer`] it.
    Run(Id<'a>, Command<'a>),
    /// Say this.
    Say(String),
    /// It has read enough.
    Close,
}

/// Whether an answer was being read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Closed {
    WasOpen,
    Already,
}

/// Reads what dom0 asks one at a time, and no next one before the answer stands: what was read
/// earlier would come a second time, and its answer would take the place of what dom0 asks next.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Reading {
    /// Nothing is under way.
    #[default]
    Idle,
    /// A request is being read or answered.
    Busy,
    /// Likewise, and dom0's node has changed meanwhile.
    BusyAndChanged,
}

impl Reading {
    /// dom0's node is to be read: whether to do so now.
    pub(crate) fn begin(&mut self) -> bool {
        match *self {
            Self::Idle => {
                *self = Self::Busy;
                true
            }
            Self::Busy | Self::BusyAndChanged => {
                *self = Self::BusyAndChanged;
                false
            }
        }
    }

    /// What was read is done with: whether to read again.
    pub(crate) fn end(&mut self) -> bool {
        core::mem::take(self) == Self::BusyAndChanged
    }
}

/// The answer that was given last, and whether it is being read.
#[derive(Debug, Default)]
pub(crate) struct Conversation {
    last: Option<Answer>,
    /// When nobody waits any longer for its reader.
    open_until: Option<Instant>,
}

#[derive(Debug)]
struct Answer {
    id: String,
    verdict: &'static str,
    /// Whole lines.
    parts: Vec<String>,
}

impl Answer {
    fn new(id: Id<'_>, verdict: &'static str, body: &str) -> Self {
        let mut parts = Vec::from([String::new()]);
        for line in body.split_inclusive('\n') {
            if let Some(last) = parts.last_mut()
                && last.len() + line.len() <= ROOM
            {
                last.push_str(line);
            } else {
                parts.push(line.into());
            }
        }
        Self { id: id.as_str().into(), verdict, parts }
    }

    /// Part `n`, counted from 1, as it is told.
    fn part(&self, n: u32) -> Option<String> {
        let at = usize::try_from(n.checked_sub(1)?).ok()?;
        let (id, nr, verdict) = (&self.id, self.parts.len(), self.verdict);
        Some(format!("{id} {n}/{nr} {verdict}\n{}", self.parts.get(at)?))
    }
}

impl Conversation {
    /// Takes what stands in dom0's node.
    pub(crate) fn hear<'a>(&mut self, text: &'a str, now: Instant) -> Turn<'a> {
        if text.trim_ascii().is_empty() {
            return Turn::Nothing;
        }
        let ControlRequest { id, ask } = match ControlRequest::parse(text) {
            Ok(request) => request,
            Err(error) => return Turn::Nonsense(error),
        };
        let last = self.last.as_ref().filter(|last| last.id == id.as_str());
        if self.open_until.is_some() && last.is_none() {
            return Turn::Wait;
        }
        let said = match (ask, last) {
            (Ok(Ask::Part(0)), _) => return Turn::Close,
            // Whoever asks again has not heard the answer; nothing is run twice.
            (Ok(Ask::Run(_)) | Err(_), Some(last)) => last.part(1),
            (Ok(Ask::Part(n)), Some(last)) => last.part(n),
            (Ok(Ask::Run(command)), None) => return Turn::Run(id, command),
            (Ok(Ask::Part(_)), None) => None,
            (Err(error), None) => {
                return Turn::Say(self.answer(id, Err(&Refusal::from(error).to_string()), now));
            }
        };
        self.open_until = Some(now.after(PATIENCE));
        let no_such_part =
            || Answer::new(id, "error", "there is no such part").part(1).unwrap_or_default();
        Turn::Say(said.unwrap_or_else(no_such_part))
    }

    /// Keeps the answer to what was run, and gives its first part to be said.
    pub(crate) fn answer(
        &mut self,
        id: Id<'_>,
        result: Result<&str, &str>,
        now: Instant,
    ) -> String {
        let answer = match result {
            Ok(body) => Answer::new(id, "ok", body),
            Err(reason) => Answer::new(id, "error", reason),
        };
        self.open_until = Some(now.after(PATIENCE));
        self.last.insert(answer).part(1).unwrap_or_default()
    }

    /// The answer is read, or given up.
    pub(crate) fn close(&mut self) -> Closed {
        match self.open_until.take() {
            Some(_) => Closed::WasOpen,
            None => Closed::Already,
        }
    }

    /// Waits some more for the reader.
    pub(crate) fn keep_open(&mut self, now: Instant) {
        self.open_until = Some(now.after(PATIENCE));
    }

    /// When the answer is to be given up, if one is being read.
    pub(crate) const fn open_until(&self) -> Option<Instant> {
        self.open_until
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::{Closed, Conversation, MAX_PART, PATIENCE, Reading, Turn};
    use catalog::{Command, Id};
    use std::format;
    use std::string::String;
    use xen_abi::Instant;

    const NOW: Instant = Instant::from_ns(1);

    /// What a conversation says to a request; what is run is answered with `body`.
    fn say(conversation: &mut Conversation, text: &str, body: Result<&str, &str>) -> String {
        match conversation.hear(text, NOW) {
            Turn::Say(text) => text,
            Turn::Run(id, _) => conversation.answer(id, body, NOW),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_answer_has_its_id_its_part_and_its_verdict() {
        let mut conversation = Conversation::default();
        assert_eq!(say(&mut conversation, "a list", Ok("pool\n")), "a 1/1 ok\npool\n");
        conversation.close();
        assert_eq!(say(&mut conversation, "b remove d", Err("no d")), "b 1/1 error\nno d");
    }

    #[test]
    fn one_request_is_read_at_a_time() {
        let mut reading = Reading::default();
        assert!(reading.begin());
        assert!(!reading.end());
        assert!(reading.begin());
        assert!(!reading.begin());
        assert!(!reading.begin());
        assert!(reading.end());
        assert!(reading.begin());
        assert!(!reading.end());
    }

    #[test]
    fn nothing_is_run_twice() {
        let mut conversation = Conversation::default();
        let first = say(&mut conversation, "a remove d", Ok(""));
        assert_eq!(first, "a 1/1 ok\n");
        assert_eq!(conversation.hear("a remove d", NOW), Turn::Say(first.clone()));
        assert_eq!(conversation.hear("a part 0", NOW), Turn::Close);
        conversation.close();
        assert_eq!(conversation.hear("a remove d", NOW), Turn::Say(first));
    }

    #[test]
    fn whoever_comes_while_an_answer_is_read_waits() {
        let mut conversation = Conversation::default();
        say(&mut conversation, "a list", Ok(""));
        assert_eq!(conversation.hear("b list", NOW), Turn::Wait);
        assert_eq!(conversation.hear("b part 0", NOW), Turn::Wait);
        assert_eq!(conversation.open_until(), Some(NOW.after(PATIENCE)));
        assert_eq!(conversation.close(), Closed::WasOpen);
        assert_eq!(conversation.close(), Closed::Already);
        assert_eq!(conversation.open_until(), None);
        assert!(matches!(conversation.hear("b list", NOW), Turn::Run(_, Command::List)));
    }

    #[test]
    fn a_long_answer_is_told_in_parts_of_whole_lines() {
        let mut conversation = Conversation::default();
        let body: String = (0..200).map(|n| format!("disk {n:040}\n")).collect();
        let mut told = String::new();
        let mut part = say(&mut conversation, "0123456789abcdef list", Ok(&body));
        for n in 2.. {
            assert!(part.len() <= MAX_PART, "{}", part.len());
            let (head, lines) = part.split_once('\n').unwrap();
            assert_eq!(head, format!("0123456789abcdef {}/7 ok", n - 1));
            told.push_str(lines);
            if n > 7 {
                break;
            }
            part = say(&mut conversation, &format!("0123456789abcdef part {n}"), Ok(""));
        }
        assert_eq!(told, body);
        let past = say(&mut conversation, "0123456789abcdef part 8", Ok(""));
        assert_eq!(past, "0123456789abcdef 1/1 error\nthere is no such part");
        let again = say(&mut conversation, "0123456789abcdef list", Ok(""));
        assert!(again.starts_with("0123456789abcdef 1/7 ok\n"), "{again}");
    }

    #[test]
    fn what_cannot_be_understood_is_answered_where_it_can_be() {
        let mut conversation = Conversation::default();
        assert_eq!(conversation.hear(" \n", NOW), Turn::Nothing);
        assert!(matches!(conversation.hear("a/b list", NOW), Turn::Nonsense(_)));
        let text = say(&mut conversation, "a clone x", Ok(""));
        assert_eq!(text, "a 1/1 error\n`clone`: needs AS");
        conversation.close();
        let text = say(&mut conversation, "b part 2", Ok(""));
        assert_eq!(text, "b 1/1 error\nthere is no such part");
        assert_eq!(conversation.hear("c part 0", NOW), Turn::Wait);
        conversation.close();
        assert_eq!(conversation.hear("c part 0", NOW), Turn::Close);
        assert_eq!(Id::MAX_LEN, 16);
    }
}
