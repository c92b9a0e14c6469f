//! Where every packet passes the host's stack, that of egress does, too: as many packets pass the nodes' forward hooks
//! as the programs encapsulate and translate. The fabric is that of `tests/journey.rs`.

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use coil_agent::datapath::Desired;
use coil_kernel_tests::{
    Fabric, Pod,
    traffic::{PATIENCE, tcp, udp},
};
use coil_packet::{Class, Reason};

fn nft(arguments: &str) -> Result<String> {
    let output = Command::new("nft").args(arguments.split(' ')).output().context("cannot run nft")?;
    ensure!(output.status.success(), "nft {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What the forward hook of a node is asked to count.
const WATCHED: [&str; 4] = ["tunnel-out", "tunnel-back", "out", "back"];

/// Counts FOU to and from the gateway, and what the gateway exchanges with the world.
fn watch(fabric: &Fabric, node: usize) -> Result<()> {
    let ip = if fabric.is_v4() { "ip" } else { "ip6" };
    let (gateway, world) = (fabric.address(Pod::Gateway), fabric.address(Pod::World));
    let rules = [
        format!("{ip} daddr {gateway} udp dport 5555"),
        format!("{ip} saddr {gateway} udp dport 5555"),
        format!("{ip} saddr {gateway} {ip} daddr {world}"),
        format!("{ip} saddr {world} {ip} daddr {gateway}"),
    ];
    fabric.on_node(node, || -> Result<()> {
        nft("add table inet watch")?;
        nft("add chain inet watch forward { type filter hook forward priority 0 ; }")?;
        for (name, rule) in WATCHED.iter().zip(&rules) {
            nft(&format!("add counter inet watch {name}"))?;
            nft(&format!("add rule inet watch forward {rule} counter name {name}"))?;
        }
        Ok(())
    })?
}

fn seen(fabric: &Fabric, node: usize, name: &str) -> Result<u64> {
    let text = fabric.on_node(node, || nft(&format!("list counter inet watch {name}")))??;
    let count = text.split("packets ").nth(1).context("a counter")?.split(' ').next().unwrap_or_default();
    Ok(count.parse()?)
}

/// What the programs encapsulated, translated and sent back, and what both nodes' hooks saw of each of [`WATCHED`].
struct Counts {
    programs: [u64; 3],
    hooks: [[u64; 2]; 4],
}

/// The counts of one moment: the ends of connections may still be under way when their data has come.
fn at_rest(fabric: &Fabric) -> Result<Counts> {
    let programs =
        || [Reason::ToGateway, Reason::OutByStack, Reason::ReplyToNode].map(|reason| fabric.count(reason));
    let hooks = || -> Result<[[u64; 2]; 4]> {
        let mut hooks = [[0; 2]; 4];
        for (counts, name) in hooks.iter_mut().zip(WATCHED) {
            *counts = [seen(fabric, 0, name)?, seen(fabric, 1, name)?];
        }
        Ok(hooks)
    };
    let (start, mut before) = (Instant::now(), (programs(), hooks()?));
    loop {
        // Two readings are alike once nothing comes between them.
        thread::sleep(Duration::from_millis(50));
        let now = (programs(), hooks()?);
        if now == before {
            return Ok(Counts { programs: now.0, hooks: now.1 });
        }
        ensure!(start.elapsed() < PATIENCE, "packets come and go: {before:?}, then {now:?}");
        before = now;
    }
}

fn by_host_stack(v4: bool) -> Result<()> {
    let fabric = Fabric::new(v4)?;
    for node in [0, 1] {
        let desired = Desired { forward: false, host_stack: true, ..fabric.stated(node) };
        fabric.with_datapath(node, |datapath| Ok(datapath.apply(&desired).map(drop)?))?;
        watch(&fabric, node)?;
    }
    let gateway = fabric.address(Pod::Gateway);
    for client in [Pod::Client, Pod::Neighbour] {
        for (port, size) in [(8000, 10), (8001, 4 << 20)] {
            let seen = tcp(&fabric, client, Pod::World, port, size)?;
            ensure!(seen == gateway, "the world saw {seen}, not the gateway {gateway}");
        }
        ensure!(udp(&fabric, client, Pod::World, 999)? == gateway, "the world saw another");
        fabric.ping(client, Pod::World)?;
    }
    // A client that does not know of the tunnel is told all the same.
    fabric.forget_mtu(Pod::Client)?;
    tcp(&fabric, Pod::Client, Pod::World, 8002, 1 << 20)?;
    ensure!(fabric.count(Reason::TooBig) > 0, "nobody was told\n{}", fabric.counters());
    tcp(&fabric, Pod::Plain, Pod::Remote, 9000, 1 << 20)?;

    // Every packet that a program touched was seen, and by no way past the stack did any go.
    let Counts { programs: [up, translated, back], hooks: [tunnel_out, tunnel_back, out, returned] } =
        at_rest(&fabric)?;
    ensure!(up > 100 && translated == up && back > 100, "{}", fabric.counters());
    // Node a forwards what its client sends, node b that and what its own client sends.
    ensure!(tunnel_out[1] == up && tunnel_out[0] > 100, "{tunnel_out:?} of {up}\n{}", fabric.counters());
    ensure!(
        tunnel_back[1] == back && tunnel_back[0] > 100,
        "{tunnel_back:?} of {back}\n{}",
        fabric.counters()
    );
    // A reply that is too big came, too, and what the gateway says of it goes out.
    ensure!(out[1] >= translated, "{out:?} of {translated}\n{}", fabric.counters());
    ensure!(returned[1] >= back, "{returned:?} of {back}\n{}", fabric.counters());
    let bypassed =
        [Reason::ToPod, Reason::ToNode, Reason::Out, Reason::ReplyToPod].map(|r| (r, fabric.count(r)));
    ensure!(bypassed.iter().all(|(_, count)| *count == 0), "past the stack: {bypassed:?}");
    let dropped = fabric.readings().into_iter().filter(|(r, n)| r.class() == Class::Drop && *n > 0);
    let dropped: Vec<_> = dropped.collect();
    ensure!(dropped.is_empty(), "dropped: {dropped:?}");
    Ok(())
}

#[test]
fn egress_passes_the_stack() -> Result<()> {
    by_host_stack(true)?;
    by_host_stack(false)
}
