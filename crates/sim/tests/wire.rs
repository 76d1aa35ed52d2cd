//! xenstored's wire protocol, spoken by hand through a domain's page.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use sim::xenstored::{Broken, DuplicateEvents, Errno, Perms};
use sim::{Machine, Page, Xs};
use xen_abi::{DomId, EvtchnPort};

const WATCH: u32 = 4;
const TRANSACTION_START: u32 = 6;
const TRANSACTION_END: u32 = 7;

/// A client that knows the page's layout and no more.
struct Client {
    machine: Machine,
    domid: DomId,
    page: Page,
    port: EvtchnPort,
    input: Vec<u8>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Message {
    kind: u32,
    req_id: u32,
    tx_id: u32,
    payload: String,
}

fn event(path: &str, token: &str) -> Message {
    Message { kind: 15, req_id: 0, tx_id: 0, payload: format!("{path}\0{token}\0") }
}

fn reply(kind: u32, req_id: u32, payload: &str) -> Message {
    Message { kind, req_id, tx_id: 0, payload: payload.into() }
}

impl Client {
    fn new() -> (Self, Xs) {
        let machine = Machine::new(2);
        let domid = machine.create_domain();
        let (page, port) = machine.connect_xenstore(domid);
        let dom0 = machine.xs(DomId(0));
        dom0.mkdir("/local/domain/1/data").unwrap();
        dom0.set_perms("/local/domain/1/data", Perms::private(domid)).unwrap();
        (Self { machine, domid, page, port, input: Vec::new() }, dom0)
    }

    fn notify(&self) {
        self.machine.events().send(self.domid, self.port).unwrap();
    }

    /// Puts bytes into the request ring, waiting for room.
    fn put(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            while self.page.load_u32(2052).wrapping_sub(self.page.load_u32(2048)) == 1024 {
                self.notify();
                assert!(self.machine.step_xenstored(), "no room, and nobody makes some");
            }
            let prod = self.page.load_u32(2052);
            self.page.write((prod % 1024) as usize, &[byte]);
            self.page.store_u32(2052, prod.wrapping_add(1));
        }
        self.notify();
    }

    fn send(&mut self, kind: u32, req_id: u32, tx_id: u32, payload: &[u8]) {
        let words = [kind, req_id, tx_id, payload.len() as u32];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.put(&[&bytes, payload].concat());
    }

    fn drain(&mut self) {
        let (mut cons, prod) = (self.page.load_u32(2056), self.page.load_u32(2060));
        while cons != prod {
            self.input.extend(self.page.bytes(1024..2048)[(cons % 1024) as usize..][..1].iter());
            cons = cons.wrapping_add(1);
        }
        self.page.store_u32(2056, cons);
        self.notify();
    }

    /// All messages that come until xenstored has nothing to do.
    fn receive(&mut self) -> Vec<Message> {
        loop {
            let busy = self.machine.step_xenstored();
            let before = self.input.len();
            self.drain();
            if !busy && self.input.len() == before {
                break;
            }
        }
        let mut messages = Vec::new();
        while self.input.len() >= 16 {
            let word = |i: usize| u32::from_le_bytes(self.input[i * 4..][..4].try_into().unwrap());
            let (kind, req_id, tx_id, len) = (word(0), word(1), word(2), word(3) as usize);
            let payload = String::from_utf8(self.input[16..16 + len].to_vec()).unwrap();
            self.input.drain(..16 + len);
            messages.push(Message { kind, req_id, tx_id, payload });
        }
        assert!(self.input.is_empty());
        messages
    }

    fn ask(&mut self, kind: u32, payload: &str) -> Vec<Message> {
        self.send(kind, 7, 0, payload.as_bytes());
        self.receive()
    }
}

#[test]
fn every_request_has_its_answer() {
    let (mut client, _) = Client::new();
    let mut ask = |kind, payload: &str| client.ask(kind, payload);
    assert_eq!(ask(11, "data/a\0value"), [reply(11, 7, "OK\0")]);
    assert_eq!(ask(2, "data/a\0"), [reply(2, 7, "value")]);
    assert_eq!(ask(2, "/local/domain/1/data/a\0"), [reply(2, 7, "value")]);
    assert_eq!(ask(2, "data/none\0"), [reply(16, 7, "ENOENT\0")]);
    assert_eq!(ask(2, "data/a"), [reply(16, 7, "EINVAL\0")], "no nul");
    assert_eq!(ask(12, "data/d\0"), [reply(12, 7, "OK\0")]);
    assert_eq!(ask(1, "data\0"), [reply(1, 7, "a\0d\0")]);
    assert_eq!(ask(3, "data/a\0"), [reply(3, 7, "n1\0")]);
    assert_eq!(ask(14, "data/a\0n1\0r5\0b6\0"), [reply(14, 7, "OK\0")]);
    assert_eq!(ask(3, "data/a\0"), [reply(3, 7, "n1\0r5\0b6\0")]);
    assert_eq!(ask(14, "data/a\0x1\0"), [reply(16, 7, "EINVAL\0")]);
    assert_eq!(ask(13, "data/a\0"), [reply(13, 7, "OK\0")]);
    assert_eq!(ask(13, "/local\0"), [reply(16, 7, "EACCES\0")]);
    assert_eq!(ask(10, "12\0"), [reply(10, 7, "/local/domain/12\0")]);
    assert_eq!(ask(8, "3\x001\x001\0"), [reply(16, 7, "EACCES\0")], "INTRODUCE");
    assert_eq!(ask(15, ""), [reply(16, 7, "ENOSYS\0")]);
    assert_eq!(ask(99, ""), [reply(16, 7, "ENOSYS\0")]);
}

#[test]
fn several_requests_in_flight_and_partial_ones() {
    let (mut client, _) = Client::new();
    for id in 0..200 {
        client.send(11, id, 0, format!("data/k{id}\0{id}").as_bytes());
    }
    let acks: Vec<u32> = client.receive().iter().map(|m| m.req_id).collect();
    assert_eq!(acks, (0..200).collect::<Vec<_>>());
    client.put(&11u32.to_le_bytes());
    assert_eq!(client.receive(), []);
    client.put(&[1, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0]);
    client.put(b"data/k\0");
    assert_eq!(client.receive(), []);
    client.put(b"v");
    assert_eq!(client.receive(), [reply(11, 1, "OK\0")]);
    let long = "x".repeat(1900);
    assert_eq!(client.ask(11, &format!("data/long\0{long}")), [reply(11, 7, "OK\0")]);
    assert_eq!(client.ask(2, "data/long\0"), [reply(2, 7, &long)], "longer than the ring");
}

#[test]
fn watches_begin_with_an_event_and_see_what_is_theirs() {
    let (mut client, dom0) = Client::new();
    assert_eq!(
        client.ask(WATCH, "data\0tok\0"),
        [reply(WATCH, 7, "OK\0"), event("data", "tok")],
        "the answer first"
    );
    assert_eq!(client.ask(WATCH, "data\0tok\0"), [reply(16, 7, "EEXIST\0")]);
    client.ask(WATCH, "/local/domain/1/data/a/b\0abs\0");

    dom0.write("/local/domain/1/data/a/b", "1").unwrap();
    assert_eq!(
        client.receive(),
        [event("data/a/b", "tok"), event("/local/domain/1/data/a/b", "abs")]
    );
    dom0.rm("/local/domain/1/data/a").unwrap();
    assert_eq!(
        client.receive(),
        [event("/local/domain/1/data/a/b", "abs"), event("data/a", "tok")],
        "below the removed node: the watch's own path alone"
    );
    dom0.write("/local/domain/database", "").unwrap();
    dom0.write("/elsewhere", "").unwrap();
    assert_eq!(client.receive(), []);
    assert_eq!(client.ask(5, "data\0other\0"), [reply(16, 7, "ENOENT\0")]);
    assert_eq!(client.ask(5, "data\0tok\0"), [reply(5, 7, "OK\0")]);
    dom0.write("/local/domain/1/data/c", "").unwrap();
    assert_eq!(client.receive(), []);
    assert_eq!(client.machine.xenstored().nr_watches(client.domid), 1);
    assert_eq!(client.ask(21, "\0"), [reply(21, 7, "OK\0")]);
    assert_eq!(client.machine.xenstored().nr_watches(client.domid), 0);
}

#[test]
fn events_need_the_right_to_read() {
    let (mut client, dom0) = Client::new();
    dom0.mkdir("/secret").unwrap();
    client.ask(WATCH, "/secret\0s\0");
    client.ask(WATCH, "/open\0o\0");
    dom0.write("/secret/a", "1").unwrap();
    dom0.write("/open", "1").unwrap();
    assert_eq!(client.receive(), []);
    dom0.set_perms("/open", Perms::readable(DomId(0), client.domid)).unwrap();
    dom0.write("/open/a", "1").unwrap();
    assert_eq!(client.receive(), [event("/open", "o"), event("/open/a", "o")]);
    dom0.rm("/open").unwrap();
    assert_eq!(client.receive(), [event("/open", "o")], "it might read it while it was there");
}

#[test]
fn equal_events_queue_or_are_dropped_as_the_daemon_does() {
    let (mut client, dom0) = Client::new();
    client.ask(WATCH, "data/x\0t\0");
    for _ in 0..3 {
        dom0.write("/local/domain/1/data/x", "1").unwrap();
    }
    assert_eq!(client.receive(), vec![event("data/x", "t"); 3]);
    client.machine.xenstored().duplicates = DuplicateEvents::Drop;
    for _ in 0..3 {
        dom0.write("/local/domain/1/data/x", "1").unwrap();
    }
    assert_eq!(client.receive(), [event("data/x", "t")]);
}

#[test]
fn a_transactions_events_come_with_its_commit() {
    let (mut client, dom0) = Client::new();
    client.ask(WATCH, "data\0t\0");
    let within = dom0.begin().unwrap();
    within.write("/local/domain/1/data/b", "").unwrap();
    within.write("/local/domain/1/data/a", "").unwrap();
    within.write("/local/domain/1/data/b", "2").unwrap();
    assert_eq!(client.receive(), []);
    within.commit().unwrap();
    assert_eq!(client.receive(), [event("data/b", "t"), event("data/a", "t")]);

    let started = client.ask(TRANSACTION_START, "\0");
    assert_eq!(started, [reply(TRANSACTION_START, 7, "1\0")]);
    client.send(11, 8, 1, b"data/c\0v");
    client.send(TRANSACTION_END, 9, 1, b"F\0");
    let answers = client.receive();
    assert_eq!(answers.len(), 2, "no event of what was aborted: {answers:?}");
    client.ask(TRANSACTION_START, "\0");
    client.send(11, 8, 2, b"data/c\0v");
    assert_eq!(client.receive().len(), 1);
    dom0.write("/local/domain/1/data/d", "").unwrap();
    client.send(TRANSACTION_END, 9, 2, b"T\0");
    let end = Message { kind: 16, req_id: 9, tx_id: 2, payload: "EAGAIN\0".into() };
    assert_eq!(client.receive().last(), Some(&end));
    client.send(2, 9, 2, b"data/c\0");
    let gone = Message { kind: 16, req_id: 9, tx_id: 2, payload: "ENOENT\0".into() };
    assert_eq!(client.receive(), [gone]);
}

#[test]
fn quotas_of_watches_and_of_names() {
    let (mut client, dom0) = Client::new();
    for token in 0..128 {
        client.ask(WATCH, &format!("data\0{token}\0"));
    }
    assert_eq!(client.ask(WATCH, "data\x00129\0"), [reply(16, 7, "E2BIG\0")]);
    client.ask(21, "\0");
    let name = "n".repeat(200);
    for child in 0..30 {
        dom0.write(&format!("/local/domain/1/data/d/{name}{child:02}"), "").unwrap();
    }
    assert_eq!(client.ask(1, "data/d\0"), [reply(16, 7, "E2BIG\0")]);
    // In parts: 20 names of 203 bytes in the first message, 10 and the empty one in the second.
    let part = client.ask(22, "data/d\x000\0").remove(0);
    let names: Vec<&str> = part.payload.split('\0').collect();
    assert_eq!(names.len(), 22);
    let part = client.ask(22, "data/d\x004060\0").remove(0);
    assert!(part.payload.ends_with("29\0\0"), "{part:?}");
    assert_eq!(part.payload.split('\0').count(), 13);
}

#[test]
fn a_client_past_the_rings_or_the_payloads_end_is_not_listened_to() {
    let (client, _) = Client::new();
    client.page.store_u32(2052, 1025);
    client.notify();
    client.machine.step_xenstored();
    assert_eq!(client.machine.xenstored().broken(client.domid), Some(Broken::RingIndex));
    assert_eq!(client.page.load_u32(2072), 2);

    let (mut client, _) = Client::new();
    let mut bytes = [0; 16];
    bytes[12..].copy_from_slice(&4097u32.to_le_bytes());
    client.put(&bytes);
    while client.machine.step_xenstored() {}
    assert_eq!(client.machine.xenstored().broken(client.domid), Some(Broken::Protocol));
    assert_eq!(client.page.load_u32(2072), 3);
}

#[test]
fn who_does_not_notify_is_not_heard() {
    let (mut client, dom0) = Client::new();
    while client.machine.step_xenstored() {}
    let header: Vec<u8> = [2, 7, 0, 7].iter().flat_map(|w: &u32| w.to_le_bytes()).collect();
    for &byte in [&header[..], b"data/a\0"].concat().iter() {
        let prod = client.page.load_u32(2052);
        client.page.write((prod % 1024) as usize, &[byte]);
        client.page.store_u32(2052, prod + 1);
    }
    dom0.write("/unrelated", "").unwrap();
    while client.machine.step_xenstored() {}
    assert_eq!(client.page.load_u32(2048), 0, "still in the ring");
    client.notify();
    assert_eq!(client.receive(), [reply(16, 7, "ENOENT\0")]);
}

#[test]
fn requests_fail_on_demand() {
    let (mut client, _) = Client::new();
    client.machine.xenstored().request_faults.fail_nth(2, Errno::Enomem);
    assert_eq!(client.ask(2, "data\0"), [reply(2, 7, "")]);
    assert_eq!(client.ask(2, "data\0"), [reply(16, 7, "ENOMEM\0")]);
    assert_eq!(client.ask(2, "data\0"), [reply(2, 7, "")]);
}
