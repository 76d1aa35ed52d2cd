//! The xenstore client against a xenstored that says anything, in any pieces.

mod page;

use std::collections::BTreeMap;

use xen_abi::{DomId, SharedMemory};
use xenstore::{
    Access, Change, Client, Error, Event, Names, Perms, ProtocolError, Reply, Request, Stray,
};

use crate::input::Input;
use page::{HEADER_BYTES, Message, Page};

const DIRECTORY: u32 = 1;
const READ: u32 = 2;
const TRANSACTION_START: u32 = 6;
const TRANSACTION_END: u32 = 7;
const WATCH_EVENT: u32 = 15;
const ERROR: u32 = 16;
const DIRECTORY_PART: u32 = 22;

/// All that the client may send.
const REQUESTS: [u32; 12] = [1, 2, 4, 5, 6, 7, 11, 12, 13, 14, 21, 22];

const PAYLOAD_MAX: usize = 4096;

/// What the answer to a request has to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wanted {
    Done,
    Value,
    Names,
}

/// What client and xenstored do, in turn.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let start = if input.flag() { u32::MAX - 20 } else { 0 };
    let queue_bytes = [64, 300, 20_000][input.below(3)];
    let page = Page::new(start);
    let client = Client::with_bound(&page, queue_bytes);
    let mut talk =
        Talk { input, page, client, next_tag: 0, unanswered: BTreeMap::new(), asked: Vec::new() };
    while !talk.input.is_empty() {
        if let Err(error) = talk.step() {
            talk.check_over(&error);
            return;
        }
    }
    assert!(talk.receive().is_ok_and(|()| talk.page.nr_unread() == 0) || talk.is_broken());
}

struct Talk {
    input: Input,
    page: Page,
    client: Client<u32>,
    next_tag: u32,
    /// What was submitted and not answered.
    unanswered: BTreeMap<u32, Wanted>,
    /// What the client sent: type, number and transaction of each message.
    asked: Vec<(u32, u32, u32)>,
}

impl Talk {
    fn step(&mut self) -> Result<(), ProtocolError> {
        match self.input.below(12) {
            0 | 1 => self.submit(),
            2 => self.transact(),
            3 | 4 => {
                let _ = self.client.send(&self.page)?;
                let nr = usize::from(self.input.u16());
                self.take(nr);
            }
            5..=7 => self.answer(),
            8 => {
                let nr = self.input.below(64);
                let raw = self.input.take(nr);
                self.page.say(&raw);
            }
            9 => {
                let event = self.input.take(20);
                self.page.say(&message(WATCH_EVENT, 0, 0, &event));
            }
            10 => self.poke_index(),
            _ => {}
        }
        let nr = if self.input.flag() { usize::from(self.input.u8()) } else { usize::MAX };
        self.page.put(nr);
        self.receive()
    }

    fn text(&mut self) -> String {
        match self.input.below(8) {
            0 => "backend/vbd".into(),
            1 => "/local/domain/0/backend/vbd".into(),
            2 => "a".repeat(usize::from(self.input.u16() % 4000)),
            3 => String::new(),
            n => String::from_utf8_lossy(&self.input.take(n)).into_owned(),
        }
    }

    fn submit(&mut self) {
        let kind = self.input.below(9);
        let (path, token) = (self.text(), self.text());
        let perms = Perms::new(DomId(self.input.u16()), Access::Read).and(DomId(0), Access::Write);
        let (request, wanted) = match kind {
            0 => (Request::Read(&path), Wanted::Value),
            1 => (Request::Directory(&path), Wanted::Names),
            2 => (Request::Write(&path, token.as_bytes()), Wanted::Done),
            3 => (Request::Mkdir(&path), Wanted::Done),
            4 => (Request::Remove(&path), Wanted::Done),
            5 => (Request::SetPerms(&path, &perms), Wanted::Done),
            6 => (Request::Watch { path: &path, token: &token }, Wanted::Done),
            7 => (Request::Unwatch { path: &path, token: &token }, Wanted::Done),
            _ => (Request::ResetWatches, Wanted::Done),
        };
        if self.client.submit(request, self.next_tag).is_ok() {
            self.unanswered.insert(self.next_tag, wanted);
        }
        self.next_tag += 1;
    }

    fn transact(&mut self) {
        let nr = self.input.below(4);
        let mut changes = Vec::new();
        for _ in 0..nr {
            let (path, value) = (self.text(), self.text());
            changes.push(match self.input.below(3) {
                0 => Change::Write(path, value.into_bytes()),
                1 => Change::Remove(path),
                _ => Change::Expect(path, value.into_bytes()),
            });
        }
        if self.client.transact(changes, self.next_tag).is_ok() {
            self.unanswered.insert(self.next_tag, Wanted::Done);
        }
        self.next_tag += 1;
    }

    /// xenstored takes what the client wrote. Whatever it was told before, that is well-formed.
    fn take(&mut self, nr: usize) {
        for Message { kind, req_id, tx_id, payload } in self.page.take(nr) {
            assert!(REQUESTS.contains(&kind), "request of type {kind}");
            assert_ne!(req_id, 0, "the number of watch events");
            assert!(payload.len() <= PAYLOAD_MAX);
            match kind {
                TRANSACTION_START => assert_eq!((tx_id, &payload[..]), (0, &b"\0"[..])),
                TRANSACTION_END => {
                    assert_ne!(tx_id, 0);
                    assert!([&b"T\0"[..], b"F\0"].contains(&&payload[..]));
                }
                _ => assert!(payload.contains(&0), "a path without its NUL"),
            }
            self.asked.push((kind, req_id, tx_id));
        }
    }

    /// Answers a request, rightly or nearly so.
    fn answer(&mut self) {
        let choice = self.input.below(16);
        let Some(&(kind, req_id, tx_id)) = self.asked.iter().rev().nth(choice) else { return };
        let payload = match self.input.below(10) {
            0 | 1 => b"OK\0".to_vec(),
            2 => b"7\0".to_vec(),
            3 => b"12\0a\0b\0".to_vec(),
            4 => b"12\0a\0b\0\0".to_vec(),
            5 => return self.page.say(&message(ERROR, req_id, tx_id, b"E2BIG\0")),
            6 => return self.page.say(&message(ERROR, req_id, tx_id, b"EAGAIN\0")),
            7 => return self.page.say(&message(ERROR, req_id, tx_id, b"ENOENT\0")),
            _ => {
                let nr = usize::from(self.input.u8());
                self.input.take(nr)
            }
        };
        let kind = if self.input.below(16) == 0 { self.input.u32() } else { kind };
        self.page.say(&message(kind, req_id, tx_id, &payload));
    }

    fn poke_index(&mut self) {
        let by = self.input.u32();
        match self.input.below(8) {
            0 => self.page.add(Page::REQ_CONS, by),
            1 => self.page.add(Page::RSP_PROD, by),
            // Indices that are ours are not read back.
            2 => self.page.add(Page::REQ_PROD, by),
            3 => self.page.add(Page::RSP_CONS, by),
            4 => self.page.add(Page::SERVER_FEATURES, by),
            5 => self.page.add(Page::ERROR, by),
            _ => {}
        }
    }

    /// Takes all that there is. Each event is the last message that was fetched, and nothing more.
    fn receive(&mut self) -> Result<(), ProtocolError> {
        while let Some(event) = self.client.receive(&self.page)? {
            let message = self.page.last_fetched();
            match event {
                Event::Reply { tag, result } => {
                    let wanted = self.unanswered.remove(&tag);
                    let wanted = wanted.unwrap_or_else(|| panic!("an answer for nothing: {tag}"));
                    check_reply(&message, wanted, &result);
                }
                Event::Watch { path, token } => {
                    assert_eq!(message.kind, WATCH_EVENT);
                    assert_eq!(message.payload, format!("{path}\0{token}\0").as_bytes());
                    assert!(!path.is_empty());
                }
                Event::Stray(Stray::Watch { len_bytes }) => {
                    assert_eq!((message.kind, message.payload.len()), (WATCH_EVENT, len_bytes));
                }
                Event::Stray(Stray::Reply { kind, req_id }) => {
                    assert_ne!(kind, WATCH_EVENT);
                    assert_eq!((message.kind, message.req_id), (kind, req_id));
                }
            }
        }
        Ok(())
    }

    fn is_broken(&mut self) -> bool {
        self.client.receive(&self.page).is_err()
    }

    /// What is over stays over, while xenstored keeps still.
    fn check_over(&mut self, error: &ProtocolError) {
        match *error {
            ProtocolError::ResponseIndex { consumed, produced } => {
                assert!(produced.wrapping_sub(consumed) > 1024);
                assert_eq!(self.page.load_u32(Page::RSP_PROD), produced);
                assert_eq!(self.client.receive(&self.page), Err(*error));
            }
            ProtocolError::RequestIndex { consumed, produced } => {
                assert!(produced.wrapping_sub(consumed) > 1024);
                assert_eq!(self.client.send(&self.page), Err(*error));
            }
            ProtocolError::MessageTooLong { len_bytes, max_bytes } => {
                assert!(len_bytes as usize > max_bytes);
                assert_eq!(self.client.receive(&self.page), Err(*error));
            }
            ProtocolError::Disconnected { code } => {
                assert_eq!(self.page.load_u32(Page::ERROR), code);
                assert_eq!(self.client.receive(&self.page), Err(*error));
            }
        }
    }
}

fn message(kind: u32, req_id: u32, tx_id: u32, payload: &[u8]) -> Vec<u8> {
    let len_bytes = u32::try_from(payload.len()).expect("short");
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    for word in [kind, req_id, tx_id, len_bytes] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(payload);
    bytes
}

fn check_reply(message: &Message, wanted: Wanted, result: &Result<Reply<'_>, Error>) {
    assert_ne!(message.kind, WATCH_EVENT);
    match result {
        Ok(Reply::Done) => assert_eq!(wanted, Wanted::Done),
        Ok(Reply::Value(value)) => {
            assert_eq!((message.kind, wanted), (READ, Wanted::Value));
            assert_eq!(*value, message.payload);
        }
        Ok(Reply::Names(names)) => {
            assert_eq!(wanted, Wanted::Names);
            assert!(names.clone().all(|name| !name.is_empty() && !name.contains('\0')));
            match message.kind {
                DIRECTORY => assert_eq!(joined(names), message.payload),
                DIRECTORY_PART => {}
                kind => panic!("names from a message of type {kind}"),
            }
        }
        // The answer itself is an error, of the wrong type, or no names.
        Err(Error::BadReply) => assert_ne!((message.kind, wanted), (READ, Wanted::Value)),
        Err(_) => {}
    }
    if message.kind == ERROR && wanted != Wanted::Done {
        assert!(result.is_err(), "{result:?} from an error");
    }
}

fn joined(names: &Names<'_>) -> Vec<u8> {
    names.clone().flat_map(|name| [name.as_bytes(), b"\0"].concat()).collect()
}
