//! An upstream disk whose server takes requests and never answers them: what becomes of those who
//! asked, of those who did not, and of who wants it to end.

#![allow(clippy::unwrap_used, reason = "a test may")]

#[path = "backend/mod.rs"]
mod backend;
#[path = "byhand/mod.rs"]
mod byhand;

use std::time::Duration;

use backend::{Backend, free_pages, lines_with, run};
use blkif::{Abi, Operation, Status, layout};
use byhand::ByHand;
use sim::toolstack::{Detach, Device, Operation as Toolstack, ToolstackError};
use sim::{Expect, GrantAccess, Lab};
use xen_abi::{DomId, Instant, XenbusState};

/// A driver domain with such a disk of 8 sectors, `far`, and a guest that has written to it.
struct Stuck {
    lab: Lab,
    backend: Backend,
    nr_free: u64,
    guest: ByHand,
    disk: Device,
}

impl Stuck {
    fn new() -> Self {
        let mut lab = Lab::new(1).cmdline("disk=far,vbd,dev=xvdb vbd-pages=32").start();
        let nr_free = free_pages(&lab);
        let mut backend = Backend::new(&lab);
        backend.connect(&mut lab);
        let guest = lab.create_guest();
        let disk = lab.attach(guest, "xvda", "far");
        let mut guest = ByHand::connected(&mut lab, disk, Abi::X86_64, 8);
        write(&mut guest);
        lab.run_for(Duration::from_secs(100));
        assert_eq!(guest.responses(), [], "nobody else says when it is too late");
        let mut stuck = Self { lab, backend, nr_free, guest, disk };
        assert_eq!(stuck.nr_in_flight(), "1");
        stuck
    }

    /// Requests to the disk that are not over, as dom0 is told.
    fn nr_in_flight(&mut self) -> String {
        let list = run(&mut self.lab, "list").unwrap();
        let mut words = list.split([' ', '\n']);
        words.find_map(|word| word.strip_prefix("in_flight=")).unwrap().into()
    }

    /// Waits until the guest is told that its request has failed: when that was.
    fn fails(&mut self) -> Instant {
        let mut responses = Vec::new();
        let Self { lab, guest, .. } = self;
        lab.run_until("the answer", |_| {
            responses.extend(guest.responses());
            !responses.is_empty()
        });
        assert_eq!(
            responses.iter().map(|answer| answer.status).collect::<Vec<_>>(),
            [Status::ERROR]
        );
        lab.machine().now()
    }

    /// Lets the backend and the guest go; nothing is left then.
    fn end(mut self) {
        self.lab.destroy(self.disk.frontend);
        if self.backend.theirs("state").is_some() {
            self.backend.detach_by_force(&mut self.lab);
        }
        assert_eq!(self.nr_in_flight(), "0");
        // It keeps what it has mapped, and everybody else can do without.
        assert_ne!(free_pages(&self.lab), self.nr_free);
        self.backend.unmap_all();
        self.lab.run_for(Duration::from_secs(2));
        self.lab.assert_clean();
        assert_eq!(self.lab.machine().grants().nr_grants(self.lab.domid()), 0);
        assert_eq!(free_pages(&self.lab), self.nr_free);
    }
}

fn write(guest: &mut ByHand) {
    let (_, gref) = guest.page(GrantAccess::ReadOnly);
    guest.push(Operation::Write(byhand::transfer(0, &[byhand::segment(gref, 0, 7)])));
    guest.publish();
}

#[test]
fn others_are_served_and_the_guest_can_be_destroyed() {
    let mut stuck = Stuck::new();
    let lab = &mut stuck.lab;
    let other = lab.create_guest();
    let beside = lab.attach(other, "xvda", "ram,size=1M");
    lab.connect(beside);
    lab.random_io(beside, 300);
    let began = lab.machine().now();
    lab.destroy(stuck.disk.frontend);
    assert!(lab.machine().now() < began.after(Duration::from_secs(1)));
    assert_eq!(stuck.nr_in_flight(), "1", "it may still be carried out");

    // Who comes next waits for it, and no longer than the server is there.
    let lab = &mut stuck.lab;
    let disk = lab.attach(other, "xvdb", "far");
    lab.add_frontend(disk, sim::FrontendConfig::default(), None).expect(Expect::Failures);
    lab.run_for(Duration::from_secs(100));
    assert!(!lab.is_connected(disk));
    let waits = format!("vbd {other}/51728: waits: writes from before are still under way");
    assert_eq!(lines_with(lab, &waits), 1, "{}", lab.report());
    assert_eq!(lab.try_detach(disk, Detach::Forced), Ok(()));
    lab.detach(beside);
    stuck.disk = beside;
    stuck.end();
}

#[test]
fn a_frontend_that_waits_for_its_answers_is_detached_by_force_alone() {
    let mut stuck = Stuck::new();
    let (lab, disk) = (&mut stuck.lab, stuck.disk);
    // It drains on our 5, as NetBSD does.
    let found = Some(XenbusState::Closing);
    let late = ToolstackError::TimedOut { wanted: XenbusState::Closed, found };
    assert_eq!(lab.try_detach(disk, Detach::Polite), Err(late));
    assert_eq!(stuck.guest.responses(), []);
    assert_eq!(lab.try_detach(disk, Detach::Forced), Ok(()));
    assert_eq!(lab.machine().grants().nr_handles(lab.domid()), 0);
    stuck.end();
}

#[test]
fn a_frontend_that_does_not_is_detached_after_5_s() {
    let mut stuck = Stuck::new();
    let lab = &mut stuck.lab;
    let id = lab.begin(Toolstack::detach(lab.machine(), stuck.disk, Detach::Polite));
    let began = lab.machine().now();
    lab.run_until("our 5", |lab| byhand::state(lab, stuck.disk) == Some(XenbusState::Closing));
    // As Linux does.
    stuck.guest.state(6);
    lab.run_for(Duration::from_millis(4900));
    assert_eq!(byhand::state(lab, stuck.disk), Some(XenbusState::Closing));
    assert_eq!(lab.finish(id), Ok(()));
    assert!(lab.machine().now() < began.after(Duration::from_secs(6)));
    stuck.end();
}

#[test]
fn a_ring_that_is_broken_meanwhile_is_let_go_at_once() {
    let mut stuck = Stuck::new();
    let lab = &mut stuck.lab;
    stuck.guest.state(6);
    lab.run_until("our 5", |lab| byhand::state(lab, stuck.disk) == Some(XenbusState::Closing));
    let began = lab.machine().now();
    let (ring, frontend) = (&stuck.guest.rings[0], stuck.disk.frontend);
    ring.pages[0].store_u32(layout::REQ_PROD, 77);
    for _ in 0..100 {
        // The port is gone as soon as it was seen.
        let _ = lab.machine().events().send(frontend, ring.port);
        lab.settle();
    }
    assert_eq!(byhand::state(lab, stuck.disk), Some(XenbusState::Closed));
    assert!(lab.machine().now() < began.after(Duration::from_secs(1)));
    assert_eq!(lines_with(lab, ": ring stopped: "), 1, "{}", lab.report());
    stuck.end();
}

#[test]
fn another_kernel_has_the_ring_of_the_one_before_let_go_at_once() {
    let mut stuck = Stuck::new();
    let lab = &mut stuck.lab;
    let began = lab.machine().now();
    // What is answered now would be written into memory that is used for something else.
    stuck.guest.state(1);
    let waits = Some(XenbusState::InitWait);
    lab.run_until("our 2", |lab| byhand::state(lab, stuck.disk) == waits);
    assert!(lab.machine().now() < began.after(Duration::from_secs(1)));
    assert_eq!(lab.machine().grants().nr_handles(lab.domid()), 0);
    stuck.end();
}

#[test]
fn a_polite_detach_of_the_disk_gives_its_server_5_s() {
    let mut stuck = Stuck::new();
    let began = stuck.lab.machine().now();
    stuck.backend.write("state", 5);
    stuck.lab.run_for(Duration::from_millis(4900));
    assert_eq!(stuck.backend.theirs("state").as_deref(), Some("4"));
    let failed = stuck.fails();
    assert!(failed < began.after(Duration::from_millis(5100)));
    stuck.lab.settle();
    assert_eq!(stuck.backend.theirs("state").as_deref(), Some("6"));
    assert_eq!(lines_with(&stuck.lab, "upstream xvdb: its backend is not waited for any more"), 1);
    assert_eq!(byhand::state(&stuck.lab, stuck.disk), Some(XenbusState::Closing));
    stuck.end();
}

#[test]
fn a_detach_of_the_disk_by_force_waits_for_nothing() {
    let mut stuck = Stuck::new();
    let began = stuck.lab.machine().now();
    let theirs = stuck.backend.device.frontend_path();
    stuck.lab.machine().xs(DomId(0)).rm(&theirs).unwrap();
    let failed = stuck.fails();
    assert!(failed < began.after(Duration::from_millis(100)));
    stuck.backend.write("state", 6);
    stuck.end();
}

#[test]
fn an_end_waits_for_the_guest_and_then_5_s_for_the_server() {
    let mut stuck = Stuck::new();
    let lab = &mut stuck.lab;
    lab.shutdown();
    lab.run_for(Duration::from_secs(61));
    assert_eq!(lab.ended(), None);
    let first =
        format!("1 vbd is still attached, first vbd {}/51712: not ending", stuck.disk.frontend);
    assert_eq!(lines_with(lab, &first), 1, "{}", lab.report());

    lab.shutdown();
    lab.run_for(Duration::from_secs(1));
    let began = lab.machine().now();
    lab.destroy(stuck.disk.frontend);
    lab.run_until("the end", |lab| lab.ended().is_some());
    let now = lab.machine().now();
    assert!(now > began.after(Duration::from_millis(4900)), "its write may still be carried out");
    assert!(now < began.after(Duration::from_secs(6)));
}
