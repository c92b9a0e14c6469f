//! What routers on the way say, and what they do to packets, is the same with the programs as without: a link of 1280
//! bytes behind the other node, fragments, the end of the time to live, closed ports. The fabric is that of
//! `tests/journey.rs`, with kube-proxy's drop of what connection tracking finds invalid.

use std::{
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use coil_agent::datapath::Desired;
use coil_kernel_tests::{
    Fabric, Pod,
    rules::{self, Writer},
    traffic::{self, PATIENCE},
};
use coil_packet::Reason;

/// MTU of the link behind the other node.
const NARROW: u32 = 1280;

/// A fabric by the kernel alone, or by eBPF with UDP, too.
fn fabric(v4: bool, fast: bool) -> Result<Fabric> {
    let fabric = Fabric::new(v4)?;
    for node in [0, 1] {
        fabric.on_node(node, || rules::install(Writer::Nft, v4, &[]))??;
        let desired = Desired { forward: fast, fast_udp: fast, ..fabric.stated(node) };
        fabric.with_datapath(node, |datapath| Ok(datapath.apply(&desired).map(drop)?))?;
    }
    Ok(fabric)
}

/// Nothing was dropped as invalid on either node.
fn intact(fabric: &Fabric) -> Result<()> {
    for node in [0, 1] {
        let invalid = fabric.on_node(node, || rules::invalid(Writer::Nft, fabric.is_v4()))??;
        ensure!(invalid == 0, "node {node} dropped {invalid} packets as invalid\n{}", fabric.counters());
    }
    Ok(())
}

fn ip(arguments: &str) -> Result<String> {
    let output = Command::new("ip").args(arguments.split(' ')).output().context("cannot run ip")?;
    ensure!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn a_narrow_link_behind_the_other_node() -> Result<()> {
    for (v4, fast) in [(true, false), (true, true), (false, false), (false, true)] {
        let fabric = fabric(v4, fast)?;
        fabric.on_node(1, || ip(&format!("link set dev remote mtu {NARROW}")))??;
        let mut desired = Desired { forward: fast, ..fabric.stated(1) };
        let remote = fabric.address(Pod::Remote);
        let pod = desired.pods.iter_mut().find(|pod| pod.addresses.contains(&remote)).context("the pod")?;
        pod.mtu = NARROW;
        fabric.with_datapath(1, |datapath| Ok(datapath.apply(&desired).map(drop)?))?;

        let seen = traffic::tcp(&fabric, Pod::Plain, Pod::Remote, 9000, 1 << 20)?;
        ensure!(seen == fabric.address(Pod::Plain), "the server saw {seen}");
        // The sender's kernel has believed what the other node said.
        let route = fabric.inside(Pod::Plain, || ip(&format!("route get {remote}")))??;
        ensure!(route.contains(&format!("mtu {NARROW}")), "fast: {fast}, the route is {route}");
        let (told, sent) = (fabric.count(Reason::ForwardTooBig), fabric.count(Reason::ToNode));
        ensure!(
            (told > 0) == fast && (sent > 50) == fast,
            "{fast}: {told} and {sent}\n{}",
            fabric.counters()
        );
        intact(&fabric)?;
    }
    Ok(())
}

#[test]
fn fragments_arrive() -> Result<()> {
    for (v4, fast) in [(true, false), (true, true), (false, false), (false, true)] {
        let fabric = fabric(v4, fast)?;
        for to in [Pod::Remote, Pod::Client] {
            for size in [2000, 100, 2000] {
                let seen = traffic::udp(&fabric, Pod::Plain, to, size)?;
                ensure!(seen == fabric.address(Pod::Plain), "{to:?} saw {seen}");
            }
        }
        ensure!((fabric.count(Reason::NotFastKind) > 0) == fast, "{}", fabric.counters());
        intact(&fabric)?;
    }
    Ok(())
}

/// Who says what to an echo request with so few hops to go.
fn hops(fabric: &Fabric, to: Pod) -> Result<Vec<String>> {
    let address = fabric.address(to).to_string();
    (1..=3)
        .map(|ttl: u32| {
            let output = fabric.inside(Pod::Plain, || {
                let limit = ttl.to_string();
                Command::new("ping").args(["-n", "-c1", "-W", "10", "-t", &limit, &address]).output()
            })?;
            let text = String::from_utf8_lossy(&output.context("cannot run ping")?.stdout).into_owned();
            let said = text.lines().find(|line| line.starts_with("From ") || line.contains(" bytes from "));
            let said =
                said.with_context(|| format!("nobody answers at hop {ttl}: {text}\n{}", fabric.counters()))?;
            Ok(said.split(" time=").next().unwrap_or_default().to_owned())
        })
        .collect()
}

#[test]
fn the_end_of_the_time_to_live_is_told() -> Result<()> {
    for v4 in [true, false] {
        for to in [Pod::Remote, Pod::Client] {
            let (by_kernel, by_ebpf) = (fabric(v4, false)?, fabric(v4, true)?);
            let told = hops(&by_kernel, to)?;
            ensure!(told == hops(&by_ebpf, to)?, "{to:?}: {told:?} by the kernel, {:?}", hops(&by_ebpf, to)?);
            ensure!(told[0].contains("xceeded") && told[2].contains("bytes from"), "{told:?}");
            ensure!(to == Pod::Client || told[1].contains(&by_ebpf.node_address(1).to_string()), "{told:?}");
            ensure!(by_ebpf.count(Reason::LastHop) > 0, "{}", by_ebpf.counters());
            intact(&by_ebpf)?;
        }
    }
    Ok(())
}

/// A port that nobody listens on refuses, whoever carries the error back.
#[test]
fn closed_ports_refuse() -> Result<()> {
    for (v4, fast) in [(true, false), (true, true), (false, false), (false, true)] {
        let fabric = fabric(v4, fast)?;
        for to in [Pod::Remote, Pod::Client] {
            let target = SocketAddr::new(fabric.address(to), 5999);
            let heard = fabric.inside(Pod::Plain, || -> Result<ErrorKind> {
                let socket = UdpSocket::bind(SocketAddr::new(fabric.address(Pod::Plain), 0))?;
                socket.connect(target)?;
                socket.set_read_timeout(Some(PATIENCE))?;
                socket.send(b"anybody?")?;
                Ok(socket.recv(&mut [0; 64]).err().context("somebody answered")?.kind())
            })??;
            ensure!(
                heard == ErrorKind::ConnectionRefused,
                "fast: {fast}, {to:?}: {heard:?}\n{}",
                fabric.counters()
            );
        }
        intact(&fabric)?;
    }
    Ok(())
}
