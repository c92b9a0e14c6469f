//! `cargo xtask crdgen`

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result, bail};

use crate::run;

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
    if fresh.exists() {
        fs::remove_dir_all(&fresh).with_context(|| format!("cannot clear {}", fresh.display()))?;
    }
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

fn read(dir: &Path) -> Result<BTreeMap<String, String>> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    entries
        .map(|entry| {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            Ok((name, fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?))
        })
        .collect()
}
