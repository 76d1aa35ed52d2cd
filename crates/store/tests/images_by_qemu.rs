//! Images that `qemu-img` makes: what is served is what `qemu-img convert -O raw` makes of them.

// Miri starts no process.
#![cfg(not(miri))]
#![allow(clippy::unwrap_used, reason = "a test may")]
mod frames;
mod images;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use frames::SECTOR;
use images::{Rng, contents, open, read, read_all};

/// A folder of a test's own.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).unwrap();
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    /// Runs one of QEMU's programs in the folder.
    fn run<S: AsRef<OsStr>>(&self, program: &str, arguments: &[S]) {
        let mut command = Command::new(program);
        let output = command.args(arguments).current_dir(&self.0).output();
        let output = output.unwrap_or_else(|error| {
            panic!("{program}: {error}; scripts/setup installs qemu-utils")
        });
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?}: {error}");
    }

    fn qemu_img(&self, line: &str) {
        self.run("qemu-img", &line.split_whitespace().collect::<Vec<_>>());
    }

    /// Runs commands of qemu-io on an image.
    fn qemu_io(&self, format: &str, name: &str, commands: &[String]) {
        let mut arguments = vec!["-f", format];
        for command in commands {
            arguments.extend(["-c", command]);
        }
        arguments.push(name);
        self.run("qemu-io", &arguments);
    }

    /// What is served of the first of `names` is what QEMU has in it, whole and in pieces.
    fn check(&self, names: &[&str], format: &str) {
        let name = names[0];
        self.qemu_img(&format!("convert -f {format} -O raw {name} expected"));
        let expected = self.read("expected");
        let bytes: Vec<Vec<u8>> = names.iter().map(|name| self.read(name)).collect();
        let mut files: Vec<_> =
            names.iter().zip(&bytes).map(|(name, bytes)| (*name, bytes.as_slice(), None)).collect();
        if expected.len().is_multiple_of(1024) {
            // Parents first.
            files.reverse();
        }
        let (mut pool, image) = open(&files, 4093, name);
        assert_eq!(image.nr_sectors(), (expected.len() / SECTOR) as u64, "{name}");
        let served = read_all(&image, &mut pool, 1 << 20);
        if served != expected {
            let at = (0..expected.len()).find(|&at| served[at] != expected[at]).unwrap();
            panic!("{name}: byte {at} is {} and not {}", served[at], expected[at]);
        }
        let mut rng = Rng::new(expected.len() as u64);
        for _ in 0..20 {
            let first = rng.below(image.nr_sectors());
            let nr = 1 + rng.below((image.nr_sectors() - first).min(600));
            let (_, data) = read(&image, &mut pool, first, nr).unwrap();
            let start = usize::try_from(first).unwrap() * SECTOR;
            assert!(data == expected[start..][..data.len()], "{name}: sectors {first}+{nr}");
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// Random writes, writes of zeroes and discards, for qemu-io.
fn changes(size: u64, cluster: u64, rng: &mut Rng) -> Vec<String> {
    let mut commands = Vec::new();
    for _ in 0..24 {
        let at = 512 * rng.below(size / 512);
        let len = (512 * rng.run_of_sectors()).min(size - at);
        let byte = 1 + rng.below(255);
        commands.push(match rng.below(6) {
            0 => format!("write -z {at} {len}"),
            1 => format!("write -zu {at} {len}"),
            2 => {
                let (at, len) = (at - at % cluster, cluster);
                if at + len > size {
                    format!("read {at} 512")
                } else {
                    format!("discard {at} {len}")
                }
            }
            _ => format!("write -P {byte} {at} {len}"),
        });
    }
    commands
}

const SIZE: usize = (1 << 20) + 7 * SECTOR;

#[test]
fn raw() {
    let folder = Folder::new("raw");
    folder.write("disk", &contents(SIZE, &mut Rng::new(1)));
    folder.check(&["disk"], "raw");
}

#[test]
fn vhd_of_every_option() {
    let folder = Folder::new("vhd");
    let mut rng = Rng::new(2);
    for subformat in ["fixed", "dynamic"] {
        for force_size in ["off", "on"] {
            for size in [SIZE, 2 << 20, 512] {
                folder.write("source", &contents(size, &mut rng));
                let options = format!("subformat={subformat},force_size={force_size}");
                folder.qemu_img(&format!("convert -f raw -O vpc -o {options} source disk.vhd"));
                folder.check(&["disk.vhd"], "vpc");
            }
            let changes = changes(SIZE as u64, 4096, &mut rng);
            folder.write("source", &contents(SIZE, &mut rng));
            let options = format!("subformat={subformat},force_size={force_size}");
            folder.qemu_img(&format!("convert -f raw -O vpc -o {options} source disk.vhd"));
            folder.qemu_io("vpc", "disk.vhd", &changes);
            folder.check(&["disk.vhd"], "vpc");
        }
    }
}

#[test]
fn qcow2_of_every_option() {
    let folder = Folder::new("qcow2");
    let mut rng = Rng::new(3);
    let clusters = [512_u64, 1024, 4096, 65536, 2 << 20];
    let mut options: Vec<(u64, String)> = Vec::new();
    for cluster in clusters {
        options.push((cluster, format!("compat=0.10,cluster_size={cluster}")));
        options.push((cluster, format!("compat=1.1,cluster_size={cluster}")));
    }
    for cluster in [16384, 65536, 2 << 20] {
        options.push((cluster, format!("extended_l2=on,cluster_size={cluster}")));
    }
    for mode in ["off", "metadata", "falloc", "full"] {
        options.push((65536, format!("preallocation={mode}")));
    }
    options.push((65536, "extended_l2=on,preallocation=metadata".into()));
    options.push((65536, "lazy_refcounts=on".into()));
    // As long as nothing is compressed, it is not needed.
    options.push((65536, "compression_type=zstd".into()));
    for bits in [1, 8, 64] {
        options.push((65536, format!("refcount_bits={bits}")));
    }
    for (cluster, options) in options {
        folder.write("source", &contents(SIZE, &mut rng));
        folder.qemu_img(&format!("convert -f raw -O qcow2 -o {options} source disk.qcow2"));
        folder.check(&["disk.qcow2"], "qcow2");
        folder.qemu_io("qcow2", "disk.qcow2", &changes(SIZE as u64, cluster, &mut rng));
        folder.check(&["disk.qcow2"], "qcow2");
    }
}

#[test]
fn compressed_qcow2() {
    let folder = Folder::new("compressed");
    let mut rng = Rng::new(7);
    for options in [
        "compat=0.10",
        "cluster_size=512",
        "cluster_size=2k",
        "cluster_size=4k",
        "cluster_size=32k",
        "cluster_size=64k",
        "cluster_size=2M",
        "extended_l2=on,cluster_size=16k",
    ] {
        folder.write("source", &contents(SIZE, &mut rng));
        folder.qemu_img(&format!("convert -c -f raw -O qcow2 -o {options} source disk.qcow2"));
        folder.check(&["disk.qcow2"], "qcow2");
        // Some clusters of each kind.
        folder.qemu_io("qcow2", "disk.qcow2", &changes(SIZE as u64, 65536, &mut rng)[..6]);
        folder.check(&["disk.qcow2"], "qcow2");
    }
}

#[test]
fn compressed_qcow2_over_one_another() {
    let folder = Folder::new("compressed-chain");
    let mut rng = Rng::new(8);
    folder.write("base.img", &contents(SIZE, &mut rng));
    folder.qemu_img("convert -c -f raw -O qcow2 -o cluster_size=64k base.img one");
    let mut names = vec!["one"];
    for (name, cluster) in [("two", 1024), ("three", 4096), ("four", 512)] {
        let below = names[0];
        folder.qemu_img(&format!(
            "create -f qcow2 -F qcow2 -b {below} -o cluster_size={cluster} {name}"
        ));
        // None twice, which QEMU refuses.
        let writes: Vec<String> = (0..40)
            .map(|n| {
                let at = n * 24_576 + rng.below(24_576 / cluster) * cluster;
                format!("write -c -P {} {at} {cluster}", rng.below(256))
            })
            .collect();
        folder.qemu_io("qcow2", name, &writes);
        names.insert(0, name);
        folder.check(&names, "qcow2");
    }
}

#[test]
fn qcow2_that_was_never_written_has_snapshots_or_grew() {
    let folder = Folder::new("qcow2-more");
    let mut rng = Rng::new(4);
    folder.qemu_img("create -f qcow2 disk.qcow2 5G");
    let bytes = folder.read("disk.qcow2");
    let (mut pool, image) = open(&[("disk.qcow2", &bytes, None)], 3, "disk.qcow2");
    assert_eq!(image.nr_sectors(), 5 << 21);
    assert_eq!(read(&image, &mut pool, (5 << 21) - 9, 9).unwrap().1, vec![0; 9 * SECTOR]);

    folder.qemu_img("create -f qcow2 disk.qcow2 1M");
    folder.qemu_io("qcow2", "disk.qcow2", &changes(1 << 20, 65536, &mut rng));
    folder.qemu_img("snapshot -c before disk.qcow2");
    folder.qemu_io("qcow2", "disk.qcow2", &changes(1 << 20, 65536, &mut rng));
    folder.qemu_img("resize -q disk.qcow2 1500K");
    folder.qemu_io("qcow2", "disk.qcow2", &changes(1_500 << 10, 65536, &mut rng));
    folder.check(&["disk.qcow2"], "qcow2");
}

#[test]
fn qcow2_over_one_to_three_others() {
    let folder = Folder::new("chains");
    let mut rng = Rng::new(5);
    let over = |name: &str, below: &str, format: &str, options: &str, size: &str| {
        folder.qemu_img(&format!(
            "create -f qcow2 -b {below} -F {format} -o {options} {name} {size}"
        ));
    };
    let change = |name: &str, size: usize, cluster: u64, rng: &mut Rng| {
        folder.qemu_io("qcow2", name, &changes(size as u64, cluster, rng));
    };
    let small = (700 << 10) + 3 * SECTOR;
    folder.write("base.img", &contents(small, &mut rng));
    folder.qemu_img("convert -f raw -O qcow2 -o cluster_size=512 base.img base.qcow2");
    folder.qemu_img("convert -f raw -O vpc -o subformat=dynamic,force_size=on base.img base.vhd");
    for (base, format) in [("base.img", "raw"), ("base.qcow2", "qcow2"), ("base.vhd", "vpc")] {
        for (options, cluster) in [
            ("compat=0.10", 65536),
            ("cluster_size=4096", 4096),
            ("extended_l2=on,cluster_size=16k", 16384),
            ("extended_l2=on", 65536),
            ("preallocation=metadata,extended_l2=on", 65536),
        ] {
            // Larger than what it stands on.
            over("one.qcow2", base, format, options, &SIZE.to_string());
            change("one.qcow2", SIZE, cluster, &mut rng);
            folder.check(&["one.qcow2", base], "qcow2");
        }
        // Shorter.
        over("two.qcow2", "one.qcow2", "qcow2", "cluster_size=2M", "900K");
        change("two.qcow2", 900 << 10, 65536, &mut rng);
        folder.check(&["two.qcow2", "one.qcow2", base], "qcow2");
        over("three.qcow2", "two.qcow2", "qcow2", "extended_l2=on", "1200K");
        change("three.qcow2", 1_200 << 10, 65536, &mut rng);
        folder.check(&["three.qcow2", "two.qcow2", "one.qcow2", base], "qcow2");
    }
}

#[test]
fn a_backing_file_is_found_without_its_folders_and_by_the_format_that_its_child_says() {
    let folder = Folder::new("folders");
    let mut rng = Rng::new(6);
    fs::create_dir(folder.path("below")).unwrap();
    folder.write("below/inner.raw", &contents(1 << 20, &mut rng));
    folder.qemu_img("convert -f raw -O qcow2 below/inner.raw below/base");
    // A qcow2 file that is taken as the bytes of a disk.
    folder.qemu_img("create -f qcow2 -b ./below/base -F raw disk.qcow2");
    folder.qemu_img("convert -f qcow2 -O raw disk.qcow2 expected");
    let (disk, base) = (folder.read("disk.qcow2"), folder.read("below/base"));
    let files = [("disk.qcow2", disk.as_slice(), None), ("base", base.as_slice(), None)];
    let (mut pool, image) = open(&files, 5, "disk.qcow2");
    assert!(read_all(&image, &mut pool, 1 << 20) == folder.read("expected"));
}
