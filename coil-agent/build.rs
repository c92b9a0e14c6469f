//! Embeds the eBPF object that `cargo xtask build-ebpf` makes.

use std::{env, fs, path::PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=COIL_EBPF_OBJECT");
    let object = env::var_os("COIL_EBPF_OBJECT").map_or_else(built, PathBuf::from);
    println!("cargo::rerun-if-changed={}", object.display());
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("coil-ebpf");
    if let Err(error) = fs::copy(&object, &out) {
        println!(
            "cargo::error=the eBPF object {} cannot be read ({error}): run `cargo xtask build-ebpf` first, or \
             name another object in COIL_EBPF_OBJECT",
            object.display()
        );
    }
}

/// `<target directory>/bpf/coil-ebpf`; the target directory is where OUT_DIR lies.
fn built() -> PathBuf {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    // <target>[/<triple>]/<profile>/build/<package>/out
    let target = out
        .ancestors()
        .find(|dir| dir.join("CACHEDIR.TAG").exists())
        .expect("OUT_DIR is inside a target directory");
    target.join("bpf/coil-ebpf")
}
