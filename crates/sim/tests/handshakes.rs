//! The ways of the frontends in the field, state by state as they were recorded, through the whole
//! domain: each with I/O in between, and with the states that its backend must show.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod byhand;

use std::time::Duration;

use blkif::{Abi, Status, keys};
use byhand::{ByHand, state};
use sim::toolstack::{Detach, Device, DiskSpec, Operation, ToolstackError};
use sim::{GrantUse, Lab, seeds};
use xen_abi::{DomId, XenbusState};

const NR_SECTORS: u64 = 2048;

/// A host with one guest, and a disk that the toolstack has seen at 2.
fn attached(seed: u64) -> (Lab, DomId, Device) {
    let mut lab = Lab::new(seed).start();
    let guest = lab.create_guest();
    let disk = lab.attach(guest, "xvda", "ram,size=1M");
    (lab, guest, disk)
}

/// The domain is rid of the guest whatever it did.
fn end(mut lab: Lab, guest: DomId) {
    lab.destroy(guest);
    lab.assert_clean();
}

#[test]
fn linux_waits_for_2_and_closes_with_6() {
    for seed in seeds(3) {
        let (mut lab, guest, disk) = attached(seed);
        let mut linux = ByHand::new(&lab, disk, Abi::X86_64, NR_SECTORS);
        linux.sees(&mut lab, &[2]);
        linux.offer_ring(1);
        linux.write(keys::PROTOCOL, "x86_64-abi");
        linux.write(keys::FEATURE_PERSISTENT, 1);
        linux.grant_use = GrantUse::Persistent;
        linux.state(3);
        linux.sees(&mut lab, &[4]);
        for key in [keys::SECTORS, keys::SECTOR_SIZE, keys::INFO] {
            assert!(linux.backend(key).is_some(), "{key} is read before 4 is written");
        }
        linux.state(4);
        linux.random_io(&mut lab, 40);

        let detach = Operation::detach(lab.machine(), disk, Detach::Polite);
        let detach = lab.begin(detach);
        // It hears of 5 while it still has requests to make.
        linux.sees(&mut lab, &[5]);
        linux.random_io(&mut lab, 5);
        linux.state(6);
        linux.sees(&mut lab, &[6]);
        linux.take_back();
        assert_eq!(lab.finish(detach), Ok(()));
        end(lab, guest);
    }
}

#[test]
fn grub_writes_3_at_once_and_leaves_by_6_an_empty_ring_and_1() {
    for seed in seeds(3) {
        let mut lab = Lab::new(seed).start();
        let guest = lab.create_guest();
        let disk = lab.device(guest, "xvda");
        let spec = DiskSpec::new("xvda", "ram,size=1M");
        let attach = Operation::attach(lab.machine(), disk, &spec);
        let attach = lab.begin(attach);
        let mut grub = ByHand::new(&lab, disk, Abi::X86_32, NR_SECTORS);
        grub.offer_ring(1);
        grub.write(keys::PROTOCOL, "x86_32-abi");
        grub.state(3);
        // libxl sees 2 although the frontend is ready.
        grub.sees(&mut lab, &[1, 2, 4]);
        assert_eq!(lab.finish(attach), Ok(()));
        for _ in 0..20 {
            one_request_with_id_0(&mut lab, &mut grub);
        }
        grub.state(6);
        grub.sees(&mut lab, &[5, 6]);
        grub.take_back();
        grub.write(keys::RING_REF, "");
        grub.state(1);
        grub.sees(&mut lab, &[2]);

        // What it has booted finds the disk as it was left.
        let mut linux = ByHand::new(&lab, disk, Abi::X86_64, NR_SECTORS);
        linux.sees(&mut lab, &[2]);
        linux.connect(&mut lab, &[]);
        linux.random_io(&mut lab, 20);
        end(lab, guest);
    }
}

/// GRUB reads with one segment and waits for the answer; its ids are all 0.
fn one_request_with_id_0(lab: &mut Lab, grub: &mut ByHand) {
    let (page, gref) = grub.page(sim::GrantAccess::ReadWrite);
    page.fill(0xff);
    let op = blkif::Operation::Read(byhand::transfer(8, &[byhand::segment(gref, 0, 7)]));
    let request = blkif::Request { id: blkif::RequestId(0), handle: 0, op };
    grub.push_slot(&request.encode(Abi::X86_32));
    assert_eq!(grub.served(lab, 1), [request.response(Status::OKAY)]);
    assert!(page.bytes(0..4096).iter().all(|&byte| byte == 0));
    grub.end(page, gref);
}

/// OVMF and Mini-OS: 4 at once; our 5 after theirs, our 6 after theirs, our 2 after their 1.
fn at_4_at_once(lab: &mut Lab, guest: &mut ByHand) {
    guest.offer_ring(1);
    guest.write(keys::PROTOCOL, "x86_64-abi");
    guest.state(4);
    guest.sees(lab, &[4]);
    guest.random_io(lab, 20);
    guest.state(5);
    guest.sees(lab, &[5]);
    // The ring is served until 6 is said.
    guest.random_io(lab, 2);
    guest.state(6);
    guest.sees(lab, &[6]);
    guest.take_back();
    guest.state(1);
    guest.sees(lab, &[2]);
}

#[test]
fn ovmf_writes_4_at_once_and_the_system_that_it_boots_takes_over() {
    let (mut lab, guest, disk) = attached(4);
    let mut ovmf = ByHand::new(&lab, disk, Abi::X86_64, NR_SECTORS);
    ovmf.sees(&mut lab, &[2]);
    at_4_at_once(&mut lab, &mut ovmf);
    ovmf.grant_use = GrantUse::Persistent;
    ovmf.connect(&mut lab, &[]);
    ovmf.sees(&mut lab, &[4]);
    ovmf.random_io(&mut lab, 20);
    end(lab, guest);
}

#[test]
fn mini_os_closes_and_opens_again_and_again() {
    let (mut lab, guest, disk) = attached(5);
    let mut mini_os = ByHand::new(&lab, disk, Abi::X86_64, NR_SECTORS);
    mini_os.sees(&mut lab, &[2]);
    for _ in 0..5 {
        at_4_at_once(&mut lab, &mut mini_os);
    }
    end(lab, guest);
}

#[test]
fn freebsd_has_a_ring_of_32_pages_by_either_key() {
    for (seed, written) in [
        (6, &[(keys::RING_PAGE_ORDER, "5"), (keys::NUM_RING_PAGES, "32")][..]),
        (7, &[(keys::NUM_RING_PAGES, "32")][..]),
    ] {
        let (mut lab, guest, disk) = attached(seed);
        let mut freebsd = ByHand::new(&lab, disk, Abi::X86_64, NR_SECTORS);
        freebsd.sees(&mut lab, &[2]);
        assert_eq!(freebsd.backend(keys::MAX_RING_PAGE_ORDER).as_deref(), Some("5"));
        assert_eq!(freebsd.backend(keys::MAX_RING_PAGES).as_deref(), Some("32"));
        freebsd.offer_ring(32);
        for (key, value) in written {
            freebsd.write(key, value);
        }
        freebsd.write(keys::PROTOCOL, "x86_64-abi");
        freebsd.state(3);
        freebsd.sees(&mut lab, &[4]);
        assert_eq!(freebsd.rings[0].front.nr_entries(), 1024);
        assert_eq!(lab.machine().grants().nr_handles(lab.domid()), 32, "pages of the ring");
        freebsd.state(4);
        freebsd.random_io(&mut lab, 40);
        freebsd.state(5);
        freebsd.sees(&mut lab, &[5]);
        freebsd.state(6);
        freebsd.sees(&mut lab, &[6]);
        freebsd.take_back();
        end(lab, guest);
    }
}

#[test]
fn netbsd_drains_on_5_and_writes_6() {
    let (mut lab, guest, disk) = attached(8);
    let mut netbsd = ByHand::new(&lab, disk, Abi::X86_64, NR_SECTORS);
    netbsd.sees(&mut lab, &[2]);
    netbsd.offer_ring(1);
    netbsd.write(keys::PROTOCOL, "x86_64-abi");
    netbsd.state(3);
    netbsd.sees(&mut lab, &[4]);
    netbsd.state(4);
    netbsd.random_io(&mut lab, 20);
    // A full ring, not answered when 5 is said.
    let (_, gref) = netbsd.page(sim::GrantAccess::ReadWrite);
    let read = blkif::Operation::Read(byhand::transfer(0, &[byhand::segment(gref, 0, 7)]));
    for _ in 0..32 {
        netbsd.push(read);
    }
    let detach = Operation::detach(lab.machine(), disk, Detach::Polite);
    let detach = lab.begin(detach);
    netbsd.sees(&mut lab, &[5]);
    let responses = netbsd.served(&mut lab, 32);
    assert!(responses.iter().all(|response| response.status == Status::OKAY));
    netbsd.state(6);
    netbsd.sees(&mut lab, &[6]);
    netbsd.take_back();
    assert_eq!(lab.finish(detach), Ok(()));
    end(lab, guest);
}

#[test]
fn openbsd_has_8_ring_pages_and_finds_type_and_dev() {
    let (mut lab, guest, disk) = attached(9);
    let mut openbsd = ByHand::new(&lab, disk, Abi::X86_64, NR_SECTORS);
    openbsd.sees(&mut lab, &[2]);
    assert_eq!(openbsd.backend(keys::TYPE).as_deref(), Some("phy"));
    assert_eq!(openbsd.backend("dev").as_deref(), Some("xvda"));
    openbsd.offer_ring(8);
    openbsd.write(keys::RING_PAGE_ORDER, 3);
    openbsd.write(keys::PROTOCOL, "x86_64-abi");
    openbsd.state(3);
    openbsd.sees(&mut lab, &[4]);
    openbsd.state(4);
    openbsd.random_io(&mut lab, 20);
    end(lab, guest);
}

#[test]
fn windows_goes_through_5_and_6_before_its_first_use() {
    let (mut lab, guest, disk) = attached(10);
    let mut windows = ByHand::new(&lab, disk, Abi::X86_64, NR_SECTORS);
    windows.sees(&mut lab, &[2]);
    windows.state(5);
    windows.sees(&mut lab, &[5]);
    windows.state(6);
    windows.sees(&mut lab, &[6]);
    windows.state(1);
    windows.sees(&mut lab, &[2]);
    windows.offer_ring(1);
    windows.write(keys::PROTOCOL, "x86_64-abi");
    windows.state(3);
    windows.sees(&mut lab, &[4]);
    windows.state(4);
    windows.random_io(&mut lab, 20);
    end(lab, guest);
}

#[test]
fn a_kexec_that_closes_sees_5_6_and_2() {
    let (mut lab, guest, disk) = attached(11);
    let mut linux = ByHand::connected(&mut lab, disk, Abi::X86_64, NR_SECTORS);
    linux.sees(&mut lab, &[4]);
    linux.random_io(&mut lab, 10);
    // The new kernel resets what it finds at 4 (Linux, xenbus_reset_frontend_state).
    for (own, seen) in [(5, 5), (6, 6), (1, 2)] {
        linux.state(own);
        linux.sees(&mut lab, &[seen]);
    }
    linux.take_back();
    linux.connect(&mut lab, &[]);
    linux.sees(&mut lab, &[4]);
    linux.random_io(&mut lab, 10);
    end(lab, guest);
}

#[test]
fn a_kexec_that_does_not_close_is_taken_through_5_and_6_to_2() {
    let (mut lab, guest, disk) = attached(12);
    let mut linux = ByHand::connected(&mut lab, disk, Abi::X86_64, NR_SECTORS);
    linux.sees(&mut lab, &[4]);
    linux.random_io(&mut lab, 10);
    linux.state(1);
    linux.sees(&mut lab, &[5, 6, 2]);
    linux.take_back();
    linux.connect(&mut lab, &[]);
    linux.sees(&mut lab, &[4]);
    linux.random_io(&mut lab, 10);
    end(lab, guest);
}

/// What may happen to a device, in any order.
fn disturb(lab: &mut Lab, guest: &mut ByHand) {
    const STATES: [&str; 12] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "", "x"];
    let path = guest.disk.frontend_path();
    match lab.rng().below(20) {
        // A ring as it should be.
        0..=3 => {
            guest.offer_ring(1);
            let _ = guest.xs.rm(&format!("{path}/{}", keys::MULTI_QUEUE_NUM_QUEUES));
            let state = lab.rng().between(3, 4);
            let _ = guest.xs.write(&format!("{path}/state"), state.to_string());
        }
        4 => {
            let _ = guest.xs.rm(&path);
        }
        5 => {
            let _ = guest.xs.rm(&format!("{path}/state"));
        }
        6 => {
            let _ = guest.xs.write(&format!("{path}/{}", keys::MULTI_QUEUE_NUM_QUEUES), "2");
        }
        7 => {
            if let Some(ring) = guest.rings.last() {
                let _ = guest.machine.events().close(guest.disk.frontend, ring.port);
            }
        }
        8 => {
            if let Some(ring) = guest.rings.last() {
                guest.machine.grants().revoke(guest.disk.frontend, ring.grefs[0]);
            }
        }
        9..=10 => {
            let time = Duration::from_millis(lab.rng().below(400));
            lab.run_for(time);
        }
        _ => {
            let state = STATES[lab.rng().index(STATES.len())];
            let _ = guest.xs.write(&format!("{path}/state"), state);
        }
    }
    let time = Duration::from_micros(lab.rng().below(3_000));
    lab.run_for(time);
    let mapped = lab.machine().grants().nr_handles(lab.domid());
    assert!(mapped <= 1, "{mapped} pages of a ring of one page are mapped: a second connection");
}

/// What the console says of a vbd's connections: they begin and end by turns. After five lines that
/// a frontend causes not all are said, but the end of each whose beginning was.
fn assert_connections_alternate(lab: &Lab) {
    let console = lab.machine().console();
    let (mut connected, mut nr_said) = (false, 0);
    for line in &console {
        nr_said += 1;
        if line.contains(": attached ") {
            assert!(!connected, "never closed: {console:#?}");
            nr_said = 0;
        } else if line.contains(": connected, ") {
            assert!(!connected, "connected twice: {console:#?}");
            connected = true;
        } else if line.contains(": closed after ") {
            assert!(connected || nr_said > 5, "closed twice: {console:#?}");
            connected = false;
        }
    }
    assert!(!connected, "never closed: {console:#?}");
}

#[test]
fn any_order_of_states_keys_and_removals_ends_and_leaves_nothing() {
    let mut nr_connections = 0;
    for seed in seeds(80) {
        let (mut lab, guest, disk) = attached(seed);
        for life in 0..3 {
            let mut frontend = ByHand::new(&lab, disk, Abi::X86_64, NR_SECTORS);
            for _ in 0..lab.rng().between(1, 25) {
                disturb(&mut lab, &mut frontend);
            }
            // libxl gets rid of the disk, whatever its frontend does meanwhile.
            let detach = if lab.rng().one_in(2) { Detach::Polite } else { Detach::Forced };
            let operation = Operation::detach(lab.machine(), disk, detach);
            let id = lab.begin(operation);
            for _ in 0..lab.rng().below(4) {
                disturb(&mut lab, &mut frontend);
            }
            match (detach, lab.finish(id)) {
                (_, Ok(())) => {}
                // A frontend that never closes is what --force is for.
                (Detach::Polite, Err(ToolstackError::TimedOut { wanted, .. })) => {
                    assert_eq!(wanted, XenbusState::Closed);
                    assert_eq!(lab.try_detach(disk, Detach::Forced), Ok(()), "seed {seed}");
                }
                (_, Err(error)) => panic!("seed {seed}, life {life}: {error}"),
            }
            lab.run_for(Duration::from_secs(1));
            assert_eq!(state(&lab, disk), None);
            frontend.take_back_if_there();
            if life < 2 {
                lab.attach(guest, "xvda", "ram,size=1M");
            }
        }
        let console = lab.machine().console();
        nr_connections += console.iter().filter(|line| line.contains(": connected, ")).count();
        end_with_other(lab, guest);
    }
    assert!(nr_connections > 30, "only {nr_connections} connections came about");
}

/// After all that, another guest's disk is as good as ever.
fn end_with_other(mut lab: Lab, guest: DomId) {
    let other = lab.create_guest();
    let disk = lab.attach(other, "xvda", "ram,size=1M");
    lab.connect(disk);
    lab.random_io(disk, 20);
    lab.detach(disk);
    lab.destroy(other);
    lab.destroy(guest);
    lab.assert_clean();
    assert_connections_alternate(&lab);
}

#[test]
fn a_guest_destroyed_in_any_state_is_no_zombie() {
    for seed in seeds(60) {
        let (mut lab, guest, disk) = attached(seed);
        let mut frontend = ByHand::new(&lab, disk, Abi::X86_64, NR_SECTORS);
        for _ in 0..lab.rng().below(12) {
            disturb(&mut lab, &mut frontend);
        }
        lab.destroy(guest);
        lab.assert_clean();
        assert_connections_alternate(&lab);
    }
}

#[test]
fn keys_without_a_meaning_here_change_nothing() {
    for seed in seeds(3) {
        let (mut lab, guest, disk) = attached(seed);
        let dom0 = lab.machine().xs(DomId(0));
        for key in [keys::TYPE, keys::DIRECT_IO_SAFE] {
            let node = format!("{}/{key}", disk.backend_path());
            dom0.write(&node, ["", "file", "-1"][usize::try_from(seed).unwrap() % 3]).unwrap();
        }
        let mut frontend = ByHand::new(&lab, disk, Abi::X86_64, NR_SECTORS);
        frontend.connect(
            &mut lab,
            &[
                (keys::FEATURE_LARGE_SECTOR_SIZE, "1"),
                (keys::TRUSTED, "0"),
                (keys::DEVICE_TYPE, "cdrom"),
                (keys::VIRTUAL_DEVICE, "99"),
            ],
        );
        frontend.random_io(&mut lab, 20);
        assert_eq!(frontend.backend(keys::INFO).as_deref(), Some("0"), "its own word for cdrom");
        assert_eq!(frontend.backend(keys::DISCARD_ALIGNMENT), None, "the default");
        end(lab, guest);
    }
}

#[test]
fn a_frontend_whose_directory_goes_is_let_go_though_the_toolstack_says_nothing() {
    for seed in seeds(5) {
        let (mut lab, guest, disk) = attached(seed);
        let mut frontend = ByHand::connected(&mut lab, disk, Abi::X86_64, NR_SECTORS);
        frontend.sees(&mut lab, &[4]);
        frontend.random_io(&mut lab, 5);
        lab.machine().xs(DomId(0)).rm(&disk.frontend_path()).unwrap();
        frontend.sees(&mut lab, &[5, 6]);
        assert_eq!(lab.machine().grants().nr_handles(lab.domid()), 0);
        frontend.take_back();
        end(lab, guest);
    }
}

#[test]
fn a_frontend_that_closes_while_its_backend_connects_is_seen() {
    let mut nr_connected = 0;
    let seeds = seeds(150);
    let nr_seeds = usize::try_from(seeds.end - seeds.start).unwrap();
    for seed in seeds {
        let mut lab = Lab::new(seed).start();
        let guest = lab.create_guest();
        let disk = lab.device(guest, "xvda");
        let attach = Operation::attach(lab.machine(), disk, &DiskSpec::new("xvda", "ram,size=1M"));
        let attach = lab.begin(attach);
        lab.run_until("state 2", |lab| state(lab, disk) == Some(XenbusState::InitWait));
        let mut frontend = ByHand::new(&lab, disk, Abi::X86_64, NR_SECTORS);
        frontend.offer_ring(1);
        frontend.state(3);
        // 200 ms after it has written 2 it reads our keys. A little before or after that:
        let late = Duration::from_micros(lab.rng().below(600));
        lab.run_for(Duration::from_micros(199_800) + late);
        frontend.state(6);
        lab.run_for(Duration::from_millis(50));
        assert_eq!(state(&lab, disk), Some(XenbusState::Closed), "seed {seed}");
        assert_eq!(lab.machine().grants().nr_handles(lab.domid()), 0);
        frontend.take_back();
        let console = lab.machine().console();
        nr_connected += console.iter().filter(|line| line.contains(": connected, ")).count();
        let _ = lab.finish(attach);
        end(lab, guest);
    }
    let both = nr_seeds / 15..nr_seeds - nr_seeds / 15;
    assert!(both.contains(&nr_connected), "{nr_connected}: early and late are both there");
}
