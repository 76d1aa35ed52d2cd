//! Archives: what is read out of them, and what is wrong with them.

#![allow(clippy::unwrap_used, reason = "a test may")]
mod frames;
mod images;

use frames::Frames;
use images::memory;
use store::{Archive, ArchiveError, FrameMemory, ImageFile, Member, PagePool};

const REGULAR: u32 = 0o100_644;
const FOLDER: u32 = 0o040_755;
const LINK: u32 = 0o120_777;

/// A member as `cpio -H newc` writes it; `nr_nuls` of them end the path.
fn member(path: &str, mode: u32, data: &[u8], nr_nuls: usize) -> Vec<u8> {
    let path_bytes = path.len() + nr_nuls;
    let numbers = [1, mode.try_into().unwrap(), 0, 0, 1, 0, data.len(), 0, 0, 0, 0, path_bytes, 0];
    let mut bytes = b"070701".to_vec();
    for number in numbers {
        bytes.extend(format!("{number:08X}").bytes());
    }
    bytes.extend(path.bytes());
    bytes.resize((110 + path_bytes).next_multiple_of(4), 0);
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn trailer() -> Vec<u8> {
    member("TRAILER!!!", 0, b"", 1)
}

/// Files by their paths, and how the archive ends.
type Content = (Vec<(String, Vec<u8>)>, Result<(), ArchiveError>);

/// What an archive that lies at an odd place holds.
fn read(archive: &[u8]) -> Content {
    let (pool, files) = memory(64, &[archive], 7);
    let mut found = Vec::new();
    for member in Archive::open(pool.memory(), files[0]).unwrap() {
        match member {
            Ok(Member { path, file }) => found.push((path, bytes(&pool, &file))),
            Err(error) => return (found, Err(error)),
        }
    }
    (found, Ok(()))
}

fn bytes(pool: &PagePool<Frames>, file: &ImageFile) -> Vec<u8> {
    let mut bytes = vec![0; file.len_bytes.try_into().unwrap()];
    pool.memory().read(file.at, &mut bytes);
    bytes
}

fn file(path: &str, data: &[u8]) -> (String, Vec<u8>) {
    (path.into(), data.to_vec())
}

#[test]
fn files_come_with_their_paths_and_bytes_and_all_else_is_passed_over() {
    let archive = [
        member(".", FOLDER, b"", 1),
        member("images", FOLDER, b"", 1),
        member("images/gold.img", REGULAR, b"gold!", 1),
        member("latest", LINK, b"images/gold.img", 1),
        member("empty", REGULAR, b"", 1),
        member("padded", REGULAR, b"123", 4000),
        trailer(),
    ];
    let expected =
        vec![file("images/gold.img", b"gold!"), file("empty", b""), file("padded", b"123")];
    assert_eq!(read(&archive.concat()), (expected.clone(), Ok(())));
    // Filled up to whole blocks, as cpio does.
    let mut filled = archive.concat();
    filled.resize(filled.len().next_multiple_of(512), 0);
    assert_eq!(read(&filled), (expected, Ok(())));
}

#[test]
fn a_file_name_is_without_folders() {
    let (_, files) = memory(64, &[b"x"], 0);
    let name = |path: &str| Member { path: path.into(), file: files[0] }.file_name().to_string();
    assert_eq!(name("a/b/gold.img"), "gold.img");
    assert_eq!(name("gold.img"), "gold.img");
}

#[test]
fn several_archives_follow_each_other_with_zeroes_between_them() {
    let one = [member("one", REGULAR, b"1", 1), trailer()].concat();
    let two = [member("two", REGULAR, b"22", 1), trailer()].concat();
    let both = vec![file("one", b"1"), file("two", b"22")];
    for nr_zeroes in [0, 4, 400, 4096] {
        let archive = [one.clone(), vec![0; nr_zeroes], two.clone()].concat();
        assert_eq!(read(&archive), (both.clone(), Ok(())));
    }
}

#[test]
fn a_file_that_is_no_archive_is_not_opened_as_one() {
    for bytes in [&b""[..], b"07070", b"070707 the old format", b"QFI\xfb and so on"] {
        let (pool, files) = memory(64, &[bytes], 1);
        assert!(Archive::open(pool.memory(), files[0]).is_none());
    }
    let (pool, files) = memory(64, &[b"070702"], 1);
    assert!(Archive::open(pool.memory(), files[0]).is_some());
}

#[test]
fn an_archive_that_is_cut_short_says_where() {
    let whole = [member("one", REGULAR, b"1234", 1), trailer()].concat();
    let cut = |len: usize| read(&whole[..len]);
    let truncated = |what, at| Err(ArchiveError::Truncated { what, at });
    assert_eq!(cut(109), (vec![], truncated("a header", 0)));
    assert_eq!(cut(113), (vec![], truncated("a path", 110)));
    assert_eq!(cut(119), (vec![], truncated("a file's data", 116)));
    let one = vec![file("one", b"1234")];
    assert_eq!(cut(120), (one.clone(), Err(ArchiveError::NoTrailer { at: 120 })));
    assert_eq!(cut(130), (one.clone(), truncated("a header", 120)));
    assert_eq!(cut(235), (one.clone(), truncated("a path", 230)));
    // What fills up the trailer's path may be missing.
    assert_eq!(whole.len(), 244);
    assert_eq!(cut(241), (one.clone(), Ok(())));
    assert_eq!(cut(244), (one, Ok(())));
}

#[test]
fn an_archive_that_makes_no_sense_says_where() {
    let one = member("one", REGULAR, b"1234", 1);
    let after = |rest: &[u8]| read(&[&one, rest].concat());
    let found = vec![file("one", b"1234")];
    let no_header = |at| Err(ArchiveError::NoHeader { at });
    assert_eq!(after(&[0; 200]), (found.clone(), no_header(120)));
    assert_eq!(after(&[b'0'; 200]), (found.clone(), no_header(120)));
    let junk = [&trailer(), &[0; 12][..], &[b'x'; 200]].concat();
    assert_eq!(after(&junk), (found.clone(), no_header(120 + 124 + 12)));

    let mut bad = one.clone();
    bad[6 + 8 * 6 + 7] = b'g';
    assert_eq!(read(&bad), (vec![], Err(ArchiveError::BadNumber { at: 54 })));

    let long = "x".repeat(1025);
    let long = member(&long, REGULAR, b"", 1);
    assert_eq!(read(&long), (vec![], Err(ArchiveError::PathTooLong { at: 110 })));
    let endless = member("one", REGULAR, b"", 0);
    assert_eq!(read(&endless), (vec![], Err(ArchiveError::PathTooLong { at: 110 })));
    let filled = member("one", REGULAR, b"", 65534);
    assert_eq!(read(&filled), (vec![], Err(ArchiveError::PathTooLong { at: 110 })));
    let mut garbled = one;
    garbled[111] = 0xff;
    assert_eq!(read(&garbled), (vec![], Err(ArchiveError::PathNotText { at: 110 })));

    let huge = member("huge", REGULAR, b"", 1);
    let huge = [&huge[..6 + 8 * 6], b"FFFFFFFF", &huge[6 + 8 * 7..]].concat();
    let error = ArchiveError::Truncated { what: "a file's data", at: 116 };
    assert_eq!(read(&huge), (vec![], Err(error)));
}
