//! The node's namespaces.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use coil_netns::NetNs;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

/// Where runtimes keep the namespaces of pods, and coild looks for them after a restart.
pub const NETNS_DIR: &str = "/run/netns";
/// The node's addresses.
pub const NODE_V4: &str = "172.18.0.1";
/// See [`NODE_V4`].
pub const NODE_V6: &str = "fd00:18::1";

/// Runs something on a thread that is in a node's namespaces. Threads and processes that it starts are
/// in them, too.
///
/// # Errors
/// When the namespaces cannot be made; that of `work`.
pub fn on_node<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    ensure!(nix::unistd::geteuid().is_root(), "this makes network namespaces: run it as root");
    std::thread::scope(|scope| {
        let node = scope.spawn(|| {
            furnish().context("cannot make the node's namespaces")?;
            work()
        });
        node.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Leaves the machine's network and mounts.
fn furnish() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    std::fs::create_dir_all(NETNS_DIR)?;
    for (kind, target) in [("tmpfs", NETNS_DIR), ("bpf", "/sys/fs/bpf")] {
        mount(Some(kind), target, Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("cannot mount {kind} on {target}"))?;
    }
    // The other end of the uplink lives as long as its mount, which is as long as this thread's.
    let peer = Path::new(NETNS_DIR).join("peer");
    let peer = NetNs::create(&peer)?;
    for line in [
        "link set lo up",
        "link add uplink type veth peer name uplink netns peer",
        &format!("addr add {NODE_V4}/24 dev uplink"),
        &format!("addr add {NODE_V6}/64 dev uplink nodad"),
        "link set uplink up",
        "-n peer link set uplink up",
        "route add default via 172.18.0.2",
        "route add default via fd00:18::2",
    ] {
        ip(line)?;
    }
    drop(peer);
    Ok(())
}

/// Runs `ip` in the namespaces of the calling thread; returns what it prints.
///
/// # Errors
/// When it fails, with what it said.
pub fn ip(args: &str) -> Result<String> {
    run(&format!("ip {args}"))
}

/// The same for any command.
///
/// # Errors
/// As [`ip`].
pub fn run(command: &str) -> Result<String> {
    let mut words = command.split_whitespace();
    let program = words.next().context("no command")?;
    let output =
        Command::new(program).args(words).output().with_context(|| format!("cannot run {program}"))?;
    ensure!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Does something with each item, all at once, each on a thread of its own.
///
/// # Errors
/// The first that failed.
pub fn at_once<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
    let results: Vec<Result<R>> = std::thread::scope(|scope| {
        let threads: Vec<_> = items.iter().map(|item| scope.spawn(|| work(item))).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(join).collect()
    });
    results.into_iter().collect()
}
