//! Real traffic: from pod to pod, and from a client through a gateway into the world.
//!
//! ```text
//! node a: client 10.64.0.1, plain 10.64.0.2 ─┐
//! node b: gateway 10.64.1.1, pod 10.64.1.2  ─┼─ switch ─ world 198.51.100.1, knows the way to 10.64.1.1 only
//!         client 10.64.1.3                  ─┘
//! ```
//!
//! IPv6 the same with fd64:: and 2001:db8:9::1. What the sender's kernel hands over are packets with
//! checksums to be filled in and segmentation to be done, which no packet case can show.

use std::{
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Result, ensure};
use coil_agent::net::offload;
use coil_kernel_tests::{
    Fabric, Pod,
    traffic::{burst, tcp, udp},
};
use coil_packet::{Class, Reason};

fn journey(fabric: &Fabric) -> Result<()> {
    let v4 = fabric.is_v4();
    let gateway = fabric.address(Pod::Gateway);

    // Egress through another node, and through the client's own.
    for client in [Pod::Client, Pod::Neighbour] {
        for (port, size) in [(8000, 10), (8001, 1 << 20), (8002, 10 << 20)] {
            let seen = tcp(fabric, client, Pod::World, port, size)?;
            ensure!(seen == gateway, "the world saw {seen}, not the gateway {gateway}");
        }
        let largest = if v4 { 1472 - 28 } else { 1452 - 48 };
        for size in [1, 999, largest] {
            let seen = udp(fabric, client, Pod::World, size)?;
            ensure!(seen == gateway, "the world saw {seen}, not the gateway {gateway}");
        }
        fabric.ping(client, Pod::World)?;
    }
    for reason in
        [Reason::ToGateway, Reason::Out, Reason::ReplyToNode, Reason::ReplyToPod, Reason::Decapsulated]
    {
        ensure!(fabric.count(reason) > 0, "no packet was {}\n{}", reason.name(), fabric.counters());
    }

    // Pod to pod, on one node and between two.
    for (from, to, port) in
        [(Pod::Plain, Pod::Client, 9000), (Pod::Plain, Pod::Remote, 9001), (Pod::Client, Pod::Remote, 9002)]
    {
        let seen = tcp(fabric, from, to, port, 10 << 20)?;
        ensure!(seen == fabric.address(from), "{to:?} saw {seen}");
        udp(fabric, from, to, 100)?;
        fabric.ping(from, to)?;
    }
    for reason in [Reason::ToPod, Reason::ToNode] {
        ensure!(fabric.count(reason) > 100, "the fast path was not taken\n{}", fabric.counters());
    }

    let dropped: Vec<_> =
        fabric.readings().into_iter().filter(|(r, n)| r.class() == Class::Drop && *n > 0).collect();
    ensure!(dropped.is_empty(), "dropped: {dropped:?}");

    // The world knows no way to a client, and a pod that is none is not let out.
    let world = SocketAddr::new(fabric.address(Pod::World), 8080);
    let refused = fabric.inside(Pod::Plain, || TcpStream::connect_timeout(&world, Duration::from_secs(2)))?;
    ensure!(refused.is_err(), "a pod that is no client reached the world");
    Ok(())
}

#[test]
fn ipv4_traffic() -> Result<()> {
    journey(&Fabric::new(true)?)
}

#[test]
fn ipv6_traffic() -> Result<()> {
    journey(&Fabric::new(false)?)
}

/// The nodes' uplinks are VLANs: the programs are on these, and the tags are the kernel's matter.
#[test]
#[ignore = "not every kernel has VLANs: `cargo xtask vm --only kernel/vlan` runs it on those of Debian"]
fn traffic_over_a_vlan() -> Result<()> {
    journey(&Fabric::over_vlan(true)?)?;
    journey(&Fabric::over_vlan(false)?)
}

/// A client whose link segments nothing of UDP loses nothing of a burst, as QUIC sends them.
#[test]
fn bursts_of_datagrams_get_out() -> Result<()> {
    for v4 in [true, false] {
        let fabric = Fabric::new(v4)?;
        let (came, _) = burst(&fabric, Pod::Client, Pod::World, 20, 1000)?;
        ensure!(came == 0 && fabric.count(Reason::EgressGso) == 1, "{came} came\n{}", fabric.counters());
        for client in [Pod::Client, Pod::Neighbour] {
            fabric.inside(client, || offload::segment_udp("eth0", false))??;
            let (came, from) = burst(&fabric, client, Pod::World, 20, 1000)?;
            ensure!(
                came == 20 && from == Some(fabric.address(Pod::Gateway)),
                "{client:?}: {came} came from {from:?}\n{}",
                fabric.counters()
            );
        }
        ensure!(fabric.count(Reason::EgressGso) == 1, "{}", fabric.counters());
    }
    Ok(())
}

/// A client that does not know about the tunnel's overhead is told, and then its packets fit.
#[test]
fn a_client_learns_the_mtu() -> Result<()> {
    for v4 in [true, false] {
        let fabric = Fabric::new(v4)?;
        fabric.forget_mtu(Pod::Client)?;
        tcp(&fabric, Pod::Client, Pod::World, 8000, 1 << 20)?;
        ensure!(fabric.count(Reason::TooBig) > 0, "nobody was told\n{}", fabric.counters());
    }
    Ok(())
}
