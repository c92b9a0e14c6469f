//! The `coil` plugin as it is installed on nodes.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::run;

/// Cargo's profile for it.
const PROFILE: &str = "plugin";

/// Where the plugin is when it is built; the lab, the tests and packages take it from there.
pub(crate) fn path() -> PathBuf {
    run::target_dir().join("static").join("coil")
}

/// Builds the plugin: small, and linked statically, so that it runs on any distribution.
pub(crate) fn build() -> Result<()> {
    let target = host_target()?;
    let variable = format!("CARGO_TARGET_{}_RUSTFLAGS", target.to_uppercase().replace('-', "_"));
    let mut command = run::cargo();
    command.args([
        "build",
        "--package",
        "coil-cni",
        "--bin",
        "coil",
        "--profile",
        PROFILE,
        "--target",
        &target,
    ]);
    // With a target of its own, build scripts and macros are built without the flag.
    command.env(variable, "-Ctarget-feature=+crt-static");
    command.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    run::run(&mut command)?;
    let built = run::target_dir().join(&target).join(PROFILE).join("coil");
    let path = path();
    let dir = path.parent().unwrap_or(&path);
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    // By rename: one that is running stays as it is.
    let new = path.with_extension("new");
    fs::copy(&built, &new)
        .with_context(|| format!("cannot copy {} to {}", built.display(), new.display()))?;
    fs::rename(&new, &path).with_context(|| format!("cannot put {} in its place", path.display()))
}

/// The compiler's own target.
fn host_target() -> Result<String> {
    let text = run::output(Command::new("rustc").arg("-vV"))?;
    match text.lines().find_map(|line| line.strip_prefix("host: ")) {
        Some(target) => Ok(target.to_owned()),
        None => bail!("`rustc -vV` names no host target"),
    }
}
