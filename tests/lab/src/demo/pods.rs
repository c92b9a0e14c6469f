//! Pods get addresses, their blocks are exported, and they reach each other.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use anyhow::{Context as _, Result};
use coil_traffic::machine::patience;
use ipnet::IpNet;
use serde_json::Value;

use super::{
    Demo,
    manifests::{self, SERVER_PORT},
};
use crate::config::{DEFAULT_POOL, EGRESS_POOL, Ip};

/// How long pods may take to become ready.
const READY: Duration = Duration::from_secs(30);
/// How long routes may take to follow blocks.
const SETTLED: Duration = Duration::from_secs(10);

/// The option of kubectl that says how long to wait for pods.
pub(super) fn ready_limit() -> String {
    format!("--timeout={}s", patience(READY).as_secs())
}

/// Creates the pods and shows the objects.
pub(super) fn cluster(demo: &mut Demo) -> Result<()> {
    demo.report.heading("Pods");
    let words = ["apply", "-f", "-"];
    demo.report.show(demo.lab.kubectl_with(&words, &manifests::pods()))?.success()?;
    let wait = format!("wait --for=condition=Ready pod/server pod/near pod/far {}", ready_limit());
    let ready = demo.report.show(demo.lab.kubectl(&wait))?;
    demo.report.check_success("pods become ready", &ready);
    let pods = pod_addresses(demo, "default")?;
    let outcome = addresses_are_from(demo, &pods, Ip::default_pool);
    demo.report.check(&format!("pods have addresses of pool {DEFAULT_POOL}"), outcome);
    Ok(())
}

/// The addresses of a namespace's pods.
pub(super) fn pod_addresses(demo: &Demo, namespace: &str) -> Result<Vec<(String, Vec<IpAddr>)>> {
    let text = demo.lab.kubectl(&format!("get pods -n {namespace} -o json"))?.success()?;
    let list: Value = serde_json::from_str(&text).context("kubectl's output is no JSON")?;
    let addresses = |pod: &Value| {
        let ips = pod["status"]["podIPs"].as_array().cloned().unwrap_or_default();
        ips.iter().filter_map(|ip| ip["ip"].as_str()?.parse().ok()).collect()
    };
    let name = |pod: &Value| pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    Ok(list["items"].as_array().into_iter().flatten().map(|pod| (name(pod), addresses(pod))).collect())
}

/// Whether each pod has one address of each family, from the pool's subnet, and none twice.
pub(super) fn addresses_are_from(
    demo: &Demo,
    pods: &[(String, Vec<IpAddr>)],
    pool: fn(Ip) -> &'static str,
) -> Result<(), String> {
    let mut all = BTreeSet::new();
    for (pod, addresses) in pods {
        for ip in demo.lab.options().family.each() {
            let subnet: IpNet = pool(*ip).parse().map_err(|_| format!("{} is no subnet", pool(*ip)))?;
            let own = addresses.iter().filter(|a| subnet.contains(*a)).count();
            if own != 1 {
                return Err(format!("{pod} has {own} addresses of {subnet}: {addresses:?}"));
            }
        }
        for address in addresses {
            if !all.insert(*address) {
                return Err(format!("{address} is given twice"));
            }
        }
    }
    if pods.is_empty() { Err("there are no pods".into()) } else { Ok(()) }
}

/// The address of a pod of the namespace `default`, by family.
fn address(demo: &Demo, pod: &str, ip: Ip) -> Result<IpAddr> {
    let pods = pod_addresses(demo, "default")?;
    let addresses = pods.into_iter().find(|(name, _)| name == pod).map(|(_, a)| a).unwrap_or_default();
    addresses
        .into_iter()
        .find(|a| Ip::of(*a) == ip)
        .with_context(|| format!("{pod} has no {} address", ip.name()))
}

/// Shows table 119 of each node, and compares it with the AddressBlocks.
pub(super) fn exported_blocks(demo: &mut Demo) -> Result<()> {
    demo.report.heading("Pools, their blocks, and the pods that have addresses of them");
    let get = demo.lab.kubectl("get addresspools,addressblocks,pods -A -o wide");
    demo.report.show(get)?.success()?;
    demo.report.heading("Address blocks in routing table 119, for a routing daemon to export");
    let mut outcome = Ok(());
    for node in demo.lab.options().node_names() {
        for ip in demo.lab.options().family.each() {
            let command = format!("ip {} route show table 119", ip.flag());
            let owned = blocks(demo, &node, *ip)?;
            let wait = demo.lab.wait_for("the blocks' routes", SETTLED, |lab| {
                let shown = exported(&lab.node(&node, &command)?.stdout);
                Ok(if shown == owned {
                    Ok(())
                } else {
                    Err(format!("{node}: {shown:?}, but blocks {owned:?}"))
                })
            });
            if let Err(error) = wait {
                outcome = Err(format!("{error:#}"));
            }
            demo.report.show(demo.lab.node(&node, &command))?;
        }
    }
    demo.report.check("table 119 of each node holds its blocks", outcome);
    Ok(())
}

fn blocks(demo: &Demo, node: &str, ip: Ip) -> Result<BTreeSet<IpNet>> {
    let get = format!("get addressblocks -l coil.cybozu.com/node={node} -o json");
    let list: Value = serde_json::from_str(&demo.lab.kubectl(&get)?.success()?)?;
    let field = ip.name().to_lowercase();
    let nets = list["items"].as_array().into_iter().flatten();
    Ok(nets.filter_map(|block| block[&field].as_str()?.parse().ok()).collect())
}

fn exported(text: &str) -> BTreeSet<IpNet> {
    text.lines().filter_map(|line| line.split(' ').next()?.parse().ok()).collect()
}

/// Ping and 10 MiB over TCP, on one node and between two.
pub(super) fn pod_to_pod(demo: &mut Demo) -> Result<()> {
    for (pod, place) in [("near", "on one node"), ("far", "between nodes")] {
        demo.report.heading(&format!("Pod to pod {place}"));
        for ip in demo.lab.options().family.each() {
            let server = address(demo, "server", *ip)?;
            let from = format!("default/{pod}");
            let ping = demo.lab.exec(&from, &format!("ping -c 3 -i 0.2 -W 2 {server}"));
            let ping = demo.report.show(ping)?;
            demo.report.check_success(&format!("ping {place}, {}", ip.name()), &ping);
            let to = std::net::SocketAddr::new(server, SERVER_PORT);
            let sent = demo.report.show(demo.lab.exec(&from, &format!("coil-lab tool tcp-send {to}")))?;
            demo.report.check_success(&format!("10 MiB TCP with checksum {place}, {}", ip.name()), &sent);
        }
    }
    Ok(())
}

/// Waits for the namespace of the gateways to have a ready one.
pub(super) fn gateways_are_from_pool(demo: &mut Demo) -> Result<Vec<IpAddr>> {
    let pods = pod_addresses(demo, manifests::EGRESS_NAMESPACE)?;
    let outcome = addresses_are_from(demo, &pods, Ip::egress_pool);
    demo.report.check(&format!("gateway pods have addresses of pool {EGRESS_POOL}"), outcome);
    Ok(pods.into_iter().flat_map(|(_, addresses)| addresses).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_read_as_ip_prints_them() {
        let shown =
            exported("10.64.0.0/27 dev lo proto 30 scope link \nfd64::20/123 dev lo proto 30 metric 1024\n");
        assert_eq!(shown, BTreeSet::from(["10.64.0.0/27".parse().unwrap(), "fd64::20/123".parse().unwrap()]));
    }
}
