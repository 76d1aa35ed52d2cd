//! dom0's commands, as its client writes them into xenstore.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::time::Duration;

use blkif::{Operation, Request, RequestId, Sector, Segment, Segments, Transfer};
use sim::toolstack::{Detach, Device, DiskSpec};
use sim::{FrontendConfig, GrantAccess, Lab, Load};
use xen_abi::{DomId, GrantRef};

const DOM0: DomId = DomId(0);

fn node(lab: &Lab, name: &str) -> String {
    format!("/local/domain/{}/data/{name}", lab.domid())
}

fn write_request(lab: &Lab, text: &str) {
    lab.machine().xs(DOM0).write(&node(lab, "request"), text).unwrap();
}

/// What stands in the response node, if anything does.
fn response(lab: &Lab) -> Option<String> {
    lab.machine().xs(DOM0).get(&node(lab, "response")).filter(|text| !text.is_empty())
}

/// Asks, and reads the first part of the answer.
fn ask(lab: &mut Lab, text: &str) -> String {
    write_request(lab, text);
    lab.settle();
    assert_eq!(lab.machine().xs(DOM0).read(&node(lab, "request")).unwrap(), "", "taken");
    response(lab).unwrap()
}

/// Runs a command; its answer's body.
fn run(lab: &mut Lab, command: &str) -> Result<String, String> {
    let id = format!("t{}", lab.rng().below(u64::MAX / 2) % 1_000_000_000);
    let mut answer = ask(lab, &format!("{id} {command}"));
    let mut all = String::new();
    let verdict = loop {
        let (head, body) = answer.split_once('\n').unwrap();
        all.push_str(body);
        let [told, part, verdict] = head.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{head}")
        };
        let (n, nr) = part.split_once('/').unwrap();
        assert_eq!(told, id);
        if n == nr {
            break verdict.to_string();
        }
        let next = n.parse::<u32>().unwrap() + 1;
        answer = ask(lab, &format!("{id} part {next}"));
    };
    write_request(lab, &format!("{id} part 0"));
    lab.settle();
    assert_eq!(response(lab), None, "removed when read");
    match verdict.as_str() {
        "ok" => Ok(all),
        "error" => Err(all),
        other => panic!("{other}"),
    }
}

fn lab(seed: u64) -> Lab {
    Lab::new(seed).memory_pages(2000).module(vec![7; 1 << 20]).cmdline("disk=gold,module=0").start()
}

#[test]
fn what_there_is_is_listed() {
    let mut lab = lab(1);
    let guest = lab.create_guest();
    lab.attach(guest, "xvda", "gold,cow=home");
    lab.attach(guest, "xvdb", "ram,size=1M,cap=64K,block=4096");
    lab.attach(guest, "xvdc", "gold,ro");
    assert_eq!(
        run(&mut lab, "list").unwrap(),
        format!(
            "pool total_pages=1981 free_pages=1981 reserve_pages=257\n\
             image name=gold format=raw sectors=2048\n\
             disk name=home type=overlay sectors=2048 block=512 pages=0 cap_pages=256 base=gold \
             access=rw vbds={guest}/51712\n\
             disk name=- type=ram sectors=2048 block=4096 pages=0 cap_pages=16 base=- access=rw \
             vbds={guest}/51728\n\
             disk name=- type=image sectors=2048 block=512 pages=0 cap_pages=- base=- access=ro \
             vbds={guest}/51744\n"
        )
    );
}

/// Has requests served that were made by hand; how many were answered.
fn serve(lab: &mut Lab, disk: Device, ring: usize, ops: &[Operation]) -> usize {
    push(lab, disk, ring, ops);
    lab.frontend(disk).queues()[ring].publish();
    lab.settle();
    lab.frontend(disk).queues()[ring].responses().len()
}

fn push(lab: &mut Lab, disk: Device, ring: usize, ops: &[Operation]) {
    let queue = &mut lab.frontend(disk).queues()[ring];
    ops.iter().for_each(|&op| queue.push(&Request { id: RequestId(1), handle: 0, op }));
}

/// So many segments of a sector each.
fn transfer(sector: u64, gref: GrantRef, nr: usize) -> Transfer {
    let segments = [Segment { gref, first_sect: 0, last_sect: 0 }; 11];
    Transfer { sector: Sector(sector), segments: Segments::new(&segments[..nr]).unwrap() }
}

/// The lines of `stats`, the pool's without the heap's peak, which is the platform's business.
fn stats(lab: &mut Lab) -> Vec<String> {
    let body = run(lab, "stats").unwrap();
    let mut lines: Vec<String> = body.lines().map(String::from).collect();
    lines[0] = lines[0].split_once(" heap_peak_bytes=").unwrap().0.to_string();
    lines
}

#[test]
fn what_the_vbds_have_done_is_told() {
    let mut lab = lab(6);
    let guest = lab.create_guest();
    let disk = lab.attach(guest, "xvda", "gold,cow=home");
    let waits = lab.attach(guest, "xvdb", "ram,size=1M");
    lab.try_attach(guest, &DiskSpec::new("xvdc", "floppy")).unwrap_err();
    let config = FrontendConfig { load: Load::ByHand, nr_queues: 2, ..FrontendConfig::default() };
    lab.connect_as(disk, config);
    let nothing = "reads=0 sectors_read=0 writes=0 sectors_written=0 flushes=0 barriers=0 \
                   discards=0 sectors_discarded=0 errors=0 mapped=0 at_hand=- segments=-";
    let home = format!("vbd id={guest}/51712 disk=home");
    let pool =
        "pool total_pages=1981 free_pages=1981 reserve_pages=257 handles=2 ports=3 watches=6";
    let others = [
        format!("vbd id={guest}/51728 disk=- state=waiting rings=0 in_flight=0 {nothing}"),
        format!("vbd id={guest}/51744 disk=- state=refused rings=0 in_flight=0 {nothing}"),
    ];
    let [waiting, refused] = &others;
    assert_eq!(
        stats(&mut lab),
        [pool, &format!("{home} state=connected rings=2 in_flight=0 {nothing}"), waiting, refused]
    );

    let (_, gref) = lab.frontend(disk).queues()[0].grant_page(GrantAccess::ReadWrite);
    let read = |sector, nr| Operation::Read(transfer(sector, gref, nr));
    let write = |sector, nr| Operation::Write(transfer(sector, gref, nr));
    let flush = Operation::Flush(transfer(0, gref, 0));
    let barrier = Operation::Barrier(transfer(100, gref, 3));
    let discard = Operation::Discard { sector: Sector(0), nr_sectors: 80, secure: false };
    assert_eq!(serve(&mut lab, disk, 0, &[read(0, 1), read(0, 11), read(2047, 2)]), 3);
    assert_eq!(serve(&mut lab, disk, 1, &[write(0, 2), flush, barrier, discard]), 4);
    // What waits is in flight, here without an event.
    push(&mut lab, disk, 0, &[read(0, 1), read(0, 1)]);
    lab.frontend(disk).queues()[0].pages()[0].store_u32(0, 5);
    let did = "reads=2 sectors_read=12 writes=2 sectors_written=5 flushes=1 barriers=1 \
               discards=1 sectors_discarded=80 errors=1 mapped=2 at_hand=2:1,4:1 \
               segments=1:1,2:3,8:1";
    assert_eq!(
        stats(&mut lab),
        [
            "pool total_pages=1981 free_pages=1979 reserve_pages=257 handles=4 ports=3 watches=6",
            &format!("{home} state=connected rings=2 in_flight=2 {did}"),
            waiting,
            refused
        ]
    );
    assert_eq!(serve(&mut lab, disk, 0, &[]), 2);

    lab.frontend(disk).close();
    lab.run_until("the close", |lab| lab.is_closed(disk));
    lab.detach(waits);
    assert_eq!(
        stats(&mut lab)[1..],
        [format!("{home} state=closed rings=0 in_flight=0 {nothing}"), refused.clone()]
    );
    let console = lab.machine().console();
    let vbd = format!("vbd {guest}/51712");
    let said: Vec<&String> = console.iter().filter(|line| line.starts_with(&vbd)).collect();
    assert_eq!(
        said[said.len() - 2..],
        [
            &format!(
                "{vbd}: closed after 4 reads (14 sectors), 2 writes (5 sectors), 1 flushes, \
                 1 barriers, 1 discards (80 sectors), 1 errors"
            ),
            &format!("{vbd}: requests at hand 2:2,4:1; segments a request 1:3,2:3,8:1"),
        ]
    );
}

#[test]
fn what_many_vbds_have_done_is_told_in_parts() {
    let mut lab = lab(7);
    let mut expected = String::new();
    for _ in 0..8 {
        let guest = lab.create_guest();
        for vdev in ["xvda", "xvdb", "xvdc", "xvdd"] {
            let disk = lab.attach(guest, vdev, "null,size=1M");
            expected += &format!(
                "vbd id={guest}/{} disk=- state=waiting rings=0 in_flight=0 reads=0 \
                 sectors_read=0 writes=0 sectors_written=0 flushes=0 barriers=0 discards=0 \
                 sectors_discarded=0 errors=0 mapped=0 at_hand=- segments=-\n",
                disk.devid
            );
        }
    }
    let mut body = String::new();
    let mut answer = ask(&mut lab, "many stats");
    for part in 1..=5 {
        assert!(answer.len() <= 1500, "{} bytes", answer.len());
        let (head, lines) = answer.split_once('\n').unwrap();
        assert_eq!(head, format!("many {part}/5 ok"));
        body += lines;
        answer = ask(&mut lab, &format!("many part {}", part + 1));
    }
    assert_eq!(answer, "many 1/1 error\nthere is no such part");
    assert_eq!(body.split_once('\n').unwrap().1, expected);
}

#[test]
fn disks_are_made_grown_forked_and_dropped() {
    let mut lab = lab(2);
    assert_eq!(run(&mut lab, "create d ram,size=1M"), Ok(String::new()));
    assert_eq!(
        run(&mut lab, "create d null,size=1M"),
        Err("there is a disk or an image called d already".into())
    );
    let guest = lab.create_guest();
    let disk = lab.attach(guest, "xvda", "d");
    lab.connect(disk);
    lab.random_io(disk, 100);
    let in_use = Err(format!("d is in use: vbd {guest}/51712 holds it"));
    assert_eq!(run(&mut lab, "remove d"), in_use);
    assert_eq!(run(&mut lab, "discard-all d"), in_use);
    assert_eq!(run(&mut lab, "resize d 512K"), in_use);
    assert_eq!(run(&mut lab, "snapshot d then"), Ok(String::new()));
    assert_eq!(run(&mut lab, "clone d twin"), Ok(String::new()));
    assert_eq!(run(&mut lab, "resize d 2M"), Ok(String::new()));
    let sectors = format!("{}/sectors", disk.backend_path());
    assert_eq!(lab.machine().xs(DOM0).read(&sectors).unwrap(), "4096");
    lab.random_io(disk, 100);
    lab.detach(disk);
    assert_eq!(run(&mut lab, "resize twin 512K"), Ok(String::new()));
    for name in ["then", "twin"] {
        let disk = lab.attach(guest, "xvdb", &format!("{name},ro"));
        lab.detach(disk);
    }
    assert_eq!(run(&mut lab, "discard-all d"), Ok(String::new()));
    for name in ["d", "then", "twin"] {
        assert_eq!(run(&mut lab, &format!("remove {name}")), Ok(String::new()));
    }
    lab.settle();
    let list = run(&mut lab, "list").unwrap();
    assert!(list.starts_with("pool total_pages=1981 free_pages=1981 "), "{list}");
    assert!(!list.contains("disk "), "{list}");
    assert_eq!(run(&mut lab, "remove gold"), Err("gold is an image: it stays as it is".into()));
    assert_eq!(run(&mut lab, "remove d"), Err("there is no disk or image called d".into()));
    assert_eq!(run(&mut lab, "destroy d").unwrap_err().split(':').next(), Some("`destroy`"));
}

#[test]
fn what_is_in_use_is_told_after_each_change() {
    let mut lab = lab(2);
    let disks = |lab: &Lab| {
        let path = format!("/local/domain/{}/data/usage", lab.domid());
        let usage = lab.machine().xs(DOM0).read(&path).unwrap();
        usage.split(' ').find_map(|word| word.strip_prefix("disks=")).unwrap().to_string()
    };
    lab.settle();
    assert_eq!(disks(&lab), "0");
    let changes = [("create d ram,size=1M", "1"), ("clone d e", "2"), ("remove d", "1")];
    for (command, expected) in changes {
        assert_eq!(run(&mut lab, command), Ok(String::new()));
        lab.settle();
        assert_eq!(disks(&lab), expected, "{command}");
    }
}

#[test]
fn a_second_client_waits_for_the_first() {
    let mut lab = lab(3);
    let answer = ask(&mut lab, "first list");
    assert!(answer.starts_with("first 1/1 ok\n"), "{answer}");
    write_request(&lab, "second create d ram,size=1M");
    lab.settle();
    // It stands there until the first has read.
    assert_eq!(response(&lab), Some(answer.clone()));
    write_request(&lab, "first part 0");
    lab.settle();
    assert_eq!(response(&lab), None);
    assert_eq!(ask(&mut lab, "second create d ram,size=1M"), "second 1/1 ok\n");
    // Whoever does not read does not hold the others up for ever.
    write_request(&lab, "third remove d");
    lab.run_for(Duration::from_secs(9));
    assert!(response(&lab).unwrap().starts_with("second "));
    lab.run_for(Duration::from_secs(2));
    assert_eq!(response(&lab).unwrap(), "third 1/1 ok\n");
}

#[test]
fn nothing_is_run_twice() {
    let mut lab = lab(4);
    for _ in 0..3 {
        assert_eq!(ask(&mut lab, "same create d ram,size=1M"), "same 1/1 ok\n");
    }
}

#[test]
fn nonsense_is_named_and_forgotten() {
    let mut lab = lab(5);
    write_request(&lab, "not/an/id list");
    lab.settle();
    assert_eq!(response(&lab), None);
    assert_eq!(
        lab.machine().console().last().unwrap(),
        "data/request: `not/an/id`: not an id, expected 1 to 16 of A-Z a-z 0-9 -"
    );
    assert!(run(&mut lab, "list").is_ok());
}

/// One of several that ask at once, as granaryctl does.
struct Client {
    name: char,
    /// The command under way, and the parts of its answer so far.
    asked: Option<(String, Vec<String>)>,
    nr_done: u64,
}

impl Client {
    /// Looks at xenstore once; the answer's body where it is complete.
    fn poll(&mut self, lab: &Lab) -> Option<String> {
        let dom0 = lab.machine().xs(DOM0);
        let tx = dom0.begin().unwrap();
        let request = tx.get(&node(lab, "request")).unwrap();
        let shown = tx.get(&node(lab, "response")).filter(|text| !text.is_empty());
        let Some((id, parts)) = &mut self.asked else {
            let id = format!("{}{}", self.name, self.nr_done);
            if request.is_empty() && shown.is_none() {
                tx.write(&node(lab, "request"), format!("{id} list")).unwrap();
                // Another one may have been faster.
                self.asked = tx.commit().is_ok().then(|| (id, Vec::new()));
            } else {
                tx.abort().unwrap();
            }
            return None;
        };
        let shown = shown.unwrap_or_default();
        let (head, body) = shown.split_once('\n').unwrap_or_default();
        let next = parts.len() + 1;
        let Some(nr) = head
            .strip_prefix(&format!("{id} {next}/"))
            .and_then(|rest| rest.strip_suffix(" ok"))
            .map(|nr| nr.parse::<usize>().unwrap())
        else {
            tx.abort().unwrap();
            return None;
        };
        let ask = if next == nr { 0 } else { next + 1 };
        tx.write(&node(lab, "request"), format!("{id} part {ask}")).unwrap();
        if tx.commit().is_err() {
            return None;
        }
        parts.push(body.into());
        if ask > 0 {
            return None;
        }
        self.nr_done += 1;
        self.asked.take().map(|(_, parts)| parts.concat())
    }
}

#[test]
fn two_clients_at_once_get_all_of_a_long_answer() {
    for seed in sim::seeds(5) {
        let names: Vec<String> = (0..32).map(|n| format!("disk-with-a-long-name-{n}")).collect();
        let disks: String = names.iter().map(|name| format!("disk={name},null,size=1G ")).collect();
        let mut lab = Lab::new(seed).cmdline(&disks).start();
        let expected = run(&mut lab, "list").unwrap();
        assert_eq!(expected.lines().count(), 33);
        let begin = lab.machine().now();
        let mut clients = ['a', 'b'].map(|name| Client { name, asked: None, nr_done: 0 });
        while clients.iter().any(|client| client.nr_done < 10) {
            let which = lab.rng().index(2);
            if let Some(body) = clients[which].poll(&lab) {
                assert_eq!(body, expected, "seed {seed}");
            }
            let pause = lab.rng().below(300);
            lab.run_for(Duration::from_micros(pause));
            // Nobody has to wait until an answer is given up.
            assert!(lab.machine().now() < begin.after(Duration::from_secs(5)), "seed {seed}");
        }
    }
}

#[test]
fn dom0_is_answered_when_there_is_no_room_for_another_node() {
    let mut lab = lab(6);
    let mut nr_disks = 0;
    let refused = loop {
        let guest = lab.create_guest();
        let spec = DiskSpec::new("xvda", "null,size=1M");
        match lab.try_attach(guest, &spec) {
            Ok(_) => nr_disks += 1,
            Err(_) => break lab.device(guest, "xvda"),
        }
    };
    assert!(nr_disks >= 32, "{nr_disks}");
    assert_eq!(run(&mut lab, "create d ram,size=1M"), Ok(String::new()));
    let list = run(&mut lab, "list").unwrap();
    assert!(list.contains("disk name=d type=ram "), "{list}");
    lab.try_detach(refused, Detach::Polite).unwrap();
}

#[test]
fn what_is_not_a_command_is_repeated_in_part_only() {
    let mut lab = lab(8);
    let error = run(&mut lab, &"x".repeat(1500)).unwrap_err();
    assert!(error.starts_with(&format!("`{}...`: unknown command", "x".repeat(80))), "{error}");
}
#[test]
fn a_snapshot_stays_as_it_is() {
    let mut lab = lab(7);
    assert_eq!(run(&mut lab, "create d ram,size=1M"), Ok(String::new()));
    assert_eq!(run(&mut lab, "snapshot d then"), Ok(String::new()));
    for command in ["discard-all then", "resize then 2M", "resize then 512K"] {
        assert_eq!(run(&mut lab, command), Err("the disk is read-only".into()), "{command}");
    }
}

#[test]
fn a_large_disk_is_made_smaller_and_emptied_step_by_step() {
    let mut lab = Lab::new(9).memory_pages(6000).cmdline("disk=d,ram,size=12M").start();
    let guest = lab.create_guest();
    let disk = lab.attach(guest, "xvda", "d");
    lab.connect(disk);
    lab.random_io(disk, 6000);
    lab.detach(disk);
    lab.settle();
    let pages = |list: &str| -> u64 {
        let (_, rest) = list.split_once("disk name=d ").unwrap();
        let word = rest.split(' ').find_map(|word| word.strip_prefix("pages="));
        word.unwrap().parse().unwrap()
    };
    let before = pages(&run(&mut lab, "list").unwrap());
    assert!(before > 2100, "{before}: more than two steps' worth");
    // Asked at once, while it is under way.
    write_request(&lab, "one resize d 64K");
    while response(&lab).is_none() {
        lab.run_for(Duration::from_micros(1));
    }
    lab.settle();
    write_request(&lab, "one part 0");
    lab.settle();
    let list = run(&mut lab, "list").unwrap();
    assert!(list.contains("disk name=d type=ram sectors=128 "), "{list}");
    assert!(pages(&list) <= 16, "{list}");
    assert_eq!(run(&mut lab, "resize d 8M"), Ok(String::new()));
    let disk = lab.attach(guest, "xvda", "d");
    lab.add_frontend(
        disk,
        FrontendConfig { load: Load::ByHand, ..FrontendConfig::default() },
        None,
    );
    lab.settle();
    lab.detach(disk);
    assert_eq!(run(&mut lab, "discard-all d"), Ok(String::new()));
    lab.settle();
    assert_eq!(pages(&run(&mut lab, "list").unwrap()), 0);
}

#[test]
fn not_every_disk_can_do_everything() {
    let mut lab = Lab::new(10).memory_pages(2000).cmdline("disk=n,null,size=1M").start();
    assert_eq!(run(&mut lab, "discard-all n"), Ok(String::new()));
    assert_eq!(run(&mut lab, "resize n 2M"), Ok(String::new()));
    assert_eq!(run(&mut lab, "resize n 512"), Ok(String::new()));
    assert!(run(&mut lab, "list").unwrap().contains("name=n type=null sectors=1 "));
    for verb in ["snapshot", "clone"] {
        let result = run(&mut lab, &format!("{verb} n copy"));
        assert_eq!(result, Err("n is no disk that can be forked".into()));
    }
    assert_eq!(run(&mut lab, "create d ram,size=1M,cap=64K"), Ok(String::new()));
    assert_eq!(run(&mut lab, "resize d 2M"), Ok(String::new()));
    assert!(
        run(&mut lab, "list").unwrap().contains("sectors=4096 block=512 pages=0 cap_pages=16 ")
    );
}
