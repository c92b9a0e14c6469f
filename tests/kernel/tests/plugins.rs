//! The reference plugins that stand behind Coil in a CNI configuration, as they are: portmap's rules are no obstacle and its
//! ports work, and the bandwidth plugin's limits hold. The fabric is that of `tests/journey.rs`.

use std::{
    io::Write as _,
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use coil_agent::datapath::{Desired, obstacle};
use coil_kernel_tests::{Fabric, Pod, traffic};
use coil_packet::Reason;
use serde_json::{Value, json};

/// Where Debian's containernetworking-plugins are.
const PLUGINS: &str = "/usr/lib/cni";
const HOST_PORT: u16 = 8088;
const POD_PORT: u16 = 8080;

/// Calls a plugin for a pod on its node.
fn call(fabric: &Fabric, plugin: &str, (pod, node): (Pod, usize), runtime: &Value) -> Result<()> {
    let netns = fabric.netns(pod)?.path().to_owned();
    let len = if fabric.is_v4() { 32 } else { 128 };
    let config = json!({
        "cniVersion": "1.0.0", "name": "k8s-pod-network", "type": plugin, "runtimeConfig": runtime,
        "prevResult": {
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "remote"}, {"name": "eth0", "sandbox": netns}],
            "ips": [{"address": format!("{}/{len}", fabric.address(pod)), "interface": 1}],
        },
    });
    let output = fabric.on_node(node, || -> Result<_> {
        let mut child = Command::new(Path::new(PLUGINS).join(plugin))
            .envs([("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "test"), ("CNI_IFNAME", "eth0")])
            .env("CNI_NETNS", &netns)
            .env("CNI_PATH", PLUGINS)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {plugin} (package containernetworking-plugins)"))?;
        child.stdin.take().context("a pipe")?.write_all(config.to_string().as_bytes())?;
        Ok(child.wait_with_output()?)
    })??;
    ensure!(output.status.success(), "{plugin}: {}", String::from_utf8_lossy(&output.stdout));
    Ok(())
}

fn ports(v4: bool) -> Result<()> {
    let fabric = Fabric::new(v4)?;
    let mapping =
        json!({"portMappings": [{"hostPort": HOST_PORT, "containerPort": POD_PORT, "protocol": "tcp"}]});
    call(&fabric, "portmap", (Pod::Remote, 1), &mapping)?;
    let pools = fabric.stated(1).pools.into_iter().collect::<Vec<_>>();
    let found = fabric.on_node(1, || obstacle::find(&pools))?;
    ensure!(found.is_none(), "portmap's rules are an obstacle: {found:?}");
    let port = SocketAddr::new(fabric.node_address(1), HOST_PORT);
    for (from, wanted) in [(Pod::World, fabric.router_address()), (Pod::Plain, fabric.address(Pod::Plain))] {
        for size in [10, 1 << 20] {
            let seen = traffic::tcp_via(&fabric, from, port, Pod::Remote, POD_PORT, size)?;
            ensure!(seen == wanted, "{from:?} by {port}: the pod saw {seen}, not {wanted}");
        }
    }
    // Directly to the same pod and port is fast, and the mapped one works on.
    let before = fabric.count(Reason::ToNode);
    traffic::tcp(&fabric, Pod::Plain, Pod::Remote, POD_PORT, 10 << 20)?;
    ensure!(fabric.count(Reason::ToNode) > before + 300, "{}", fabric.counters());
    traffic::tcp_via(&fabric, Pod::Plain, port, Pod::Remote, POD_PORT, 1 << 20)?;
    Ok(())
}

#[test]
fn mapped_ports_beside_the_fast_path() -> Result<()> {
    ports(true)?;
    ports(false)
}

/// A pod whose annotations state limits gets them both from the plugin, whose qdisc a clsact one would be in the way of.
fn limits(v4: bool) -> Result<()> {
    let fabric = Fabric::new(v4)?;
    let mut desired = fabric.stated(1);
    let remote = fabric.address(Pod::Remote);
    let pod = desired.pods.iter_mut().find(|pod| pod.addresses.contains(&remote)).context("the pod")?;
    (pod.shaped, pod.by_kernel) = (true, true);
    let link = pod.ifindex;
    fabric.with_datapath(1, |datapath| Ok(datapath.apply(&desired).map(drop)?))?;
    let bits = 8_000_000;
    let limit = json!({"bandwidth": {"ingressRate": bits, "ingressBurst": bits, "egressRate": bits, "egressBurst": bits}});
    call(&fabric, "bandwidth", (Pod::Remote, 1), &limit)?;
    let foreign = fabric.on_node(1, || obstacle::foreign_links(&[link].into()))??;
    ensure!(foreign == [link].into(), "the limit is not seen");
    // A megabyte of burst and one a second: three take two seconds or so, and without a limit a few milliseconds.
    for (from, to) in [(Pod::Plain, Pod::Remote), (Pod::Remote, Pod::Plain)] {
        let start = std::time::Instant::now();
        traffic::tcp(&fabric, from, to, 9000, 3 << 20)?;
        ensure!(start.elapsed().as_millis() > 1000, "{from:?} to {to:?} took {:?} only", start.elapsed());
    }
    // Others are as fast as before.
    let before = fabric.count(Reason::ToPod);
    traffic::tcp(&fabric, Pod::Plain, Pod::Client, 9000, 10 << 20)?;
    ensure!(fabric.count(Reason::ToPod) > before + 300, "{}", fabric.counters());
    let again = Desired { forward: false, ..desired };
    fabric.with_datapath(1, |datapath| Ok(datapath.apply(&again).map(drop)?))
}

#[test]
fn limits_of_the_bandwidth_plugin_hold() -> Result<()> {
    limits(true)?;
    limits(false)
}
