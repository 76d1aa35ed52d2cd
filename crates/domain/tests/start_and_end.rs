//! How the domain begins, what it is told to end for, and what goes on when xenstore does not.

#![allow(clippy::unwrap_used, reason = "a test may")]

use domain::{Domain, ShutdownReason, StartError};
use sim::toolstack::{self, DiskSpec, DomainKind};
use sim::{Lab, Machine, SimPlatform};
use store::PoolError;
use xen_abi::{DomId, EvtchnPort, Gfn, GntStatus, SharedMemory, XenbusState};

const DOM0: DomId = DomId(0);

/// Begins a domain with so many frames; how that ends, and its console.
fn start(nr_frames: u64, command_line: &[u8]) -> (Option<StartError>, Vec<String>) {
    let machine = Machine::new(1);
    let domid = toolstack::create_domain(&machine, DomainKind::DriverDomain);
    let runs = [(Gfn(0x100), nr_frames)];
    let mut platform = SimPlatform::new(&machine, domid, &runs);
    let resources = platform.resources(&runs, command_line);
    let error = Domain::new(resources, &mut platform).err();
    (error, machine.console())
}

#[test]
fn a_command_line_that_is_not_utf_8_is_ignored() {
    let (error, console) = start(100, b"queues=2 \xff");
    assert_eq!(error, None);
    assert_eq!(console[0], "command line ignored: it is not UTF-8");
}

#[test]
fn too_little_memory_is_said_to_be() {
    assert_eq!(start(16, b"").0, Some(StartError::Engine { nr_frames: 16 }));
    let (error, console) = start(17, b"");
    assert_eq!(error, Some(StartError::Pool(PoolError::NoRoomForTable { nr_table: 1 })));
    assert_eq!(console, Vec::<String>::new());
}

#[test]
fn the_toolstacks_words_end_the_domain_and_no_others() {
    for (word, reason) in [
        ("poweroff", ShutdownReason::PowerOff),
        ("halt", ShutdownReason::PowerOff),
        ("reboot", ShutdownReason::Reboot),
    ] {
        let mut lab = Lab::new(1).start();
        let path = format!("/local/domain/{}/control/shutdown", lab.domid());
        let dom0 = lab.machine().xs(DOM0);
        dom0.write(&path, "suspend").unwrap();
        lab.settle();
        let console = lab.machine().console();
        assert_eq!(console.last().unwrap(), "control/shutdown: cannot do `suspend`");
        dom0.write(&path, word).unwrap();
        lab.settle();
        let console = lab.machine().console();
        assert_eq!(console.last().unwrap(), &format!("asked to end ({reason:?})"));
    }
}

#[test]
fn a_connected_disk_is_served_when_xenstore_breaks() {
    // `rsp_prod` and `req_cons` of the page: what xenstored may break.
    for index in [2060, 2048] {
        let mut lab = Lab::new(1).start();
        let guest = lab.create_guest();
        let disk = lab.attach(guest, "xvda", "ram,size=1M");
        lab.connect(disk);
        lab.random_io(disk, 100);
        lab.settle();
        let page = lab.platform().resources(&[], b"").xenstore;
        page.store_u32(index, page.load_u32(index).wrapping_add(5000));
        // xenstored's end of the channel is one of dom0's first.
        for port in 0..32 {
            let _ = lab.machine().events().send(DOM0, EvtchnPort(port));
        }
        lab.random_io(disk, 100);
        assert_eq!(lab.frontend(disk).answers().okay, 200);
        let console = lab.machine().console();
        let line = console.last().unwrap();
        assert!(line.ends_with(": connected vbds are served, others are not"), "{line}");
    }
}

#[test]
fn a_grant_that_stays_mapped_is_said_to() {
    let mut lab = Lab::new(1).cmdline("persistent=4").start();
    let guest = lab.create_guest();
    let disk = lab.attach(guest, "xvda", "ram,size=1M");
    lab.connect(disk);
    lab.machine().grants().unmap_faults.fail_nth(1, GntStatus::GENERAL_ERROR);
    lab.random_io(disk, 300);
    let console = lab.machine().console();
    let line = "vbd 2/51712: a grant stays mapped: general error";
    assert_eq!(console.iter().filter(|said| *said == line).count(), 1, "{console:?}");
}

#[test]
fn nodes_that_libxl_would_not_write_are_refused() {
    let cases: [(&str, &[u8], &str); 2] =
        [("mode", b"x", "mode `x`, expected r or w"), ("params", b"ram,size=\xff", "not UTF-8")];
    for (key, value, text) in cases {
        let mut lab = Lab::new(1).start();
        let guest = lab.create_guest();
        let disk = lab.device(guest, "xvda");
        disk.add(lab.machine(), &DiskSpec::new("xvda", "ram,size=1M")).unwrap();
        let node = format!("{}/{key}", disk.backend_path());
        lab.machine().xs(DOM0).write(&node, value).unwrap();
        lab.settle();
        let console = lab.machine().console();
        let line = console.last().unwrap();
        assert!(line.starts_with("vbd 2/51712: ") && line.ends_with(text), "{line}");
        assert_eq!(disk.backend_state(lab.machine()), Some(XenbusState::Closed));
    }
}
