//! What a backend may say of itself, and what it may not.

#![allow(clippy::unwrap_used, reason = "a test may")]

use blkfront::{DiscardLimits, Disk, Flush, KeyError, announcement, offered_ring_order};
use blkif::{RingOrder, keys};
use proptest::prelude::*;
use store::{Access, BlockSize, Geometry, SecureDiscard};
use xen_abi::{EvtchnPort, GrantRef};

/// What a backend must say, with these changes.
fn parse(changes: &[(&str, Option<&str>)]) -> Result<Disk, KeyError> {
    let values = Disk::KEYS.map(|key| {
        let minimal = match key {
            keys::SECTORS => Some("2048"),
            keys::SECTOR_SIZE => Some("512"),
            keys::INFO => Some("0"),
            keys::MODE => Some("w"),
            _ => None,
        };
        changes.iter().find(|change| change.0 == key).map_or(minimal, |change| change.1)
    });
    Disk::parse(values.map(|value| value.map(str::as_bytes)))
}

const MINIMAL: Disk = Disk {
    nr_sectors: 2048,
    logical: BlockSize::B512,
    physical_bytes: 512,
    access: Access::ReadWrite,
    flush: Flush::None,
    discard: None,
    max_segments: 11,
};

#[test]
fn what_is_not_said_has_the_protocols_default() {
    assert_eq!(parse(&[]), Ok(MINIMAL));
    assert_eq!(parse(&[(keys::MODE, None)]), Ok(MINIMAL));
    let discard =
        DiscardLimits { granularity_bytes: 4096, alignment_bytes: 0, secure: SecureDiscard::No };
    let changes = [(keys::SECTOR_SIZE, Some("4096")), (keys::FEATURE_DISCARD, Some("1"))];
    let disk =
        Disk { logical: BlockSize::B4096, physical_bytes: 4096, discard: Some(discard), ..MINIMAL };
    assert_eq!(parse(&changes), Ok(disk));
}

#[test]
fn all_that_linux_says_is_read() {
    let disk = parse(&[
        (keys::SECTORS, Some("18014398509481984")),
        (keys::PHYSICAL_SECTOR_SIZE, Some("4096")),
        (keys::FEATURE_FLUSH_CACHE, Some("1")),
        (keys::FEATURE_BARRIER, Some("1")),
        (keys::FEATURE_DISCARD, Some("1")),
        (keys::DISCARD_GRANULARITY, Some("65536")),
        (keys::DISCARD_ALIGNMENT, Some("512")),
        (keys::DISCARD_SECURE, Some("1")),
        (keys::FEATURE_MAX_INDIRECT_SEGMENTS, Some("256")),
    ]);
    let discard = DiscardLimits {
        granularity_bytes: 65536,
        alignment_bytes: 512,
        secure: SecureDiscard::Offered,
    };
    let expected = Disk {
        nr_sectors: 1 << 54,
        physical_bytes: 4096,
        flush: Flush::Cache,
        discard: Some(discard),
        max_segments: 256,
        ..MINIMAL
    };
    assert_eq!(disk, Ok(expected));
}

#[test]
fn a_disk_is_described_as_stores_are() {
    for block in ["512", "1024", "2048", "4096"] {
        let disk = |alignment| {
            let changes = [
                (keys::SECTOR_SIZE, Some(block)),
                (keys::FEATURE_DISCARD, Some("1")),
                (keys::DISCARD_GRANULARITY, Some("65536")),
                (keys::DISCARD_ALIGNMENT, Some(alignment)),
                (keys::DISCARD_SECURE, Some("1")),
            ];
            parse(&changes).unwrap().geometry()
        };
        let bytes = block.parse().unwrap();
        let discard = |granularity_bytes| {
            let secure = SecureDiscard::Offered;
            Some(store::DiscardLimits { granularity_bytes, secure })
        };
        let geometry = Geometry {
            nr_sectors: 2048,
            logical: BlockSize::of_bytes(bytes).unwrap(),
            physical_bytes: bytes,
            access: Access::ReadWrite,
            discard: discard(65536),
        };
        assert_eq!(geometry.logical.bytes(), bytes);
        assert_eq!(geometry.logical.sectors(), u64::from(bytes) / 512);
        assert_eq!(disk("0"), geometry);
        assert_eq!(disk("4096"), Geometry { discard: discard(bytes), ..geometry });
    }
    assert_eq!(BlockSize::of_bytes(8192), None);
}

#[test]
fn a_disk_is_written_only_where_both_nodes_allow_it() {
    let access = |info, mode| {
        parse(&[(keys::INFO, Some(info)), (keys::MODE, Some(mode))]).map(|disk| disk.access)
    };
    assert_eq!(access("0", "w"), Ok(Access::ReadWrite));
    assert_eq!(access("4", "w"), Ok(Access::ReadOnly));
    assert_eq!(access("0", "r"), Ok(Access::ReadOnly));
    // A CD-ROM that can be removed, and a bit that nobody knows.
    assert_eq!(access("11", "w"), Ok(Access::ReadWrite));
}

#[test]
fn barriers_make_durable_where_there_are_no_flushes() {
    let flush = |cache, barrier| {
        let changes = [(keys::FEATURE_FLUSH_CACHE, cache), (keys::FEATURE_BARRIER, barrier)];
        parse(&changes).map(|disk| disk.flush)
    };
    assert_eq!(flush(Some("1"), None), Ok(Flush::Cache));
    assert_eq!(flush(Some("0"), Some("1")), Ok(Flush::Barrier));
    assert_eq!(flush(Some("0"), Some("0")), Ok(Flush::None));
}

#[test]
fn an_offer_beyond_ours_is_ours() {
    let segments = |value| {
        parse(&[(keys::FEATURE_MAX_INDIRECT_SEGMENTS, Some(value))]).map(|disk| disk.max_segments)
    };
    for (value, expected) in [("0", 11), ("11", 11), ("12", 12), ("256", 256), ("4294967295", 256)]
    {
        assert_eq!(segments(value), Ok(expected), "{value}");
    }
    let order = |value: &str| offered_ring_order(Some(value.as_bytes())).map(RingOrder::get);
    for (value, expected) in [("0", 0), ("4", 4), ("5", 5), ("6", 5), ("4294967295", 5)] {
        assert_eq!(order(value), Ok(expected), "{value}");
    }
    assert_eq!(offered_ring_order(None), Ok(RingOrder::ONE_PAGE));
}

/// A node, what it says, and what was expected; beside nodes that make it be looked at.
#[test]
fn nonsense_names_node_value_and_what_was_expected() {
    const SECTORS: &str = "1 to 2^54 sectors in whole blocks of sector-size";
    const LOGICAL: &str = "a power of two from 512 to 4096";
    const PHYSICAL: &str = "a power of two from sector-size to 1048576";
    const GRANULARITY: &str = "a multiple of sector-size";
    const ALIGNMENT: &str = "less than discard-granularity";
    const NUMBER: &str = "a number of 32 bits";
    let table = [
        (keys::SECTORS, "0", SECTORS),
        (keys::SECTORS, "", SECTORS),
        (keys::SECTORS, "+1", SECTORS),
        (keys::SECTORS, "-1", SECTORS),
        (keys::SECTORS, "0x10", SECTORS),
        (keys::SECTORS, "8 ", SECTORS),
        (keys::SECTORS, "18014398509481985", SECTORS),
        (keys::SECTORS, "18446744073709551616", SECTORS),
        (keys::SECTOR_SIZE, "0", LOGICAL),
        (keys::SECTOR_SIZE, "256", LOGICAL),
        (keys::SECTOR_SIZE, "520", LOGICAL),
        (keys::SECTOR_SIZE, "8192", LOGICAL),
        (keys::PHYSICAL_SECTOR_SIZE, "0", PHYSICAL),
        (keys::PHYSICAL_SECTOR_SIZE, "256", PHYSICAL),
        (keys::PHYSICAL_SECTOR_SIZE, "1536", PHYSICAL),
        (keys::PHYSICAL_SECTOR_SIZE, "2097152", PHYSICAL),
        (keys::INFO, "x", NUMBER),
        (keys::INFO, "4294967296", NUMBER),
        (keys::MODE, "rw", "r or w"),
        (keys::MODE, "", "r or w"),
        (keys::FEATURE_FLUSH_CACHE, "2", "0 or 1"),
        (keys::FEATURE_BARRIER, "yes", "0 or 1"),
        (keys::FEATURE_DISCARD, "01", "0 or 1"),
        (keys::DISCARD_SECURE, "", "0 or 1"),
        (keys::DISCARD_GRANULARITY, "0", GRANULARITY),
        (keys::DISCARD_GRANULARITY, "4294967296", GRANULARITY),
        (keys::DISCARD_GRANULARITY, "513", GRANULARITY),
        (keys::DISCARD_ALIGNMENT, "512", ALIGNMENT),
        (keys::FEATURE_MAX_INDIRECT_SEGMENTS, "4294967296", NUMBER),
        (keys::FEATURE_MAX_INDIRECT_SEGMENTS, "-1", NUMBER),
    ];
    for (key, value, expected) in table {
        let error = KeyError::Bad { key, value: value.into(), expected };
        // The first of two changes of a node is the one that holds.
        let changes = [(key, Some(value)), (keys::FEATURE_DISCARD, Some("1"))];
        assert_eq!(parse(&changes), Err(error), "{key} = {value:?}");
    }
    let error = parse(&[(keys::SECTOR_SIZE, Some("4096")), (keys::SECTORS, Some("2047"))]);
    let error = error.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the backend's sectors is \"2047\", not 1 to 2^54 sectors in whole blocks of sector-size"
    );
}

#[test]
fn what_must_be_there_is_missed() {
    for key in [keys::SECTORS, keys::SECTOR_SIZE, keys::INFO] {
        assert_eq!(parse(&[(key, None)]), Err(KeyError::Missing { key }));
    }
}

#[test]
fn of_a_long_value_32_bytes_are_told_and_none_raw() {
    let mut values = Disk::KEYS.map(|_| None);
    let long = [b"\x1b[2J\"".as_slice(), &[b'9'; 4000]].concat();
    values[1] = Some(long.as_slice());
    let Err(KeyError::Bad { key, value, .. }) = Disk::parse(values) else { panic!("taken") };
    assert_eq!(key, keys::SECTOR_SIZE);
    assert_eq!(value, format!("\\x1b[2J\\\"{}", "9".repeat(27)));
}

#[test]
fn a_new_size_is_held_to_the_same() {
    let disk = parse(&[(keys::SECTOR_SIZE, Some("4096"))]).unwrap();
    assert_eq!(disk.parse_sectors(Some(b"4096")), Ok(4096));
    assert!(matches!(disk.parse_sectors(Some(b"4095")), Err(KeyError::Bad { .. })));
    assert_eq!(disk.parse_sectors(None), Err(KeyError::Missing { key: keys::SECTORS }));
}

#[test]
fn a_ring_is_announced_by_its_size() {
    let nodes = |refs: &[u32]| -> Vec<(String, Option<String>)> {
        let refs: Vec<GrantRef> = refs.iter().copied().map(GrantRef).collect();
        announcement(&refs, EvtchnPort(7))
    };
    let some = |key: &str, value: &str| (key.to_string(), Some(value.to_string()));
    let common = [
        some("event-channel", "7"),
        some("protocol", "x86_64-abi"),
        some("feature-persistent", "1"),
    ];
    let one = [some("ring-ref", "8"), ("ring-page-order".into(), None)];
    assert_eq!(nodes(&[8]), common.iter().cloned().chain(one).collect::<Vec<_>>());
    let four = [
        some("ring-ref0", "8"),
        some("ring-ref1", "9"),
        some("ring-ref2", "20"),
        some("ring-ref3", "11"),
        some("ring-page-order", "2"),
        ("ring-ref".into(), None),
    ];
    assert_eq!(nodes(&[8, 9, 20, 11]), common.into_iter().chain(four).collect::<Vec<_>>());
}

proptest! {
    #[test]
    fn whatever_stands_there_what_is_taken_keeps_to_its_bounds(
        values in prop::collection::vec(
            prop_oneof![
                Just(None),
                any::<u64>().prop_map(|n| Some(n.to_string().into_bytes())),
                (0u32..16).prop_map(|shift| Some((1u32 << shift).to_string().into_bytes())),
                prop::collection::vec(any::<u8>(), 0..8).prop_map(Some),
                Just(Some(b"1".to_vec())),
                Just(Some(b"512".to_vec())),
            ],
            12,
        )
    ) {
        let mut all = [None; 12];
        for (slot, value) in all.iter_mut().zip(&values) {
            *slot = value.as_deref();
        }
        if let Ok(disk) = Disk::parse(all) {
            prop_assert!((1..=1 << 54).contains(&disk.nr_sectors));
            let logical_bytes = disk.logical.bytes();
            prop_assert_eq!(disk.nr_sectors % disk.logical.sectors(), 0);
            prop_assert_eq!(disk.physical_bytes % logical_bytes, 0);
            prop_assert!((11..=256).contains(&disk.max_segments));
            if let Some(discard) = disk.discard {
                prop_assert!(discard.granularity_bytes > 0);
                prop_assert_eq!(discard.granularity_bytes % logical_bytes, 0);
                prop_assert!(discard.alignment_bytes < discard.granularity_bytes);
            }
        }
    }
}
