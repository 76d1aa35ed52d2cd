//! What becomes of boot modules, and of what the command line says of them.

#![allow(clippy::unwrap_used, reason = "a test may")]

use sim::toolstack::DiskSpec;
use sim::{FrontendConfig, Lab, Model};

/// A cpio archive (newc) of files.
fn archive(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let trailer = ("TRAILER!!!", Vec::new());
    for (path, data) in files.iter().chain([&trailer]) {
        let mut numbers = [0; 13];
        (numbers[1], numbers[6], numbers[11]) = (0o100_644, data.len(), path.len() + 1);
        bytes.extend(b"070701");
        numbers.iter().for_each(|number| bytes.extend(format!("{number:08x}").bytes()));
        bytes.extend(path.bytes().chain([0]));
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// What the domain says at its start of modules and of the command line, but for its first lines.
fn start(modules: &[Vec<u8>], command_line: &str) -> (Lab, Vec<String>) {
    let mut lab = Lab::new(1).memory_pages(2000).cmdline(command_line);
    for module in modules {
        lab = lab.module(module.clone());
    }
    let lab = lab.start();
    let console = lab.machine().console();
    (lab, console.into_iter().filter(|line| !line.starts_with("pool of ")).collect())
}

#[test]
fn the_files_of_an_archive_are_images_by_their_names() {
    let files = [("images/gold.raw", vec![7; 4096]), ("second", vec![8; 1024])];
    let (mut lab, console) = start(&[vec![5; 512], archive(&files)], "");
    assert_eq!(
        console,
        [
            "image module0: raw, 1 sectors",
            "image gold.raw: raw, 8 sectors",
            "image second: raw, 2 sectors",
        ]
    );
    let guest = lab.create_guest();
    let disk = lab.attach(guest, "xvda", "gold.raw,cow");
    lab.add_frontend(disk, FrontendConfig::default(), Some(Model::overlay(vec![7; 4096])));
    lab.random_io(disk, 50);
}

#[test]
fn what_is_defined_is_that_and_nothing_else() {
    // It looks like a qcow2 image, and there is no sense in it.
    let looks = [b"QFI\xfb".to_vec(), vec![0xff; 508]].concat();
    let files = [("gold", looks.clone()), ("other", looks)];
    let words = "disk=gold,module=0,file=gold,format=raw disk=again,module=0,file=gold,format=vhd \
                 disk=q,module=0,file=other,format=qcow2";
    let (lab, console) = start(&[archive(&files)], words);
    assert_eq!(console.len(), 3, "{console:#?}");
    assert!(console[0].starts_with("image again is refused: it has no "), "{console:#?}");
    assert!(console[1].starts_with("image q is refused: "), "{console:#?}");
    assert_eq!(console[2], "image gold: raw, 1 sectors");
    drop(lab);
}

#[test]
fn what_cannot_be_defined_is_said() {
    let files = [("a file", vec![1; 512]), ("fine", vec![1; 512])];
    let words = "disk=a,module=2 disk=b,module=0 disk=c,module=0,file=none disk=d,ram,size=1G \
                 disk=e,silver,cow disk=fine,null,size=1M disk=ok,ram,size=64K disk=ram,null,size=1M \
                 disk=x";
    let (_, console) = start(&[archive(&files), vec![2; 512]], words);
    assert_eq!(
        console,
        [
            "command line: `ram`: not a name but a type of disk",
            "command line: `x`: needs a type of disk",
            "image a is refused: there is no module 2, there are 2",
            "image b is refused: module 0 is an archive: say which file=",
            "image c is refused: module 0 has no file none",
            "module 0: a file: not a name, expected 1 to 40 of A-Z a-z 0-9 . _ - that begin with a \
             letter or a digit",
            "image fine: raw, 1 sectors",
            "image module1: raw, 1 sectors",
            "disk d is refused: the full disk takes 262401 pages, all disks together can have 1724",
            "disk e is refused: there is no image called silver",
            "disk fine is refused: there is a disk or an image called fine already",
            "disk ok: made",
        ]
    );
}

#[test]
fn an_archive_that_is_cut_off_or_full_of_files_is_served_as_far_as_it_goes() {
    let many: Vec<(String, Vec<u8>)> = (0..300).map(|n| (format!("f{n}"), vec![1; 512])).collect();
    let many: Vec<(&str, Vec<u8>)> =
        many.iter().map(|(name, data)| (&**name, data.clone())).collect();
    let (mut lab, console) = start(&[archive(&many)], "");
    assert_eq!(console[0], "module 0: more than 256 files, the rest is ignored");
    assert_eq!(console.len(), 257);
    let guest = lab.create_guest();
    lab.attach(guest, "xvda", "f255,ro");
    assert!(lab.try_attach(guest, &DiskSpec::new("xvdb", "f256,ro")).is_err());

    let whole = archive(&[("first", vec![1; 512]), ("second", vec![2; 4096])]);
    let (_, console) = start(&[whole[..1500].to_vec()], "");
    assert_eq!(console.len(), 2, "{console:#?}");
    assert!(console[0].starts_with("module 0: "), "{console:#?}");
    assert_eq!(console[1], "image first: raw, 1 sectors");
}

#[test]
fn a_module_that_the_loader_did_not_bring_costs_its_images_alone() {
    for (modules, nr) in [(vec![], 0), (vec![vec![1; 512]], 1)] {
        let words = "disk=gold,module=3 disk=silver,module=3,file=x disk=fork,gold,cow \
                     disk=ok,ram,size=64K";
        let (mut lab, console) = start(&modules, words);
        let mut expected = vec![
            format!("image gold is refused: there is no module 3, there are {nr}"),
            format!("image silver is refused: there is no module 3, there are {nr}"),
            "disk fork is refused: there is no image called gold".into(),
            "disk ok: made".into(),
        ];
        if nr == 1 {
            expected.insert(2, "image module0: raw, 1 sectors".into());
        }
        assert_eq!(console, expected);
        let guest = lab.create_guest();
        let seen = lab.machine().console().len();
        assert!(lab.try_attach(guest, &DiskSpec::new("xvda", "gold,cow")).is_err());
        let line = format!(
            "vbd {guest}/51712: cannot serve target=gold,cow: there is no image called gold"
        );
        assert_eq!(lab.machine().console()[seen..], [line]);
        let disk = lab.attach(guest, "xvdb", "ok");
        lab.connect(disk);
        lab.random_io(disk, 20);
    }
}
