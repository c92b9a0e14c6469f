//! `cargo xtask crdgen`

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};

use crate::{generated, run};

/// Generate deploy/crds/ from the Rust types in coil-common/api.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Change nothing; fail when the files are not what the types say
    #[arg(long)]
    check: bool,
}

impl Args {
    /// As `--check`.
    pub(crate) fn check() -> Self {
        Self { check: true }
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let committed = run::root().join("deploy/crds");
    if !args.check {
        return generate(&committed);
    }
    let fresh = run::target_dir().join("crds");
    generated::clear(&fresh)?;
    generate(&fresh)?;
    if read(&fresh)? != read(&committed)? {
        bail!("deploy/crds is not what coil-common/api says: run `cargo xtask crdgen` and commit the result");
    }
    Ok(())
}

fn generate(dir: &Path) -> Result<()> {
    let mut command = run::cargo();
    command.args(["run", "--quiet", "--package", "coil-api", "--example", "crdgen", "--"]).arg(dir);
    run::run(&mut command)
}

/// The definitions of all folders. Kustomizations beside them are not generated.
fn read(dir: &Path) -> Result<BTreeMap<PathBuf, String>> {
    let mut files = generated::read(dir)?;
    files.retain(|path, _| !path.ends_with("kustomization.yaml"));
    Ok(files)
}
