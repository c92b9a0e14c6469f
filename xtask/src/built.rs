//! Executables that cargo built, and the tests in them.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;
use serde_json::Value;

use crate::run;

/// An executable that cargo built.
pub(crate) struct Built {
    /// Name of its target.
    pub(crate) target: String,
    pub(crate) path: String,
    /// Its package's folder, where cargo would run it.
    pub(crate) folder: PathBuf,
    /// Whether it is a test program.
    pub(crate) test: bool,
}

impl Built {
    /// The names of its tests.
    pub(crate) fn names(&self) -> Result<Vec<String>> {
        let text = run::output(Command::new(&self.path).args(["--list", "--format", "terse"]))?;
        Ok(text.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
    }

    /// As cargo would start it.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.current_dir(&self.folder).env("CARGO_MANIFEST_DIR", &self.folder);
        command
    }
}

/// Runs `cargo WORDS`; what it built.
pub(crate) fn cargo(words: &[&str]) -> Result<Vec<Built>> {
    let mut command = run::cargo();
    command.args(words).arg("--message-format=json-render-diagnostics");
    eprintln!("+ {}", run::shown(&command));
    Ok(run::output(&mut command)?.lines().filter_map(executable).collect())
}

/// All packages at once: each selection of its own would have features of its own, and build every dependency again.
pub(crate) const WORKSPACE: [&str; 3] = ["--workspace", "--exclude", "coil-ebpf"];

/// Builds all programs and all tests.
pub(crate) fn workspace() -> Result<Vec<Built>> {
    cargo(&[&["build"], &WORKSPACE[..], &["--bins", "--tests"]].concat())
}

/// The executable of one of cargo's messages, if it is about one.
fn executable(message: &str) -> Option<Built> {
    let message: Value = serde_json::from_str(message).ok()?;
    let path = message.get("executable")?.as_str()?.to_owned();
    let folder = Path::new(message.get("manifest_path")?.as_str()?).parent()?.into();
    let target = message.get("target")?.get("name")?.as_str()?.to_owned();
    let test = message.get("profile")?.get("test")?.as_bool()?;
    Some(Built { target, path, folder, test })
}
