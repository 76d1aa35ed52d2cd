//! Exact bytes out, and what is made of exact bytes in.

#![allow(clippy::unwrap_used, reason = "also in the tests' helpers")]

mod common;

use common::*;
use xen_abi::DomId;
use xenstore::{
    Access, Change, Client, Error, Event, Notify, Perms, ProtocolError, Reply, Request, Stray,
    SubmitError,
};

fn connect() -> (Page, Client<u32>) {
    let page = Page::new(0);
    let client = Client::new(&page);
    (page, client)
}

/// What the client has put on the ring, in one go.
fn sent(client: &mut Client<u32>, page: &Page) -> Vec<u8> {
    assert_eq!(client.send(page), Ok(Notify::Yes));
    page.take(usize::MAX)
}

fn answered<'a>(tag: u32, result: Result<Reply<'a>, Error>) -> Option<Event<'a, u32>> {
    Some(Event::Reply { tag, result })
}

#[test]
fn requests_read_as_the_protocol_asks() {
    let perms = Perms::new(DomId(0), Access::None).and(DomId(3), Access::Read);
    for (request, kind, payload) in [
        (Request::Read("a/b"), READ, &b"a/b\0"[..]),
        (Request::Directory("/local"), DIRECTORY, b"/local\0"),
        (Request::Write("state", b"2"), WRITE, b"state\x002"),
        (Request::Write("empty", b""), WRITE, b"empty\0"),
        (Request::Mkdir("d"), MKDIR, b"d\0"),
        (Request::Remove("d"), RM, b"d\0"),
        (Request::SetPerms("d", &perms), SET_PERMS, b"d\0n0\0r3\0"),
        (Request::Watch { path: "backend/vbd", token: "v" }, WATCH, b"backend/vbd\0v\0"),
        (Request::Unwatch { path: "backend/vbd", token: "v" }, UNWATCH, b"backend/vbd\0v\0"),
        (Request::ResetWatches, RESET_WATCHES, b"\0"),
    ] {
        let (page, mut client) = connect();
        client.submit(request, 0).unwrap();
        assert_eq!(sent(&mut client, &page), message(kind, 1, 0, payload), "{request:?}");
        assert_eq!(client.send(&page), Ok(Notify::No));
    }
}

#[test]
fn answers_find_their_requests_in_any_order() {
    let (page, mut client) = connect();
    client.submit(Request::Read("a"), 10).unwrap();
    client.submit(Request::Directory("b"), 20).unwrap();
    client.submit(Request::Write("c", b"x"), 30).unwrap();
    client.submit(Request::Read("d"), 40).unwrap();
    let expected = [
        message(READ, 1, 0, b"a\0"),
        message(DIRECTORY, 2, 0, b"b\0"),
        message(WRITE, 3, 0, b"c\0x"),
        message(READ, 4, 0, b"d\0"),
    ];
    assert_eq!(sent(&mut client, &page), expected.concat());

    page.put_all(&message(ERROR_REPLY, 4, 0, b"ENOENT\0"));
    page.put_all(&message(WRITE, 3, 0, b"OK\0"));
    page.put_all(&message(DIRECTORY, 2, 0, b"x\0yz\0"));
    page.put_all(&message(READ, 1, 0, b"any\0\xff"));
    assert_eq!(client.receive(&page).unwrap(), answered(40, Err(Error::Enoent)));
    assert_eq!(client.receive(&page).unwrap(), answered(30, Ok(Reply::Done)));
    let Some(Event::Reply { tag: 20, result: Ok(Reply::Names(names)) }) =
        client.receive(&page).unwrap()
    else {
        panic!("not the names");
    };
    assert_eq!(names.collect::<Vec<_>>(), ["x", "yz"]);
    assert_eq!(client.receive(&page).unwrap(), answered(10, Ok(Reply::Value(b"any\0\xff"))));
    assert_eq!(client.receive(&page).unwrap(), None);
}

#[test]
fn a_value_may_be_empty() {
    let (page, mut client) = connect();
    client.submit(Request::Read("a"), 1).unwrap();
    page.put_all(&message(READ, 1, 0, b""));
    assert_eq!(client.receive(&page).unwrap(), answered(1, Ok(Reply::Value(b""))));
}

#[test]
fn a_malformed_answer_is_that_requests_error() {
    for (request, kind, payload) in [
        (Request::Read("a"), WRITE, &b"OK\0"[..]),
        (Request::Write("a", b""), READ, b"x"),
        (Request::Read("a"), 0xffff, b""),
        (Request::Directory("a"), DIRECTORY, b"x"),
        (Request::Directory("a"), DIRECTORY, b"\0"),
        (Request::Directory("a"), DIRECTORY, b"\xff\0"),
        (Request::Directory("a"), DIRECTORY_PART, b"1\0x\0\0"),
    ] {
        let (page, mut client) = connect();
        client.submit(request, 7).unwrap();
        page.put_all(&message(kind, 1, 0, payload));
        let event = client.receive(&page).unwrap();
        assert_eq!(event, answered(7, Err(Error::BadReply)), "{request:?} {kind}");
    }
}

#[test]
fn a_message_that_answers_nothing_is_a_stray_and_harms_nothing() {
    let (page, mut client) = connect();
    client.submit(Request::Read("a"), 5).unwrap();
    for (bytes, stray) in [
        (message(READ, 2, 0, b"x"), Stray::Reply { kind: READ, req_id: 2 }),
        (message(ERROR_REPLY, 0, 0, b"EIO\0"), Stray::Reply { kind: 16, req_id: 0 }),
        (message(99, u32::MAX, 1, b""), Stray::Reply { kind: 99, req_id: u32::MAX }),
        (message(WATCH_EVENT, 0, 0, b""), Stray::Watch { len_bytes: 0 }),
        (message(WATCH_EVENT, 0, 0, b"path\0tok"), Stray::Watch { len_bytes: 8 }),
        (message(WATCH_EVENT, 0, 0, b"p\xc3\0t\0"), Stray::Watch { len_bytes: 5 }),
    ] {
        page.put_all(&bytes);
        assert_eq!(client.receive(&page).unwrap(), Some(Event::Stray(stray)));
    }
    page.put_all(&message(READ, 1, 0, b"v"));
    page.put_all(&message(READ, 1, 0, b"v"));
    assert_eq!(client.receive(&page).unwrap(), answered(5, Ok(Reply::Value(b"v"))));
    let again = Stray::Reply { kind: READ, req_id: 1 };
    assert_eq!(client.receive(&page).unwrap(), Some(Event::Stray(again)));
}

#[test]
fn watch_events_come_one_at_a_time_and_wait_in_the_ring() {
    let (page, mut client) = connect();
    let event = message(WATCH_EVENT, 0, 0, b"backend/vbd/7/51712/state\0vbd\0");
    let mut nr_put = 0;
    while page.put(&event, if 1024 - nr_put * event.len() < event.len() { 0 } else { 1024 }) > 0 {
        nr_put += 1;
    }
    for taken in 1..=nr_put {
        let path = "backend/vbd/7/51712/state";
        let got = client.receive(&page).unwrap();
        assert_eq!(got, Some(Event::Watch { path, token: "vbd" }));
        assert_eq!(page.get(RSP_CONS) as usize, taken * event.len());
    }
    assert_eq!(client.receive(&page).unwrap(), None);
    assert_eq!(client.send(&page), Ok(Notify::Yes), "space was freed");
    assert_eq!(client.send(&page), Ok(Notify::No));
}

#[test]
fn a_message_may_come_in_pieces_and_wrap_anywhere() {
    let (first, second) =
        (message(READ, 1, 0, b"the value"), message(WATCH_EVENT, 0, 0, b"p\0t\0"));
    let both = [first, second].concat();
    for start in (0..1024).step_by(7).chain(1000..1024).chain([u32::MAX - 20]) {
        for split in 0..=both.len() {
            let page = Page::new(start);
            let mut client = Client::new(&page);
            client.submit(Request::Read("a"), 1).unwrap();
            page.put_all(&both[..split]);
            let mut events = 0;
            let mut drain = |client: &mut Client<u32>| {
                while let Some(event) = client.receive(&page).unwrap() {
                    match events {
                        0 => assert_eq!(Some(event), answered(1, Ok(Reply::Value(b"the value")))),
                        _ => assert_eq!(event, Event::Watch { path: "p", token: "t" }),
                    }
                    events += 1;
                }
            };
            drain(&mut client);
            page.put_all(&both[split..]);
            drain(&mut client);
            assert_eq!(events, 2, "start {start} split {split}");
            assert_eq!(page.nr_read.get(), both.len(), "each byte is fetched once");
        }
    }
}

#[test]
fn a_message_may_be_longer_than_the_ring() {
    for start in [0, 1000, u32::MAX - 5] {
        let page = Page::new(start);
        let mut client = Client::new(&page);
        let value: Vec<u8> = (0..=255).cycle().take(4094).collect();
        client.submit(Request::Write("v", &value), 1).unwrap();
        let mut out = Vec::new();
        for len in [1024, 1024, 1024, 1024, 16] {
            assert_eq!(client.send(&page), Ok(Notify::Yes));
            assert_eq!(client.send(&page), Ok(Notify::No), "the ring is full or all is sent");
            let bytes = page.take(usize::MAX);
            assert_eq!(bytes.len(), len);
            out.extend(bytes);
        }
        assert_eq!(out, message(WRITE, 1, 0, &[b"v\0", &value[..]].concat()));
        assert_eq!(page.nr_written.get(), out.len());

        client.submit(Request::Read("v"), 2).unwrap();
        let mut answer = &message(READ, 2, 0, &value)[..];
        while answer.len() > 1024 {
            let put = page.put(answer, usize::MAX);
            answer = &answer[put..];
            assert_eq!(client.receive(&page).unwrap(), None);
            assert_eq!(client.send(&page), Ok(Notify::Yes));
        }
        page.put_all(answer);
        assert_eq!(client.receive(&page).unwrap(), answered(2, Ok(Reply::Value(&value))));
    }
}

#[test]
fn a_request_index_out_of_range_ends_the_connection() {
    for (start, consumed, error) in [
        (0, 1, true),
        (5, 4, false),
        (5, 6, true),
        (2000, 976, false),
        (2000, 975, true),
        (3, 4_294_966_275, false),
        (3, 4_294_966_274, true),
    ] {
        let page = Page::new(start);
        let mut client = Client::<u32>::new(&page);
        page.set(REQ_CONS, consumed);
        let expected = ProtocolError::RequestIndex { consumed, produced: start };
        let got = client.send(&page);
        assert_eq!(got, if error { Err(expected) } else { Ok(Notify::No) }, "{start} {consumed}");
    }
}

#[test]
fn a_response_index_out_of_range_ends_the_connection() {
    for (start, produced) in [(0, 1025), (5, 4), (u32::MAX, 1024), (0, u32::MAX)] {
        let page = Page::new(start);
        let mut client = Client::<u32>::new(&page);
        page.set(RSP_PROD, produced);
        let error = ProtocolError::ResponseIndex { consumed: start, produced };
        assert_eq!(client.receive(&page), Err(error));
        assert_eq!(client.receive(&page), Err(error));
        assert_eq!(page.nr_read.get(), 0, "no byte of a broken ring is read");
        assert_eq!(page.get(RSP_CONS), start);
    }
}

#[test]
fn a_length_over_4096_ends_the_connection() {
    for len_bytes in [4097, u32::MAX] {
        let (page, mut client) = connect();
        let mut bytes = message(READ, 1, 0, &[0; 100]);
        bytes[12..16].copy_from_slice(&len_bytes.to_le_bytes());
        page.put_all(&bytes);
        let error = ProtocolError::MessageTooLong { len_bytes, max_bytes: 4096 };
        assert_eq!(client.receive(&page), Err(error));
        assert_eq!(client.receive(&page), Err(error), "and stays ended");
        assert_eq!(page.get(RSP_CONS), 16);
    }
}

#[test]
fn a_xenstored_that_gave_up_is_noticed_if_it_can_say_so() {
    let (page, mut client) = connect();
    page.set(ERROR, 2);
    assert_eq!(client.receive(&page), Ok(None));
    page.set(SERVER_FEATURES, 2);
    page.put_all(&message(WATCH_EVENT, 0, 0, b"p\0t\0"));
    assert_eq!(client.receive(&page), Ok(Some(Event::Watch { path: "p", token: "t" })));
    assert_eq!(client.receive(&page), Err(ProtocolError::Disconnected { code: 2 }));
    page.set(ERROR, 0);
    assert_eq!(client.receive(&page), Ok(None));
}

#[test]
fn the_queue_is_bounded_and_frees_what_is_answered() {
    let page = Page::new(0);
    let mut client = Client::with_bound(&page, 96);
    let write = Request::Write("abc", b"0123456789012345678901234567");
    client.submit(write, 1).unwrap();
    client.submit(write, 2).unwrap();
    let full = |needed_bytes, held_bytes| {
        Err(SubmitError::QueueFull { needed_bytes, held_bytes, bound_bytes: 96 })
    };
    assert_eq!(client.submit(write, 3), full(48, 96));
    assert_eq!(client.submit(Request::Directory("d"), 3), full(16 + 2 + 12, 96));
    assert_eq!(client.transact(vec![], 3), full(18, 96));
    assert_eq!(sent(&mut client, &page).len(), 96, "what was refused is not sent");
    assert_eq!(client.submit(write, 3), full(48, 96));
    page.put_all(&message(ERROR_REPLY, 1, 0, b"EACCES\0"));
    assert_eq!(client.receive(&page).unwrap(), answered(1, Err(Error::Eacces)));
    client.submit(write, 3).unwrap();

    page.put_all(&message(WRITE, 2, 0, b"OK\0"));
    page.put_all(&message(WRITE, 3, 0, b"OK\0"));
    assert_eq!(client.receive(&page).unwrap(), answered(2, Ok(Reply::Done)));
    assert_eq!(client.receive(&page).unwrap(), answered(3, Ok(Reply::Done)));
    let changes = vec![Change::Write("a".into(), b"x".to_vec()), Change::Remove("b".into())];
    assert_eq!(client.transact(changes.clone(), 4), Ok(()));
    assert_eq!(client.transact(changes, 5), full(18 + 2 * 19 + 2 * 18, 18 + 2 * 19 + 2 * 18));
}

#[test]
fn what_breaks_a_limit_is_not_queued() {
    let (page, mut client) = connect();
    let error = SubmitError::PayloadTooLong { len_bytes: 4097, max_bytes: 4096 };
    assert_eq!(client.submit(Request::Write("a", &[0; 4095]), 1), Err(error));
    let changes = vec![Change::Remove("a".into()), Change::Write("a".into(), vec![0; 4095])];
    assert_eq!(client.transact(changes, 1), Err(error));
    assert_eq!(client.submit(Request::Read("a\0"), 1), Err(SubmitError::ContainsNul { offset: 1 }));
    assert_eq!(client.send(&page), Ok(Notify::No));
    client.submit(Request::Read("a"), 1).unwrap();
    assert_eq!(sent(&mut client, &page), message(READ, 1, 0, b"a\0"));
}

/// Drives a transaction of two changes to the answers of both, which are `first` and `second`.
fn transaction_until_end(page: &Page, client: &mut Client<u32>, first: &[u8], second: &[u8]) {
    let changes = vec![Change::Write("a".into(), b"1".to_vec()), Change::Remove("b".into())];
    client.transact(changes, 9).unwrap();
    assert_eq!(sent(client, page), message(TRANSACTION_START, 1, 0, b"\0"));
    page.put_all(&message(TRANSACTION_START, 1, 0, b"77\0"));
    assert_eq!(client.receive(page).unwrap(), None);
    let pipelined = [message(WRITE, 2, 77, b"a\x001"), message(RM, 3, 77, b"b\0")].concat();
    assert_eq!(sent(client, page), pipelined);
    page.put_all(second);
    assert_eq!(client.receive(page).unwrap(), None);
    assert_eq!(client.send(page), Ok(Notify::Yes), "for the consumed bytes");
    assert_eq!(page.take(usize::MAX), b"", "the end waits for every answer");
    page.put_all(first);
    assert_eq!(client.receive(page).unwrap(), None);
}

#[test]
fn a_transaction_commits() {
    let (page, mut client) = connect();
    let (write, rm) = (message(WRITE, 2, 77, b"OK\0"), message(RM, 3, 77, b"OK\0"));
    transaction_until_end(&page, &mut client, &write, &rm);
    assert_eq!(sent(&mut client, &page), message(TRANSACTION_END, 4, 77, b"T\0"));
    page.put_all(&message(TRANSACTION_END, 4, 77, b"OK\0"));
    assert_eq!(client.receive(&page).unwrap(), answered(9, Ok(Reply::Done)));
}

#[test]
fn a_failed_change_aborts_and_the_first_error_is_the_answer() {
    let (eacces, enospc) = (&b"EACCES\0"[..], &b"ENOSPC\0"[..]);
    let ok = || message(WRITE, 2, 77, b"OK\0");
    for (first, second, error) in [
        (message(ERROR_REPLY, 2, 77, eacces), message(RM, 3, 77, b"OK\0"), Error::Eacces),
        (ok(), message(ERROR_REPLY, 3, 77, enospc), Error::Enospc),
        // The second arrives first.
        (message(ERROR_REPLY, 2, 77, eacces), message(ERROR_REPLY, 3, 77, enospc), Error::Enospc),
        (ok(), message(WRITE, 3, 77, b"OK\0"), Error::BadReply),
    ] {
        // However the abort itself ends.
        for end in
            [message(TRANSACTION_END, 4, 77, b"OK\0"), message(ERROR_REPLY, 4, 77, b"EAGAIN\0")]
        {
            let (page, mut client) = connect();
            transaction_until_end(&page, &mut client, &first, &second);
            assert_eq!(sent(&mut client, &page), message(TRANSACTION_END, 4, 77, b"F\0"));
            page.put_all(&end);
            assert_eq!(client.receive(&page).unwrap(), answered(9, Err(error)));
            assert_eq!(client.send(&page), Ok(Notify::Yes));
            assert_eq!(page.take(usize::MAX), b"", "no other try");
        }
    }
}

#[test]
fn a_transaction_is_begun_again_whole_on_eagain() {
    let (page, mut client) = connect();
    let (write, rm) = (message(WRITE, 2, 77, b"OK\0"), message(RM, 3, 77, b"OK\0"));
    transaction_until_end(&page, &mut client, &write, &rm);
    assert_eq!(sent(&mut client, &page), message(TRANSACTION_END, 4, 77, b"T\0"));
    page.put_all(&message(ERROR_REPLY, 4, 77, b"EAGAIN\0"));
    assert_eq!(client.receive(&page).unwrap(), None);
    assert_eq!(sent(&mut client, &page), message(TRANSACTION_START, 5, 0, b"\0"));
    page.put_all(&message(TRANSACTION_START, 5, 0, b"4294967295\0"));
    assert_eq!(client.receive(&page).unwrap(), None);
    let pipelined =
        [message(WRITE, 6, u32::MAX, b"a\x001"), message(RM, 7, u32::MAX, b"b\0")].concat();
    assert_eq!(sent(&mut client, &page), pipelined);
}

#[test]
fn a_transaction_whose_start_fails_is_answered_and_the_next_begins() {
    for (start, error) in [
        (message(ERROR_REPLY, 1, 0, b"EQUOTA\0"), Error::Equota),
        (message(TRANSACTION_START, 1, 0, b"0\0"), Error::BadReply),
        (message(TRANSACTION_START, 1, 0, b"x\0"), Error::BadReply),
        (message(TRANSACTION_END, 1, 0, b"OK\0"), Error::BadReply),
    ] {
        let (page, mut client) = connect();
        client.transact(vec![], 1).unwrap();
        client.transact(vec![], 2).unwrap();
        assert_eq!(sent(&mut client, &page), message(TRANSACTION_START, 1, 0, b"\0"));
        page.put_all(&start);
        assert_eq!(client.receive(&page).unwrap(), answered(1, Err(error)));
        assert_eq!(sent(&mut client, &page), message(TRANSACTION_START, 2, 0, b"\0"));
        // One without changes ends at once.
        page.put_all(&message(TRANSACTION_START, 2, 0, b"5\0"));
        assert_eq!(client.receive(&page).unwrap(), None);
        assert_eq!(sent(&mut client, &page), message(TRANSACTION_END, 3, 5, b"T\0"));
        page.put_all(&message(TRANSACTION_END, 3, 5, b"OK\0"));
        assert_eq!(client.receive(&page).unwrap(), answered(2, Ok(Reply::Done)));
    }
}

#[test]
fn a_directory_too_big_for_one_message_is_read_in_parts() {
    let (page, mut client) = connect();
    client.submit(Request::Directory("d"), 6).unwrap();
    assert_eq!(sent(&mut client, &page), message(DIRECTORY, 1, 0, b"d\0"));
    page.put_all(&message(ERROR_REPLY, 1, 0, b"E2BIG\0"));
    assert_eq!(client.receive(&page).unwrap(), None);
    assert_eq!(sent(&mut client, &page), message(DIRECTORY_PART, 2, 0, b"d\x000\0"));
    page.put_all(&message(DIRECTORY_PART, 2, 0, b"8\0ab\0c\0"));
    assert_eq!(client.receive(&page).unwrap(), None);
    assert_eq!(sent(&mut client, &page), message(DIRECTORY_PART, 3, 0, b"d\x005\0"));
    page.put_all(&message(DIRECTORY_PART, 3, 0, b"8\0def\0\0"));
    let Some(Event::Reply { tag: 6, result: Ok(Reply::Names(names)) }) =
        client.receive(&page).unwrap()
    else {
        panic!("not the names");
    };
    assert_eq!(names.collect::<Vec<_>>(), ["ab", "c", "def"]);
}

#[test]
fn a_part_may_fail_and_all_that_was_held_is_freed() {
    for (part, error) in [
        (message(ERROR_REPLY, 2, 0, b"ENOSYS\0"), Error::Enosys),
        (message(DIRECTORY, 2, 0, b"8\0a\0\0"), Error::BadReply),
        (message(DIRECTORY_PART, 2, 0, b"8\0\xff\0\0"), Error::BadReply),
        // More names than the bound leaves room for.
        (message(DIRECTORY_PART, 2, 0, &[b"8\0", &[b'a'; 71][..], b"\0"].concat()), Error::E2big),
    ] {
        let page = Page::new(0);
        let mut client = Client::with_bound(&page, 101);
        for tag in 0..10 {
            client.submit(Request::Directory("d"), tag).unwrap();
            let req_id = 2 * tag + 1;
            page.put_all(&message(ERROR_REPLY, req_id, 0, b"E2BIG\0"));
            assert_eq!(client.receive(&page).unwrap(), None);
            let mut part = part.clone();
            part[4..8].copy_from_slice(&(req_id + 1).to_le_bytes());
            page.put_all(&part);
            assert_eq!(client.receive(&page).unwrap(), answered(tag, Err(error)));
        }
    }
}

#[test]
fn names_count_until_all_are_there() {
    let page = Page::new(0);
    // Room for the request and five bytes of names.
    let mut client = Client::with_bound(&page, 30 + 5);
    for tag in 0..10 {
        client.submit(Request::Directory("d"), tag).unwrap();
        let req_id = 3 * tag + 1;
        page.put_all(&message(ERROR_REPLY, req_id, 0, b"E2BIG\0"));
        page.put_all(&message(DIRECTORY_PART, req_id + 1, 0, b"8\0ab\0c\0"));
        assert_eq!(client.receive(&page).unwrap(), None);
        let full = SubmitError::QueueFull { needed_bytes: 18, held_bytes: 35, bound_bytes: 35 };
        assert_eq!(client.submit(Request::Read("d"), 99), Err(full));
        page.put_all(&message(DIRECTORY_PART, req_id + 2, 0, b"8\0def\0\0"));
        let Some(Event::Reply { result: Ok(Reply::Names(names)), .. }) =
            client.receive(&page).unwrap()
        else {
            panic!("not the names");
        };
        assert_eq!(names.count(), 3);
    }
}
