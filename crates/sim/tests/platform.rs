//! The driver domain's hypercalls, with Xen's answers.

#![allow(clippy::unwrap_used, reason = "a test may")]

use blkback::{Grants, MapError};
use domain::Platform;
use sim::{GrantAccess, Machine, Page, SimPlatform};
use store::{FrameAddr, FrameMemory};
use xen_abi::{CopyPtr, DomId, Gfn, GntStatus, GnttabCopy, GrantRef, SharedMemory};

const OWN: Gfn = Gfn(0x100);

struct Host {
    machine: Machine,
    platform: SimPlatform,
    guest: DomId,
}

fn host() -> Host {
    let machine = Machine::new(3);
    let us = machine.create_domain();
    let guest = machine.create_domain();
    let platform = SimPlatform::new(&machine, us, &[(OWN, 2)]);
    Host { machine, platform, guest }
}

impl Host {
    fn grant(&self, page: &Page, access: GrantAccess) -> GrantRef {
        self.machine.grants().grant(self.guest, self.platform.domid(), page, access)
    }

    fn copy(&mut self, op: GnttabCopy) -> GntStatus {
        let mut ops = [op];
        self.platform.copy(&mut ops);
        ops[0].status
    }
}

#[test]
fn a_mapping_spans_its_grants_in_their_order() {
    let mut host = host();
    let pages = [Page::new(), Page::new()];
    let grefs = pages.each_ref().map(|page| host.grant(page, GrantAccess::ReadWrite));
    let mapping = host.platform.map(host.guest, &[grefs[1], grefs[0]]).unwrap();
    mapping.write(4095, &[1, 2]);
    assert_eq!((pages[1].bytes(4095..4096), pages[0].bytes(0..1)), (vec![1], vec![2]));
    assert_eq!((mapping.len_bytes(), host.platform.nr_handles()), (8192, 2));
    assert_eq!(host.platform.unmap(mapping), Ok(()));
    assert_eq!(host.platform.nr_handles(), 0);
}

#[test]
fn a_map_is_all_or_nothing() {
    let mut host = host();
    let grefs: Vec<GrantRef> =
        (0..4).map(|_| host.grant(&Page::new(), GrantAccess::ReadWrite)).collect();
    for fails in 1..=4 {
        host.machine.grants().map_faults.fail_nth(fails, GntStatus::EAGAIN);
        let gref = grefs[usize::try_from(fails).unwrap() - 1];
        assert_eq!(
            host.platform.map(host.guest, &grefs).err(),
            Some(MapError { gref, status: GntStatus::EAGAIN })
        );
        assert_eq!(host.platform.nr_handles(), 0);
    }
    let read_only = host.grant(&Page::new(), GrantAccess::ReadOnly);
    let error = MapError { gref: read_only, status: GntStatus::GENERAL_ERROR };
    assert_eq!(host.platform.map(host.guest, &[grefs[0], read_only]).err(), Some(error));
    host.platform.map_space_pages = 3;
    let error = MapError { gref: grefs[0], status: GntStatus::NO_SPACE };
    assert_eq!(host.platform.map(host.guest, &grefs).err(), Some(error));
    let mapping = host.platform.map(host.guest, &grefs[..3]).unwrap();
    assert!(host.platform.map(host.guest, &grefs[3..]).is_err());
    host.platform.unmap(mapping).unwrap();
    host.platform.map(host.guest, &grefs[3..]).unwrap();
}

#[test]
fn copies_both_ways() {
    let mut host = host();
    let page = Page::new();
    page.write(100, b"guest's");
    let gref = host.grant(&page, GrantAccess::ReadWrite);
    let theirs = |offset| CopyPtr::grant(DomId(2), gref, offset);
    let ours = |offset| CopyPtr::frame(OWN, offset);
    assert_eq!(host.copy(GnttabCopy::from_grant(theirs(100), ours(8), 7)), GntStatus::OKAY);
    let mut bytes = [0; 7];
    host.platform.frames().read(FrameAddr::new(OWN, 8), &mut bytes);
    assert_eq!(&bytes, b"guest's");
    assert_eq!(host.copy(GnttabCopy::to_grant(ours(8), theirs(4089), 7)), GntStatus::OKAY);
    assert_eq!(page.bytes(4089..4096), b"guest's");
    let counters = host.machine.counters();
    assert_eq!((counters.copy_calls, counters.copies), (2, 2));
}

#[test]
fn a_copy_that_may_not_be_has_xens_status() {
    let mut host = host();
    let read_only = host.grant(&Page::new(), GrantAccess::ReadOnly);
    let writable = host.grant(&Page::new(), GrantAccess::ReadWrite);
    let guest = host.guest;
    let ours = CopyPtr::frame(OWN, 0);
    let mut from = |source, len| host.copy(GnttabCopy::from_grant(source, ours, len));
    let theirs = |gref, offset| CopyPtr::grant(guest, gref, offset);
    assert_eq!(from(theirs(read_only, 0), 4096), GntStatus::OKAY);
    assert_eq!(from(theirs(read_only, 1), 4096), GntStatus::BAD_COPY_ARG);
    assert_eq!(from(theirs(GrantRef(9999), 0), 1), GntStatus::BAD_GNTREF);
    assert_eq!(from(theirs(GrantRef(3), 0), 1), GntStatus::GENERAL_ERROR);
    assert_eq!(from(theirs(GrantRef(3), 0), 0), GntStatus::OKAY, "nothing to copy");
    assert_eq!(from(CopyPtr::grant(DomId(77), writable, 0), 1), GntStatus::BAD_DOMAIN);

    let mut to = |source, dest, len| host.copy(GnttabCopy::to_grant(source, dest, len));
    assert_eq!(to(ours, theirs(writable, 0), 4096), GntStatus::OKAY);
    assert_eq!(to(ours, theirs(read_only, 0), 1), GntStatus::GENERAL_ERROR);
    let crossing = CopyPtr::frame(OWN, 4095);
    assert_eq!(to(crossing, theirs(writable, 0), 2), GntStatus::BAD_COPY_ARG);
    let not_ours = CopyPtr::frame(Gfn(0x102), 0);
    assert_eq!(to(not_ours, theirs(writable, 0), 2), GntStatus::BAD_PAGE);
    let mut foreign_frame = CopyPtr::frame(OWN, 0);
    foreign_frame.domid = guest;
    assert_eq!(to(foreign_frame, theirs(writable, 0), 2), GntStatus::PERMISSION_DENIED);

    host.machine.grants().copy_faults.fail_nth(2, GntStatus::GENERAL_ERROR);
    let mut ops = [GnttabCopy::from_grant(theirs(writable, 0), ours, 1); 3];
    host.platform.copy(&mut ops);
    assert_eq!(
        ops.map(|op| op.status),
        [GntStatus::OKAY, GntStatus::GENERAL_ERROR, GntStatus::OKAY],
        "each has its own status"
    );
}

#[test]
fn a_copy_counts_as_one_fetch_of_each_byte() {
    let mut host = host();
    let page = Page::new();
    let gref = host.grant(&page, GrantAccess::ReadOnly);
    page.count_fetches();
    let source = CopyPtr::grant(host.guest, gref, 2);
    host.copy(GnttabCopy::from_grant(source, CopyPtr::frame(OWN, 0), 3));
    assert_eq!(page.fetches(0..6), [0, 0, 1, 1, 1, 0]);
}

#[test]
fn an_unmap_that_fails_leaves_its_handle() {
    let mut host = host();
    let grefs = [(); 3].map(|()| host.grant(&Page::new(), GrantAccess::ReadWrite));
    let mapping = host.platform.map(host.guest, &grefs).unwrap();
    host.machine.grants().unmap_faults.fail_nth(2, GntStatus::BAD_HANDLE);
    assert_eq!(host.platform.unmap(mapping), Err(GntStatus::BAD_HANDLE));
    assert_eq!(host.platform.nr_handles(), 1);
    drop(host.platform.map(host.guest, &grefs[..1]).unwrap());
    assert_eq!(host.platform.nr_handles(), 2, "a dropped mapping, too");
}

#[test]
fn events_reach_the_domain_and_its_peer() {
    let mut host = host();
    let us = host.platform.domid();
    let theirs = host.machine.events().alloc_unbound(host.guest, us).unwrap();
    let ours = host.platform.bind_interdomain(host.guest, theirs).unwrap();
    assert_eq!(host.platform.take_event(), Some(ours));
    assert_eq!(host.platform.take_event(), None);
    host.machine.events().send(host.guest, theirs).unwrap();
    assert_eq!(host.platform.take_event(), Some(ours));
    host.platform.notify(ours);
    assert!(host.machine.events().take_port(host.guest, theirs));
    host.platform.close_port(ours);
    host.platform.notify(ours);
    assert!(!host.machine.events().take_port(host.guest, theirs));
}
