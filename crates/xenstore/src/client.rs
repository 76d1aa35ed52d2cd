//! The client: requests in, answers and watch events out.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::vec::Vec;

use xen_abi::SharedMemory;

use crate::error::{Error, ProtocolError, SubmitError};
use crate::incoming::Incoming;
use crate::listing::{Listing, Progress};
use crate::queue::{Due, QUEUE_BYTES, Queue, Then};
use crate::reply::{Event, Names, Reply, Stray, parse_watch};
use crate::request::{Change, Request};
use crate::ring::{self, Notify, Rings};
use crate::transaction::{END_BYTES, Transaction};
use crate::wire::{Header, MessageType};

/// The longest offset in a `DIRECTORY_PART` request, with its NUL.
const OFFSET_BYTES: usize = 11;

/// A connection to xenstored.
///
/// Whatever is submitted is answered once, with the tag it came with, unless the connection
/// breaks. Requests go out in the order of their submission; transactions run one after another
/// in theirs, beside the requests: with one open at a time, ours neither conflict with each other
/// nor exceed xenstored's quota of them.
#[derive(Debug)]
pub struct Client<T> {
    rings: Rings,
    incoming: Incoming,
    queue: Queue<T>,
    /// The first is under way.
    transactions: VecDeque<Transaction<T>>,
    /// The names that the last event has lent out, if they came in parts.
    listing: Vec<u8>,
    nr_watches: usize,
}

/// What a message comes to, before anything is borrowed from it.
enum Outcome<T> {
    Reply { tag: T, result: Result<Shape, Error> },
    Watch,
    Stray,
}

/// What the answer is to be read as.
enum Shape {
    Done,
    Value,
    Names,
    Listing,
}

impl<T> Client<T> {
    /// A client of the domain whose page this is (`struct xenstore_domain_interface`), which goes
    /// on at the page's indices. Unanswered requests may hold [`QUEUE_BYTES`].
    ///
    /// Every later call is to be given the same page.
    #[must_use]
    pub fn new(page: &impl SharedMemory) -> Self {
        Self::with_bound(page, QUEUE_BYTES)
    }

    /// As [`new`](Self::new), with another bound. A request counts with its message, a transaction
    /// with twice its messages, until it is answered.
    #[must_use]
    pub fn with_bound(page: &impl SharedMemory, queue_bytes: usize) -> Self {
        Self {
            rings: Rings::new(page),
            incoming: Incoming::new(),
            queue: Queue::new(queue_bytes),
            transactions: VecDeque::new(),
            listing: Vec::new(),
            nr_watches: 0,
        }
    }

    /// How many bytes requests may still hold: whoever can wait leaves some to who cannot.
    #[must_use]
    pub const fn room_bytes(&self) -> usize {
        self.queue.room_bytes()
    }

    /// Watches that xenstored has of ours, as far as it has answered.
    #[must_use]
    pub const fn nr_watches(&self) -> usize {
        self.nr_watches
    }

    /// Counts watches, after xenstored has done what it was asked.
    fn count_watches(&mut self, done: MessageType) {
        self.nr_watches = match done {
            MessageType::WATCH => self.nr_watches.saturating_add(1),
            MessageType::UNWATCH => self.nr_watches.saturating_sub(1),
            MessageType::RESET_WATCHES => 0,
            _ => return,
        };
    }

    /// Queues a request, whose answer comes back with `tag`.
    ///
    /// # Errors
    /// [`SubmitError`], with nothing queued, if the request breaks a limit of the protocol or the
    /// queue has no room for it.
    pub fn submit(&mut self, request: Request<'_>, tag: T) -> Result<(), SubmitError> {
        let message_bytes = request.check()?;
        let then = if let Request::Directory(path) = request {
            let held_bytes = message_bytes + path.len() + OFFSET_BYTES;
            self.queue.hold(held_bytes)?;
            Then::Directory(Listing::new(path.into()), Due { tag, held_bytes })
        } else {
            self.queue.hold(message_bytes)?;
            Then::Answer(Due { tag, held_bytes: message_bytes })
        };
        self.queue.push(request.kind(), 0, &request.payload(), then);
        Ok(())
    }

    /// Queues changes that take effect together. They get one answer: [`Reply::Done`], or the
    /// first error, and then none of them has taken effect. If others change the same nodes
    /// meanwhile it is tried anew, up to [`MAX_TRIES`](crate::MAX_TRIES) times.
    ///
    /// # Errors
    /// [`SubmitError`], with nothing queued, if one of the changes breaks a limit of the protocol
    /// or the queue has no room for all of them.
    pub fn transact(&mut self, changes: Vec<Change>, tag: T) -> Result<(), SubmitError> {
        let mut held_bytes = END_BYTES;
        for change in &changes {
            // Once as it is kept for another try, once as it is sent.
            let needed_bytes = 2 * change.request().check()? + change.kept_bytes();
            held_bytes = held_bytes.saturating_add(needed_bytes);
        }
        self.queue.hold(held_bytes)?;
        let mut transaction = Transaction::new(changes, Due { tag, held_bytes });
        if self.transactions.is_empty() {
            transaction.start(&mut self.queue);
        }
        self.transactions.push_back(transaction);
        Ok(())
    }

    /// Moves as many queued bytes into the ring as fit. Call it after anything was submitted, and
    /// after [`receive`](Self::receive) has returned `None`: an answer may have queued the next
    /// step of a transaction, and xenstored may wait for the space that was freed.
    ///
    /// # Errors
    /// [`ProtocolError`] if xenstored's index is impossible: the connection is over.
    pub fn send(&mut self, page: &impl SharedMemory) -> Result<Notify, ProtocolError> {
        self.queue.drain(&mut self.rings, page)?;
        Ok(self.rings.take_notify())
    }

    /// Takes the next message that is the caller's business; `None` if it has not arrived whole.
    /// What follows it stays in the ring.
    ///
    /// # Errors
    /// [`ProtocolError`] if the ring cannot be read any more: the connection is over.
    pub fn receive(
        &mut self,
        page: &impl SharedMemory,
    ) -> Result<Option<Event<'_, T>>, ProtocolError> {
        loop {
            let Some(header) = self.incoming.fill(&mut self.rings, page)? else {
                ring::check_connected(page)?;
                return Ok(None);
            };
            if let Some(outcome) = self.dispatch(header) {
                return Ok(Some(self.event(header, outcome)));
            }
        }
    }

    /// Finds what a message answers and takes the next step; `None` if that was all.
    fn dispatch(&mut self, header: Header) -> Option<Outcome<T>> {
        if header.kind == MessageType::WATCH_EVENT {
            return Some(Outcome::Watch);
        }
        let Some(pending) = self.queue.take(header.req_id) else {
            return Some(Outcome::Stray);
        };
        let answer = header.answer(pending.kind, self.incoming.payload(header));
        match pending.then {
            Then::Answer(due) => {
                let shape =
                    if pending.kind == MessageType::READ { Shape::Value } else { Shape::Done };
                let result = answer.map(|_| shape);
                if result.is_ok() {
                    self.count_watches(pending.kind);
                }
                Some(self.finish(due, result))
            }
            Then::Directory(listing, due) => match answer {
                Err(Error::E2big) => self.ask_part(listing, due),
                answer => {
                    let result = answer.map(|_| Shape::Names);
                    Some(self.finish(due, result))
                }
            },
            Then::Part(mut listing, due) => {
                self.queue.release(listing.len_bytes());
                match answer.and_then(|part| listing.add(part)) {
                    Ok(Progress::More) => self.ask_part(listing, due),
                    Ok(Progress::Complete) => {
                        self.listing = listing.into_names();
                        Some(self.finish(due, Ok(Shape::Listing)))
                    }
                    Err(error) => Some(self.finish(due, Err(error))),
                }
            }
            Then::Transaction(n) => {
                let transaction = self.transactions.front_mut()?;
                let result = transaction.answered(n, answer, &mut self.queue)?;
                let due = self.transactions.pop_front()?.due;
                if let Some(next) = self.transactions.front_mut() {
                    next.start(&mut self.queue);
                }
                Some(self.finish(due, result.map(|()| Shape::Done)))
            }
        }
    }

    fn finish(&mut self, due: Due<T>, result: Result<Shape, Error>) -> Outcome<T> {
        self.queue.release(due.held_bytes);
        Outcome::Reply { tag: due.tag, result }
    }

    /// Asks for the names that follow those read so far, which count against the bound.
    fn ask_part(&mut self, listing: Listing, due: Due<T>) -> Option<Outcome<T>> {
        if self.queue.hold(listing.len_bytes()).is_err() {
            return Some(self.finish(due, Err(Error::E2big)));
        }
        let payload = format!("{}\0{}\0", listing.path, listing.len_bytes());
        let then = Then::Part(listing, due);
        self.queue.push(MessageType::DIRECTORY_PART, 0, &[payload.as_bytes()], then);
        None
    }

    /// Reads a message as what it is said to be.
    fn event(&self, header: Header, outcome: Outcome<T>) -> Event<'_, T> {
        let payload = self.incoming.payload(header);
        match outcome {
            Outcome::Reply { tag, result } => {
                let result = result.and_then(|shape| match shape {
                    Shape::Done => Ok(Reply::Done),
                    Shape::Value => Ok(Reply::Value(payload)),
                    Shape::Names => names(payload),
                    Shape::Listing => names(&self.listing),
                });
                Event::Reply { tag, result }
            }
            Outcome::Watch => match parse_watch(payload) {
                Some((path, token)) => Event::Watch { path, token },
                None => Event::Stray(Stray::Watch { len_bytes: payload.len() }),
            },
            Outcome::Stray => {
                Event::Stray(Stray::Reply { kind: header.kind.0, req_id: header.req_id })
            }
        }
    }
}

fn names(payload: &[u8]) -> Result<Reply<'_>, Error> {
    Names::parse(payload).map(Reply::Names).ok_or(Error::BadReply)
}
