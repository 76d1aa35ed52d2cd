//! What runs out, runs out for whoever wants more of it, and for nobody else.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod byhand;

use blkif::{Abi, Status};
use byhand::{ByHand, pattern, state};
use sim::Lab;
use sim::toolstack::Device;
use xen_abi::XenbusState;

/// Sectors of a page.
const STEP: u64 = 8;

fn disk(lab: &mut Lab, size: &str) -> Device {
    let guest = lab.create_guest();
    lab.attach(guest, "xvda", &format!("ram,size={size}"))
}

#[test]
fn a_guest_that_fills_the_pool_fails_its_own_new_pages_alone() {
    // Two disks that together may want more than there is.
    let mut lab = Lab::new(1).memory_pages(800).start();
    let disks = [disk(&mut lab, "1M"), disk(&mut lab, "2M")];
    let [mut neighbour, mut greedy] = [(0, 2048), (1, 4096)]
        .map(|(n, nr)| ByHand::connected(&mut lab, disks[n], Abi::X86_64, nr));
    for page in 0..200 {
        assert_eq!(neighbour.write_sectors(&mut lab, page * STEP, &pattern(1)), Status::OKAY);
    }
    let seen = lab.machine().console().len();
    let writes: Vec<Status> =
        (0..512).map(|page| greedy.write_sectors(&mut lab, page * STEP, &pattern(2))).collect();
    let nr_written = writes.iter().take_while(|&&status| status == Status::OKAY).count();
    assert!(nr_written < 512 && writes[nr_written..].iter().all(|&s| s == Status::ERROR));
    let lines = lab.machine().console().split_off(seen);
    // A frontend may cause five lines at once; the first said that it is connected.
    let refused = (nr_written..nr_written + 4).map(|n| {
        let id = (n as u64 + 1) << 32 | 0x5eed;
        format!(
            "vbd {}/51712: request {id} of operation 1: no memory: 195 of 782 pages are free",
            disks[1].frontend
        )
    });
    assert_eq!(lines, refused.collect::<Vec<_>>());
    // What it has it may read and write on.
    assert_eq!(greedy.write_sectors(&mut lab, 0, &pattern(3)), Status::OKAY);
    assert_eq!(greedy.read_sectors(&mut lab, 0, 8), pattern(3));
    assert_eq!(greedy.read_sectors(&mut lab, 4088, 8), vec![0; 4096]);
    // And so may its neighbour, with all of its own.
    for page in 0..200 {
        assert_eq!(neighbour.write_sectors(&mut lab, page * STEP, &pattern(4)), Status::OKAY);
        assert_eq!(neighbour.read_sectors(&mut lab, page * STEP, 8), pattern(4));
    }
    // With the greedy one's disk its pages come back.
    lab.destroy(disks[1].frontend);
    for page in 200..256 {
        assert_eq!(neighbour.write_sectors(&mut lab, page * STEP, &pattern(5)), Status::OKAY);
    }
    lab.destroy(disks[0].frontend);
    lab.assert_clean();
}

#[test]
fn a_port_too_many_is_its_vbds_error_alone() {
    let mut lab = Lab::new(2).start();
    let disks = [disk(&mut lab, "1M"), disk(&mut lab, "1M")];
    let mut served = ByHand::connected(&mut lab, disks[0], Abi::X86_64, 2048);
    lab.machine().events().max_ports = 2;
    let seen = lab.machine().console().len();
    let mut refused = ByHand::new(&lab, disks[1], Abi::X86_64, 2048);
    // The frontend's own port.
    lab.machine().events().max_ports = 3;
    refused.offer_ring(1);
    lab.machine().events().max_ports = 2;
    refused.state(3);
    refused.sees(&mut lab, &[2, 5, 6]);
    let text = "cannot connect: cannot bind event-channel 1: Xen answered -28";
    let line = format!("vbd {}/51712: {text}", disks[1].frontend);
    assert_eq!(lab.machine().console()[seen..], [line]);
    served.random_io(&mut lab, 50);
    refused.take_back();
    // Where there are ports again, it is served.
    lab.machine().events().max_ports = 4096;
    refused.state(6);
    refused.state(1);
    lab.run_until("state 2", |lab| state(lab, disks[1]) == Some(XenbusState::InitWait));
    refused.connect(&mut lab, &[]);
    refused.random_io(&mut lab, 50);
    for disk in disks {
        lab.destroy(disk.frontend);
    }
    lab.assert_clean();
}
