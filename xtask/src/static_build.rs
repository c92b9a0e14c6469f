//! Programs that run on any distribution, and in an image with nothing else: linked statically.

use std::{path::PathBuf, process::Command};

use anyhow::{Result, bail};

use crate::{build_ebpf, run};

/// What to build.
pub(crate) struct Programs<'a> {
    /// Packages and the programs of each.
    pub(crate) of: &'a [(&'a str, &'a [&'a str])],
    pub(crate) profile: &'a str,
    /// The target triple.
    pub(crate) target: &'a str,
}

/// Builds them; returns the folder they are in.
///
/// glibc's own resolver is part of it since 2.34, so nothing is missing in an image without glibc's files.
pub(crate) fn build(programs: &Programs<'_>) -> Result<PathBuf> {
    let Programs { of, profile, target } = programs;
    let variable = format!("CARGO_TARGET_{}_RUSTFLAGS", target.to_uppercase().replace('-', "_"));
    let mut command = run::cargo();
    command.args(["build", "--profile", profile, "--target", target]);
    for (package, names) in *of {
        command.args(["--package", package]);
        for name in *names {
            command.args(["--bin", name]);
        }
    }
    // With a target of its own, build scripts and macros are built without the flag.
    command.env(variable, "-Ctarget-feature=+crt-static");
    // coil-agent looks beside its own build, which here is in a folder of the target's.
    command.env("COIL_EBPF_OBJECT", build_ebpf::object());
    command.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    run::run(&mut command)?;
    Ok(run::target_dir().join(target).join(profile))
}

/// The compiler's own target.
pub(crate) fn host_target() -> Result<String> {
    let text = run::output(Command::new("rustc").arg("-vV"))?;
    match text.lines().find_map(|line| line.strip_prefix("host: ")) {
        Some(target) => Ok(target.to_owned()),
        None => bail!("`rustc -vV` names no host target"),
    }
}
