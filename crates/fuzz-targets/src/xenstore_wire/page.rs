//! The page that is shared with xenstored, from xenstored's side, with an eye on the client's.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use xen_abi::SharedMemory;

/// Bytes of either ring.
const RING: u32 = 1024;
pub const HEADER_BYTES: usize = 16;

/// A message of the client.
#[derive(Clone, Debug)]
pub struct Message {
    pub kind: u32,
    pub req_id: u32,
    pub tx_id: u32,
    pub payload: Vec<u8>,
}

/// The shared page. Its checks: the client fetches only what was produced and each byte once, and
/// stores only where the last index that it loaded leaves space.
pub struct Page {
    bytes: RefCell<Vec<u8>>,
    /// The client's own indices, whatever stands in the page, and the last of ours that it loaded.
    req_prod: Cell<u32>,
    rsp_cons: Cell<u32>,
    req_cons_seen: Cell<u32>,
    rsp_prod_seen: Cell<u32>,
    /// What the client stored or fetched since it last moved the index.
    nr_stored: Cell<u32>,
    nr_fetched: Cell<u32>,
    /// Requests on their way, and all that the client fetched.
    sent: RefCell<VecDeque<u8>>,
    fetched: RefCell<Vec<u8>>,
    /// What xenstored will say.
    output: RefCell<VecDeque<u8>>,
}

impl Page {
    pub const REQ_CONS: usize = 2048;
    pub const REQ_PROD: usize = 2052;
    pub const RSP_CONS: usize = 2056;
    pub const RSP_PROD: usize = 2060;
    pub const SERVER_FEATURES: usize = 2064;
    pub const ERROR: usize = 2072;

    /// A page whose indices all stand at `start`.
    pub fn new(start: u32) -> Self {
        let page = Self {
            bytes: RefCell::new(vec![0; 4096]),
            req_prod: Cell::new(start),
            rsp_cons: Cell::new(start),
            req_cons_seen: Cell::new(start),
            rsp_prod_seen: Cell::new(start),
            nr_stored: Cell::new(0),
            nr_fetched: Cell::new(0),
            sent: RefCell::default(),
            fetched: RefCell::default(),
            output: RefCell::default(),
        };
        for offset in [Self::REQ_CONS, Self::REQ_PROD, Self::RSP_CONS, Self::RSP_PROD] {
            page.set(offset, start);
        }
        page
    }

    fn set(&self, offset: usize, value: u32) {
        self.bytes.borrow_mut()[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    }

    fn get(&self, offset: usize) -> u32 {
        let mut word = [0; 4];
        word.copy_from_slice(&self.bytes.borrow()[offset..offset + 4]);
        u32::from_le_bytes(word)
    }

    /// Adds to a field.
    pub fn add(&self, offset: usize, by: u32) {
        self.set(offset, self.get(offset).wrapping_add(by));
    }

    /// Queues what xenstored says.
    pub fn say(&self, bytes: &[u8]) {
        self.output.borrow_mut().extend(bytes);
    }

    /// Puts at most `max` bytes of it into the ring, as far as there is space.
    pub fn put(&self, max: usize) {
        let produced = self.get(Self::RSP_PROD);
        let space = RING.saturating_sub(produced.wrapping_sub(self.rsp_cons.get()));
        let mut output = self.output.borrow_mut();
        let len = output.len().min(max).min(space as usize);
        let mut at = produced;
        for byte in output.drain(..len) {
            self.bytes.borrow_mut()[1024 + (at % RING) as usize] = byte;
            at = at.wrapping_add(1);
        }
        self.set(Self::RSP_PROD, at);
    }

    /// How many bytes the client has not fetched though they are in the ring.
    pub fn nr_unread(&self) -> u32 {
        self.get(Self::RSP_PROD).wrapping_sub(self.rsp_cons.get())
    }

    /// Takes the client's next messages, at most `max` bytes and whole ones only.
    pub fn take(&self, max: usize) -> Vec<Message> {
        let mut sent = self.sent.borrow_mut();
        let mut taken = Vec::new();
        let mut left = max;
        loop {
            let header: Vec<u8> = sent.iter().copied().take(HEADER_BYTES).collect();
            if header.len() < HEADER_BYTES {
                break;
            }
            let len = HEADER_BYTES + word(&header, 3) as usize;
            if sent.len() < len || left < len {
                break;
            }
            let payload = sent.drain(..len).skip(HEADER_BYTES).collect();
            self.add(Self::REQ_CONS, u32::try_from(len).expect("a message"));
            left -= len;
            let [kind, req_id, tx_id] = [0, 1, 2].map(|n| word(&header, n));
            taken.push(Message { kind, req_id, tx_id, payload });
        }
        taken
    }

    /// The last message that the client fetched; it has fetched whole ones only.
    pub fn last_fetched(&self) -> Message {
        let bytes = self.fetched.borrow();
        let mut start = 0;
        loop {
            let len = HEADER_BYTES + word(&bytes[start..], 3) as usize;
            let message = &bytes[start..start + len];
            start += len;
            if start == bytes.len() {
                let [kind, req_id, tx_id] = [0, 1, 2].map(|n| word(message, n));
                return Message { kind, req_id, tx_id, payload: message[HEADER_BYTES..].into() };
            }
        }
    }

    /// Whether the `len` bytes at `offset` of a ring are the next ones after `index`, and within
    /// the `nr` that may be touched.
    fn follow(offset: usize, len: usize, index: u32, done: u32, nr: u32) -> bool {
        let len = u32::try_from(len).expect("within a page");
        (len == 0 || index.wrapping_add(done) % RING == u32::try_from(offset).expect("within"))
            && done + len <= nr
    }
}

fn word(bytes: &[u8], n: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[4 * n..4 * n + 4]);
    u32::from_le_bytes(word)
}

impl SharedMemory for Page {
    fn len_bytes(&self) -> usize {
        4096
    }

    fn load_u32(&self, offset: usize) -> u32 {
        let value = self.get(offset);
        match offset {
            Self::REQ_CONS => self.req_cons_seen.set(value),
            Self::RSP_PROD => self.rsp_prod_seen.set(value),
            _ => {}
        }
        value
    }

    fn store_u32(&self, offset: usize, value: u32) {
        let (index, nr) = match offset {
            Self::REQ_PROD => (&self.req_prod, &self.nr_stored),
            Self::RSP_CONS => (&self.rsp_cons, &self.nr_fetched),
            _ => panic!("{offset} is not the client's to write"),
        };
        assert_eq!(value, index.get().wrapping_add(nr.take()), "the index moves with the bytes");
        index.set(value);
        self.set(offset, value);
    }

    fn read(&self, offset: usize, into: &mut [u8]) {
        let (index, done) = (self.rsp_cons.get(), self.nr_fetched.get());
        let used = self.rsp_prod_seen.get().wrapping_sub(index);
        let at = offset.checked_sub(1024).expect("the response ring");
        assert!(used <= RING && Self::follow(at, into.len(), index, done, used), "not produced");
        into.copy_from_slice(&self.bytes.borrow()[offset..offset + into.len()]);
        assert!(at + into.len() <= 1024, "past the response ring");
        self.fetched.borrow_mut().extend_from_slice(into);
        self.nr_fetched.set(done + u32::try_from(into.len()).expect("within"));
    }

    fn write(&self, offset: usize, from: &[u8]) {
        let (index, done) = (self.req_prod.get(), self.nr_stored.get());
        let used = index.wrapping_sub(self.req_cons_seen.get());
        assert!(used <= RING, "the ring is broken");
        assert!(Self::follow(offset, from.len(), index, done, RING - used), "not consumed");
        assert!(offset + from.len() <= 1024, "past the request ring");
        self.bytes.borrow_mut()[offset..offset + from.len()].copy_from_slice(from);
        self.sent.borrow_mut().extend(from);
        self.nr_stored.set(done + u32::try_from(from.len()).expect("within"));
    }
}
