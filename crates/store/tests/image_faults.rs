//! Malformed images, each refused for exactly what is wrong with it, and a differencing VHD, which
//! `qemu-img` does not make.

// Miri takes many minutes, and nothing here is unsafe.
#![cfg(not(miri))]
#![allow(clippy::unwrap_used, reason = "a test may")]
mod frames;
mod images;

use frames::SECTOR;
use images::{load, open, read, read_all};
use store::{Extent, ImageError, ImageFormat, MAX_PARENTS};

/// Why the first of some files is refused.
fn refused(files: &[(&str, &[u8])], format: Option<ImageFormat>) -> ImageError {
    let mut files: Vec<_> = files.iter().map(|&(name, bytes)| (name, bytes, None)).collect();
    files[0].2 = format;
    let (_, images) = load(&files, 3);
    let refused = images.refused().iter().find(|refused| refused.name == files[0].0);
    refused.unwrap_or_else(|| panic!("{} is not refused", files[0].0)).error.clone()
}

/// What makes up a qcow2.
#[derive(Clone)]
struct Qcow2 {
    bytes: Vec<u8>,
}

/// Clusters of 512 bytes: the header, L1 in the second, an L2 table in the third, data from the
/// fourth on.
const L1: usize = 512;
const L2: usize = 1024;
const DATA: usize = 1536;

impl Qcow2 {
    /// A version 3 disk of 64 clusters, the first of which is in the file.
    fn new() -> Self {
        let mut new = Self { bytes: vec![0; 2048] };
        new.bytes[..4].copy_from_slice(b"QFI\xfb");
        new.put32(4, 3);
        new.put32(20, 9);
        new.put64(24, 64 * 512);
        new.put32(36, 1);
        new.put64(40, L1 as u64);
        new.put32(96, 4);
        new.put32(100, 104);
        new.put64(L1, L2 as u64 | 1 << 63);
        new.put64(L2, DATA as u64 | 1 << 63);
        new.bytes[DATA..].fill(7);
        new
    }

    /// The same with 16 KiB clusters and subclusters.
    fn extended() -> Self {
        let mut new = Self::new();
        new.bytes.resize(4 << 14, 0);
        new.put64(72, 1 << 4);
        new.put32(20, 14);
        new.put64(40, 1 << 14);
        new.put64(1 << 14, 2 << 14);
        new.put64(2 << 14, 3 << 14);
        new.put64((2 << 14) + 8, 1);
        new
    }

    fn put32(&mut self, at: usize, value: u32) {
        self.bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }

    fn put64(&mut self, at: usize, value: u64) {
        self.bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
    }

    fn with32(mut self, at: usize, value: u32) -> Self {
        self.put32(at, value);
        self
    }

    fn with64(mut self, at: usize, value: u64) -> Self {
        self.put64(at, value);
        self
    }

    /// With a backing file of this name, and with its format.
    fn over(mut self, name: &str, format: &str) -> Self {
        self.put32(104, 0xe279_2aca);
        self.put32(108, u32::try_from(format.len()).unwrap());
        self.bytes[112..112 + format.len()].copy_from_slice(format.as_bytes());
        self.put64(8, 256);
        self.put32(16, u32::try_from(name.len()).unwrap());
        self.bytes[256..256 + name.len()].copy_from_slice(name.as_bytes());
        self
    }

    fn cut(mut self, len: usize) -> Self {
        self.bytes.truncate(len);
        self
    }

    fn refused(&self) -> ImageError {
        refused(&[("disk", &self.bytes)], Some(ImageFormat::Qcow2))
    }
}

fn value(what: &'static str, value: u64, allowed: &'static str) -> ImageError {
    ImageError::Value { what, value, allowed }
}

#[test]
fn the_qcow2_that_the_faults_are_put_in_is_good() {
    for (file, data) in [(Qcow2::new(), 7), (Qcow2::extended(), 0)] {
        let (mut pool, image) = open(&[("disk", &file.bytes, None)], 1, "disk");
        let mut expected = vec![data; 512];
        expected.resize(64 * 512, 0);
        assert!(read_all(&image, &mut pool, 1 << 20) == expected);
        let (extents, _) = read(&image, &mut pool, 0, 64).unwrap();
        let [Extent::Frames { len_bytes: 512, .. }, Extent::Zero { len_bytes: 32256 }] =
            extents[..]
        else {
            panic!("{extents:?}");
        };
    }
    // The name of a feature, and bits that do not matter.
    let file = Qcow2::new().with64(72, 1).with64(80, u64::MAX).with64(88, u64::MAX);
    open(&[("disk", &file.bytes, None)], 1, "disk");
}

#[test]
fn a_qcow2_header_that_makes_no_sense() {
    let bad = Qcow2::new;
    let past =
        |what, at, len_bytes, file_bytes| ImageError::PastEnd { what, at, len_bytes, file_bytes };
    assert_eq!(bad().with32(0, 0).refused(), ImageError::Missing { what: "qcow2 header" });
    assert_eq!(bad().cut(71).refused(), past("the qcow2 header", 0, 72, 71));
    assert_eq!(bad().cut(103).refused(), past("the qcow2 header", 0, 104, 103));
    let served = "2 and 3 are served";
    assert_eq!(bad().with32(4, 1).refused(), value("the qcow2's version", 1, served));
    assert_eq!(bad().with32(4, 4).refused(), value("the qcow2's version", 4, served));
    for bits in [0, 8, 22, u32::MAX] {
        let error = value("log2 of its cluster size", bits.into(), "it can be 9 to 21");
        assert_eq!(bad().with32(20, bits).refused(), error);
    }
    assert_eq!(bad().with32(32, 2).refused(), ImageError::Unsupported { what: "encryption" });
    assert_eq!(bad().with64(24, 0).refused(), ImageError::Empty);
    let most = "a qcow2 has 2^63 - 1 at most";
    assert_eq!(bad().with64(24, 1 << 63).refused(), value("its size in bytes", 1 << 63, most));
    let sizes = "it is a multiple of 8 from 104 to a cluster";
    for len in [96, 108, 520] {
        let error = value("the length of the qcow2 header", len.into(), sizes);
        assert_eq!(bad().with32(100, len).refused(), error);
    }
}

#[test]
fn qcow2_features_that_are_not_served() {
    let with = |features| Qcow2::new().with64(72, features);
    assert_eq!(with(1 << 1).refused(), ImageError::MarkedCorrupt);
    let external = ImageError::Unsupported { what: "an external data file" };
    assert_eq!(with(1 << 2).refused(), external);
    let unknown = ImageError::UnknownFeatures { bits: 1 << 5 | 1 << 63 };
    assert_eq!(with(1 << 5 | 1 << 63 | 3).refused(), unknown);
    let error = value("log2 of its cluster size", 9, "with subclusters it is 14 to 21");
    assert_eq!(with(1 << 4).refused(), error);
    let mut kind = with(1 << 3).with32(100, 112);
    kind.bytes[104] = 2;
    assert_eq!(kind.refused(), value("its type of compression", 2, "0 and 1 are known"));
    kind.bytes[104] = 1;
    open(
        &[("zstd without compressed clusters", &kind.bytes, None)],
        1,
        "zstd without compressed clusters",
    );
    let zstd = ImageError::Unsupported { what: "clusters compressed with zstd" };
    assert_eq!(kind.with64(L2 + 8, 1 << 62 | DATA as u64).refused(), zstd);
}

#[test]
fn qcow2_tables_that_make_no_sense() {
    let bad = Qcow2::new;
    let past = |what, at, len_bytes| ImageError::PastEnd { what, at, len_bytes, file_bytes: 2048 };
    let unaligned = |what, at| ImageError::Unaligned { what, at, align_bytes: 512 };
    let covers = "they must cover the disk";
    let entries = "the number of entries of its L1 table";
    assert_eq!(bad().with32(36, 0).refused(), value(entries, 0, covers));
    assert_eq!(bad().with64(24, 65 * 512).refused(), value(entries, 1, covers));
    // An absurd size, with as many entries as it takes.
    let absurd = bad().with64(24, 64 << 34).with32(36, 1 << 25);
    assert_eq!(absurd.refused(), past("the L1 table", 512, 8 << 25));

    assert_eq!(bad().with64(40, 520).refused(), unaligned("the L1 table", 520));
    assert_eq!(bad().with64(40, 2048).refused(), past("the L1 table", 2048, 8));
    let end = u64::MAX - 511;
    assert_eq!(bad().with64(40, end).refused(), past("the L1 table", end, 8));
    assert_eq!(bad().with64(40, 0).refused(), ImageError::Overlap { at: 0 });

    let reserved = ImageError::Reserved { what: "an L1 entry", at: 512, value: 1025 };
    assert_eq!(bad().with64(L1, 1025).refused(), reserved);
    let large = bad().with32(20, 10).with64(40, 1024);
    let error = ImageError::Unaligned { what: "an L2 table", at: 1536, align_bytes: 1024 };
    assert_eq!(large.with64(1024, 1536).refused(), error);
    assert_eq!(bad().with64(L1, 2048).refused(), past("an L2 table", 2048, 512));
    assert_eq!(bad().with64(L1, 512).refused(), ImageError::Overlap { at: 512 });
    let twice = bad().with64(24, 128 * 512).with32(36, 2).with64(L1 + 8, 1024);
    assert_eq!(twice.refused(), ImageError::Overlap { at: 1024 });

    let entry = |value| bad().with64(L2 + 8, value);
    let reserved = |value| ImageError::Reserved { what: "an L2 entry", at: L2 as u64 + 8, value };
    assert_eq!(entry(1536 | 2).refused(), reserved(1536 | 2));
    assert_eq!(entry(1 << 56).refused(), reserved(1 << 56));
    assert_eq!(entry(1536 | 1).with32(4, 2).refused(), reserved(1536 | 1));
    assert_eq!(entry(2048).refused(), past("a cluster", 2048, 512));
    assert_eq!(entry((1 << 56) - 512).refused(), past("a cluster", (1 << 56) - 512, 512));
    let error = past("a cluster", 2048, 1);
    assert_eq!(entry(1 << 62 | 2048).refused(), error);
    // Past the disk's end nothing is looked at.
    open(&[("disk", &bad().with64(24, 512).with64(L2 + 8, 2).bytes, None)], 1, "disk");
    assert_eq!(
        Qcow2::new().cut(2047).refused(),
        ImageError::PastEnd { what: "a cluster", at: 1536, len_bytes: 512, file_bytes: 2047 }
    );
}

#[test]
fn qcow2_subclusters_that_make_no_sense() {
    let at = 2 << 14;
    let bits = |bits| Qcow2::extended().with64(at + 8, bits);
    let reserved = |value| ImageError::Reserved {
        what: "the subclusters of an L2 entry",
        at: at as u64,
        value,
    };
    assert_eq!(bits(1 << 32 | 1).refused(), reserved(1 << 32 | 1));
    assert_eq!(bits(1).with64(at, 0).refused(), reserved(1));
    let zero_bit = ImageError::Reserved { what: "an L2 entry", at: at as u64, value: 3 << 14 | 1 };
    assert_eq!(bits(1).with64(at, 3 << 14 | 1).refused(), zero_bit);
    let align_bytes = 1 << 14;
    let unaligned = ImageError::Unaligned { what: "a cluster", at: 3 << 13, align_bytes };
    assert_eq!(bits(1).with64(at, 3 << 13).refused(), unaligned);
    // The file may end behind the last subcluster that it has.
    let past = |len_bytes, file_bytes| ImageError::PastEnd {
        what: "a cluster",
        at: 3 << 14,
        len_bytes,
        file_bytes,
    };
    assert_eq!(bits(4).cut((3 << 14) + 1535).refused(), past(1536, (3 << 14) + 1535));
    open(&[("disk", &bits(4).cut((3 << 14) + 1536).bytes, None)], 1, "disk");
}

#[test]
fn qcow2_parents_that_cannot_be() {
    let name = "the length of its backing file's name";
    let bad = || Qcow2::new().over("base", "raw");
    let lengths = "it is 1 to 1023 bytes";
    assert_eq!(bad().with32(16, 0).refused(), value(name, 0, lengths));
    assert_eq!(bad().with32(16, 1024).refused(), value(name, 1024, lengths));
    assert_eq!(
        bad().with64(8, 2045).refused(),
        ImageError::PastEnd {
            what: "its backing file's name",
            at: 2045,
            len_bytes: 4,
            file_bytes: 2048
        }
    );
    let no_text = ImageError::NotText { what: "its backing file's name" };
    assert_eq!(bad().with32(256, u32::MAX).refused(), no_text);
    assert_eq!(
        bad().with32(108, 145).refused(),
        ImageError::PastEnd {
            what: "an extension of the qcow2 header",
            at: 112,
            len_bytes: 145,
            file_bytes: 256
        }
    );
    let parent = || "base".to_string();
    assert_eq!(bad().refused(), ImageError::ParentMissing { parent: parent() });
    let with_base =
        |file: &Qcow2, base: &[u8]| refused(&[("disk", &file.bytes), ("base", base)], None);
    assert_eq!(with_base(&bad(), &[]), ImageError::ParentRefused { parent: parent() });
    let over = |format| Qcow2::new().over("/images/base", format);
    let found = ImageFormat::Raw;
    let wrong = |wanted| ImageError::ParentFormat { parent: parent(), wanted, found };
    assert_eq!(with_base(&over("qcow2"), &[1; 512]), wrong(ImageFormat::Qcow2));
    assert_eq!(with_base(&over("vpc"), &[1; 512]), wrong(ImageFormat::Vhd));
    // Behind an extension that is nobody's, whose three bytes are filled up to eight.
    let mut behind = over("qcow2");
    behind.bytes.copy_within(104..117, 120);
    let behind = behind.with32(104, 77).with32(108, 3).with64(112, u64::MAX);
    assert_eq!(with_base(&behind, &[1; 512]), wrong(ImageFormat::Qcow2));
    let unserved = ImageError::ParentUnserved { parent: parent(), wanted: "vmdk".into() };
    assert_eq!(with_base(&over("vmdk"), &[1; 512]), unserved);
}

#[test]
fn chains_that_go_round_or_are_too_long_or_lack_an_image() {
    let over = |name: &str| Qcow2::new().over(name, "qcow2").bytes;
    let looped = |parent: &str| ImageError::Loop { parent: parent.into() };
    assert_eq!(refused(&[("self", &over("self"))], None), looped("self"));
    let (two, three, first) = (over("two"), over("three"), over("one"));
    let ring = [("one", two.as_slice(), None), ("two", &three, None), ("three", &first, None)];
    let above = over("three");
    let (_, images) = load(&[&ring[..], &[("above", &above, None)]].concat(), 3);
    assert_eq!(images.iter().count(), 0);
    let errors: Vec<_> =
        images.refused().iter().map(|refused| (refused.name.as_str(), &refused.error)).collect();
    assert_eq!(
        errors,
        [
            ("one", &looped("two")),
            ("two", &looped("three")),
            ("three", &looped("one")),
            ("above", &looped("three"))
        ]
    );

    let names: Vec<String> = (0..=MAX_PARENTS + 1).map(|n| format!("n{n}")).collect();
    let mut files = vec![Qcow2::new().bytes];
    files.extend(names.iter().map(|name| over(name)));
    let chain =
        names.iter().zip(&files).map(|(name, file)| (name.as_str(), file.as_slice(), None)).rev();
    let (_, images) = load(&chain.collect::<Vec<_>>(), 3);
    let [too_deep] = images.refused() else { panic!("{:?}", images.refused()) };
    assert_eq!(too_deep.name, names[MAX_PARENTS + 1]);
    assert_eq!(too_deep.error, ImageError::TooDeep { max: MAX_PARENTS });

    let (_, images) = load(&[("a", &[1], None), ("a", &[2], None)], 3);
    assert_eq!(images.refused()[0].error, ImageError::DuplicateName);
    assert_eq!(images.iter().count(), 1);
}

/// What makes up a VHD with blocks of 4 KiB.
struct Vhd {
    bytes: Vec<u8>,
}

const BLOCK: usize = 4096;
/// The footer's copy, the header, the table, then blocks: a sector of bits and the data.
const HEADER: usize = 512;
const TABLE: usize = 1536;
const FIRST_BLOCK: usize = 2048;

impl Vhd {
    /// A disk of four blocks, of which the file has some; of each of these, the sectors whose bits
    /// are set, filled with the block's number and `tag`.
    fn new(kind: u32, id: u8, blocks: &[(usize, u8)], tag: u8) -> Self {
        let mut new = Self { bytes: vec![0; FIRST_BLOCK] };
        new.bytes[TABLE..FIRST_BLOCK].fill(0xff);
        for &(number, bits) in blocks {
            let at = new.bytes.len();
            new.put32(TABLE + 4 * number, u32::try_from(at / SECTOR).unwrap());
            new.bytes.push(bits);
            new.bytes.resize(at + SECTOR, 0);
            new.bytes.resize(at + SECTOR + BLOCK, tag + u8::try_from(number).unwrap());
        }
        let footer = new.bytes.len();
        new.bytes.resize(footer + 512, 0);
        new.bytes[HEADER..][..8].copy_from_slice(b"cxsparse");
        new.put64(HEADER + 8, u64::MAX);
        new.put64(HEADER + 16, TABLE as u64);
        new.put32(HEADER + 24, 0x10000);
        new.put32(HEADER + 28, 4);
        new.put32(HEADER + 32, 4096);
        new.bytes[footer..][..8].copy_from_slice(b"conectix");
        new.put32(footer + 8, 2);
        new.put32(footer + 12, 0x10000);
        new.put64(footer + 16, HEADER as u64);
        new.bytes[footer + 28..][..4].copy_from_slice(b"win ");
        new.put64(footer + 48, 4 * BLOCK as u64);
        new.put32(footer + 60, kind);
        new.bytes[footer + 68..][..16].fill(id);
        new.seal();
        new
    }

    /// A differencing one over another.
    fn over(mut self, path: &str, id: u8) -> Self {
        self.bytes[HEADER + 40..][..16].fill(id);
        for (n, unit) in path.encode_utf16().enumerate() {
            self.bytes[HEADER + 64 + 2 * n..][..2].copy_from_slice(&unit.to_be_bytes());
        }
        self.seal();
        self
    }

    fn footer(&self) -> usize {
        self.bytes.len() - 512
    }

    fn put32(&mut self, at: usize, value: u32) {
        self.bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }

    fn put64(&mut self, at: usize, value: u64) {
        self.bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
    }

    /// With other bytes in the header or, past the header's length, in the footer.
    fn with32(mut self, at: usize, value: u32) -> Self {
        let at = if at < 1024 { HEADER + at } else { self.footer() + at - 1024 };
        self.put32(at, value);
        self.seal();
        self
    }

    /// With another entry of the table.
    fn with_block(mut self, number: usize, sector: u32) -> Self {
        self.put32(TABLE + 4 * number, sector);
        self
    }

    /// Makes the checksums right, and the copy of the footer.
    fn seal(&mut self) {
        let footer = self.footer();
        for (at, len, sum_at) in [(HEADER, 1024, 36), (footer, 512, 64)] {
            self.put32(at + sum_at, 0);
            let sum: u32 = self.bytes[at..at + len].iter().map(|&byte| u32::from(byte)).sum();
            self.put32(at + sum_at, !sum);
        }
        self.bytes.copy_within(footer.., 0);
    }

    fn refused(&self) -> ImageError {
        refused(&[("disk", &self.bytes)], Some(ImageFormat::Vhd))
    }
}

/// A byte of the footer, for [`Vhd::with32`].
const FOOTER: usize = 1024;

fn sectors(bytes: &[u8]) -> Vec<u8> {
    bytes.chunks(SECTOR).map(|sector| sector[0]).collect()
}

#[test]
fn a_dynamic_vhd_has_the_sectors_whose_bits_are_set() {
    let file = Vhd::new(3, 1, &[(2, 0b1100_0001), (0, 0xff)], 10);
    let (mut pool, image) = open(&[("disk", &file.bytes, None)], 1, "disk");
    let mut expected = [vec![10; 8], vec![0; 8], vec![12, 12, 0, 0, 0, 0, 0, 12]].concat();
    expected.extend([0; 8]);
    assert_eq!(sectors(&read_all(&image, &mut pool, 1 << 20)), expected);
    // The copy at the start is enough.
    let cut = &file.bytes[..file.footer()];
    let (mut pool, image) = open(&[("disk", cut, None)], 1, "disk");
    assert_eq!(sectors(&read_all(&image, &mut pool, 1 << 20)), expected);
}

#[test]
fn a_vhd_is_as_large_as_the_program_that_made_it_means() {
    // 1 cylinder of 3 heads of 4 sectors, and 32 sectors.
    let geometry = (1 << 16) | (3 << 8) | 4;
    let size = |creator: &[u8; 4], geometry| {
        let file = Vhd::new(3, 1, &[], 10).with32(FOOTER + 56, geometry);
        let file = file.with32(FOOTER + 28, u32::from_be_bytes(*creator));
        open(&[("disk", &file.bytes, None)], 1, "disk").1.nr_sectors()
    };
    for creator in [b"vpc ", b"vs  ", b"qemu"] {
        assert_eq!(size(creator, geometry), 12);
        // The largest geometry, which says nothing.
        assert_eq!(size(creator, 0xffff_10ff), 32);
    }
    for creator in [b"win ", b"qem2", b"vbox", b"tap\0"] {
        assert_eq!(size(creator, geometry), 32);
    }
}

#[test]
fn a_differencing_vhd_has_what_it_was_given_and_its_parent_the_rest() {
    let base = Vhd::new(3, 1, &[(0, 0xff), (1, 0xf0), (3, 0xff)], 10).bytes;
    let middle = Vhd::new(4, 2, &[(1, 0x3c)], 20).over("C:\\images\\base.vhd", 1).bytes;
    let top = Vhd::new(4, 3, &[(1, 0x01), (2, 0x80), (0, 0x55)], 30).over("../middle.vhd", 2).bytes;
    let files: [(&str, &[u8], _); 3] =
        [("top.vhd", &top, None), ("base.vhd", &base, None), ("middle.vhd", &middle, None)];
    let (mut pool, image) = open(&files, 9, "top.vhd");
    let expected = [
        [10, 30, 10, 30, 10, 30, 10, 30],
        [11, 11, 21, 21, 21, 21, 0, 31],
        [32, 0, 0, 0, 0, 0, 0, 0],
        [13; 8],
    ];
    assert_eq!(sectors(&read_all(&image, &mut pool, 1 << 20)), expected.concat());
    for first in 0..32 {
        for nr in 1..=32 - first {
            let (_, data) = read(&image, &mut pool, first, nr).unwrap();
            let first = usize::try_from(first).unwrap();
            assert_eq!(sectors(&data), expected.concat()[first..first + data.len() / SECTOR]);
        }
    }

    let parent = || "base.vhd".to_string();
    let over_base = |base: &[u8]| refused(&[("disk", &middle), ("base.vhd", base)], None);
    let other = Vhd::new(3, 9, &[], 0).bytes;
    assert_eq!(over_base(&other), ImageError::ParentId { parent: parent() });
    let wrong = ImageError::ParentFormat {
        parent: parent(),
        wanted: ImageFormat::Vhd,
        found: ImageFormat::Raw,
    };
    assert_eq!(over_base(&[1; 512]), wrong);
    let alone = refused(&[("disk", &middle)], None);
    assert_eq!(alone, ImageError::ParentMissing { parent: parent() });
}

#[test]
fn a_vhd_that_makes_no_sense() {
    let good = || Vhd::new(3, 1, &[(0, 0xff)], 10);
    let len = good().bytes.len() as u64;
    let past = |what, at, len_bytes| ImageError::PastEnd { what, at, len_bytes, file_bytes: len };
    assert_eq!(
        refused(&[("disk", &[0; 4096])], Some(ImageFormat::Vhd)),
        ImageError::Missing { what: "VHD footer" }
    );
    let mut sum = good();
    sum.bytes[usize::try_from(len).unwrap() - 100] = 1;
    assert_eq!(sum.refused(), ImageError::Checksum { what: "the VHD footer" });
    let mut sum = good();
    sum.bytes[HEADER + 1000] = 1;
    assert_eq!(sum.refused(), ImageError::Checksum { what: "the VHD header" });
    let version = "65536 is served, which is 1.0";
    let error = value("the VHD footer's version", 0x20000, version);
    assert_eq!(good().with32(FOOTER + 12, 0x20000).refused(), error);
    let error = value("the VHD header's version", 0x20000, version);
    assert_eq!(good().with32(24, 0x20000).refused(), error);
    let error = value(
        "the VHD's type",
        5,
        "2, 3 and 4 are served, which are fixed, dynamic and differencing",
    );
    assert_eq!(good().with32(FOOTER + 60, 5).refused(), error);
    assert_eq!(good().with32(FOOTER + 52, 0).refused(), ImageError::Empty);
    let error = value("its size in bytes", (1 << 32) * 512 + 16384, "a VHD has 2040 GiB at most");
    assert_eq!(good().with32(FOOTER + 48, 512).refused(), error);

    let fixed = |size| good().with32(FOOTER + 60, 2).with32(FOOTER + 52, size);
    let data_bytes = len - 512;
    let error = ImageError::PastEnd {
        what: "the disk's data",
        at: 0,
        len_bytes: data_bytes + 512,
        file_bytes: data_bytes,
    };
    let size = u32::try_from(data_bytes).unwrap();
    assert_eq!(fixed(size + 512).refused(), error);
    open(&[("disk", &fixed(size).bytes, None)], 1, "disk");

    assert_eq!(good().with32(FOOTER + 20, 8192).refused(), past("the VHD header", 8192, 1024));
    assert_eq!(good().with32(FOOTER + 20, 0).refused(), ImageError::Missing { what: "VHD header" });
    let sizes = "powers of two from 512 to 268435456 are served";
    for block in [0, 256, 4095, 12288, 1 << 29] {
        let error = value("the VHD's block size in bytes", block.into(), sizes);
        assert_eq!(good().with32(32, block).refused(), error);
    }
    let error = value(
        "the number of entries of its block table",
        3,
        "there is one for each block of the disk",
    );
    assert_eq!(good().with32(28, 3).refused(), error);
    assert_eq!(good().with32(20, 8192).refused(), past("its block table", 8192, 16));
    let far = (u64::from(u32::MAX) << 32) + TABLE as u64;
    assert_eq!(good().with32(16, u32::MAX).refused(), past("its block table", far, 16));
    assert_eq!(good().with32(20, 512).refused(), ImageError::Overlap { at: 512 });
    assert_eq!(good().with32(20, 1535).refused(), ImageError::Overlap { at: 1535 });
    assert_eq!(good().with_block(1, 0).refused(), ImageError::Overlap { at: 0 });
    assert_eq!(good().with_block(1, 4).refused(), ImageError::Overlap { at: 2048 });
    assert_eq!(good().with_block(1, 6).refused(), past("a block", 3072, 4608));
    let at = u64::from(u32::MAX - 1) * 512;
    assert_eq!(good().with_block(1, u32::MAX - 1).refused(), past("a block", at, 4608));
}

#[test]
fn what_the_last_sector_of_a_raw_file_lacks_is_zero() {
    let (mut pool, image) = open(&[("disk", &[9; 1000], None)], 1, "disk");
    let (extents, data) = read(&image, &mut pool, 0, 2).unwrap();
    assert_eq!(data, [[9; 1000].as_slice(), &[0; 24]].concat());
    let [Extent::Frames { len_bytes: 1000, .. }, Extent::Zero { len_bytes: 24 }] = extents[..]
    else {
        panic!("{extents:?}");
    };
}

#[test]
fn a_file_of_nothing_is_no_image_and_the_magic_is_overridden() {
    for format in [None, Some(ImageFormat::Raw)] {
        assert_eq!(refused(&[("disk", &[])], format), ImageError::Empty);
    }
    let file = Qcow2::new().bytes;
    let (mut pool, image) = open(&[("disk", &file, Some(ImageFormat::Raw))], 1, "disk");
    assert!(read_all(&image, &mut pool, 1 << 20) == file);
    assert_eq!(image.format(), ImageFormat::Raw);
}
