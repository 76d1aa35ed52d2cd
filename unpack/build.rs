//! Links the unpacker and the image that `scripts/build` packed by `unpack/linker.ld`.

const PACKED: &str = "GRANARY_PACKED_IMAGE";

fn main() {
    let root = env!("CARGO_MANIFEST_DIR");
    println!("cargo::rerun-if-changed={root}/linker.ld");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={PACKED}");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        println!("cargo::rustc-link-arg-bins=-T{root}/linker.ld");
        println!("cargo::rustc-link-arg-bins=--no-pie");
        // No file padding up to a page: a loader copies the image, it maps nothing.
        println!("cargo::rustc-link-arg-bins=--nmagic");
        // Lints come without an image, and link nothing.
        if let Ok(packed) = std::env::var(PACKED) {
            println!("cargo::rerun-if-changed={packed}");
            println!("cargo::rustc-link-arg-bins={packed}");
        }
    }
}
