//! Executables that cargo builds on the host; the guest sees them at the same paths.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;
use serde_json::Value;

use super::groups::Entry;
use crate::{build_ebpf, run, setup};

/// Packages that embed the TC programs.
const WITH_EBPF: &[&str] = &["coil-kernel-tests", "coil-agent"];

/// An executable that cargo built.
pub(super) struct Built {
    pub(super) target: String,
    pub(super) path: String,
    /// Where cargo would run it.
    pub(super) folder: PathBuf,
}

/// Builds a package's programs.
pub(super) fn programs(package: &str) -> Result<Vec<Built>> {
    build(package, &["build", "--bins"])
}

/// Builds a package's tests.
pub(super) fn tests(package: &str) -> Result<Vec<Built>> {
    build(package, &["test", "--no-run"])
}

impl Built {
    /// The names of its tests, asked on the host: a guest is slow.
    pub(super) fn names(&self) -> Result<Vec<String>> {
        let text = run::output(Command::new(&self.path).args(["--list", "--format", "terse"]))?;
        Ok(text.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
    }

    /// The command that runs some of its tests.
    pub(super) fn entry(self, group: &str, package: &str, tests: Vec<String>) -> Entry {
        let mut command =
            vec!["env".to_owned(), format!("CARGO_MANIFEST_DIR={}", self.folder.display()), self.path];
        // One at a time: a line as each ends, and the guest's processors for its traffic.
        command.extend(["--test-threads=1".to_owned(), "--exact".to_owned()]);
        command.extend(tests.iter().cloned());
        // A package's unit tests need no second name.
        let target = if self.target.replace('-', "_") == package.replace('-', "_") {
            String::new()
        } else {
            format!("{}::", self.target)
        };
        Entry { prefix: format!("{group}/{package}::{target}"), tests, folder: self.folder, command }
    }
}

fn build(package: &str, words: &[&str]) -> Result<Vec<Built>> {
    if WITH_EBPF.contains(&package) {
        setup::ensure()?;
        build_ebpf::build()?;
    }
    let mut command = run::cargo();
    command.args(words).args(["--package", package, "--message-format=json-render-diagnostics"]);
    eprintln!("+ {}", run::shown(&command));
    Ok(run::output(&mut command)?.lines().filter_map(executable).collect())
}

/// The executable of one of cargo's messages, if it is about one.
fn executable(message: &str) -> Option<Built> {
    let message: Value = serde_json::from_str(message).ok()?;
    let path = message.get("executable")?.as_str()?.to_owned();
    let folder = Path::new(message.get("manifest_path")?.as_str()?).parent()?.into();
    let target = message.get("target")?.get("name")?.as_str()?.to_owned();
    Some(Built { target, path, folder })
}
