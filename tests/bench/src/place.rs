//! Where a bench runs: network and mount namespaces of its own, which look like a node.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

/// The node's addresses.
pub(crate) const NODE_ADDRESSES: [&str; 2] = ["192.0.2.1", "2001:db8::1"];

/// Moves this process, which must have one thread, into namespaces that end with it and its children.
pub(crate) fn enter() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
        .context("cannot make namespaces: run it as root")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .context("cannot make the mounts private")?;
    // sysfs shows the links of the network namespace that it was mounted from.
    for (kind, target) in [("sysfs", "/sys"), ("bpf", "/sys/fs/bpf")] {
        mount(Some(kind), target, Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("cannot mount {target}"))?;
    }
    for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        std::fs::write(format!("/proc/sys/net/{setting}"), "1")
            .with_context(|| format!("cannot set {setting}"))?;
    }
    let [ipv4, ipv6] = NODE_ADDRESSES;
    for line in [
        "link set lo up".to_owned(),
        "link add uplink type veth peer name world".to_owned(),
        "link set uplink up".to_owned(),
        "link set world up".to_owned(),
        format!("addr add {ipv4}/24 dev uplink"),
        format!("addr add {ipv6}/64 dev uplink nodad"),
        "route add default via 192.0.2.254 dev uplink".to_owned(),
        "route add default via 2001:db8::fe dev uplink".to_owned(),
    ] {
        let status =
            Command::new("ip").args(line.split(' ')).status().context("cannot run ip (package iproute2)")?;
        ensure!(status.success(), "`ip {line}` failed");
    }
    Ok(())
}
