//! A router between the nodes whose way on is narrower than the nodes' links: its ICMP errors are about FOU.
//!
//! ```text
//! node a: client ──► world, as a router: 1400 bytes ──► node b: gateway ──► world
//!                ◄──            the same            ◄──
//! ```

use anyhow::{Result, ensure};
use coil_kernel_tests::{Fabric, Pod, traffic::tcp};
use coil_packet::Reason;

const MTU: u32 = 1400;

/// Makes the nodes send each other's pods' packets to the world, and lets it forward them.
fn put_router_between(fabric: &Fabric) -> Result<()> {
    let (family, blocks) = if fabric.is_v4() {
        ("-4", ["10.64.0.0/24", "10.64.1.0/24"])
    } else {
        ("-6", ["fd64::/120", "fd64::100/120"])
    };
    fabric.inside(Pod::World, || {
        ["ipv4/ip_forward", "ipv6/conf/all/forwarding"]
            .into_iter()
            .map(|name| (name, "1"))
            .chain(["ipv4/conf/all/send_redirects", "ipv4/conf/eth0/send_redirects"].map(|name| (name, "0")))
            .try_for_each(|(name, value)| std::fs::write(format!("/proc/sys/net/{name}"), value))
    })??;
    // What it sends itself has the width of the link.
    fabric.ip_in(Pod::World, &format!("{family} rule add iif eth0 lookup 200 priority 100"))?;
    for (node, block) in blocks.into_iter().enumerate() {
        let (via, router) = (fabric.node_address(node), fabric.router_address());
        let route = format!("{family} route add {block} via {via} dev eth0 mtu lock {MTU} table 200");
        fabric.ip_in(Pod::World, &route)?;
        // Else it could tell nobody.
        fabric.ip_in(Pod::World, &format!("{family} route add {block} via {via} dev eth0"))?;
        fabric.ip_on(1 - node, &format!("{family} route replace {block} via {router} dev eth0"))?;
    }
    Ok(())
}

/// Both ends forget what they have learnt.
fn forget(fabric: &Fabric) -> Result<()> {
    let family = if fabric.is_v4() { "-4" } else { "-6" };
    [Pod::Client, Pod::World]
        .into_iter()
        .try_for_each(|pod| fabric.ip_in(pod, &format!("{family} route flush cache")))
}

#[test]
fn a_path_between_nodes_may_be_narrow() -> Result<()> {
    for v4 in [true, false] {
        let fabric = Fabric::new(v4)?;
        put_router_between(&fabric)?;
        // A megabyte, and back.
        let seen = tcp(&fabric, Pod::Client, Pod::World, 8000, 1 << 20)?;
        ensure!(seen == fabric.address(Pod::Gateway), "the world saw {seen}");
        let (told, by_node) = (fabric.count(Reason::FouError), fabric.count(Reason::TooBig));
        ensure!(told > 0, "nobody was told\n{}", fabric.counters());
        // What routers have said is remembered: who begins is told by the own node.
        forget(&fabric)?;
        tcp(&fabric, Pod::Client, Pod::World, 8001, 1 << 20)?;
        ensure!(fabric.count(Reason::TooBig) > by_node, "nobody was told\n{}", fabric.counters());
        ensure!(fabric.count(Reason::FouError) == told, "a router was asked again\n{}", fabric.counters());
    }
    Ok(())
}
