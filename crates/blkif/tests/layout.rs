//! The layouts against the real headers, as a C compiler sees them.
#![allow(clippy::unwrap_used, reason = "helpers of tests, too")]

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

use blkif::keys::VdiskInfo;
use blkif::layout::{self, Layout};
use blkif::{
    Abi, MAX_INDIRECT_PAGES, MAX_SEGMENTS, OpCode, RingOrder, SEGMENTS_PER_INDIRECT_PAGE, Segment,
    Status,
};

const HEADER: &str = "/usr/include/xen/io/blkif.h";

/// C expressions and what we take them for.
fn facts(abi: Abi) -> Vec<(String, i64)> {
    let l: &Layout = abi.layout();
    let mut facts = Vec::new();
    let mut fact = |expression: &str, value: i64| facts.push((expression.to_string(), value));
    let mut lengths = vec![
        ("sizeof(struct blkif_request)", l.entry_len_bytes),
        ("sizeof(union blkif_sring_entry)", l.entry_len_bytes),
        ("sizeof(struct blkif_request_indirect)", 64),
        ("sizeof(struct blkif_response)", l.response_len_bytes),
        ("sizeof(struct blkif_request_segment)", Segment::LEN_BYTES),
        ("4096 / sizeof(struct blkif_request_segment)", SEGMENTS_PER_INDIRECT_PAGE),
        ("BLKIF_MAX_SEGMENTS_PER_REQUEST", MAX_SEGMENTS),
        ("BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST", MAX_INDIRECT_PAGES),
    ];
    let offsets = [
        ("blkif_sring", "req_prod", layout::REQ_PROD),
        ("blkif_sring", "req_event", layout::REQ_EVENT),
        ("blkif_sring", "rsp_prod", layout::RSP_PROD),
        ("blkif_sring", "rsp_event", layout::RSP_EVENT),
        ("blkif_sring", "pvt", layout::PAD),
        ("blkif_sring", "ring", layout::RING),
        ("blkif_request_segment", "gref", layout::SEGMENT_GREF),
        ("blkif_request_segment", "first_sect", layout::SEGMENT_FIRST_SECT),
        ("blkif_request_segment", "last_sect", layout::SEGMENT_LAST_SECT),
        ("blkif_request", "operation", layout::OPERATION),
        ("blkif_request", "nr_segments", layout::NR_SEGMENTS),
        ("blkif_request", "handle", layout::HANDLE),
        ("blkif_request", "id", l.id),
        ("blkif_request", "sector_number", l.sector),
        ("blkif_request", "seg", l.segments),
        ("blkif_request_discard", "operation", layout::OPERATION),
        ("blkif_request_discard", "flag", layout::DISCARD_FLAG),
        ("blkif_request_discard", "handle", layout::HANDLE),
        ("blkif_request_discard", "id", l.id),
        ("blkif_request_discard", "sector_number", l.sector),
        ("blkif_request_discard", "nr_sectors", l.discard_nr_sectors),
        ("blkif_request_indirect", "operation", layout::OPERATION),
        ("blkif_request_indirect", "indirect_op", layout::INDIRECT_OP),
        ("blkif_request_indirect", "nr_segments", layout::INDIRECT_NR_SEGMENTS),
        ("blkif_request_indirect", "id", l.id),
        ("blkif_request_indirect", "sector_number", l.sector),
        ("blkif_request_indirect", "handle", l.indirect_handle),
        ("blkif_request_indirect", "indirect_grefs", l.indirect_grefs),
        ("blkif_response", "id", layout::RESPONSE_ID),
        ("blkif_response", "operation", layout::RESPONSE_OPERATION),
        ("blkif_response", "status", layout::RESPONSE_STATUS),
    ]
    .map(|(of, field, offset)| (format!("offsetof(struct {of}, {field})"), offset));
    lengths.extend(offsets.iter().map(|(expression, offset)| (expression.as_str(), *offset)));
    for (expression, value) in lengths {
        fact(expression, i64::try_from(value).unwrap());
    }
    for (expression, code) in [
        ("BLKIF_OP_READ", OpCode::READ),
        ("BLKIF_OP_WRITE", OpCode::WRITE),
        ("BLKIF_OP_WRITE_BARRIER", OpCode::BARRIER),
        ("BLKIF_OP_FLUSH_DISKCACHE", OpCode::FLUSH),
        ("BLKIF_OP_DISCARD", OpCode::DISCARD),
        ("BLKIF_OP_INDIRECT", OpCode::INDIRECT),
    ] {
        fact(expression, code.0.into());
    }
    for (expression, status) in [
        ("BLKIF_RSP_OKAY", Status::OKAY),
        ("BLKIF_RSP_ERROR", Status::ERROR),
        ("BLKIF_RSP_EOPNOTSUPP", Status::EOPNOTSUPP),
    ] {
        fact(expression, status.0.into());
    }
    for (expression, info) in [
        ("VDISK_CDROM", VdiskInfo::CDROM),
        ("VDISK_REMOVABLE", VdiskInfo::REMOVABLE),
        ("VDISK_READONLY", VdiskInfo::READONLY),
    ] {
        fact(expression, info.bits().into());
    }
    fact("BLKIF_DISCARD_SECURE", 1);
    for order in 0..=RingOrder::MAX.get() {
        let entries = abi.nr_entries(RingOrder::new(order).unwrap());
        fact(&format!("__CONST_RING_SIZE(blkif, 4096 << {order})"), entries.into());
    }
    facts
}

/// Compiles `facts` as static assertions against the header; the compiler's words where one fails.
fn compile(abi: Abi, facts: &[(String, i64)]) -> Result<(), String> {
    let missing = "this test needs a C compiler and Xen's headers: apt-get install gcc libxen-dev";
    assert!(std::path::Path::new(HEADER).exists(), "no {HEADER}; {missing}");
    let mut source = String::from(
        "#include <stddef.h>\n#include <stdint.h>\n#include <xen/xen.h>\n\
         #include <xen/io/blkif.h>\n#include <xen/io/protocols.h>\n",
    );
    for (expression, value) in facts {
        writeln!(source, "_Static_assert(({expression}) == {value}, \"is not {value}\");").unwrap();
    }
    let protocol = abi.protocol();
    writeln!(
        source,
        "_Static_assert(__builtin_strcmp(XEN_IO_PROTO_ABI_NATIVE, \"{protocol}\") == 0, \"native\");"
    )
    .unwrap();
    // Nothing is linked or run, and the compiler's own headers do: no 32-bit libc is needed.
    let machine = match abi {
        Abi::X86_64 => "-m64",
        Abi::X86_32 => "-m32",
    };
    let mut cc = Command::new("cc")
        .args([machine, "-ffreestanding", "-fsyntax-only", "-Werror", "-x", "c", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cc: {error}; {missing}"));
    cc.stdin.take().unwrap().write_all(source.as_bytes()).unwrap();
    let output = cc.wait_with_output().unwrap();
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn every_layout_is_that_of_the_header() {
    for abi in [Abi::X86_64, Abi::X86_32] {
        if let Err(words) = compile(abi, &facts(abi)) {
            panic!("{abi:?} differs from {HEADER}:\n{words}");
        }
    }
}

/// The test above can fail: each fact, changed by one, is refused.
#[test]
fn the_header_refuses_every_wrong_fact() {
    for abi in [Abi::X86_64, Abi::X86_32] {
        let wrong: Vec<_> = facts(abi).into_iter().map(|(e, value)| (e, value + 1)).collect();
        let words = compile(abi, &wrong).unwrap_err();
        assert_eq!(words.matches("static assertion failed").count(), wrong.len(), "{words}");
    }
}

#[test]
fn each_abi_refuses_the_other_ones_layout() {
    for (abi, other) in [(Abi::X86_64, Abi::X86_32), (Abi::X86_32, Abi::X86_64)] {
        assert!(compile(abi, &facts(other)).unwrap_err().contains("static assertion failed"));
    }
}
