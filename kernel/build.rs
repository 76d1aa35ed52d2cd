//! Links the images by the workspace's `linker.ld`, at fixed addresses.

fn main() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    println!("cargo::rerun-if-changed={root}/linker.ld");
    println!("cargo::rerun-if-changed=build.rs");
    // On the host only the pure parts are built, for their tests.
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        println!("cargo::rustc-link-arg-bins=-T{root}/linker.ld");
        println!("cargo::rustc-link-arg-bins=--no-pie");
        // No file padding up to a page: a loader copies the image, it maps nothing.
        println!("cargo::rustc-link-arg-bins=--nmagic");
        // Equal functions are one: no address of a function is compared with another.
        println!("cargo::rustc-link-arg-bins=--icf=all");
        // At 1 MiB, where `linker.ld` puts an image, hvmloader runs.
        println!("cargo::rustc-link-arg-bin=granary-hvm=--defsym=IMAGE_BASE=0x1000000");
    }
}
