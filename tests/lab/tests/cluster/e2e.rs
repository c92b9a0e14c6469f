//! The end-to-end tests that users run on their clusters, run on the lab: by the API alone.

use std::process::Command;

use anyhow::{Context as _, Result};
use coil_lab::{
    Lab,
    config::{Family, Options},
};

use crate::common::{check, end, name, program};

/// Runs all scenarios; those named may be called impossible here.
fn run(test: &str, options: Options, not_here: &[&str]) -> Result<()> {
    let lab = Lab::start(program(), Options { name: name(test), ..options })?;
    let tests = program().with_file_name("coil-e2e");
    let output = Command::new(&tests)
        .arg("--kubeconfig")
        .arg(lab.kubeconfig())
        .output()
        .with_context(|| format!("cannot run {}", tests.display()))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    check(output.status.success(), || format!("{said}{}", String::from_utf8_lossy(&output.stderr)))?;
    let (_, results) = said.rsplit_once("== Results\n").context("there are no results")?;
    for line in results.lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        let passed = line.ends_with(" passed");
        check(passed != not_here.contains(&name), || format!("{line}\n{said}"))?;
    }
    check(results.lines().count() == 11, || said.clone())?;
    let left = lab.kubectl("get namespaces,addresspools,addressblocks -l coil-e2e -o name")?.success()?;
    check(left.trim().is_empty(), || format!("left behind: {left}"))?;
    end(lab)
}

#[test]
fn with_both_families() -> Result<()> {
    run("e2e", Options::named("x"), &[])
}

#[test]
fn with_ipv6_alone() -> Result<()> {
    run("e2e-v6", Options { family: Family::V6, ..Options::named("x") }, &[])
}

#[test]
fn with_ipv4_alone() -> Result<()> {
    run("e2e-v4", Options { family: Family::V4, ..Options::named("x") }, &[])
}

/// Egress by the kernel needs modules. Where it lacks them the Egress says so, and the tests that need one are not
/// possible; all others are.
#[test]
fn by_the_kernel_alone() -> Result<()> {
    let made = |command: &str| {
        let tried = coil_netns::in_new(|| Command::new("sh").args(["-c", command]).output());
        tried
            .context("cannot make a network namespace")?
            .context("cannot run sh")
            .map(|output| output.status.success())
    };
    let possible = made("ip fou add port 5555 ipproto 4 && ip link add x type ipip external")?;
    let egress = ["egress", "egress-auto-port", "originating-only"];
    let options = Options { datapath: "kernel".into(), ..Options::named("x") };
    run("e2e-kernel", options, if possible { &[] } else { &egress })
}
