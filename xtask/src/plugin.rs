//! The `coil` plugin as it is installed on nodes.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};

use crate::{
    run,
    static_build::{self, Programs},
};

/// Cargo's profile for it.
pub(crate) const PROFILE: &str = "plugin";

/// Where the plugin is when it is built; the lab, the tests and packages take it from there.
pub(crate) fn path() -> PathBuf {
    run::target_dir().join("static").join("coil")
}

/// Builds the plugin: small, and linked statically, so that it runs on any distribution.
pub(crate) fn build() -> Result<()> {
    let target = static_build::host_target()?;
    let programs = Programs { of: &[("coil-cni", &["coil"])], profile: PROFILE, target: &target };
    let built = static_build::build(&programs)?.join("coil");
    let path = path();
    let dir = path.parent().unwrap_or(&path);
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    // By rename: one that is running stays as it is.
    let new = path.with_extension("new");
    fs::copy(&built, &new)
        .with_context(|| format!("cannot copy {} to {}", built.display(), new.display()))?;
    fs::rename(&new, &path).with_context(|| format!("cannot put {} in its place", path.display()))
}
