//! Granary on Granary: a driver domain whose disks another one serves to it, held against a model by
//! its own guests.
//!
//! `SIM_SEEDS=200 cargo test --profile sim -p sim --test stacked` runs more of it, `SIM_SEED=n` one
//! seed again.

#![allow(clippy::unwrap_used, reason = "a test may")]

#[path = "backend/mod.rs"]
mod backend;
#[path = "byhand/mod.rs"]
mod byhand;

use std::time::Duration;

use backend::{Backend, free_pages, lines_with, run};
use blkfront::Disk;
use blkif::{Abi, IndirectOp, Segment, Status};
use byhand::ByHand;
use sim::toolstack::{Detach, Device, DiskSpec, DomainKind, Operation, ToolstackError};
use sim::{Expect, FrontendConfig, GrantAccess, Lab, Model, Page, seeds};
use xen_abi::{DomId, EvtchnPort, GntStatus, GrantRef, Instant, XenbusState};

/// A driver domain with an upstream disk, and the pages that its pool had before.
fn stacked(seed: u64, command_line: &str, disk: &DiskSpec) -> (Lab, DomId, Device, u64) {
    println!("SIM_SEED={seed}");
    let mut lab = Lab::new(seed).cmdline(command_line).start();
    let nr_free = free_pages(&lab);
    let server = lab.create_server("");
    let upstream = lab.serve(server, disk);
    (lab, server, upstream, nr_free)
}

/// Nothing of the upstream disk is left in either domain.
fn assert_clean(lab: &mut Lab, nr_free_pages: u64) {
    lab.assert_clean();
    assert_eq!(lab.machine().grants().nr_grants(lab.domid()), 0, "grants of our own");
    assert_eq!(free_pages(lab), nr_free_pages);
    let list = run(lab, "list").unwrap();
    let busy = |line: &&str| line.starts_with("upstream ") && !line.ends_with(" in_flight=0");
    assert_eq!(list.lines().find(busy), None);
}

#[test]
fn every_byte_goes_through() {
    for seed in seeds(4) {
        let spec = DiskSpec::new("xvdb", "ram,size=2M");
        let (mut lab, _, upstream, nr_free) = stacked(seed, "", &spec);
        let guest = lab.create_guest();
        let disk = lab.attach(guest, "xvda", "vbd/xvdb");
        lab.connect(disk);
        assert_eq!(lab.frontend(disk).disk().unwrap().nr_sectors, 4096);
        lab.random_io(disk, 400);
        assert_eq!(lab.frontend(disk).answers().failed, 0);
        lab.detach(disk);
        lab.try_detach(upstream, Detach::Polite).unwrap();
        lab.destroy(guest);
        assert_clean(&mut lab, nr_free);
    }
}

#[test]
fn a_disk_with_a_name_waits_for_what_it_is_on() {
    for seed in seeds(3) {
        println!("SIM_SEED={seed}");
        let mut lab = Lab::new(seed).cmdline("disk=far,vbd,dev=xvdb").start();
        let nr_free = free_pages(&lab);
        let guest = lab.create_guest();
        let disk = lab.device(guest, "xvda");
        let spec = DiskSpec::new("xvda", "far");
        let id = lab.begin(Operation::attach(lab.machine(), disk, &spec));
        lab.run_for(Duration::from_secs(3));
        assert_eq!(lab.result(id), None);
        assert_eq!(disk.backend_state(lab.machine()), Some(XenbusState::Initialising));

        let server = lab.create_server("disk=kept,ram,size=2M");
        let upstream = lab.serve(server, &DiskSpec::new("xvdb", "kept"));
        lab.finish(id).unwrap();
        lab.connect(disk);
        lab.random_io(disk, 100);
        assert_eq!(lines_with(&lab, "disk far: made"), 1);

        lab.detach(disk);
        lab.destroy(guest);
        lab.try_detach(upstream, Detach::Polite).unwrap();
        assert_clean(&mut lab, nr_free);
    }
}

#[test]
fn one_that_never_comes_is_said_and_the_attach_refused() {
    for (command_line, target) in [("", "vbd/xvdb,cow"), ("disk=far,vbd,dev=51728", "far")] {
        let mut lab = Lab::new(1).cmdline(command_line).start();
        let guest = lab.create_guest();
        let began = lab.machine().now();
        let result = lab.try_attach(guest, &DiskSpec::new("xvda", target));
        let found = Some(XenbusState::Closed);
        let wanted = XenbusState::InitWait;
        assert_eq!(result, Err(ToolstackError::TimedOut { wanted, found }));
        assert!(lab.machine().now() >= began.after(Duration::from_secs(10)));
        let why = "upstream xvdb is not connected: there is no device/vbd/51728";
        assert_eq!(lines_with(&lab, &format!("cannot serve target={target}: {why}")), 1);
        assert_eq!(lines_with(&lab, why), 2, "once for the disk itself");
        let error = format!("error/backend/vbd/{guest}/51712/error");
        let error =
            lab.machine().xs(DomId(0)).read(&format!("/local/domain/{}/{error}", lab.domid()));
        assert_eq!(error.unwrap(), format!("6 cannot serve target={target}: {why}"));
        lab.destroy(guest);
        let nr_free = free_pages(&lab);
        assert_clean(&mut lab, nr_free);
    }
}

#[test]
fn slices_are_disks_of_their_own_and_writers_are_alone_on_theirs() {
    for seed in seeds(3) {
        let spec = DiskSpec::new("xvdb", "ram,size=2M");
        let (mut lab, _, upstream, nr_free) =
            stacked(seed, "disk=head,vbd,dev=xvdb,size=512K", &spec);
        let guests = [(); 3].map(|()| lab.create_guest());
        let head = lab.attach(guests[0], "xvda", "head");
        let tail = lab.attach(guests[1], "xvda", "vbd/xvdb,offset=1M");
        for (disk, nr_sectors) in [(head, 1024), (tail, 2048)] {
            lab.connect(disk);
            assert_eq!(lab.frontend(disk).disk().unwrap().nr_sectors, nr_sectors);
        }
        lab.frontend(head).want(200);
        lab.random_io(tail, 200);
        lab.run_until("the answers", |lab| lab.is_drained(head));

        for (target, reason) in [
            ("vbd/xvdb", "upstream xvdb is in use there: vbd 3/51712 holds it"),
            ("vbd/xvdb,offset=511K", "upstream xvdb is in use there: vbd 3/51712 holds it"),
            ("vbd/xvdb,offset=1536K,ro", "upstream xvdb is in use there: vbd 4/51712 holds it"),
            ("vbd/xvdb,cow", "upstream xvdb is in use there: vbd 3/51712 holds it"),
            ("head", "head is in use: vbd 3/51712 holds it"),
            ("vbd/xvdb,offset=2M", "sectors 4096+1 are past the end, the disk has 4096"),
            ("vbd/xvdb,offset=1M,size=2M", "sectors 2048+4096 are past the end, the disk has 4096"),
        ] {
            lab.try_attach(guests[2], &DiskSpec::new("xvdc", target)).unwrap_err();
            let line = format!("vbd 5/51744: cannot serve target={target}: {reason}");
            assert_eq!(lines_with(&lab, &line), 1, "{line}\n{}", lab.report());
            lab.try_detach(lab.device(guests[2], "xvdc"), Detach::Forced).unwrap();
        }
        // What nobody has is free.
        let middle = lab.attach(guests[2], "xvda", "vbd/xvdb,offset=512K,size=512K");
        lab.connect(middle);
        lab.random_io(middle, 50);

        for (disk, guest) in [head, tail, middle].into_iter().zip(guests) {
            lab.detach(disk);
            lab.destroy(guest);
        }
        lab.try_detach(upstream, Detach::Polite).unwrap();
        assert_clean(&mut lab, nr_free);
    }
}

#[test]
fn an_overlay_leaves_what_it_is_over_as_it_was() {
    for seed in seeds(3) {
        let spec = DiskSpec::new("xvdb", "ram,size=2M").read_only();
        let command_line = "disk=gold,vbd,dev=xvdb disk=fork,gold,cow";
        let (mut lab, _, upstream, nr_free) = stacked(seed, command_line, &spec);
        let guests = [(); 3].map(|()| lab.create_guest());
        let targets = ["gold,cow", "fork", "vbd/xvdb,cow,cap=1M"];
        let disks: Vec<Device> = guests
            .iter()
            .zip(targets)
            .map(|(&guest, target)| lab.attach(guest, "xvda", target))
            .collect();
        for &disk in &disks {
            lab.add_frontend(
                disk,
                FrontendConfig::default(),
                Some(Model::overlay(vec![0; 2 << 20])),
            );
            lab.run_until("the connection", |lab| lab.is_connected(disk));
        }
        for &disk in &disks {
            let cap_holds = disk != disks[2];
            lab.frontend(disk).expect(if cap_holds { Expect::Success } else { Expect::Failures });
            lab.frontend(disk).want(150);
        }
        for &disk in &disks {
            lab.run_until("the answers", |lab| lab.is_drained(disk));
        }
        lab.run_until("the answers", |lab| lab.is_drained(disks[0]));
        lab.try_attach(guests[0], &DiskSpec::new("xvdc", "vbd/xvdb")).unwrap_err();
        lab.try_detach(lab.device(guests[0], "xvdc"), Detach::Forced).unwrap();
        for (disk, guest) in disks.into_iter().zip(guests) {
            lab.detach(disk);
            lab.destroy(guest);
        }
        // The backend would have refused a write, with a line.
        assert_eq!(lines_with(&lab, "read-only"), 3, "{}", lab.report());
        lab.try_detach(upstream, Detach::Polite).unwrap();
        // fork keeps what was written to it.
        lab.assert_clean();
        assert!(free_pages(&lab) < nr_free);
    }
}

#[test]
fn rings_of_an_overlay_that_meet_in_a_page_are_all_answered() {
    for seed in seeds(24) {
        // So small that writes of parts of a page meet all the time.
        let spec = DiskSpec::new("xvdb", "ram,size=32K").read_only();
        let (mut lab, _, upstream, nr_free) = stacked(seed, "", &spec);
        let guest = lab.create_guest();
        let disk = lab.attach(guest, "xvda", "vbd/xvdb,cow");
        let config = FrontendConfig { nr_queues: 4, ..FrontendConfig::default() };
        lab.add_frontend(disk, config, Some(Model::overlay(vec![0; 32 << 10])));
        lab.run_until("the connection", |lab| lab.is_connected(disk));
        lab.frontend(disk).want(600);
        lab.run_until("the answers", |lab| lab.is_drained(disk));
        assert_eq!(lab.frontend(disk).answers().failed, 0);
        lab.detach(disk);
        lab.destroy(guest);
        lab.try_detach(upstream, Detach::Polite).unwrap();
        assert_clean(&mut lab, nr_free);
    }
}

/// How an upstream disk goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Going {
    Polite,
    Forced,
    Destroyed,
}

#[test]
fn one_that_goes_under_load_closes_its_vbds_and_serves_again_when_it_is_back() {
    let mut failed = 0;
    for (seed, going) in
        seeds(6).zip([Going::Polite, Going::Forced, Going::Destroyed].into_iter().cycle())
    {
        println!("SIM_SEED={seed} {going:?}");
        let mut lab = Lab::new(seed).cmdline("disk=far,vbd,dev=xvdb").start();
        let nr_free = free_pages(&lab);
        let server = lab.create_server("disk=kept,ram,size=2M");
        let spec = DiskSpec::new("xvdb", "kept");
        let mut upstream = lab.serve(server, &spec);
        let guest = lab.create_guest();
        let disk = lab.attach(guest, "xvda", "far");
        let beside = lab.attach(guest, "xvdc", "ram,size=1M");
        lab.connect(disk);
        lab.connect(beside);
        lab.random_io(disk, 50);
        lab.frontend(disk).expect(Expect::Failures);
        lab.frontend(disk).want(100_000);
        lab.frontend(beside).want(300);
        let most = 300 + 200 * seed;
        let time = lab.rng().between(1, most);
        lab.run_for(Duration::from_micros(time));

        let mut server = server;
        match going {
            Going::Polite => lab.try_detach(upstream, Detach::Polite).unwrap(),
            Going::Forced => lab.try_detach(upstream, Detach::Forced).unwrap(),
            Going::Destroyed => {
                lab.destroy_server(server);
            }
        }
        lab.run_until("the frontend's end", |lab| lab.is_closed(disk));
        assert_eq!(lines_with(&lab, "upstream xvdb is gone"), 1);
        lab.run_until("the neighbour's answers", |lab| lab.is_drained(beside));
        assert_eq!(lab.frontend(beside).answers().failed, 0);
        if going == Going::Destroyed {
            lab.try_detach(upstream, Detach::Forced).unwrap();
            server = lab.create_server("disk=kept,ram,size=2M");
        }
        lab.run_for(Duration::from_secs(1));
        assert_eq!(lab.machine().grants().nr_grants(lab.domid()), 0, "{}", lab.report());

        // The vbd that is still attached comes back with it.
        upstream = lab.serve(server, &spec);
        failed += lab.frontend(disk).answers().failed;
        let mut model = lab.frontend(disk).model().cloned();
        model.as_mut().unwrap().forget();
        reconnect(&mut lab, disk, model);
        lab.random_io(disk, 100);
        lab.detach(disk);
        lab.detach(beside);
        lab.destroy(guest);
        lab.try_detach(upstream, Detach::Polite).unwrap();
        assert_clean(&mut lab, nr_free);
    }
    assert!(failed > 0, "no request was in flight when its disk went");
}

/// Another frontend comes to a vbd that has closed.
fn reconnect(lab: &mut Lab, disk: Device, model: Option<Model>) {
    let xs = lab.machine().xs(disk.frontend);
    xs.write(&format!("{}/state", disk.frontend_path()), "1").unwrap();
    let waits = Some(XenbusState::InitWait);
    lab.run_until("InitWait", |lab| disk.backend_state(lab.machine()) == waits);
    lab.add_frontend(disk, FrontendConfig::default(), model);
    lab.run_until("the connection", |lab| lab.is_connected(disk));
}

#[test]
fn it_goes_and_comes_back_again_and_again_while_xenstored_now_and_then_stands_still() {
    for seed in seeds(4) {
        println!("SIM_SEED={seed}");
        let words = "disk=left,vbd,dev=xvdb,size=1M disk=fork,vbd,dev=xvdb,offset=1M,cow";
        let mut lab = Lab::new(seed).cmdline(words).start();
        let server = lab.create_server("disk=kept,ram,size=2M");
        let spec = DiskSpec::new("xvdb", "kept");
        let mut upstream = lab.serve(server, &spec);
        let guest = lab.create_guest();
        let left = lab.attach(guest, "xvda", "left");
        let fork = lab.attach(guest, "xvdb", "fork");
        lab.connect(left);
        let zeroes = Model::overlay(vec![0; 1 << 20]);
        lab.add_frontend(fork, FrontendConfig::default(), Some(zeroes));
        lab.run_until("the connection", |lab| lab.is_connected(fork));
        for _ in 0..4 {
            for disk in [left, fork] {
                lab.random_io(disk, 30);
                lab.frontend(disk).expect(Expect::Failures);
                lab.frontend(disk).want(100_000);
            }
            let time = lab.rng().between(1, 1000);
            lab.run_for(Duration::from_micros(time));
            if lab.rng().one_in(2) {
                lab.machine().silence_xenstored();
                lab.run_for(Duration::from_millis(20));
                lab.machine().wake_silent_xenstored();
            }
            let how = [Detach::Polite, Detach::Forced][lab.rng().index(2)];
            lab.try_detach(upstream, how).unwrap();
            lab.run_until("the end", |lab| lab.is_closed(left) && lab.is_closed(fork));
            if lab.rng().one_in(2) {
                // What the backend still had mapped is asked for again.
                lab.run_for(Duration::from_millis(1100));
                assert_eq!(lab.machine().grants().nr_grants(lab.domid()), 0, "{}", lab.report());
            }
            upstream = lab.serve(server, &spec);
            let mut model = lab.frontend(left).model().cloned();
            model.as_mut().unwrap().forget();
            reconnect(&mut lab, left, model);
            // What failed of the overlay's is not there, and what did not fail is.
            let model = lab.frontend(fork).model().cloned();
            reconnect(&mut lab, fork, model);
        }
        lab.destroy(guest);
        lab.try_detach(upstream, Detach::Polite).unwrap();
        lab.assert_clean();
        assert_eq!(lab.machine().grants().nr_grants(lab.domid()), 0);
    }
}

#[test]
fn requests_are_offered_no_longer_than_there_are_pages_for_them() {
    for (words, nr_segments) in
        [("vbd-pages=32", 30), ("vbd-pages=400", 256), ("indirect=4096 vbd-pages=400", 397)]
    {
        let spec = DiskSpec::new("xvdb", "ram,size=2560K");
        let (mut lab, _, upstream, nr_free) = stacked(1, words, &spec);
        let guest = lab.create_guest();
        for (vdev, target) in [("xvda", "vbd/xvdb,size=1M"), ("xvdc", "vbd/xvdb,offset=1M,cow")] {
            let disk = lab.attach(guest, vdev, target);
            let key = format!("{}/feature-max-indirect-segments", disk.backend_path());
            assert_eq!(lab.machine().xs(guest).number(&key), Some(nr_segments));
            lab.connect(disk);
            lab.random_io(disk, 100);
            assert_eq!(lab.frontend(disk).answers().failed, 0, "{words} {target}");
        }
        lab.destroy(guest);
        lab.try_detach(upstream, Detach::Polite).unwrap();
        assert_clean(&mut lab, nr_free);
    }
}

#[test]
fn no_longer_ones_are_offered_where_those_pages_are_gone_meanwhile() {
    let spec = DiskSpec::new("xvdb", "ram,size=2M");
    let (mut lab, server, upstream, _) = stacked(1, "vbd-pages=32", &spec);
    let guests = [(); 2].map(|()| lab.create_guest());
    lab.attach(guests[0], "xvda", "vbd/xvdb,ro");
    // Its disk is opened, and it is not told of it yet.
    let disk = lab.device(guests[1], "xvda");
    lab.begin(Operation::attach(lab.machine(), disk, &DiskSpec::new("xvda", "vbd/xvdb,ro")));
    lab.destroy_server(server);
    lab.machine().xs(DomId(0)).rm(&upstream.frontend_path()).unwrap();
    lab.run_for(Duration::from_secs(1));
    assert_eq!(disk.backend_state(lab.machine()), Some(XenbusState::InitWait), "{}", lab.report());
    let path = format!("{}/feature-max-indirect-segments", disk.backend_path());
    assert_eq!(lab.machine().xs(DomId(0)).number(&path), Some(30));
}

#[test]
fn an_end_closes_what_others_serve() {
    for seed in seeds(3) {
        let spec = DiskSpec::new("xvdb", "ram,size=1M");
        let (mut lab, server, _, _) = stacked(seed, "disk=far,vbd,dev=xvdb", &spec);
        let guest = lab.create_guest();
        let disk = lab.attach(guest, "xvda", "far");
        lab.connect(disk);
        lab.random_io(disk, 50);
        lab.shutdown();
        lab.run_for(Duration::from_secs(1));
        assert_eq!(lab.ended(), None);
        lab.detach(disk);
        lab.run_until("the end", |lab| lab.ended().is_some());
        assert_eq!(lab.machine().grants().nr_grants(lab.domid()), 0);
        assert_eq!(lab.machine().grants().nr_handles(server), 0);
        assert_eq!(lab.machine().events().nr_ports(lab.domid()), 1);
    }
}

#[test]
fn one_that_comes_at_the_end_keeps_nobody() {
    let spec = DiskSpec::new("xvdb", "ram,size=1M");
    let (mut lab, server, _, _) = stacked(1, "disk=far,vbd,dev=xvdb disk=near,vbd,dev=xvdc", &spec);
    lab.run_for(Duration::from_secs(1));
    let late = Device::new(lab.create_server(""), lab.domid(), 51744);
    // Its flush is waited for.
    lab.pause_server(server);
    lab.shutdown();
    lab.run_for(Duration::from_secs(1));
    assert_eq!(lab.ended(), None);
    lab.begin(Operation::attach(lab.machine(), late, &DiskSpec::new("xvdc", "ram,size=1M")));
    lab.run_until("the end", |lab| lab.ended().is_some());
    assert_eq!(lines_with(&lab, "upstream xvdc: connected"), 0);
}

#[test]
fn one_that_vanishes_at_the_end_keeps_nobody() {
    let spec = DiskSpec::new("xvdb", "ram,size=1M");
    let (mut lab, server, upstream, _) = stacked(1, "", &spec);
    let guest = lab.create_guest();
    let disk = lab.attach(guest, "xvda", "vbd/xvdb");
    lab.detach(disk);
    // Its flush is waited for.
    lab.pause_server(server);
    lab.shutdown();
    lab.run_for(Duration::from_secs(1));
    assert_eq!(lab.ended(), None);
    lab.destroy_server(server);
    lab.machine().xs(DomId(0)).rm(&upstream.frontend_path()).unwrap();
    lab.run_until("the end", |lab| lab.ended().is_some());
}

#[test]
fn what_is_let_go_is_flushed_first() {
    let spec = DiskSpec::new("xvdb", "ram,size=1M");
    let (mut lab, server, upstream, _) = stacked(1, "disk=far,vbd,dev=xvdb", &spec);
    let flushes = |lab: &Lab, nr| {
        let counted = format!("0 writes (0 sectors), {nr} flushes");
        let closed = |line: &&String| line.starts_with("2: vbd 1/51728: closed after");
        lab.machine().console().iter().filter(closed).any(|line| line.contains(&counted))
    };
    lab.run_for(Duration::from_secs(1));
    lab.try_detach(upstream, Detach::Polite).unwrap();
    assert!(flushes(&lab, 1), "{}", lab.report());
    lab.serve(server, &spec);
    lab.run_for(Duration::from_secs(1));
    lab.shutdown();
    lab.run_until("the end", |lab| lab.ended().is_some());
    lab.run_for(Duration::from_secs(1));
    assert_eq!(lines_with(&lab, ", 1 flushes"), 2, "{}", lab.report());
}

#[test]
fn what_is_in_flight_at_a_detach_is_answered_and_what_is_asked_then_fails() {
    for seed in seeds(3) {
        println!("SIM_SEED={seed}");
        let mut lab = Lab::new(seed).cmdline("disk=far,vbd,dev=xvdb").start();
        let nr_free = free_pages(&lab);
        let server = lab.create_server("");
        let upstream = lab.serve(server, &DiskSpec::new("xvdb", "ram,size=1M"));
        let target = ["far", "far,cow"][usize::try_from(seed % 2).unwrap()];
        let guest = lab.create_guest();
        let disk = lab.attach(guest, "xvda", target);
        let mut guest = ByHand::connected(&mut lab, disk, Abi::X86_64, 2048);
        lab.pause_server(server);
        let pages = [(); 9].map(|()| guest.page(GrantAccess::ReadWrite));
        let push = |guest: &mut ByHand, n: u64| {
            let (_, gref) = pages[usize::try_from(n).unwrap()];
            let transfer = byhand::transfer(n * 8, &[byhand::segment(gref, 0, 7)]);
            let is_read = n.is_multiple_of(2);
            let op = if is_read { blkif::Operation::Read } else { blkif::Operation::Write };
            guest.push(op(transfer));
            guest.publish();
        };
        (0..8).for_each(|n| push(&mut guest, n));
        lab.run_for(Duration::from_millis(10));
        let detach = lab.begin(Operation::detach(lab.machine(), upstream, Detach::Polite));
        lab.run_for(Duration::from_millis(100));
        push(&mut guest, 8);
        lab.run_for(Duration::from_millis(100));
        assert_eq!(guest.responses(), []);
        assert_eq!(lines_with(&lab, "upstream xvdb is gone"), 0);

        lab.unpause_server(server);
        lab.run_until("the end", |lab| lines_with(lab, "upstream xvdb is gone") == 1);
        let how: Vec<Status> = guest.responses().iter().map(|answer| answer.status).collect();
        assert_eq!(how[..8], [Status::OKAY; 8]);
        assert_eq!(how[8..], [Status::ERROR]);
        lab.finish(detach).unwrap();
        assert_eq!(lines_with(&lab, ", 1 flushes"), 1, "{}", lab.report());
        lab.destroy(disk.frontend);
        assert_clean(&mut lab, nr_free);
    }
}

#[test]
fn who_closes_with_requests_in_flight_is_answered_first() {
    for seed in seeds(3) {
        let spec = DiskSpec::new("xvdb", "ram,size=1M");
        let (mut lab, server, upstream, nr_free) = stacked(seed, "", &spec);
        let guest = lab.create_guest();
        let disk = lab.attach(guest, "xvda", "vbd/xvdb");
        let mut guest = ByHand::connected(&mut lab, disk, Abi::X86_64, 2048);
        lab.pause_server(server);
        let (_, gref) = guest.page(GrantAccess::ReadOnly);
        for n in 0..8 {
            let transfer = byhand::transfer(n * 8, &[byhand::segment(gref, 0, 7)]);
            guest.push(blkif::Operation::Write(transfer));
        }
        guest.publish();
        lab.run_for(Duration::from_millis(10));
        let detach = lab.begin(Operation::detach(lab.machine(), disk, Detach::Polite));
        lab.run_until("our 5", |lab| byhand::state(lab, disk) == Some(XenbusState::Closing));
        guest.state(6);
        lab.run_for(Duration::from_secs(1));
        assert_eq!(byhand::state(&lab, disk), Some(XenbusState::Closing));

        lab.unpause_server(server);
        let unpaused = lab.machine().now();
        lab.run_until("our 6", |lab| byhand::state(lab, disk) == Some(XenbusState::Closed));
        assert!(lab.machine().now() < unpaused.after(Duration::from_secs(1)));
        let how: Vec<Status> = guest.responses().iter().map(|answer| answer.status).collect();
        assert_eq!(how, [Status::OKAY; 8]);
        lab.finish(detach).unwrap();
        lab.destroy(disk.frontend);
        lab.try_detach(upstream, Detach::Polite).unwrap();
        assert_clean(&mut lab, nr_free);
    }
}

#[test]
fn a_backend_that_stands_still_holds_nobody_up() {
    for seed in seeds(4) {
        let spec = DiskSpec::new("xvdb", "ram,size=2M");
        let (mut lab, server, upstream, nr_free) = stacked(seed, "", &spec);
        let guest = lab.create_guest();
        let disk = lab.attach(guest, "xvda", "vbd/xvdb");
        lab.connect(disk);
        lab.random_io(disk, 50);
        lab.pause_server(server);
        lab.frontend(disk).want(1000);
        lab.run_for(Duration::from_millis(10));
        assert!(!lab.is_drained(disk));
        // Its guest can go at once.
        lab.destroy(guest);
        assert_eq!(lab.machine().grants().nr_handles(lab.domid()), 0);

        if seed % 2 == 0 {
            let began = lab.machine().now();
            lab.shutdown();
            lab.run_until("the end", |lab| lab.ended().is_some());
            assert!(lab.machine().now() < began.after(Duration::from_secs(6)));
            continue;
        }
        // Its pages are lost for as long as it has them.
        lab.try_detach(upstream, Detach::Polite).unwrap_err();
        let kept = "pages are still mapped by its backend";
        assert_eq!(lines_with(&lab, kept), 1, "{}", lab.report());
        assert!(free_pages(&lab) < nr_free);
        lab.destroy_server(server);
        lab.try_detach(upstream, Detach::Forced).unwrap();
        lab.run_for(Duration::from_secs(2));
        assert_clean(&mut lab, nr_free);
    }
}

#[test]
fn who_comes_next_waits_for_writes_of_who_went() {
    let mut waited = 0;
    for seed in seeds(6) {
        let spec = DiskSpec::new("xvdb", "ram,size=2M");
        let (mut lab, server, upstream, nr_free) = stacked(seed, "", &spec);
        let target = ["vbd/xvdb,offset=512K", "vbd/xvdb,offset=512K,ro", "vbd/xvdb,cow"];
        let target = target[usize::try_from(seed % 3).unwrap()];
        let guests = [(); 3].map(|()| lab.create_guest());
        let disk = lab.attach(guests[0], "xvda", "vbd/xvdb,offset=512K");
        lab.connect(disk);
        lab.random_io(disk, 50);
        lab.pause_server(server);
        lab.frontend(disk).want(1000);
        lab.run_for(Duration::from_millis(10));
        lab.destroy(guests[0]);

        let next = lab.attach(guests[1], "xvda", target);
        lab.add_frontend(next, FrontendConfig::default(), None);
        // Nothing was written there.
        let beside = lab.attach(guests[2], "xvda", "vbd/xvdb,size=512K,ro");
        lab.add_frontend(beside, FrontendConfig::default(), None);
        lab.run_until("the neighbour", |lab| lab.is_connected(beside));
        lab.run_for(Duration::from_secs(1));
        let line =
            format!("vbd {}/51712: waits: writes from before are still under way", guests[1]);
        let waits = lines_with(&lab, &line);
        assert_eq!(lab.is_connected(next), waits == 0, "{}", lab.report());
        assert!(waits < 2, "{}", lab.report());
        waited += waits;

        lab.unpause_server(server);
        lab.run_until("the connection", |lab| lab.is_connected(next));
        for (disk, guest) in [next, beside].into_iter().zip([guests[1], guests[2]]) {
            lab.detach(disk);
            lab.destroy(guest);
        }
        lab.try_detach(upstream, Detach::Polite).unwrap();
        assert_clean(&mut lab, nr_free);
    }
    assert!(waited > 2, "they went without a write under way");
}

#[test]
fn it_grows_with_what_it_is_on() {
    for seed in seeds(2) {
        let spec = DiskSpec::new("xvdb", "ram,size=1M");
        let (mut lab, _, upstream, _) = stacked(seed, "", &spec);
        let guest = lab.create_guest();
        let disk = lab.attach(guest, "xvda", "vbd/xvdb,offset=256K");
        lab.connect(disk);
        lab.random_io(disk, 50);
        let params = format!("{}/params", upstream.backend_path());
        lab.machine().xs(DomId(0)).write(&params, "ram,size=2M").unwrap();
        let nr_sectors = (2 << 11) - 512;
        lab.run_until("the size", |lab| lab.disk(disk).is_some_and(|d| d.nr_sectors == nr_sectors));
        lab.random_io(disk, 100);
        lab.detach(disk);
        lab.destroy(guest);
        lab.try_detach(upstream, Detach::Polite).unwrap();
        lab.assert_clean();
    }
}

#[test]
fn a_part_that_has_nothing_left_is_told_when_it_has_something_again() {
    let spec = DiskSpec::new("xvdb", "ram,size=1M");
    let (mut lab, server, upstream, _) = stacked(1, "", &spec);
    let guest = lab.create_guest();
    let disk = lab.attach(guest, "xvda", "vbd/xvdb,offset=512K");
    let sectors = format!("{}/sectors", disk.backend_path());
    let xs = lab.machine().xs(server);
    for (nr_upstream, nr_sectors) in [("1024", 0), ("512", 0), ("2048", 1024), ("1032", 8)] {
        for (key, value) in [("sectors", nr_upstream), ("state", "4")] {
            xs.write(&format!("{}/{key}", upstream.backend_path()), value).unwrap();
        }
        lab.run_for(Duration::from_secs(1));
        assert_eq!(lab.machine().xs(guest).number(&sectors), Some(nr_sectors), "{nr_upstream}");
    }
}

#[test]
fn what_fails_upstream_fails_here_alone() {
    let mut all_failed = 0;
    for seed in seeds(3) {
        let spec = DiskSpec::new("xvdb", "ram,size=2M");
        let (mut lab, _, upstream, nr_free) = stacked(seed, "", &spec);
        let guest = lab.create_guest();
        let disk = lab.attach(guest, "xvda", "vbd/xvdb");
        lab.connect(disk);
        lab.frontend(disk).expect(Expect::Failures);
        lab.machine().grants().map_faults.fail_one_in(10, GntStatus::GENERAL_ERROR);
        lab.machine().grants().copy_faults.fail_one_in(10, GntStatus::GENERAL_ERROR);
        lab.random_io(disk, 200);
        lab.machine().grants().map_faults.clear();
        lab.machine().grants().copy_faults.clear();
        let failed = lab.frontend(disk).answers().failed;
        all_failed += failed;
        lab.detach(disk);
        let console = lab.machine().console();
        let closed = format!("vbd {guest}/51712: closed after ");
        let closed = console.iter().find(|line| line.starts_with(&closed)).unwrap();
        assert!(closed.contains(&format!(", {failed} errors")), "{console:#?}");
        lab.destroy(guest);
        lab.try_detach(upstream, Detach::Polite).unwrap();
        assert_clean(&mut lab, nr_free);
    }
    assert!(all_failed > 0);
}

#[test]
fn of_requests_that_came_to_nothing_nothing_is_kept() {
    let mut failed = 0;
    for seed in seeds(6) {
        let spec = DiskSpec::new("xvdb", "ram,size=2M");
        let (mut lab, server, upstream, nr_free) = stacked(seed, "vbd-pages=32", &spec);
        for _ in 0..4 {
            let guest = lab.create_guest();
            let target = ["vbd/xvdb,size=1M", "vbd/xvdb,offset=1M,cow,cap=64K"];
            let target = target[lab.rng().index(2)];
            let disk = lab.attach(guest, "xvda", target);
            let config = FrontendConfig::random(Abi::X86_64, lab.rng());
            let mut any = Model::zeroed(2048);
            any.forget();
            lab.add_frontend(disk, config, Some(any)).expect(Expect::Failures);
            lab.run_until("the connection", |lab| lab.is_connected(disk));
            // Of its own pages as well as of those of its disk.
            lab.machine().grants().map_faults.fail_one_in(20, GntStatus::GENERAL_ERROR);
            lab.machine().grants().copy_faults.fail_one_in(20, GntStatus::GENERAL_ERROR);
            lab.frontend(disk).want(100_000);
            let time = lab.rng().between(1, 20_000);
            lab.run_for(Duration::from_micros(time));
            let is_paused = lab.rng().one_in(2);
            if is_paused {
                lab.pause_server(server);
                lab.run_for(Duration::from_millis(2));
            }
            failed += lab.frontend(disk).answers().failed;
            lab.machine().grants().map_faults.clear();
            lab.machine().grants().copy_faults.clear();
            match lab.rng().below(3) {
                0 if !is_paused => lab.detach(disk),
                1 => lab.try_detach(disk, Detach::Forced).unwrap(),
                _ => {}
            }
            lab.destroy(guest);
            if is_paused {
                lab.unpause_server(server);
            }
            lab.settle();
            assert_all_is_free(&mut lab);
        }
        lab.try_detach(upstream, Detach::Polite).unwrap();
        assert_clean(&mut lab, nr_free);
    }
    assert!(failed > 0);
}

/// Nothing is under way on the upstream disk, which has 32 pages for data: a write that takes all
/// of them is answered.
fn assert_all_is_free(lab: &mut Lab) {
    let list = run(lab, "list").unwrap();
    let idle = "\nupstream dev=xvdb state=connected sectors=4096 in_flight=0\n";
    assert!(list.contains(idle), "{list}");
    let guest = lab.create_guest();
    let disk = lab.attach(guest, "xvda", "vbd/xvdb,cow");
    let mut guest = ByHand::connected(lab, disk, Abi::X86_64, 4096);
    // An overlay reads what it keeps of pages first: 31, whose segments take one more.
    let pages = [(); 30].map(|()| guest.page(GrantAccess::ReadOnly));
    let segments: Vec<Segment> =
        pages.iter().map(|&(_, gref)| byhand::segment(gref, 0, 7)).collect();
    let (write, _tables) = guest.indirect(IndirectOp::Write, 4, &segments);
    assert_eq!(guest.serve(lab, write), Status::OKAY);
    lab.destroy(disk.frontend);
}

#[test]
fn without_room_for_it_there_is_no_ring() {
    let spec = DiskSpec::new("xvdb", "ram,size=1M");
    // A pool that has less than the pages for its data; one that may grant too little; no port.
    for (seed, line) in [
        (0, "upstream xvdb: no ring: no memory: "),
        (1, "upstream xvdb: cannot connect: 264 frames are to be granted, 90 grants are free"),
        (2, "upstream xvdb: no ring: Xen answered -28"),
    ] {
        let memory_pages = if seed == 0 { 370 } else { 2000 };
        let lab = Lab::new(seed)
            .memory_pages(memory_pages)
            .cmdline("disk=far,vbd,dev=xvdb vbd-pages=264");
        let mut lab = lab.start();
        let nr_free = free_pages(&lab);
        let server = lab.create_server("");
        match seed {
            1 => lab.platform().own_grants().max_grants = 98,
            2 => lab.machine().events().max_ports = 1,
            _ => {}
        }
        // libxl may see the backend in its state 2, or come too late for it.
        let upstream = Device::new(server, lab.domid(), 51728);
        lab.begin(Operation::attach(lab.machine(), upstream, &spec));
        lab.run_for(Duration::from_secs(12));
        assert_eq!(lines_with(&lab, line), 1, "{line}: {}", lab.report());
        lab.machine().events().max_ports = 4096;
        lab.try_detach(upstream, Detach::Polite).unwrap();
        assert_clean(&mut lab, nr_free);
    }
}

#[test]
fn dom0_is_told_of_them_and_what_cannot_be_done_to_them() {
    let mut lab = Lab::new(1).cmdline("disk=far,vbd,dev=xvdb disk=fork,far,cow").start();
    let waits = "upstream dev=xvdb state=waiting sectors=0 in_flight=0\n\
         disk name=far type=vbd sectors=0 block=512 pages=0 cap_pages=- base=xvdb access=rw vbds=-\n\
         disk name=fork type=overlay sectors=0 block=512 pages=0 cap_pages=- base=xvdb access=rw \
         vbds=-\n";
    let list = run(&mut lab, "list").unwrap();
    assert_eq!(list.split_once('\n').unwrap().1, waits);
    let exists = "there is a disk or an image called far already";
    assert_eq!(run(&mut lab, "create far ram,size=1M"), Err(exists.into()));
    let missing = "upstream xvdc is not connected: there is no device/vbd/51744";
    assert_eq!(run(&mut lab, "create near vbd,dev=xvdc"), Err(missing.into()));

    let server = lab.create_server("");
    let upstream = lab.serve(server, &DiskSpec::new("xvdb", "ram,size=1M"));
    lab.run_for(Duration::from_secs(1));
    let list = run(&mut lab, "list").unwrap();
    let there = "upstream dev=xvdb state=connected sectors=2048 in_flight=0\n\
         upstream dev=xvdc state=waiting sectors=0 in_flight=0\n\
         disk name=far type=vbd sectors=2048 block=512 pages=0 cap_pages=- base=xvdb access=rw \
         vbds=-\n\
         disk name=fork type=overlay sectors=2048 block=512 pages=0 cap_pages=256 base=far \
         access=rw vbds=-\n";
    assert_eq!(list.split_once('\n').unwrap().1, there);
    for (command, verb) in [
        ("resize far 2M", "be resized"),
        ("snapshot far s", "be forked"),
        ("clone far c", "be forked"),
        ("discard-all far", "be emptied"),
    ] {
        assert_eq!(run(&mut lab, command), Err(format!("far is no disk that can {verb}")));
    }
    // fork is still made of it.
    let guest = lab.create_guest();
    lab.try_attach(guest, &DiskSpec::new("xvda", "far")).unwrap_err();
    assert_eq!(lines_with(&lab, "upstream xvdb is in use there: fork stands on it"), 1);
    run(&mut lab, "remove fork").unwrap();
    lab.destroy(guest);
    let guest = lab.create_guest();
    let disk = lab.attach(guest, "xvda", "far");
    lab.connect(disk);
    lab.random_io(disk, 20);
    let held = format!("far is in use: vbd {guest}/51712 holds it");
    assert_eq!(run(&mut lab, "remove far"), Err(held));
    lab.destroy(guest);
    run(&mut lab, "remove far").unwrap();
    lab.try_detach(upstream, Detach::Polite).unwrap();
    assert_eq!(run(&mut lab, "list").unwrap().lines().count(), 1);
}

#[test]
fn another_disk_in_its_place_is_refused_while_disks_are_made_of_it() {
    let mut lab = Lab::new(1).cmdline("disk=fork,vbd,dev=xvdb,cow").start();
    let server = lab.create_server("");
    let connected = |lab: &Lab| lines_with(lab, "upstream xvdb: connected");
    for (target, nr_connected) in [
        ("ram,size=1M", 1),
        // Smaller, of other blocks, not to be written.
        ("ram,size=512K", 1),
        ("ram,size=1M,block=4096", 1),
        ("ram,size=1M,ro", 1),
        ("ram,size=2M", 2),
    ] {
        let upstream = lab.serve(server, &DiskSpec::new("xvdb", target));
        lab.run_for(Duration::from_secs(1));
        assert_eq!(connected(&lab), nr_connected, "{target}: {}", lab.report());
        lab.try_detach(upstream, Detach::Polite).unwrap();
    }
    let line = "upstream xvdb: cannot connect: it is not the disk that it was";
    assert_eq!(lines_with(&lab, line), 3);
    lab.assert_clean();
}

#[test]
fn one_in_its_place_that_is_flushed_otherwise_is_refused() {
    for flushes in [[true, false], [false, true]] {
        let mut lab = Lab::new(1).cmdline("disk=far,vbd,dev=xvdb").start();
        let server = lab.create_server("");
        for flushes in flushes {
            let upstream = lab.serve(server, &DiskSpec::new("xvdb", "ram,size=1M"));
            if !flushes {
                // It stands in state 2 for a while, and is read in state 4.
                for key in ["feature-flush-cache", "feature-barrier"] {
                    let path = format!("{}/{key}", upstream.backend_path());
                    lab.machine().xs(DomId(0)).rm(&path).unwrap();
                }
            }
            lab.run_for(Duration::from_secs(1));
            lab.try_detach(upstream, Detach::Polite).unwrap();
        }
        // Frontends were told whether they have to flush.
        assert_eq!(lines_with(&lab, "upstream xvdb: connected"), 1, "{}", lab.report());
        let line = "upstream xvdb: cannot connect: it is not the disk that it was";
        assert_eq!(lines_with(&lab, line), 1, "{}", lab.report());
        lab.assert_clean();
    }
}

/// A domain that has been given a backend's directory and does anything with it.
struct Hostile {
    device: Device,
    mapped: Vec<Page>,
    ports: Vec<EvtchnPort>,
}

impl Hostile {
    fn step(&mut self, lab: &mut Lab) {
        let machine = lab.machine().clone();
        let (us, victim) = (self.device.backend, self.device.frontend);
        let xs = machine.xs(us);
        let (ours, theirs) = (self.device.backend_path(), self.device.frontend_path());
        let rng = lab.rng();
        let mut some = |texts: &[&str]| String::from(texts[rng.index(texts.len())]);
        match some(&["state", "state", "key", "map", "event", "scribble", "remove"]).as_str() {
            "state" => {
                let state = some(&["1", "2", "2", "4", "4", "5", "6", "0", "9", "x", ""]);
                let _ = xs.write(&format!("{ours}/state"), state);
            }
            "key" => {
                let key = some(&Disk::KEYS);
                let value = some(&["0", "1", "8", "512", "4096", "w", "r", "-1", "99999999999999"]);
                let _ = xs.write(&format!("{ours}/{key}"), value);
            }
            "remove" => {
                let key = some(&["sectors", "state", "info", "sector-size"]);
                let _ = xs.rm(&format!("{ours}/{key}"));
            }
            "map" => {
                let key = some(&["ring-ref", "ring-ref0", "ring-ref1", "ring-ref7"]);
                let Some(gref) = xs.number(&format!("{theirs}/{key}")) else { return };
                let gref = GrantRef(
                    u32::try_from(gref).unwrap() + u32::try_from(lab.rng().below(4)).unwrap(),
                );
                let mapped = machine.grants().map(us, victim, gref, GrantAccess::ReadWrite);
                self.mapped.extend(mapped.map(|(_, page)| page));
                let Some(port) = xs.number(&format!("{theirs}/event-channel")) else { return };
                let port = EvtchnPort(u32::try_from(port).unwrap());
                self.ports.extend(machine.events().bind_interdomain(us, victim, port));
            }
            "event" => {
                if let Some(&port) = self.ports.last() {
                    let _ = machine.events().send(us, port);
                }
            }
            _ => {
                let Some(page) = self.mapped.last() else { return };
                let mut bytes = [0; 64];
                lab.rng().fill(&mut bytes);
                page.write(lab.rng().index(60) * 4, &bytes[..4]);
            }
        }
    }
}

#[test]
fn a_backend_may_do_what_it_likes() {
    let mut connected = 0;
    for seed in seeds(6) {
        println!("SIM_SEED={seed}");
        let mut lab = Lab::new(seed).cmdline("disk=far,vbd,dev=xvdb,size=512").start();
        let nr_free = free_pages(&lab);
        let machine = lab.machine().clone();
        let guest = lab.create_guest();
        let beside = lab.attach(guest, "xvdc", "ram,size=1M");
        lab.connect(beside);
        for _ in 0..3 {
            let server = sim::toolstack::create_domain(&machine, DomainKind::DriverDomain);
            let device = Device::new(server, lab.domid(), 51728);
            device.add(&machine, &DiskSpec::new("xvdb", "mine")).unwrap();
            let xs = machine.xs(server);
            for (key, value) in [("sectors", "8"), ("sector-size", "512"), ("info", "0")] {
                xs.write(&format!("{}/{key}", device.backend_path()), value).unwrap();
            }
            let mut hostile = Hostile { device, mapped: Vec::new(), ports: Vec::new() };
            let id = lab.begin(Operation::attach(
                &machine,
                lab.device(guest, "xvda"),
                &DiskSpec::new("xvda", "far"),
            ));
            lab.frontend(beside).want(200);
            // Now and then it goes as far as to connect.
            if lab.rng().one_in(2) {
                // Where the one before had become larger it is refused.
                for (state, was) in [("2", "1"), ("4", "3")] {
                    xs.write(&format!("{}/state", device.backend_path()), state).unwrap();
                    let theirs = format!("{}/state", device.frontend_path());
                    lab.run_until("a state", |_| xs.get(&theirs).as_deref() != Some(was));
                }
            }
            for _ in 0..150 {
                hostile.step(&mut lab);
                let time = lab.rng().below(2000);
                lab.run_for(Duration::from_micros(time));
            }
            lab.run_until("the neighbour's answers", |lab| lab.is_drained(beside));
            machine.destroy_domain(server);
            let id_gone = lab.begin(Operation::detach(&machine, device, Detach::Forced));
            lab.run_until("the attach", |lab| lab.result(id).is_some());
            lab.run_until("the detach", |lab| lab.result(id_gone).is_some());
            sim::toolstack::destroy_domain(&machine, server);
            let _ = lab.try_detach(lab.device(guest, "xvda"), Detach::Forced);
        }
        connected += lines_with(&lab, "upstream xvdb: connected");
        assert_eq!(lab.frontend(beside).answers().failed, 0);
        lab.destroy(guest);
        lab.run_for(Duration::from_secs(10));
        assert_eq!(machine.grants().nr_grants(lab.domid()), 0, "{}", lab.report());
        assert_clean(&mut lab, nr_free);
    }
    assert!(connected > 0, "it never came to a connection");
}

#[test]
fn the_console_bears_a_backend_that_comes_and_goes() {
    let mut lab = Lab::new(1).cmdline("disk=far,vbd,dev=xvdb").start();
    let backend = Backend::new(&lab);
    // Each time that it says that it is connected it cannot be.
    backend.write("sector-size", 513);
    for _ in 0..100 {
        for (state, theirs) in [(2, 3), (4, 5), (6, 6)] {
            backend.state(&mut lab, state, theirs);
        }
    }
    let said = lines_with(&lab, "upstream xvdb: cannot connect: the backend's sector-size");
    assert_eq!(said, 5, "{}", lab.report());
    backend.detach_by_force(&mut lab);
    assert_eq!(lab.machine().grants().nr_grants(lab.domid()), 0);
}

#[test]
fn the_console_bears_a_backend_that_asks_for_rings_where_none_can_be_announced() {
    let mut lab = Lab::new(1).cmdline("disk=far,vbd,dev=xvdb").start();
    let backend = Backend::new(&lab);
    lab.settle();
    let us = lab.domid();
    let nr_nodes = lab.machine().xenstored().nr_nodes(us);
    lab.machine().xenstored().quotas.nodes = nr_nodes;
    for _ in 0..100 {
        for state in [2, 6] {
            backend.state(&mut lab, state, 6);
        }
    }
    let said = lines_with(&lab, "upstream xvdb: cannot announce a ring: ");
    assert_eq!(said, 5, "{}", lab.report());
    backend.detach_by_force(&mut lab);
    assert_eq!(lab.machine().grants().nr_grants(lab.domid()), 0);
}

#[test]
fn the_console_bears_a_backend_that_changes_its_size_again_and_again() {
    let mut lab = Lab::new(1).cmdline("disk=far,vbd,dev=xvdb").start();
    let mut backend = Backend::new(&lab);
    backend.connect(&mut lab);
    let guest = lab.create_guest();
    let disk = lab.attach(guest, "xvda", "far");
    lab.connect(disk);
    let sectors = format!("{}/sectors", disk.backend_path());
    for n in 1..=100 {
        let nr_sectors = 8 << (n % 2);
        backend.write("sectors", nr_sectors);
        backend.write("state", 4);
        let found = |lab: &Lab| lab.machine().xs(guest).number(&sectors);
        lab.run_until("the size", |lab| found(lab) == Some(nr_sectors));
    }
    for who in [format!("vbd {guest}/51712"), "upstream xvdb".into()] {
        let nr_said = lines_with(&lab, &format!("{who}: resized to "));
        assert_eq!(nr_said, 4, "one went for its connection: {}", lab.report());
    }
}

#[test]
fn who_is_not_told_of_a_size_for_want_of_room_is_told_later() {
    let mut lab = Lab::new(1).memory_pages(20_000).cmdline("disk=big,ram,size=1M").start();
    let machine = lab.machine().clone();
    (machine.xenstored().quotas.nodes, machine.xenstored().quotas.watches) = (100_000, 10_000);
    let guest = lab.create_guest();
    let disks: Vec<Device> =
        (0..400).map(|n| Device::new(lab.domid(), guest, (1 << 28) + (n << 8))).collect();
    let spec = DiskSpec::new("xvda", "big").read_only();
    let (told, new) = disks.split_at(200);
    let wait = |lab: &mut Lab, disks: &[Device]| {
        let waits = Some(XenbusState::InitWait);
        lab.run_until("InitWait", |_| disks.iter().all(|d| d.backend_state(&machine) == waits));
    };
    told.iter().for_each(|disk| disk.add(&machine, &spec).unwrap());
    wait(&mut lab, told);
    // What is asked of these takes all the room that there is in xenstore's queue.
    new.iter().for_each(|disk| disk.add(&machine, &spec).unwrap());
    assert_eq!(run(&mut lab, "resize big 2M"), Ok(String::new()));
    wait(&mut lab, new);
    assert_eq!(lines_with(&lab, "xenstore queue full"), 0);
    for disk in &disks {
        let sectors = machine.xs(guest).number(&format!("{}/sectors", disk.backend_path()));
        assert_eq!(sectors, Some(4096), "{disk:?}");
    }
}

/// A backend that has all that it was granted mapped: a ring of a page, and 32 for data.
fn keeps_its_pages() -> (Lab, Backend, u64) {
    let mut lab = Lab::new(1).cmdline("disk=far,vbd,dev=xvdb vbd-pages=32").start();
    let nr_free = free_pages(&lab);
    let mut backend = Backend::new(&lab);
    backend.connect(&mut lab);
    (lab, backend, nr_free)
}

/// It can connect without that the pages were asked for by the clock, and leaves nothing behind.
fn connects_at_once((mut lab, mut backend, nr_free): (Lab, Backend, u64), since: Instant) {
    backend.connect(&mut lab);
    assert!(lab.machine().now() < since.after(Duration::from_secs(1)), "they were asked for again");
    backend.unmap_all();
    backend.detach_by_force(&mut lab);
    assert_clean(&mut lab, nr_free);
}

#[test]
fn who_begins_anew_is_granted_pages_once_it_has_let_go_of_those_before() {
    let (mut lab, mut backend, nr_free) = keeps_its_pages();
    let began = lab.machine().now();
    backend.state(&mut lab, 6, 6);
    // It keeps them.
    backend.state(&mut lab, 2, 6);
    backend.state(&mut lab, 6, 6);
    backend.unmap_all();
    connects_at_once((lab, backend, nr_free), began);
}

#[test]
fn who_is_attached_again_is_granted_pages_once_it_has_let_go_of_those_before() {
    let (mut lab, mut backend, nr_free) = keeps_its_pages();
    let refused = "upstream xvdb: no ring: 33 pages are still mapped by a backend";
    let began = lab.machine().now();
    backend.detach_by_force(&mut lab);
    backend.attach();
    backend.state(&mut lab, 2, 6);
    assert_eq!(lines_with(&lab, refused), 1, "{}", lab.report());
    backend.detach_by_force(&mut lab);
    backend.attach();
    backend.unmap_all();
    connects_at_once((lab, backend, nr_free), began);
}

#[test]
fn who_takes_all_pages_leaves_others_their_turn() {
    for seed in seeds(3) {
        let spec = DiskSpec::new("xvdb", "ram,size=2M");
        let (mut lab, _, _, _) = stacked(seed, "vbd-pages=32", &spec);
        let guests = [(); 3].map(|()| lab.create_guest());
        let slices = ["vbd/xvdb,size=512K", "vbd/xvdb,offset=512K,size=512K", "vbd/xvdb,offset=1M"];
        let disks = [0, 1, 2].map(|n| lab.attach(guests[n], "xvda", slices[n]));
        for disk in disks {
            lab.connect(disk);
        }
        for busy in [disks[0], disks[1]] {
            lab.frontend(busy).want(1_000_000);
        }
        // The last in any order of them.
        lab.random_io(disks[2], 300);
        let answers = disks.map(|disk| lab.frontend(disk).answers().okay);
        println!("{answers:?}");
        assert!(answers[0] + answers[1] < 4 * 300, "{answers:?}");
    }
}

#[test]
fn another_directory_may_take_the_place_of_one_that_is_announced() {
    for seed in seeds(4) {
        let spec = DiskSpec::new("xvdb", "ram,size=1M");
        let (mut lab, server, upstream, nr_free) = stacked(seed, "", &spec);
        let guest = lab.create_guest();
        let disk = lab.device(guest, "xvda");
        lab.begin(Operation::attach(lab.machine(), disk, &DiskSpec::new("xvda", "vbd/xvdb")));
        let state = |lab: &Lab| {
            lab.machine().xs(DomId(0)).get(&format!("{}/state", upstream.frontend_path()))
        };
        lab.run_until("the ring", |lab| state(lab).as_deref() == Some("3"));
        lab.pause_server(server);
        lab.settle();
        for dir in [upstream.frontend_path(), upstream.backend_path()] {
            lab.machine().xs(DomId(0)).rm(&dir).unwrap();
        }
        upstream.add(lab.machine(), &spec).unwrap();
        lab.unpause_server(server);
        lab.connect(disk);
        lab.random_io(disk, 50);
        lab.destroy(guest);
        lab.try_detach(upstream, Detach::Polite).unwrap();
        assert_clean(&mut lab, nr_free);
    }
}

#[test]
fn another_backend_may_take_the_place_of_one_between_two_looks() {
    for seed in seeds(4) {
        let spec = DiskSpec::new("xvdb", "ram,size=1M");
        let (mut lab, server, upstream, nr_free) = stacked(seed, "disk=far,vbd,dev=xvdb", &spec);
        lab.run_for(Duration::from_secs(1));
        let next = Device::new(lab.create_server(""), lab.domid(), 51728);
        lab.settle();
        lab.destroy_server(server);
        // Its end needs nobody, so that nothing of ours runs in between.
        lab.begin(Operation::detach(lab.machine(), upstream, Detach::Forced));
        let id = lab.begin(Operation::attach(lab.machine(), next, &spec));
        lab.finish(id).unwrap();
        let connected = |lab: &Lab| lines_with(lab, "upstream xvdb: connected") == 2;
        lab.run_until("the connection", connected);
        let guest = lab.create_guest();
        let disk = lab.attach(guest, "xvda", "far");
        lab.connect(disk);
        lab.random_io(disk, 50);
        lab.destroy(guest);
        lab.try_detach(next, Detach::Polite).unwrap();
        lab.run_for(Duration::from_secs(1));
        assert_clean(&mut lab, nr_free);
    }
}
