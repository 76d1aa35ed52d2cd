//! The wire protocol through a domain's page (`struct xenstore_domain_interface`,
//! `io/xs_wire.h`).

use std::collections::VecDeque;

use xen_abi::DomId;

use super::ops::PAYLOAD_MAX;
use super::{Caller, DOM0, DuplicateEvents, Errno, Perms, Xenstored};
use crate::Page;

const RING_BYTES: u32 = 1024;
const REQ: usize = 0;
const RSP: usize = 1024;
const REQ_CONS: usize = 2048;
const REQ_PROD: usize = 2052;
const RSP_CONS: usize = 2056;
const RSP_PROD: usize = 2060;
const ERROR: usize = 2072;
const HEADER_BYTES: usize = 16;

const DIRECTORY: u32 = 1;
const READ: u32 = 2;
const GET_PERMS: u32 = 3;
const WATCH: u32 = 4;
const UNWATCH: u32 = 5;
const TRANSACTION_START: u32 = 6;
const TRANSACTION_END: u32 = 7;
const INTRODUCE: u32 = 8;
const RELEASE: u32 = 9;
const GET_DOMAIN_PATH: u32 = 10;
const WRITE: u32 = 11;
const MKDIR: u32 = 12;
const RM: u32 = 13;
const SET_PERMS: u32 = 14;
const WATCH_EVENT: u32 = 15;
const ERROR_REPLY: u32 = 16;
const RESUME: u32 = 18;
const SET_TARGET: u32 = 19;
const RESET_WATCHES: u32 = 21;
const DIRECTORY_PART: u32 = 22;

#[derive(Clone, Copy, Debug)]
struct Header {
    kind: u32,
    req_id: u32,
    tx_id: u32,
}

fn message(header: Header, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("a payload");
    let words = [header.kind, header.req_id, header.tx_id, len];
    words.iter().flat_map(|word| word.to_le_bytes()).chain(payload.iter().copied()).collect()
}

/// One domain's ring.
#[derive(Debug)]
pub(super) struct Wire {
    page: Page,
    input: Vec<u8>,
    output: VecDeque<Vec<u8>>,
    sent_of_first: usize,
    broken: Option<Broken>,
    nr_events: u64,
}

/// Why xenstored no longer listens to a domain (`XENSTORE_ERROR_*`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Broken {
    /// The producer or consumer index is past the ring.
    RingIndex = 2,
    /// A payload is too long.
    Protocol = 3,
}

impl Wire {
    fn new(page: Page) -> Self {
        Self {
            page,
            input: Vec::new(),
            output: VecDeque::new(),
            sent_of_first: 0,
            broken: None,
            nr_events: 0,
        }
    }

    pub(super) fn push_event(&mut self, path: &str, token: &str, duplicates: DuplicateEvents) {
        let payload = format!("{path}\0{token}\0");
        if payload.len() > PAYLOAD_MAX {
            return;
        }
        let event = message(Header { kind: WATCH_EVENT, req_id: 0, tx_id: 0 }, payload.as_bytes());
        if duplicates == DuplicateEvents::Drop && self.output.contains(&event) {
            return;
        }
        self.nr_events += 1;
        self.output.push_back(event);
    }

    fn give_up(&mut self, why: Broken) {
        self.broken = Some(why);
        self.page.store_u32(ERROR, why as u32);
    }

    /// Bytes between two indices; `None` where they cannot be.
    fn filled(&self, cons: usize, prod: usize) -> Option<u32> {
        let filled = self.page.load_u32(prod).wrapping_sub(self.page.load_u32(cons));
        (filled <= RING_BYTES).then_some(filled)
    }

    fn has_work(&self) -> bool {
        let can_read = self.filled(REQ_CONS, REQ_PROD).is_none_or(|filled| filled > 0);
        let can_write = self.filled(RSP_CONS, RSP_PROD).is_none_or(|filled| filled < RING_BYTES);
        self.broken.is_none() && (can_read || (can_write && !self.output.is_empty()))
    }

    /// Writes up to `max_bytes` bytes of output into the ring.
    fn send(&mut self, max_bytes: usize) -> bool {
        let Some(filled) = self.filled(RSP_CONS, RSP_PROD) else {
            self.give_up(Broken::RingIndex);
            return false;
        };
        let mut prod = self.page.load_u32(RSP_PROD);
        let room = ((RING_BYTES - filled) as usize).min(max_bytes);
        for _ in 0..room {
            let Some(first) = self.output.front() else { break };
            let at = RSP + (prod % RING_BYTES) as usize;
            self.page.write(at, &first[self.sent_of_first..=self.sent_of_first]);
            prod = prod.wrapping_add(1);
            self.sent_of_first += 1;
            if self.sent_of_first == first.len() {
                self.output.pop_front();
                self.sent_of_first = 0;
            }
        }
        let sent = prod != self.page.load_u32(RSP_PROD);
        self.page.store_u32(RSP_PROD, prod);
        sent
    }

    /// Reads up to `max_bytes` bytes of input out of the ring, to the end of one message at most.
    fn receive(&mut self, max_bytes: usize) -> bool {
        let Some(filled) = self.filled(REQ_CONS, REQ_PROD) else {
            self.give_up(Broken::RingIndex);
            return false;
        };
        let mut cons = self.page.load_u32(REQ_CONS);
        let mut left = (filled as usize).min(max_bytes);
        let took = left > 0;
        while left > 0 && self.input.len() < self.wanted() {
            let mut byte = [0];
            self.page.read(REQ + (cons % RING_BYTES) as usize, &mut byte);
            self.input.push(byte[0]);
            cons = cons.wrapping_add(1);
            left -= 1;
            if self.input.len() == HEADER_BYTES && self.wanted() > HEADER_BYTES + PAYLOAD_MAX {
                self.give_up(Broken::Protocol);
                break;
            }
        }
        self.page.store_u32(REQ_CONS, cons);
        took
    }

    /// How long the message at hand is, as far as it is known.
    fn wanted(&self) -> usize {
        self.word(3).map_or(HEADER_BYTES, |len| HEADER_BYTES.saturating_add(len as usize))
    }

    fn word(&self, index: usize) -> Option<u32> {
        let header: &[u8; HEADER_BYTES] = self.input.first_chunk()?;
        Some(u32::from_le_bytes(header[index * 4..][..4].try_into().expect("four bytes")))
    }

    fn take_message(&mut self) -> Option<(Header, Vec<u8>)> {
        if self.broken.is_some() || self.input.len() < self.wanted() {
            return None;
        }
        let header = Header { kind: self.word(0)?, req_id: self.word(1)?, tx_id: self.word(2)? };
        let payload = self.input.split_off(HEADER_BYTES);
        self.input.clear();
        Some((header, payload))
    }
}

/// The nul-terminated strings of a payload; `None` where the last one lacks its nul or one is not
/// text.
fn strings(payload: &[u8]) -> Option<Vec<&str>> {
    let inner = payload.strip_suffix(&[0])?;
    inner.split(|&byte| byte == 0).map(|text| std::str::from_utf8(text).ok()).collect()
}

/// The one string that a payload has to be.
fn one_string(payload: &[u8]) -> Result<&str, Errno> {
    match strings(payload).as_deref() {
        Some([text]) => Ok(text),
        _ => Err(Errno::Einval),
    }
}

impl Xenstored {
    /// Gives a domain its ring page.
    pub(crate) fn connect(&mut self, domid: DomId, page: Page) {
        let connection = self.connections.get_mut(&domid).expect("introduced");
        connection.wire = Some(Wire::new(page));
    }

    fn wire(&mut self, domid: DomId) -> Option<&mut Wire> {
        self.connections.get_mut(&domid)?.wire.as_mut()
    }

    /// Whether there is anything to do for a domain.
    #[must_use]
    pub fn has_work(&self, domid: DomId) -> bool {
        let connection = self.connections.get(&domid);
        connection.and_then(|c| c.wire.as_ref()).is_some_and(Wire::has_work)
    }

    /// Messages that wait to be sent to a domain.
    #[must_use]
    pub fn nr_queued(&self, domid: DomId) -> usize {
        let wire = self.connections.get(&domid).and_then(|c| c.wire.as_ref());
        wire.map_or(0, |wire| wire.output.len())
    }

    /// Watch events sent to a domain or on their way there.
    #[must_use]
    pub fn nr_events(&self, domid: DomId) -> u64 {
        let wire = self.connections.get(&domid).and_then(|c| c.wire.as_ref());
        wire.map_or(0, |wire| wire.nr_events)
    }

    /// Whether, and why, xenstored stopped listening to a domain.
    #[must_use]
    pub fn broken(&self, domid: DomId) -> Option<Broken> {
        let wire = self.connections.get(&domid).and_then(|c| c.wire.as_ref());
        wire.and_then(|wire| wire.broken)
    }

    /// Moves up to `max_bytes` bytes of output into a domain's ring. Returns whether there were
    /// any, and the domain is to be notified.
    pub fn send(&mut self, domid: DomId, max_bytes: usize) -> bool {
        self.wire(domid).is_some_and(|wire| wire.broken.is_none() && wire.send(max_bytes))
    }

    /// Takes up to `max_bytes` bytes of input out of a domain's ring, and answers a message that
    /// became complete. Returns whether there were any, and the domain is to be notified.
    pub fn receive(&mut self, domid: DomId, max_bytes: usize) -> bool {
        let Some(wire) = self.wire(domid) else { return false };
        if wire.broken.is_some() {
            return false;
        }
        let received = wire.receive(max_bytes);
        if let Some((header, payload)) = wire.take_message() {
            self.answer(domid, header, &payload);
        }
        received
    }

    fn answer(&mut self, domid: DomId, header: Header, payload: &[u8]) {
        let result = match self.request_faults.strike() {
            Some(errno) => Err(errno),
            None => self.perform(domid, header, payload),
        };
        let reply = match &result {
            Ok(reply) if reply.len() > PAYLOAD_MAX => Err(Errno::E2big),
            Ok(reply) => Ok(reply),
            Err(errno) => Err(*errno),
        };
        let bytes = match reply {
            Ok(reply) => message(header, reply),
            Err(errno) => {
                message(Header { kind: ERROR_REPLY, ..header }, format!("{errno}\0").as_bytes())
            }
        };
        let answered = result.is_ok();
        if let Some(wire) = self.wire(domid) {
            wire.output.push_back(bytes);
        }
        // A watch's first event follows its answer.
        if header.kind == WATCH
            && answered
            && let Some([wpath, token]) = strings(payload).as_deref()
        {
            self.fire_first(domid, wpath, token);
        }
    }

    fn perform(&mut self, domid: DomId, header: Header, payload: &[u8]) -> Result<Vec<u8>, Errno> {
        const OK: &[u8] = b"OK\0";
        let ok = |()| OK.to_vec();
        let tx_id = if matches!(header.kind, WATCH | UNWATCH) { 0 } else { header.tx_id };
        let who = Caller { domid, tx_id };
        self.check_caller(who)?;
        match header.kind {
            DIRECTORY => {
                let names = self.directory(who, one_string(payload)?)?;
                Ok(names.iter().flat_map(|name| name.bytes().chain([0])).collect())
            }
            DIRECTORY_PART => self.directory_part(who, payload),
            READ => self.read(who, one_string(payload)?),
            GET_PERMS => {
                self.get_perms(who, one_string(payload)?).map(|p| p.to_string().into_bytes())
            }
            SET_PERMS => {
                let texts = strings(payload).ok_or(Errno::Einval)?;
                let perms = Perms::parse(texts[1..].iter().copied()).ok_or(Errno::Einval)?;
                self.set_perms(who, texts[0], perms).map(ok)
            }
            WRITE => {
                let end = payload.iter().position(|&b| b == 0).ok_or(Errno::Einval)?;
                let path = std::str::from_utf8(&payload[..end]).map_err(|_| Errno::Einval)?;
                self.write(who, path, &payload[end + 1..]).map(ok)
            }
            MKDIR => self.mkdir(who, one_string(payload)?).map(ok),
            RM => self.rm(who, one_string(payload)?).map(ok),
            WATCH => match strings(payload).as_deref() {
                Some([wpath, token]) => self.watch(domid, wpath, token).map(ok),
                _ => Err(Errno::Einval),
            },
            UNWATCH => match strings(payload).as_deref() {
                Some([wpath, token]) => self.unwatch(domid, wpath, token).map(ok),
                _ => Err(Errno::Einval),
            },
            RESET_WATCHES => {
                self.reset_watches(domid);
                Ok(OK.to_vec())
            }
            TRANSACTION_START => {
                self.transaction_start(who).map(|id| format!("{id}\0").into_bytes())
            }
            TRANSACTION_END => match one_string(payload)? {
                "T" => self.transaction_commit(who).map(ok),
                "F" => self.transaction_abort(who).map(ok),
                _ => Err(Errno::Einval),
            },
            GET_DOMAIN_PATH => {
                let domid: u16 = one_string(payload)?.parse().map_err(|_| Errno::Einval)?;
                Ok(format!("/local/domain/{domid}\0").into_bytes())
            }
            INTRODUCE | RELEASE | RESUME | SET_TARGET if domid != DOM0 => Err(Errno::Eacces),
            _ => Err(Errno::Enosys),
        }
    }

    fn directory_part(&mut self, who: Caller, payload: &[u8]) -> Result<Vec<u8>, Errno> {
        let texts = strings(payload).ok_or(Errno::Einval)?;
        let [path, offset] = texts[..] else { return Err(Errno::Einval) };
        let offset: usize = offset.parse().map_err(|_| Errno::Einval)?;
        let (generation, list) = self.children_list(who, path)?;
        let mut reply = format!("{generation}\0").into_bytes();
        let rest = list.get(offset..).unwrap_or_default();
        // Whole names alone, and an empty one behind the last.
        let mut end = rest.len().min(PAYLOAD_MAX - reply.len() - 1);
        while end > 0 && rest[end - 1] != 0 {
            end -= 1;
        }
        reply.extend(&rest[..end]);
        if end == rest.len() {
            reply.push(0);
        }
        Ok(reply)
    }
}
