//! The end-to-end tests that users run on their clusters, run on the lab: by the API alone.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};
use coil_lab::{
    Lab,
    config::{Family, Options},
};
use coil_traffic::machine::patience;

use crate::common::{LIMIT, check, end, name, program};

/// How long each thing may take that takes a few seconds.
const E2E_LIMIT: Duration = Duration::from_secs(120);

/// Runs all scenarios; those named may be called impossible here.
fn run(test: &str, options: Options, not_here: &[&str]) -> Result<()> {
    let lab = Lab::start(program(), Options { name: name(test), ..options })?;
    let tests = program().with_file_name("coil-e2e");
    let mode = if lab.options().datapath == "kernel" { "kernel" } else { "ebpf" };
    let mut command = Command::new(&tests);
    command.arg("--kubeconfig").arg(lab.kubeconfig()).args(["--datapath", mode]);
    command.args(["--limit", &patience(E2E_LIMIT).as_secs().to_string()]);
    if not_here.is_empty() {
        command.args(["--require", "all"]);
    }
    let output = command.output().with_context(|| format!("cannot run {}", tests.display()))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    check(output.status.success(), || format!("{said}{}", String::from_utf8_lossy(&output.stderr)))?;
    let (_, results) = said.rsplit_once("== Results\n").context("there are no results")?;
    for line in results.lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        let passed = line.ends_with(" passed");
        check(passed != not_here.contains(&name), || format!("{line}\n{said}"))?;
    }
    check(results.lines().count() == 12, || said.clone())?;
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

/// SIGTERM, which the end of a job sends: nothing is left in the cluster, and nothing on a node.
#[test]
fn terminated_it_leaves_nothing() -> Result<()> {
    let lab = Lab::start(program(), Options::named(&name("e2e-term")))?;
    let tests = program().with_file_name("coil-e2e");
    let mut command = Command::new(&tests);
    command.arg("--kubeconfig").arg(lab.kubeconfig()).args(["--only", "egress"]).stdout(Stdio::null());
    let mut running = command.spawn().with_context(|| format!("cannot run {}", tests.display()))?;
    let on_nodes = |lab: &Lab| -> Result<String> {
        let nodes = (1..=lab.options().nodes).map(|n| format!("node{n}"));
        nodes.map(|node| lab.node(&node, "ip -o address show dev lo")?.success()).collect()
    };
    let there = lab.wait_for("a node has the world's address", LIMIT, |lab| {
        let addresses = on_nodes(lab)?;
        Ok(if addresses.contains("9.9.9.9") { Ok(()) } else { Err(addresses) })
    });
    let told = Command::new("kill").arg(running.id().to_string()).status();
    let status = running.wait()?;
    there?;
    check(told?.success() && !status.success(), || format!("terminated, it said {status}"))?;
    let left = lab.kubectl("get namespaces,addresspools,addressblocks -l coil-e2e -o name")?.success()?;
    check(left.trim().is_empty(), || format!("left behind: {left}"))?;
    let addresses = on_nodes(&lab)?;
    check(!addresses.contains("9.9.9.9"), || addresses)?;
    end(lab)
}

/// Egress by the kernel needs modules. Where it lacks them the Egress says so, and the tests that need one are not
/// possible; all others are.
#[test]
fn by_the_kernel_alone() -> Result<()> {
    let possible = coil_lab::kernel::lacks()?.is_none();
    let egress = ["egress", "egress-auto-port", "originating-only"];
    let options = Options { datapath: "kernel".into(), ..Options::named("x") };
    run("e2e-kernel", options, if possible { &[] } else { &egress })
}
