//! Disks with names, images and overlays: who may hold them, and how long they last.

#![allow(clippy::unwrap_used, reason = "a test may")]

use sim::toolstack::{Detach, Device, DiskSpec, Operation};
use sim::{FrontendConfig, Lab, Model};
use xen_abi::{DomId, XenbusState};

const DOM0: DomId = DomId(0);

/// An image of 300 pages and a bit, no two sectors alike.
fn gold() -> Vec<u8> {
    (0..300 * 8 + 3_u32).flat_map(|sector| sector.to_le_bytes().repeat(128)).collect()
}

/// A host with the image `gold` and a disk `d`.
fn lab(seed: u64) -> Lab {
    Lab::new(seed)
        .memory_pages(2000)
        .module(gold())
        .cmdline("disk=gold,module=0 disk=d,ram,size=1M")
        .start()
}

/// The error that an attach leaves for its reader.
fn refused(lab: &mut Lab, guest: DomId, target: &str) -> String {
    let disk = lab.device(guest, "xvdz");
    lab.try_attach(guest, &DiskSpec::new("xvdz", target)).unwrap_err();
    let path =
        format!("/local/domain/{}/error/backend/vbd/{guest}/{}/error", lab.domid(), disk.devid);
    let text = lab.machine().xs(DOM0).read(&path).unwrap();
    lab.try_detach(disk, Detach::Polite).unwrap();
    text
}

/// Connects a frontend that expects these bytes.
fn connect(lab: &mut Lab, disk: Device, bytes: Vec<u8>) {
    lab.add_frontend(disk, FrontendConfig::default(), Some(Model::overlay(bytes)));
    lab.run_until("the connection", |lab| {
        disk.backend_state(lab.machine()) == Some(XenbusState::Connected)
    });
}

fn padded(mut bytes: Vec<u8>, nr_sectors: usize) -> Vec<u8> {
    bytes.resize(nr_sectors * 512, 0);
    bytes
}

#[test]
fn a_named_disk_outlives_its_vbd() {
    let mut lab = lab(1);
    let guest = lab.create_guest();
    let disk = lab.attach(guest, "xvda", "d");
    lab.connect(disk);
    lab.random_io(disk, 200);
    lab.detach(disk);
    assert!(
        lab.machine()
            .console()
            .contains(&format!("vbd {guest}/51712: attached d, 2048 sectors, read-write"))
    );
    let (free, total) = free_pages(&lab);
    assert!(free < total, "its pages are gone");
}

fn free_pages(lab: &Lab) -> (u64, u64) {
    let path = format!("/local/domain/{}/data/usage", lab.domid());
    let usage = lab.machine().xs(DOM0).read(&path).unwrap();
    let number = |key: &str| {
        let word = usage.split(' ').find_map(|word| word.strip_prefix(key)).unwrap();
        word.parse().unwrap()
    };
    (number("free_pages="), number("total_pages="))
}

#[test]
fn four_overlays_of_one_image_are_private_and_pristine_again() {
    let mut lab = lab(2);
    let free = free_pages(&lab);
    let bytes = padded(gold(), 300 * 8 + 3);
    let disks: Vec<Device> = (0..4)
        .map(|_| {
            let guest = lab.create_guest();
            let disk = lab.attach(guest, "xvda", "gold,cow");
            connect(&mut lab, disk, bytes.clone());
            disk
        })
        .collect();
    for &disk in &disks {
        lab.frontend(disk).want(300);
    }
    lab.run_until("the answers", |lab| disks.iter().all(|&disk| lab.is_drained(disk)));
    for disk in disks {
        lab.detach(disk);
    }
    lab.settle();
    assert_eq!(free_pages(&lab), free);
    let guest = lab.create_guest();
    let disk = lab.attach(guest, "xvda", "gold,cow");
    connect(&mut lab, disk, bytes);
    lab.random_io(disk, 100);
}

#[test]
fn an_image_is_read_by_any_number_of_guests_and_written_by_none() {
    let mut lab = lab(3);
    let bytes = padded(gold(), 300 * 8 + 3);
    for _ in 0..3 {
        let guest = lab.create_guest();
        let disk = lab.attach(guest, "xvda", "gold,ro");
        connect(&mut lab, disk, bytes.clone());
        lab.random_io(disk, 100);
    }
    let guest = lab.create_guest();
    let text =
        "30 cannot serve target=gold: gold is read-only: say access=ro, or add ro to its target=";
    assert_eq!(refused(&mut lab, guest, "gold"), text);
}

#[test]
fn a_writer_is_alone() {
    let mut lab = lab(4);
    let (first, second) = (lab.create_guest(), lab.create_guest());
    lab.attach(first, "xvda", "d");
    let held = format!("d is in use: vbd {first}/51712 holds it");
    for target in ["d", "d,ro"] {
        let text = format!("16 cannot serve target={target}: {held}");
        assert_eq!(refused(&mut lab, second, target), text);
    }
    let disk = lab.device(first, "xvda");
    lab.detach(disk);
    lab.attach(first, "xvda", "d,ro");
    lab.attach(second, "xvda", "d,ro");
    let text = format!("16 cannot serve target=d: {held}");
    assert_eq!(refused(&mut lab, second, "d"), text);
}

#[test]
fn a_handover_waits_for_the_other_to_close() {
    let mut lab = lab(5);
    let (first, second) = (lab.create_guest(), lab.create_guest());
    let old = lab.attach(first, "xvda", "gold,cow=home");
    connect(&mut lab, old, padded(gold(), 300 * 8 + 3));
    lab.random_io(old, 50);
    let new = lab.attach(second, "xvda", "gold,cow=home,handover");
    lab.add_frontend(new, FrontendConfig::default(), None);
    lab.run_for(std::time::Duration::from_secs(5));
    assert_eq!(new.backend_state(lab.machine()), Some(XenbusState::InitWait));
    assert!(
        lab.machine()
            .console()
            .contains(&format!("vbd {second}/51712: waits: vbd {first}/51712 holds it"))
    );
    lab.random_io(old, 50);
    lab.destroy(first);
    lab.run_until("the handover", |lab| {
        new.backend_state(lab.machine()) == Some(XenbusState::Connected)
    });
}

#[test]
fn whoever_waits_for_a_handover_may_be_detached() {
    let mut lab = lab(6);
    let (first, second) = (lab.create_guest(), lab.create_guest());
    let old = lab.attach(first, "xvda", "d");
    lab.connect(old);
    let new = lab.attach(second, "xvda", "d,handover");
    lab.add_frontend(new, FrontendConfig::default(), None);
    lab.run_for(std::time::Duration::from_secs(1));
    let id = lab.begin(Operation::detach(lab.machine(), new, Detach::Forced));
    assert_eq!(lab.finish(id), Ok(()));
    lab.random_io(old, 50);
}

#[test]
fn what_there_is_not_is_said_by_name() {
    let mut lab = lab(7);
    let guest = lab.create_guest();
    for (target, text) in [
        ("silver", "2 cannot serve target=silver: there is no disk or image called silver"),
        ("silver,cow", "2 cannot serve target=silver,cow: there is no image called silver"),
        ("d,cow", "2 cannot serve target=d,cow: there is no image called d"),
        ("gold,cow=d", "22 cannot serve target=gold,cow=d: d is no overlay of gold"),
        (
            "gold,cow=gold",
            "17 cannot serve target=gold,cow=gold: there is a disk or an image called gold already",
        ),
        (
            "ram,size=1M,cap=1G",
            "12 cannot serve target=ram,size=1M,cap=1G: the full disk takes 262400 pages, all disks \
             together can have 1724",
        ),
    ] {
        assert_eq!(refused(&mut lab, guest, target), text);
    }
    lab.assert_clean();
}
