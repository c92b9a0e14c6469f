//! `cargo xtask crdgen`

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

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

/// The definitions of all folders, by folder and name. Kustomizations beside them are not generated.
fn read(dir: &Path) -> Result<BTreeMap<String, String>> {
    let mut files = BTreeMap::new();
    for part in list(dir)? {
        for path in list(&part)?.into_iter().filter(|path| !path.ends_with("kustomization.yaml")) {
            let name = path.strip_prefix(dir).unwrap_or(&path).display().to_string();
            let text =
                fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            files.insert(name, text);
        }
    }
    Ok(files)
}

fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}
