//! `cargo xtask build-ebpf`

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    run,
    setup::{self, BpfCompiler, NIGHTLY},
};

const TARGET: &str = "bpfel-unknown-none";
const PACKAGE: &str = "coil-ebpf";
/// Of the workspace's Cargo.toml.
const PROFILE: &str = "bpf";
/// `--btf` makes the linker keep type information: maps and programs carry readable names.
const RUSTFLAGS: &str = "-Clinker=bpf-linker -Clink-arg=--btf -Cdebuginfo=2";

/// Compile the TC programs into target/bpf/coil-ebpf, which coil-agent embeds.
///
/// The compiler is Debian's `rustc-web`, or rustup's nightly with rust-src; see `cargo xtask setup`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A debug build of these programs, which tell of each packet: from_pod, from_net, to_pod, to_net. It is made
    /// beside the other; COIL_EBPF_OBJECT names it for a build of coild
    #[arg(long, value_name = "PROGRAM", value_delimiter = ',', value_parser = PROGRAMS)]
    log: Vec<String>,
}

const PROGRAMS: [&str; 4] = ["from_pod", "from_net", "to_pod", "to_net"];

pub(crate) fn run(args: &Args) -> Result<()> {
    setup::ensure()?;
    let object = if args.log.is_empty() {
        build()?;
        object()
    } else {
        let programs: Vec<&str> = args.log.iter().map(String::as_str).collect();
        build_logging(&programs)?
    };
    println!("{}", object.display());
    Ok(())
}

/// Where coil-agent's build script looks for the object.
pub(crate) fn object() -> PathBuf {
    run::target_dir().join("bpf").join(PACKAGE)
}

/// Compiles the object.
pub(crate) fn build() -> Result<()> {
    let build_dir = run::target_dir().join("bpf-build");
    let mut command = cargo("build");
    command.arg("--target-dir").arg(&build_dir);
    run::run(&mut command)?;
    copy_if_changed(&build_dir.join(TARGET).join(PROFILE).join(PACKAGE), &object())
}

/// Compiles a debug build of some programs, for which the tests look beside the object.
pub(crate) fn build_logging(programs: &[&str]) -> Result<PathBuf> {
    let build_dir = run::target_dir().join("bpf-log");
    let features: Vec<String> = programs.iter().map(|program| format!("log-{program}")).collect();
    let mut command = cargo("build");
    command.arg("--target-dir").arg(&build_dir).arg("--features").arg(features.join(","));
    run::run(&mut command)?;
    let object = run::target_dir().join("bpf").join(format!("{PACKAGE}-log"));
    copy_if_changed(&build_dir.join(TARGET).join(PROFILE).join(PACKAGE), &object)?;
    Ok(object)
}

/// The debug build of all programs.
pub(crate) fn build_logging_all() -> Result<()> {
    build_logging(&PROGRAMS).map(drop)
}

/// Runs clippy over the eBPF crate, with the workspace's lints, for its own target.
pub(crate) fn clippy() -> Result<()> {
    let mut command = cargo("clippy");
    command.arg("--target-dir").arg(run::target_dir().join("bpf-clippy")).arg("--all-features");
    command.args(["--", "-D", "warnings"]);
    run::run(&mut command)
}

fn cargo(verb: &str) -> Command {
    let mut command;
    match setup::bpf_compiler() {
        Some(BpfCompiler::Nightly) => {
            command = Command::new("cargo");
            command.arg(format!("+{NIGHTLY}")).args([verb, "-Zbuild-std=core"]).current_dir(run::root());
        }
        // Without any compiler cargo's own message about the missing one is the clearest.
        Some(BpfCompiler::Debian) | None => {
            command = match verb {
                // Clippy's driver must be of the compiler's version.
                "clippy" => {
                    let mut clippy = Command::new("/usr/bin/cargo-clippy");
                    clippy.arg("clippy").current_dir(run::root());
                    clippy
                }
                _ => {
                    let mut cargo = run::cargo();
                    cargo.arg(verb);
                    cargo
                }
            };
            // core for this target is ready-made, but the target itself is unstable in cargo's eyes.
            command.env("RUSTC", setup::DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
        }
    }
    command.args(["--package", PACKAGE, "--target", TARGET, "--profile", PROFILE]);
    command.env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_RUSTFLAGS", RUSTFLAGS);
    command.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    command
}

/// Leaves an equal file alone, so that coil-agent is not rebuilt for nothing.
fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let new = fs::read(from).with_context(|| format!("cannot read the built object {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    if let Some(dir) = to.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    fs::write(to, new).with_context(|| format!("cannot write {}", to.display()))
}
