//! Changes that take effect together, or not at all.

use alloc::vec::Vec;

use crate::error::Error;
use crate::queue::{Due, Queue, Then};
use crate::request::Change;
use crate::wire::{HEADER_BYTES, MessageType, parse_decimal};

/// How often a transaction, or the listing of a directory, is begun at most while others change
/// the same nodes.
pub const MAX_TRIES: u32 = 16;

/// Length of the longest message besides the changes: `TRANSACTION_END` with `T` and NUL.
pub(crate) const END_BYTES: usize = HEADER_BYTES + 2;

/// A transaction and where it stands. It has one step at a time in flight: the start, all of its
/// changes, the end.
#[derive(Debug)]
pub(crate) struct Transaction<T> {
    pub(crate) due: Due<T>,
    changes: Vec<Change>,
    tries: u32,
    step: Step,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Waits for the transaction's number.
    Start,
    /// Waits for the answers to `nr_unanswered` changes.
    Changes { tx_id: u32, nr_unanswered: usize, failed: Option<Error> },
    /// Waits for the end's answer: of a commit, or an abort if a change has failed.
    End { failed: Option<Error> },
}

impl<T> Transaction<T> {
    pub(crate) fn new(changes: Vec<Change>, due: Due<T>) -> Self {
        Self { due, changes, tries: 0, step: Step::Start }
    }

    /// Queues the start of a try.
    pub(crate) fn start(&mut self, queue: &mut Queue<T>) {
        self.tries += 1;
        self.step = Step::Start;
        queue.push(MessageType::TRANSACTION_START, 0, &[b"\0"], Then::Transaction(0));
    }

    /// Takes the answer to one of its messages, among its changes that with index `n`; what came of
    /// the whole, once that is known.
    pub(crate) fn answered(
        &mut self,
        n: usize,
        answer: Result<&[u8], Error>,
        queue: &mut Queue<T>,
    ) -> Option<Result<(), Error>> {
        match self.step {
            Step::Start => match answer.and_then(parse_tx_id) {
                Ok(tx_id) => self.change(tx_id, queue),
                Err(error) => return Some(Err(error)),
            },
            Step::Changes { tx_id, nr_unanswered, failed } => {
                let judged = self.changes.get(n).map(|change| change.judge(answer));
                let failed = failed.or(judged.and_then(Result::err));
                match nr_unanswered - 1 {
                    0 => self.end(tx_id, failed, queue),
                    nr_unanswered => self.step = Step::Changes { tx_id, nr_unanswered, failed },
                }
            }
            // How an abort ended changes nothing.
            Step::End { failed } => match failed.or(answer.err()) {
                Some(Error::Eagain) if self.tries < MAX_TRIES => self.start(queue),
                Some(error) => return Some(Err(error)),
                None => return Some(Ok(())),
            },
        }
        None
    }

    fn change(&mut self, tx_id: u32, queue: &mut Queue<T>) {
        if self.changes.is_empty() {
            return self.end(tx_id, None, queue);
        }
        for (n, change) in self.changes.iter().enumerate() {
            let request = change.request();
            queue.push(request.kind(), tx_id, &request.payload(), Then::Transaction(n));
        }
        self.step = Step::Changes { tx_id, nr_unanswered: self.changes.len(), failed: None };
    }

    fn end(&mut self, tx_id: u32, failed: Option<Error>, queue: &mut Queue<T>) {
        let verdict = if failed.is_none() { b"T\0" } else { b"F\0" };
        queue.push(MessageType::TRANSACTION_END, tx_id, &[verdict], Then::Transaction(0));
        self.step = Step::End { failed };
    }
}

/// The answer to a start: a decimal number and a NUL. Zero would mean no transaction.
fn parse_tx_id(payload: &[u8]) -> Result<u32, Error> {
    payload
        .strip_suffix(b"\0")
        .and_then(parse_decimal)
        .and_then(|tx_id| u32::try_from(tx_id).ok())
        .filter(|tx_id| *tx_id != 0)
        .ok_or(Error::BadReply)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_has_a_number() {
        assert_eq!(parse_tx_id(b"1\0"), Ok(1));
        assert_eq!(parse_tx_id(b"4294967295\0"), Ok(u32::MAX));
        for payload in [&b""[..], b"\0", b"0\0", b"1", b"4294967296\0", b"-1\0", b"1\0\0"] {
            assert_eq!(parse_tx_id(payload), Err(Error::BadReply), "{payload:?}");
        }
    }
}
