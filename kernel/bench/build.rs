//! Links a program for Linux out of the bare target's code, at fixed addresses.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        println!("cargo::rustc-link-arg-bins=--no-pie");
        // Valgrind 3.19 takes a program for none of its own if it has two writable segments.
        println!("cargo::rustc-link-arg-bins=-znorelro");
    }
}
