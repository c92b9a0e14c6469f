//! `cargo xtask image`

mod archive;
mod check;
mod rootfs;
#[cfg(test)]
mod same;

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::{
    build_ebpf, plugin, run, setup,
    static_build::{self, Programs},
};
use archive::Image;
use rootfs::Rootfs;

/// Build the image of all programs: target/image/coil.tar.
///
/// An OCI image archive, made without a container engine, that `docker load`, `ctr images import` and
/// `kind load image-archive` take. The programs are static and all that is in it: no shell, no libraries. With --e2e
/// the image of the traffic tool of `cargo xtask e2e` is built instead: target/image/coil-e2e.tar.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Name and tag of the image [default: coil:dev, or coil-e2e:dev]
    #[arg(long)]
    tag: Option<String>,
    /// Target triple: x86_64-unknown-linux-gnu or aarch64-unknown-linux-gnu [default: this machine's]
    #[arg(long)]
    target: Option<String>,
    /// The traffic tool of the end-to-end tests
    #[arg(long)]
    e2e: bool,
    /// Write the files of the image into this folder, for a Dockerfile, instead of an archive
    #[arg(long, value_name = "DIR")]
    rootfs: Option<PathBuf>,
}

/// Cargo's profile of the programs; the plugin has its own.
const PROFILE: &str = "image";

/// What runs in pods.
const PROGRAMS: &[(&str, &[&str])] = &[
    ("coil-agent", &["coild", "coil-router", "coil-egress", "coil-installer"]),
    ("coil-controller", &["coil-ipam-controller", "coil-egress-controller"]),
];

/// The largest archive that is still called small, in bytes.
const MAX_SIZE: u64 = 40 << 20;

pub(crate) fn run(args: &Args) -> Result<()> {
    setup::ensure_build()?;
    let host = static_build::host_target()?;
    let target = args.target.as_deref().unwrap_or(&host);
    let architecture = architecture(target)?;
    let (name, rootfs) = if args.e2e { ("coil-e2e", traffic(target)?) } else { ("coil", coil(target)?) };
    if let Some(dir) = &args.rootfs {
        return rootfs.write(dir);
    }
    let tag = args.tag.clone().unwrap_or_else(|| format!("{name}:dev"));
    let image = Image { tag: &tag, architecture, path: rootfs::PROGRAMS_DIR };
    let dir = run::target_dir().join("image");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let path = dir.join(format!("{name}.tar"));
    archive::write(&path, &image, &rootfs)?;
    let size = fs::metadata(&path).with_context(|| format!("cannot read {}", path.display()))?.len();
    if size > MAX_SIZE {
        bail!("{} has {size} bytes, more than {MAX_SIZE}", path.display());
    }
    // Another architecture's programs do not run here.
    if target == host {
        check::programs_start(&path)?;
    }
    println!("{} ({tag}, {architecture}, {:.1} MiB)", path.display(), size as f64 / f64::from(1 << 20));
    Ok(())
}

/// Everything of Coil's.
fn coil(target: &str) -> Result<Rootfs> {
    build_ebpf::build()?;
    let plugin = Programs { of: &[("coil-cni", &["coil"])], profile: plugin::PROFILE, target };
    let plugin = static_build::build(&plugin)?;
    let built = static_build::build(&Programs { of: PROGRAMS, profile: PROFILE, target })?;
    let mut rootfs = Rootfs::new();
    rootfs.program(&plugin.join("coil"))?;
    for program in PROGRAMS.iter().flat_map(|(_, programs)| *programs) {
        rootfs.program(&built.join(program))?;
    }
    Ok(rootfs)
}

/// What pods of the end-to-end tests run.
fn traffic(target: &str) -> Result<Rootfs> {
    let of: &[(&str, &[&str])] = &[("coil-traffic", &["coil-traffic"])];
    let built = static_build::build(&Programs { of, profile: PROFILE, target })?;
    let mut rootfs = Rootfs::new();
    rootfs.program(&built.join("coil-traffic"))?;
    Ok(rootfs)
}

/// The architecture in the words of OCI.
fn architecture(target: &str) -> Result<&'static str> {
    match target.split('-').next() {
        Some("x86_64") => Ok("amd64"),
        Some("aarch64") => Ok("arm64"),
        _ => bail!("{target}: images are for x86_64 and aarch64"),
    }
}
