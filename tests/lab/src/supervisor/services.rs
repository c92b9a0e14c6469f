//! Services, as kube-proxy makes them on each node: a tunnel of a client whose kernel does its egress leads to one. The programs
//! need none, so only nodes without them have these rules.
//!
//! ```text
//! any change ──▶ read everything ──▶ rules ──▶ nft on each node ──▶ flows to endpoints that are gone end
//! ```

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    io::Write as _,
    net::{IpAddr, SocketAddr},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{Client, ResourceExt as _};
use tokio::{sync::Notify, time};

use crate::{
    cluster::{self, SERVICE_LABEL},
    config::{Family, Ip},
    place::OpenPlace,
};

/// Changes that come together are looked at together.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// What failed is tried again after this long.
const RETRY: Duration = Duration::from_millis(500);
/// `-100`: nft has no word for it at every hook.
const PRIORITY_DSTNAT: i32 = -100;

/// One port of a Service, and where its pods listen.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Front {
    /// `tcp` or `udp`.
    protocol: String,
    address: SocketAddr,
    endpoints: BTreeSet<SocketAddr>,
}

/// Keeps the nodes' rules until the lab ends.
pub(super) fn follow(client: Client, family: Family, nodes: Vec<OpenPlace>) {
    let kick = Arc::new(Notify::new());
    cluster::watch::<Service>(&client, &kick);
    cluster::watch::<EndpointSlice>(&client, &kick);
    tokio::spawn(async move {
        let mut made = BTreeSet::new();
        loop {
            kick.notified().await;
            time::sleep(DEBOUNCE).await;
            if let Err(error) = pass(&client, family, &nodes, &mut made).await {
                tracing::warn!(error = format!("{error:#}"), "the nodes' rules for Services are made later");
                time::sleep(RETRY).await;
                kick.notify_one();
            }
        }
    });
}

async fn pass(
    client: &Client,
    family: Family,
    nodes: &[OpenPlace],
    made: &mut BTreeSet<Front>,
) -> Result<()> {
    let (services, slices) = (cluster::list(client).await?, cluster::list(client).await?);
    let wanted = fronts(family, &services, &slices);
    if *made == wanted {
        return Ok(());
    }
    let (script, stale) = (rules(family, &wanted)?, stale(made, &wanted));
    // A node that fails is no reason to leave the others behind.
    let mut done = Ok(());
    for node in nodes {
        let (node, script, stale) = (node.clone(), script.clone(), stale.clone());
        done = done.and(tokio::task::spawn_blocking(move || make(&node, &script, &stale)).await?);
    }
    done?;
    *made = wanted;
    Ok(())
}

/// What the Services say.
fn fronts(family: Family, services: &[Service], slices: &[EndpointSlice]) -> BTreeSet<Front> {
    let mut fronts = BTreeSet::new();
    for service in services {
        let spec = service.spec.clone().unwrap_or_default();
        let addresses = spec.cluster_ips.unwrap_or_default();
        for address in addresses.iter().filter_map(|address| address.parse::<IpAddr>().ok()) {
            let ip = Ip::of(address);
            if !family.each().contains(&ip) {
                continue;
            }
            let of_service = |slice: &&EndpointSlice| {
                slice.namespace() == service.namespace()
                    && slice.labels().get(SERVICE_LABEL) == service.metadata.name.as_ref()
                    && slice.address_type == ip.name()
            };
            let slices: Vec<&EndpointSlice> = slices.iter().filter(of_service).collect();
            for port in spec.ports.iter().flatten() {
                fronts.insert(Front {
                    protocol: port.protocol.as_deref().unwrap_or("TCP").to_lowercase(),
                    address: SocketAddr::new(address, u16::try_from(port.port).unwrap_or_default()),
                    endpoints: endpoints(&slices, port.name.as_deref()),
                });
            }
        }
    }
    fronts
}

/// Where the pods behind a port are: those that are ready, or else those that still serve.
fn endpoints(slices: &[&EndpointSlice], port: Option<&str>) -> BTreeSet<SocketAddr> {
    let (mut ready, mut serving) = (BTreeSet::new(), BTreeSet::new());
    for slice in slices {
        let named = |name: Option<&str>| name.unwrap_or_default() == port.unwrap_or_default();
        let number = slice.ports.iter().flatten().find(|p| named(p.name.as_deref())).and_then(|p| p.port);
        let Some(number) = number.and_then(|number| u16::try_from(number).ok()) else { continue };
        for endpoint in &slice.endpoints {
            let conditions = endpoint.conditions.clone().unwrap_or_default();
            let addresses = endpoint.addresses.iter().filter_map(|address| address.parse::<IpAddr>().ok());
            for address in addresses.map(|address| SocketAddr::new(address, number)) {
                if conditions.ready.unwrap_or(true) {
                    ready.insert(address);
                }
                if conditions.serving.or(conditions.ready).unwrap_or(true) {
                    serving.insert(address);
                }
            }
        }
    }
    if ready.is_empty() { serving } else { ready }
}

/// What `nft` is fed. A client stays with its endpoint.
fn rules(family: Family, fronts: &BTreeSet<Front>) -> Result<String> {
    let mut script = String::new();
    for ip in family.each() {
        let word = match ip {
            Ip::V4 => "ip",
            Ip::V6 => "ip6",
        };
        // In one step; a table has to be there to be deleted.
        writeln!(
            script,
            "table {word} services\ndelete table {word} services\ntable {word} services {{\nchain services {{"
        )?;
        for Front { protocol, address, endpoints, .. } in
            fronts.iter().filter(|front| Ip::of(front.address.ip()) == *ip)
        {
            let to = format!("{word} daddr {} {protocol} dport {}", address.ip(), address.port());
            for (n, endpoint) in endpoints.iter().enumerate() {
                // The same seed for all, or each would draw anew.
                let draw = format!("jhash {word} saddr mod {} seed 0x1 {n}", endpoints.len());
                let draw = if endpoints.len() > 1 { &*draw } else { "" };
                writeln!(script, "{to} {draw} dnat to {endpoint}")?;
            }
            if endpoints.is_empty() {
                writeln!(script, "{to} drop")?;
            }
        }
        writeln!(script, "}}")?;
        for hook in ["prerouting", "output"] {
            let chain = format!("type nat hook {hook} priority {PRIORITY_DSTNAT}");
            writeln!(script, "chain {hook} {{ {chain}; jump services; }}")?;
        }
        writeln!(script, "}}")?;
    }
    Ok(script)
}

/// What flows may still lead to, by UDP: what a Service had and has no more, and its own address, before it had anything.
fn stale(before: &BTreeSet<Front>, after: &BTreeSet<Front>) -> Vec<(IpAddr, IpAddr)> {
    let ways = |fronts: &BTreeSet<Front>| -> BTreeSet<(IpAddr, IpAddr)> {
        let udp = fronts.iter().filter(|front| front.protocol == "udp");
        udp.flat_map(|front| front.endpoints.iter().map(|to| (front.address.ip(), to.ip()))).collect()
    };
    let (before, after) = (ways(before), ways(after));
    let is_new = |service: &IpAddr| before.iter().all(|(known, _)| known != service);
    let first = after.iter().map(|(service, _)| *service).filter(is_new).map(|service| (service, service));
    before.difference(&after).copied().chain(first).collect()
}

/// On a node.
fn make(node: &OpenPlace, script: &str, stale: &[(IpAddr, IpAddr)]) -> Result<()> {
    let mut nft = node
        .command("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run nft (package nftables)")?;
    if let Some(mut stdin) = nft.stdin.take() {
        stdin.write_all(script.as_bytes()).context("cannot write to nft")?;
    }
    let output = nft.wait_with_output().context("nft did not end")?;
    ensure!(output.status.success(), "nft: {}\n{script}", String::from_utf8_lossy(&output.stderr));
    for (service, endpoint) in stale {
        let (service, endpoint) = (service.to_string(), endpoint.to_string());
        // It fails where there is no such flow.
        node.command("conntrack")
            .args(["-D", "-p", "udp", "--orig-dst", &service, "--reply-src", &endpoint])
            .output()
            .context("cannot run conntrack (package conntrack)")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn one(endpoints: &serde_json::Value) -> BTreeSet<Front> {
        let service = json!({
            "metadata": {"namespace": "internet", "name": "nat"},
            "spec": {"clusterIPs": ["10.96.0.7", "fd96::7"], "ports": [{"port": 5555, "protocol": "UDP"}]},
        });
        let slice = |ip: &str, endpoints: &serde_json::Value| {
            json!({
                "metadata": {"namespace": "internet", "name": ip, "labels": {SERVICE_LABEL: "nat"}},
                "addressType": ip, "ports": [{"name": "", "port": 5556}], "endpoints": endpoints,
            })
        };
        let slices = json!([slice("IPv4", endpoints), slice("IPv6", &json!([]))]);
        let services: Vec<_> = serde_json::from_value(json!([service])).unwrap();
        fronts(Family::Dual, &services, &serde_json::from_value::<Vec<_>>(slices).unwrap())
    }

    fn endpoint(address: &str, ready: bool, serving: bool) -> serde_json::Value {
        json!({"addresses": [address], "conditions": {"ready": ready, "serving": serving}})
    }

    #[test]
    fn those_that_end_serve_when_nobody_else_does() {
        let (a, b) = (endpoint("10.64.0.1", true, true), endpoint("10.64.0.2", false, true));
        let of = |fronts: BTreeSet<Front>| -> Vec<String> {
            fronts.iter().flat_map(|front| &front.endpoints).map(ToString::to_string).collect()
        };
        assert_eq!(of(one(&json!([a, b]))), ["10.64.0.1:5556"]);
        assert_eq!(of(one(&json!([b, endpoint("10.64.0.3", false, false)]))), ["10.64.0.2:5556"]);
        let (before, after) = (one(&json!([a])), one(&json!([b])));
        let [service, gone] = ["10.96.0.7", "10.64.0.1"].map(|text| text.parse::<IpAddr>().unwrap());
        assert_eq!(stale(&before, &after), [(service, gone)]);
        assert!(stale(&after, &after).is_empty());
        assert_eq!(stale(&one(&json!([])), &after), [(service, service)]);
    }

    #[test]
    fn nft_takes_the_rules() {
        let (a, b) = (endpoint("10.64.0.1", true, true), endpoint("10.64.0.2", true, true));
        let listed = coil_netns::in_new(|| {
            let own = OpenPlace::own().unwrap();
            for endpoints in [json!([a]), json!([]), json!([a, b])] {
                make(&own, &rules(Family::Dual, &one(&endpoints)).unwrap(), &[]).unwrap();
            }
            own.command("nft").args(["list", "ruleset"]).output().unwrap().stdout
        });
        let listed = String::from_utf8(listed.unwrap()).unwrap();
        assert_eq!(listed.matches("mod 2 seed 0x1").count(), 2, "{listed}");
        assert!(listed.contains("ip6 daddr fd96::7 udp dport 5555 drop"), "{listed}");
    }
}
