//! xenstored's side of the page, at byte level, and a small xenstored on top of it.

#![allow(dead_code, reason = "each test uses its part")]
#![allow(clippy::unwrap_used, reason = "a test's helper")]

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use xen_abi::SharedMemory;

pub const REQ_CONS: usize = 2048;
pub const REQ_PROD: usize = 2052;
pub const RSP_CONS: usize = 2056;
pub const RSP_PROD: usize = 2060;
pub const SERVER_FEATURES: usize = 2064;
pub const ERROR: usize = 2072;

const RING: u32 = 1024;

pub const DIRECTORY: u32 = 1;
pub const READ: u32 = 2;
pub const WATCH: u32 = 4;
pub const UNWATCH: u32 = 5;
pub const TRANSACTION_START: u32 = 6;
pub const TRANSACTION_END: u32 = 7;
pub const WRITE: u32 = 11;
pub const MKDIR: u32 = 12;
pub const RM: u32 = 13;
pub const SET_PERMS: u32 = 14;
pub const WATCH_EVENT: u32 = 15;
pub const ERROR_REPLY: u32 = 16;
pub const RESET_WATCHES: u32 = 21;
pub const DIRECTORY_PART: u32 = 22;

/// A message as it stands on the ring.
pub fn message(kind: u32, req_id: u32, tx_id: u32, payload: &[u8]) -> Vec<u8> {
    let words = [kind, req_id, tx_id, u32::try_from(payload.len()).unwrap()];
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.extend_from_slice(payload);
    bytes
}

/// The shared page. The client's accesses are checked against the indices: it may read only what
/// was produced and not yet consumed, each byte once, and write only where there is space.
pub struct Page {
    bytes: RefCell<Vec<u8>>,
    /// Bytes that the client has read of the response ring and written to the request ring.
    pub nr_read: Cell<usize>,
    pub nr_written: Cell<usize>,
}

impl Page {
    /// A page whose indices all stand at `index`.
    pub fn new(index: u32) -> Self {
        let page = Self {
            bytes: RefCell::new(vec![0xa5; 4096]),
            nr_read: Cell::new(0),
            nr_written: Cell::new(0),
        };
        for offset in [REQ_CONS, REQ_PROD, RSP_CONS, RSP_PROD] {
            page.set(offset, index);
        }
        page.set(SERVER_FEATURES, 0);
        page.set(ERROR, 0);
        page
    }

    pub fn get(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.bytes.borrow()[offset..offset + 4].try_into().unwrap())
    }

    pub fn set(&self, offset: usize, value: u32) {
        self.bytes.borrow_mut()[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    }

    /// Consumes at most `max` bytes of the request ring.
    pub fn take(&self, max: usize) -> Vec<u8> {
        let (consumed, produced) = (self.get(REQ_CONS), self.get(REQ_PROD));
        let len = produced.wrapping_sub(consumed).min(u32::try_from(max).unwrap_or(u32::MAX));
        let bytes = self.bytes.borrow();
        let taken = (0..len).map(|i| bytes[(consumed.wrapping_add(i) % RING) as usize]).collect();
        drop(bytes);
        self.set(REQ_CONS, consumed.wrapping_add(len));
        taken
    }

    /// Produces at most `max` of `bytes` in the response ring; how many fitted.
    pub fn put(&self, bytes: &[u8], max: usize) -> usize {
        let (consumed, produced) = (self.get(RSP_CONS), self.get(RSP_PROD));
        let space = (RING - produced.wrapping_sub(consumed)) as usize;
        let len = bytes.len().min(space).min(max);
        for (index, byte) in (0..).zip(&bytes[..len]) {
            let at = 1024 + (produced.wrapping_add(index) % RING) as usize;
            self.bytes.borrow_mut()[at] = *byte;
        }
        self.set(RSP_PROD, produced.wrapping_add(u32::try_from(len).unwrap()));
        len
    }

    /// As [`put`](Self::put), and all of it has to fit.
    pub fn put_all(&self, bytes: &[u8]) {
        assert_eq!(self.put(bytes, usize::MAX), bytes.len(), "response ring full");
    }

    /// Whether every position of `range` is among the `count` that follow `index` in its ring.
    fn within(range: Range<usize>, index: u32, count: u32) -> bool {
        let distance = |at: usize| u32::try_from(at).unwrap().wrapping_sub(index) % RING;
        range.into_iter().all(|at| distance(at) < count)
    }
}

impl SharedMemory for Page {
    fn len_bytes(&self) -> usize {
        4096
    }

    fn load_u32(&self, offset: usize) -> u32 {
        self.get(offset)
    }

    fn store_u32(&self, offset: usize, value: u32) {
        assert!([REQ_PROD, RSP_CONS].contains(&offset), "{offset} is not ours to write");
        self.set(offset, value);
    }

    fn read(&self, offset: usize, into: &mut [u8]) {
        let (consumed, produced) = (self.get(RSP_CONS), self.get(RSP_PROD));
        let range = offset - 1024..offset - 1024 + into.len();
        assert!(range.end <= 1024, "past the response ring");
        assert!(Self::within(range, consumed, produced.wrapping_sub(consumed)), "not produced");
        into.copy_from_slice(&self.bytes.borrow()[offset..offset + into.len()]);
        self.nr_read.set(self.nr_read.get() + into.len());
    }

    fn write(&self, offset: usize, from: &[u8]) {
        let (consumed, produced) = (self.get(REQ_CONS), self.get(REQ_PROD));
        let range = offset..offset + from.len();
        assert!(range.end <= 1024, "past the request ring");
        let space = RING - produced.wrapping_sub(consumed);
        assert!(Self::within(range, produced, space), "not consumed");
        self.bytes.borrow_mut()[offset..offset + from.len()].copy_from_slice(from);
        self.nr_written.set(self.nr_written.get() + from.len());
    }
}

type Nodes = BTreeMap<String, Vec<u8>>;

/// A xenstored for one domain, 3, without permissions.
#[derive(Default)]
pub struct Xenstored {
    pub nodes: Nodes,
    generation: u64,
    watches: Vec<(String, String)>,
    transactions: BTreeMap<u32, Nodes>,
    last_tx_id: u32,
    /// How many commits to refuse with EAGAIN.
    pub refuse_commits: u32,
    /// A node that cannot be written.
    pub forbidden: Option<String>,
    /// A node to create before a second part of a directory is answered.
    pub create_meanwhile: Option<String>,
    /// Longest `DIRECTORY` answer.
    pub directory_max: usize,
    pub nr_messages: usize,
    input: Vec<u8>,
    output: VecDeque<u8>,
    pub nr_output: usize,
}

impl Xenstored {
    pub fn new() -> Self {
        let mut nodes = Nodes::new();
        nodes.insert("/local/domain/3".into(), Vec::new());
        Self { nodes, directory_max: 4096, ..Self::default() }
    }

    /// Takes and puts at most so many bytes, answering every whole message.
    pub fn step(&mut self, page: &Page, take: usize, put: usize) {
        self.input.extend(page.take(take));
        while let Some(header) = self.input.first_chunk::<16>() {
            let word = |i: usize| u32::from_le_bytes(header[i * 4..i * 4 + 4].try_into().unwrap());
            let (kind, req_id, tx_id, len) = (word(0), word(1), word(2), word(3) as usize);
            assert!(len <= 4096, "the client broke the protocol");
            if self.input.len() < 16 + len {
                break;
            }
            let payload: Vec<u8> = self.input.drain(..16 + len).skip(16).collect();
            self.nr_messages += 1;
            let (kind, payload) = match self.answer(kind, tx_id, &payload) {
                Ok(payload) => (kind, payload),
                Err(name) => (ERROR_REPLY, [name.as_bytes(), b"\0"].concat()),
            };
            // Events of the request itself come before its answer here, after it elsewhere.
            self.say(&message(kind, req_id, tx_id, &payload));
        }
        let output = self.output.make_contiguous();
        let sent = page.put(output, put);
        self.output.drain(..sent);
    }

    pub fn idle(&self) -> bool {
        self.input.is_empty() && self.output.is_empty()
    }

    fn say(&mut self, bytes: &[u8]) {
        self.output.extend(bytes);
        self.nr_output += bytes.len();
    }

    fn answer(&mut self, kind: u32, tx_id: u32, payload: &[u8]) -> Result<Vec<u8>, &'static str> {
        let ok = || Ok(b"OK\0".to_vec());
        let mut words = payload.split(|byte| *byte == 0);
        let first = String::from_utf8(words.next().unwrap().to_vec()).unwrap();
        let path = absolute(&first);
        let second = || {
            let rest = &payload[first.len() + 1..];
            String::from_utf8(rest.strip_suffix(b"\0").unwrap().to_vec()).unwrap()
        };
        if tx_id != 0 && !self.transactions.contains_key(&tx_id) {
            return Err("ENOENT");
        }
        let nodes = self.transactions.get_mut(&tx_id).unwrap_or(&mut self.nodes);
        match kind {
            READ => return nodes.get(&path).cloned().ok_or("ENOENT"),
            DIRECTORY => {
                let names = children(nodes, &path)?;
                return if names.len() > self.directory_max { Err("E2BIG") } else { Ok(names) };
            }
            DIRECTORY_PART => {
                let offset: usize = second().parse().unwrap();
                if let Some(node) = self.create_meanwhile.take_if(|_| offset > 0) {
                    nodes.insert(absolute(&node), Vec::new());
                    self.generation += 1;
                }
                let mut names = children(nodes, &path)?;
                names.push(0);
                // Past the list, which may have shrunk: an empty name, as at its end.
                let offset = offset.min(names.len() - 1);
                let mut part = format!("{}\0", self.generation).into_bytes();
                let end = names.len().min(offset + self.directory_max - part.len());
                let end = match names[offset..end].iter().rposition(|byte| *byte == 0) {
                    Some(last) => offset + last + 1,
                    None => end,
                };
                part.extend_from_slice(&names[offset..end]);
                return Ok(part);
            }
            WATCH => {
                self.watches.push((first.clone(), second()));
                self.say(&message(WATCH_EVENT, 0, 0, payload));
                return ok();
            }
            UNWATCH => {
                let watch = (first.clone(), second());
                let at = self.watches.iter().position(|w| *w == watch).ok_or("ENOENT")?;
                self.watches.remove(at);
                return ok();
            }
            RESET_WATCHES => {
                self.watches.clear();
                self.transactions.clear();
                return ok();
            }
            SET_PERMS => return if nodes.contains_key(&path) { ok() } else { Err("ENOENT") },
            TRANSACTION_START => {
                assert!(self.transactions.is_empty(), "one transaction at a time");
                self.last_tx_id += 1;
                self.transactions.insert(self.last_tx_id, self.nodes.clone());
                return Ok(format!("{}\0", self.last_tx_id).into_bytes());
            }
            TRANSACTION_END => {
                let nodes = self.transactions.remove(&tx_id).ok_or("ENOENT")?;
                if payload == b"T\0" {
                    if self.refuse_commits > 0 {
                        self.refuse_commits -= 1;
                        return Err("EAGAIN");
                    }
                    self.nodes = nodes;
                    self.generation += 1;
                }
                return ok();
            }
            _ => (),
        }
        if self.forbidden.as_deref() == Some(&first) {
            return Err("EACCES");
        }
        match kind {
            WRITE => drop(nodes.insert(path.clone(), payload[first.len() + 1..].to_vec())),
            MKDIR => drop(nodes.entry(path.clone()).or_default()),
            RM => {
                let below = format!("{path}/");
                nodes.retain(|node, _| *node != path && !node.starts_with(&below));
            }
            _ => return Err("ENOSYS"),
        }
        if tx_id == 0 {
            self.generation += 1;
            self.fire(&first);
        }
        ok()
    }

    /// Events for a change of `path`, which is relative if the watches are.
    fn fire(&mut self, path: &str) {
        for (watched, token) in self.watches.clone() {
            if path == watched || path.starts_with(&format!("{watched}/")) {
                let payload = format!("{path}\0{token}\0");
                self.say(&message(WATCH_EVENT, 0, 0, payload.as_bytes()));
            }
        }
    }
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.into() } else { format!("/local/domain/3/{path}") }
}

fn children(nodes: &Nodes, path: &str) -> Result<Vec<u8>, &'static str> {
    let below = format!("{path}/");
    let mut names = Vec::new();
    for name in nodes.keys().filter_map(|node| node.strip_prefix(&below)) {
        if !name.contains('/') {
            names.extend_from_slice(name.as_bytes());
            names.push(0);
        }
    }
    if names.is_empty() && !nodes.contains_key(path) { Err("ENOENT") } else { Ok(names) }
}
