//! The client against a small xenstored, in whatever pieces the bytes come.

#![allow(clippy::unwrap_used, reason = "also in the tests' helpers")]

mod common;

use common::*;
use proptest::prelude::*;
use xenstore::{Change, Client, Error, Event, MAX_TRIES, Notify, Reply, Request};

/// An event that borrows nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Got {
    Done(usize),
    Value(usize, Vec<u8>),
    Names(usize, Vec<String>),
    Failed(usize, Error),
    Watch(String, String),
}

fn owned(event: &Event<'_, usize>) -> Got {
    match event {
        Event::Reply { tag, result: Ok(Reply::Done) } => Got::Done(*tag),
        Event::Reply { tag, result: Ok(Reply::Value(value)) } => Got::Value(*tag, value.to_vec()),
        Event::Reply { tag, result: Ok(Reply::Names(names)) } => {
            Got::Names(*tag, names.clone().map(String::from).collect())
        }
        Event::Reply { tag, result: Err(error) } => Got::Failed(*tag, *error),
        Event::Watch { path, token } => Got::Watch((*path).into(), (*token).into()),
        Event::Stray(stray) => panic!("{stray}"),
    }
}

/// Lets both sides run until nothing moves. `chunks` says how many bytes xenstored takes and puts
/// in each round.
fn run(
    client: &mut Client<usize>,
    page: &Page,
    xenstored: &mut Xenstored,
    chunks: impl IntoIterator<Item = (usize, usize)>,
) -> Vec<Got> {
    let mut got = Vec::new();
    let mut quiet = 0;
    for (take, put) in chunks {
        while let Some(event) = client.receive(page).unwrap() {
            got.push(owned(&event));
        }
        let notify = client.send(page).unwrap();
        xenstored.step(page, take, put);
        let empty = page.get(RSP_PROD) == page.get(RSP_CONS);
        quiet = if notify == Notify::No && xenstored.idle() && empty { quiet + 1 } else { 0 };
        if quiet == 2 {
            return got;
        }
    }
    panic!("still talking");
}

fn at_once() -> impl Iterator<Item = (usize, usize)> {
    std::iter::repeat_n((usize::MAX, usize::MAX), 100_000)
}

fn write(path: &str, value: &str) -> Change {
    Change::Write(path.into(), value.into())
}

#[test]
fn eagain_is_tried_sixteen_times() {
    for refused in [0, 1, MAX_TRIES - 1, MAX_TRIES, MAX_TRIES + 1] {
        let page = Page::new(0);
        let (mut client, mut xenstored) = (Client::new(&page), Xenstored::new());
        xenstored.refuse_commits = refused;
        client.transact(vec![write("a", "1"), write("b", "2")], 1).unwrap();
        let got = run(&mut client, &page, &mut xenstored, at_once());
        let written = xenstored.nodes.contains_key("/local/domain/3/a");
        let nr_tries = xenstored.nr_messages / 4;
        if refused < MAX_TRIES {
            assert_eq!((got, written), (vec![Got::Done(1)], true));
            assert_eq!(nr_tries, refused as usize + 1);
        } else {
            assert_eq!((got, written), (vec![Got::Failed(1, Error::Eagain)], false));
            assert_eq!(nr_tries, 16);
        }
    }
}

#[test]
fn a_transaction_that_fails_changes_nothing() {
    let page = Page::new(0);
    let (mut client, mut xenstored) = (Client::new(&page), Xenstored::new());
    xenstored.forbidden = Some("backend".into());
    client.transact(vec![write("a", "1"), Change::Remove("backend".into())], 1).unwrap();
    client.transact(vec![write("b", "2")], 2).unwrap();
    let got = run(&mut client, &page, &mut xenstored, at_once());
    assert_eq!(got, [Got::Failed(1, Error::Eacces), Got::Done(2)]);
    assert!(!xenstored.nodes.contains_key("/local/domain/3/a"));
    assert_eq!(xenstored.nodes["/local/domain/3/b"], b"2");
}

#[test]
fn a_transaction_takes_effect_where_it_finds_what_it_expects() {
    for (found, is_expected) in
        [(Some("1"), true), (Some("11"), false), (Some(""), false), (None, false)]
    {
        let page = Page::new(0);
        let (mut client, mut xenstored) = (Client::new(&page), Xenstored::new());
        if let Some(found) = found {
            xenstored.nodes.insert("/local/domain/3/a".into(), found.into());
        }
        let expect = Change::Expect("a".into(), b"1".to_vec());
        client.transact(vec![write("b", "2"), expect], 1).unwrap();
        let got = run(&mut client, &page, &mut xenstored, at_once());
        let expected = if is_expected { Got::Done(1) } else { Got::Failed(1, Error::Unexpected) };
        assert_eq!(got, [expected], "{found:?}");
        assert_eq!(xenstored.nodes.contains_key("/local/domain/3/b"), is_expected, "{found:?}");
    }
}

#[test]
fn many_names_are_listed_also_when_they_change_meanwhile() {
    for create_meanwhile in [None, Some("backend/vbd/new")] {
        let page = Page::new(500);
        let (mut client, mut xenstored) = (Client::new(&page), Xenstored::new());
        xenstored.nodes.insert("/local/domain/3/backend/vbd".into(), Vec::new());
        let mut names: Vec<String> = (0..2000).map(|domid| format!("{domid:04}")).collect();
        for name in &names {
            xenstored.nodes.insert(format!("/local/domain/3/backend/vbd/{name}"), Vec::new());
        }
        client.submit(Request::Directory("backend/vbd"), 1).unwrap();
        xenstored.create_meanwhile = create_meanwhile.map(String::from);
        let got = run(&mut client, &page, &mut xenstored, at_once());
        // One DIRECTORY, three parts; with the change, the first part and three again.
        assert_eq!(
            xenstored.nr_messages,
            if create_meanwhile.is_some() { 1 + 2 + 3 } else { 1 + 3 }
        );
        names.extend(create_meanwhile.map(|_| "new".into()));
        assert_eq!(got, [Got::Names(1, names)]);
    }
}

#[test]
fn a_watch_fires_at_once_and_at_changes_below_until_it_is_ended() {
    let page = Page::new(0);
    let (mut client, mut xenstored) = (Client::new(&page), Xenstored::new());
    let watch = Got::Watch("backend/vbd".into(), "v 1".into());
    client.submit(Request::Watch { path: "backend/vbd", token: "v 1" }, 1).unwrap();
    assert_eq!(run(&mut client, &page, &mut xenstored, at_once()), [watch, Got::Done(1)]);
    client.submit(Request::Write("backend/vbd/7", b""), 2).unwrap();
    let event = Got::Watch("backend/vbd/7".into(), "v 1".into());
    assert_eq!(run(&mut client, &page, &mut xenstored, at_once()), [event, Got::Done(2)]);
    client.submit(Request::Unwatch { path: "backend/vbd", token: "v 1" }, 3).unwrap();
    client.submit(Request::Write("backend/vbd/7", b""), 4).unwrap();
    client.submit(Request::Unwatch { path: "backend/vbd", token: "v 1" }, 5).unwrap();
    client.submit(Request::ResetWatches, 6).unwrap();
    let got = run(&mut client, &page, &mut xenstored, at_once());
    assert_eq!(got, [Got::Done(3), Got::Done(4), Got::Failed(5, Error::Enoent), Got::Done(6)]);
}

/// One thing to ask, on a few nodes so that they meet.
#[derive(Clone, Debug)]
enum Ask {
    Read(u8),
    Write(u8, usize),
    Remove(u8),
    Mkdir(u8),
    Directory,
    Transact(Vec<(u8, usize)>),
}

fn ask() -> impl Strategy<Value = Ask> {
    let node = 0..6_u8;
    prop_oneof![
        node.clone().prop_map(Ask::Read),
        (node.clone(), 0..4000_usize).prop_map(|(node, len)| Ask::Write(node, len)),
        node.clone().prop_map(Ask::Remove),
        node.clone().prop_map(Ask::Mkdir),
        Just(Ask::Directory),
        prop::collection::vec((node, 0..1500_usize), 0..5).prop_map(Ask::Transact),
    ]
}

fn path(node: u8) -> String {
    format!("data/{node}-with-a-name-of-some-length")
}

fn value(tag: usize, len: usize) -> Vec<u8> {
    (tag..tag + len).map(|byte| u8::try_from(byte % 256).unwrap()).collect()
}

fn submit(client: &mut Client<usize>, ask: &Ask, tag: usize) {
    match ask {
        Ask::Read(node) => client.submit(Request::Read(&path(*node)), tag),
        Ask::Write(node, len) => {
            client.submit(Request::Write(&path(*node), &value(tag, *len)), tag)
        }
        Ask::Remove(node) => client.submit(Request::Remove(&path(*node)), tag),
        Ask::Mkdir(node) => client.submit(Request::Mkdir(&path(*node)), tag),
        Ask::Directory => client.submit(Request::Directory("data"), tag),
        Ask::Transact(writes) => {
            let change = |(node, len): &(u8, usize)| Change::Write(path(*node), value(tag, *len));
            client.transact(writes.iter().map(change).collect(), tag)
        }
    }
    .unwrap();
}

#[test]
fn watches_are_counted_as_xenstored_has_them() {
    let page = Page::new(0);
    let (mut client, mut xenstored) = (Client::new(&page), Xenstored::new());
    let mut ask = |requests: &[Request<'_>]| {
        for &request in requests {
            client.submit(request, 0).unwrap();
        }
        let before = client.nr_watches();
        run(&mut client, &page, &mut xenstored, at_once());
        (before, client.nr_watches())
    };
    let watch = |path| Request::Watch { path, token: "t" };
    let unwatch = |path| Request::Unwatch { path, token: "t" };
    assert_eq!(ask(&[watch("a"), watch("b"), Request::Read("a")]), (0, 2));
    assert_eq!(ask(&[unwatch("c"), unwatch("a")]), (2, 1), "there is none on c");
    assert_eq!(ask(&[watch("a"), Request::ResetWatches]), (1, 0));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// However the bytes are cut, and however many requests are in flight: the same answers as one
    /// at a time with whole messages, where transactions are not mixed in, and one answer each.
    #[test]
    fn pieces_change_nothing(
        asks in prop::collection::vec(ask(), 1..12),
        start: u32,
        directory_max in 32..200_usize,
        refuse_commits in 0..4_u32,
        chunks in prop::collection::vec((0..300_usize, 0..300_usize), 1..20),
    ) {
        let alone = |ask: &[Ask], max, chunks: &mut dyn Iterator<Item = (usize, usize)>| {
            let page = Page::new(start);
            let (mut client, mut xenstored) = (Client::new(&page), Xenstored::new());
            xenstored.nodes.insert("/local/domain/3/data".into(), Vec::new());
            xenstored.directory_max = max;
            xenstored.refuse_commits = refuse_commits;
            for (tag, ask) in ask.iter().enumerate() {
                submit(&mut client, ask, tag);
            }
            let got = run(&mut client, &page, &mut xenstored, chunks);
            assert_eq!(page.nr_read.get(), xenstored.nr_output, "each byte is fetched once");
            (got, xenstored.nodes)
        };
        // A chunk of zero bytes both ways moves nothing for ever.
        let moving = chunks.iter().map(|(take, put)| (take + 1, put + 1));
        let mut cut = moving.cycle().take(10_000_000);
        let (mut got, nodes) = alone(&asks, directory_max, &mut cut);
        let tag = |got: &Got| match got {
            Got::Done(tag) | Got::Value(tag, _) | Got::Names(tag, _) | Got::Failed(tag, _) => *tag,
            Got::Watch(..) => usize::MAX,
        };
        got.sort_by_key(tag);
        prop_assert_eq!(got.iter().map(tag).collect::<Vec<_>>(), (0..asks.len()).collect::<Vec<_>>());
        if asks.iter().any(|ask| matches!(ask, Ask::Transact(_))) {
            let failed = got.iter().any(|got| {
                matches!(got, Got::Failed(tag, _) if matches!(asks[*tag], Ask::Transact(_)))
            });
            prop_assert!(!failed, "every transaction is committed");
        } else if !asks.iter().any(|ask| matches!(ask, Ask::Directory)) {
            // Directories in parts are read later than their turn.
            let (whole, expected) = alone(&asks, 4096, &mut at_once());
            prop_assert_eq!(got, whole);
            prop_assert_eq!(nodes, expected);
        }
    }
}
