//! What cargo builds on the host for the guest, which sees it at the same paths.

use anyhow::Result;

use super::groups::Entry;
use crate::{
    build, build_ebpf,
    built::{self, Built},
    setup,
};

/// Packages that embed the TC programs.
const WITH_EBPF: &[&str] = &["coil-kernel-tests", "coil-agent"];

/// Packages whose tests start programs of others.
const WITH_PROGRAMS: &[&str] = &["coil-node-tests"];

/// Builds a package's programs.
pub(super) fn programs(package: &str) -> Result<Vec<Built>> {
    of_package(package, &["build", "--bins"])
}

/// Builds a package's tests.
pub(super) fn tests(package: &str) -> Result<Vec<Built>> {
    // Programs that the tests start are built as well.
    Ok(of_package(package, &["test", "--no-run"])?.into_iter().filter(|built| built.test).collect())
}

/// The command that runs some of an executable's tests.
pub(super) fn entry(built: Built, group: &str, package: &str, tests: Vec<String>) -> Entry {
    let mut command =
        vec!["env".to_owned(), format!("CARGO_MANIFEST_DIR={}", built.folder.display()), built.path];
    // One at a time: a line as each ends, and the guest's processors for its traffic.
    command.extend(["--test-threads=1".to_owned(), "--exact".to_owned()]);
    command.extend(tests.iter().cloned());
    // A package's unit tests need no second name.
    let target = if built.target.replace('-', "_") == package.replace('-', "_") {
        String::new()
    } else {
        format!("{}::", built.target)
    };
    Entry { prefix: format!("{group}/{package}::{target}"), tests, folder: built.folder, command }
}

fn of_package(package: &str, words: &[&str]) -> Result<Vec<Built>> {
    if WITH_EBPF.contains(&package) {
        setup::ensure()?;
        build_ebpf::build()?;
    }
    if WITH_PROGRAMS.contains(&package) {
        setup::ensure()?;
        build::all()?;
    }
    built::cargo(&[words, &["--package", package]].concat())
}
