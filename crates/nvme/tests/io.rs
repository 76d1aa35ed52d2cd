//! Reads, writes and the rest, command by command.

#![allow(clippy::cast_possible_truncation, clippy::unwrap_used, reason = "a test may")]

mod simulated;

use simulated::{Lab, device};
use store::Request;
use xen_abi::PAGE_SIZE;

#[test]
fn what_is_written_is_read() {
    let mut lab = Lab::new(device(1, 40));
    let write = lab.write(3, 17, 0x5a);
    assert_eq!(lab.go(), [(write, Ok(()))]);
    let buffer = lab.controller.reserve(19).unwrap();
    lab.submit(Request::Read { sector: 2, buffer });
    lab.step();
    let completion = lab.controller.complete(simulated::NS1).unwrap();
    let bytes = lab.contents(completion.buffer.as_ref().unwrap());
    assert_eq!(bytes[..512], [0; 512]);
    assert_eq!(bytes[512..18 * 512], [0x5a; 17 * 512]);
    assert_eq!(bytes[18 * 512..], [0; 512]);
    assert_eq!(lab.controller.nr_in_flight(), 0);
    assert_eq!(PAGE_SIZE, 4096);
}
