//! The demo ends well, and shows what it says it shows.

use anyhow::{Context as _, Result};

use crate::common::{check, coil_lab, forget_logs, name};

/// Runs the demo; returns what it printed.
fn demo(test: &str, args: &[&str]) -> Result<String> {
    let name = name(test);
    let output =
        coil_lab(&[&["demo", "--name", &name], args].concat()).output().context("cannot run the demo")?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    check(output.status.success(), || format!("{}:\n{printed}{complaint}", output.status))?;
    forget_logs(&name)?;
    Ok(printed)
}

/// The last word of a check's line in the table.
fn outcome<'a>(printed: &'a str, check: &str) -> Option<&'a str> {
    let (_, table) = printed.rsplit_once("== Checks")?;
    table.lines().find_map(|line| line.trim_start().strip_prefix(check)).map(str::trim)
}

fn all_ok(printed: &str, checks: &[&str]) -> Result<()> {
    for what in checks {
        let outcome = outcome(printed, what);
        check(outcome == Some("ok"), || format!("{what}: {outcome:?}\n{printed}"))?;
    }
    Ok(())
}

/// Between pods.
const PODS: &[&str] = &[
    "ping on one node",
    "10 MiB TCP with checksum on one node",
    "ping between nodes",
    "10 MiB TCP with checksum between nodes",
];
/// Through the gateway, and not without one.
const EGRESS: &[&str] = &[
    "the world's server saw the gateway's address",
    "1 MiB echoed 20 times through the gateway",
    "UDP echo through the gateway",
    "ping through the gateway",
    "an unannotated pod is not let out",
];
const BY_EBPF: &[&str] = &[
    "pod to pod on one node took the eBPF path",
    "pod to pod between nodes took the eBPF path",
    "egress took the eBPF path",
];

fn all_ok_in(printed: &str, families: &[&str], checks: &[&[&str]]) -> Result<()> {
    for name in families {
        let checks: Vec<String> =
            checks.iter().copied().flatten().map(|check| format!("{check}, {name}")).collect();
        all_ok(printed, &checks.iter().map(String::as_str).collect::<Vec<_>>())?;
    }
    Ok(())
}

fn in_family(family: &str, names: &[&str]) -> Result<()> {
    let printed = demo(&format!("demo-{family}"), &["--family", family])?;
    all_ok_in(&printed, names, &[PODS, EGRESS, BY_EBPF])?;
    all_ok(&printed, &["table 119 of each node holds its blocks", "nothing is left after the end"])
}

#[test]
fn ipv4() -> Result<()> {
    in_family("v4", &["IPv4"])
}

#[test]
fn ipv6() -> Result<()> {
    in_family("v6", &["IPv6"])
}

#[test]
fn dual_stack() -> Result<()> {
    in_family("dual", &["IPv4", "IPv6"])
}

/// Without eBPF pods have their whole network. So has egress where the kernel has what it needs; where that lacks something,
/// it is not called ok.
#[test]
fn by_the_kernel_alone() -> Result<()> {
    const FAMILIES: &[&str] = &["IPv4", "IPv6"];
    let printed = demo("demo-kernel", &["--datapath", "kernel"])?;
    all_ok_in(&printed, FAMILIES, &[PODS])?;
    all_ok(&printed, &["no eBPF program or map exists", "nothing is left after the end"])?;
    let Some(lacks) = coil_lab::kernel::lacks()? else {
        all_ok(&printed, &["the gateway becomes ready", "the client becomes ready"])?;
        return all_ok_in(&printed, FAMILIES, &[EGRESS]);
    };
    all_ok(&printed, &["a client without its Egress does not start, and an Event says why"])?;
    let egress = outcome(&printed, "egress on the kernel's own path").unwrap_or_default();
    let says =
        egress.starts_with("not possible here") && egress.contains(&format!("this kernel lacks {lacks};"));
    check(says, || format!("{egress:?}\n{printed}"))
}
