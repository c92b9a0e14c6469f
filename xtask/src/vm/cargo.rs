//! What cargo builds on the host for the guest, which sees it at the same paths.

use anyhow::Result;

use super::groups::Entry;
use crate::{
    build_ebpf,
    built::{self, Built},
    plugin, run, setup,
};

/// Packages that embed the TC programs.
const WITH_EBPF: &[&str] = &["coil-kernel-tests", "coil-agent"];

/// Packages whose tests start coild, the plugin, and traffic.
const WITH_COILD: &[&str] = &["coil-node-tests"];

/// Packages whose tests start every program, and their folders: they are built as `cargo xtask test` builds them.
const WITH_EVERYTHING: &[(&str, &str)] = &[("coil-lab", "tests/lab")];

/// Builds a package's programs.
pub(super) fn programs(package: &str) -> Result<Vec<Built>> {
    build(package, &["build", "--bins"])
}

/// Builds a package's tests.
pub(super) fn tests(package: &str) -> Result<Vec<Built>> {
    if WITH_COILD.contains(&package) {
        plugin::build()?;
        build("coil-agent", &["build", "--bins"])?;
        build("coil-traffic", &["build", "--bins"])?;
    }
    if let Some((_, folder)) = WITH_EVERYTHING.iter().find(|(name, _)| *name == package) {
        setup::ensure()?;
        build_ebpf::build()?;
        plugin::build()?;
        let own = |built: &Built| built.test && built.folder == run::root().join(folder);
        return Ok(built::workspace()?.into_iter().filter(own).collect());
    }
    // Programs of the package itself are built as well.
    Ok(build(package, &["test", "--no-run"])?.into_iter().filter(|built| built.test).collect())
}

/// The command that runs some of an executable's tests.
pub(super) fn entry(built: Built, group: &str, package: &str, tests: Vec<String>) -> Entry {
    let mut command =
        vec!["env".to_owned(), format!("CARGO_MANIFEST_DIR={}", built.folder.display()), built.path];
    // One at a time: a line as each ends, and the guest's processors for its traffic.
    // Those that the host's kernel cannot run, too.
    let options = ["--test-threads=1", "--include-ignored", "--exact"];
    command.extend(options.map(str::to_owned));
    command.extend(tests.iter().cloned());
    // A package's unit tests need no second name.
    let target = if built.target.replace('-', "_") == package.replace('-', "_") {
        String::new()
    } else {
        format!("{}::", built.target)
    };
    Entry { prefix: format!("{group}/{package}::{target}"), tests, folder: built.folder, command }
}

fn build(package: &str, words: &[&str]) -> Result<Vec<Built>> {
    if WITH_EBPF.contains(&package) {
        setup::ensure()?;
        build_ebpf::build()?;
        build_ebpf::build_logging_all()?;
    }
    built::cargo(&[words, &["--package", package]].concat())
}
