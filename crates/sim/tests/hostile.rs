//! Hostile frontends: their own vbd is all that they can break.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::time::Duration;

use blkif::{
    Abi, Operation, Request, RequestId, Sector, Segment, Segments, Status, Transfer, layout,
};
use sim::{FrontendConfig, GrantAccess, Lab, Load, seeds};
use xen_abi::{PAGE_SIZE, XenbusState};

#[test]
fn hostile_frontends_harm_nobody_else() {
    for seed in seeds(10) {
        let mut lab = Lab::new(seed).start();
        let (good, bad) = (lab.create_guest(), lab.create_guest());
        let disk = lab.attach(good, "xvda", "ram,size=1M");
        lab.connect(disk);
        for vdev in ["xvda", "xvdb", "xvdc"] {
            let target = lab.attach(bad, vdev, "ram,size=1M");
            lab.attack(target, Abi::X86_64);
        }
        lab.random_io(disk, 1000);
        assert_eq!(lab.frontend(disk).answers().okay, 1000);
        lab.destroy(bad);
        lab.random_io(disk, 100);
        lab.detach(disk);
        lab.assert_clean();
    }
}

#[test]
fn a_hostile_guest_reaches_the_ring() {
    let (mut slots, mut maps, mut copies) = (0, 0, 0);
    for seed in seeds(5) {
        let mut lab = Lab::new(seed).start();
        let guest = lab.create_guest();
        let disk = lab.attach(guest, "xvda", "ram,size=1M");
        lab.attack(disk, Abi::X86_64);
        lab.run_for(Duration::from_secs(2));
        slots += lab.calm(disk);
        maps += lab.machine().counters().maps;
        copies += lab.machine().counters().copies;
        lab.destroy(guest);
        lab.assert_clean();
    }
    assert!(slots > 5_000 && maps > 15 && copies > 2_000, "{slots}, {maps}, {copies}");
}

#[test]
fn every_byte_of_the_ring_and_of_an_indirect_table_is_fetched_once() {
    let mut lab = Lab::new(2).start();
    let guest = lab.create_guest();
    let disk = lab.attach(guest, "xvda", "ram,size=1M");
    let config = FrontendConfig { load: Load::ByHand, ..FrontendConfig::default() };
    lab.connect_as(disk, config);
    let max = lab.frontend(disk).disk().unwrap().max_indirect;
    let queue = &mut lab.frontend(disk).queues()[0];
    let (data, data_gref) = queue.grant_page(GrantAccess::ReadWrite);
    data.fill(7);
    let segment = Segment { gref: data_gref, first_sect: 0, last_sect: 7 };
    let (table, table_gref) = queue.grant_page(GrantAccess::ReadOnly);
    for n in 0..16 {
        table.write(n * Segment::LEN_BYTES, &segment.encode());
    }
    table.count_fetches();
    let mut grefs = [xen_abi::GrantRef(0); blkif::MAX_INDIRECT_PAGES];
    grefs[0] = table_gref;
    let indirect =
        blkif::Indirect::new(blkif::IndirectOp::Write, Sector(0), 16, grefs, max).unwrap();
    let ring = queue.pages()[0].clone();
    ring.count_fetches();
    queue.push(&Request { id: RequestId(1), handle: 0, op: Operation::Indirect(indirect) });
    let segments = Segments::new(&[segment]).unwrap();
    let transfer = Transfer { sector: Sector(2040), segments };
    queue.push(&Request { id: RequestId(2), handle: 0, op: Operation::Write(transfer) });
    queue.publish();
    lab.settle();
    let queue = &mut lab.frontend(disk).queues()[0];
    let answers: Vec<_> = queue.responses().iter().map(|r| (r.id.0, r.status)).collect();
    assert_eq!(answers, [(1, Status::OKAY), (2, Status::OKAY)]);
    let slots = ring.fetches(64..PAGE_SIZE);
    assert_eq!(slots.iter().max(), Some(&1));
    assert_eq!(slots[..224].iter().filter(|&&n| n == 1).count(), 224, "both slots were read");
    let table_fetches = table.fetches(0..PAGE_SIZE);
    assert_eq!(table_fetches[..128], [1; 128]);
    assert_eq!(table_fetches.iter().max(), Some(&1));
}

#[test]
fn a_producer_past_the_ring_stops_that_vbd_before_a_slot_is_touched() {
    let mut lab = Lab::new(3).start();
    let guest = lab.create_guest();
    let [disk, other] = ["xvda", "xvdb"].map(|vdev| lab.attach(guest, vdev, "ram,size=1M"));
    lab.connect_as(disk, FrontendConfig { load: Load::ByHand, ..FrontendConfig::default() });
    lab.connect(other);
    let queue = &lab.frontend(disk).queues()[0];
    let ring = queue.pages()[0].clone();
    ring.count_fetches();
    ring.store_u32(layout::REQ_PROD, 33);
    queue.notify();
    lab.random_io(other, 100);
    lab.run_for(Duration::from_millis(10));
    assert_ne!(disk.backend_state(lab.machine()), Some(XenbusState::Connected));
    assert_eq!(ring.fetches(layout::RING..PAGE_SIZE).iter().sum::<u32>(), 0);
    assert_eq!(ring.load_u32(layout::RSP_PROD), 0);
    lab.random_io(other, 100);
    lab.destroy(guest);
    lab.assert_clean();
}
