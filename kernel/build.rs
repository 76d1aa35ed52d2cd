//! Links the image by the workspace's `linker.ld`, at fixed addresses.

fn main() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    println!("cargo::rerun-if-changed={root}/linker.ld");
    println!("cargo::rerun-if-changed=build.rs");
    // On the host only the pure parts are built, for their tests.
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        println!("cargo::rustc-link-arg-bins=-T{root}/linker.ld");
        println!("cargo::rustc-link-arg-bins=--no-pie");
        println!("cargo::rustc-link-arg-bins=-zmax-page-size=4096");
    }
}
