//! Services, as kube-proxy makes them on each node: a tunnel of a client whose kernel does its egress leads to one. The programs
//! need none, so only nodes without them have these rules.
//!
//! ```text
//! any change ──▶ read everything ──▶ rules ──▶ nft on each node ──▶ UDP flows to endpoints that do not serve end
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
    /// Where new flows go.
    endpoints: BTreeSet<SocketAddr>,
    /// Where flows that are there may stay: also those that are terminating, while they serve.
    serving: BTreeSet<SocketAddr>,
    /// Whether a client stays with its endpoint (`sessionAffinity: ClientIP`).
    is_sticky: bool,
}

/// Where a flow by UDP may lead: from a Service's address to an endpoint's, or to the Service's own, before that had any.
type Way = (IpAddr, IpAddr);

/// What the nodes have.
#[derive(Debug, Default)]
struct Made {
    fronts: BTreeSet<Front>,
    /// Ways to what serves no more, of Services of which nothing has served since.
    left: BTreeSet<Way>,
}

/// Keeps the nodes' rules until the lab ends.
pub(super) fn follow(client: Client, family: Family, nodes: Vec<OpenPlace>) {
    let kick = Arc::new(Notify::new());
    cluster::watch::<Service>(&client, &kick);
    cluster::watch::<EndpointSlice>(&client, &kick);
    tokio::spawn(async move {
        let mut made = Made::default();
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

async fn pass(client: &Client, family: Family, nodes: &[OpenPlace], made: &mut Made) -> Result<()> {
    let (services, slices) = (cluster::list(client).await?, cluster::list(client).await?);
    let wanted = fronts(family, &services, &slices);
    if made.fronts == wanted {
        return Ok(());
    }
    let script = rules(family, &wanted)?;
    let (stale, left) = gone(made, &wanted);
    // A node that fails is no reason to leave the others behind.
    let mut done = Ok(());
    for node in nodes {
        let (node, script, stale) = (node.clone(), script.clone(), stale.clone());
        done = done.and(tokio::task::spawn_blocking(move || make(&node, &script, &stale)).await?);
    }
    done?;
    *made = Made { fronts: wanted, left };
    Ok(())
}

/// What the Services say.
fn fronts(family: Family, services: &[Service], slices: &[EndpointSlice]) -> BTreeSet<Front> {
    let mut fronts = BTreeSet::new();
    for service in services {
        let spec = service.spec.clone().unwrap_or_default();
        let addresses = spec.cluster_ips.unwrap_or_default();
        let is_sticky = spec.session_affinity.as_deref() == Some("ClientIP");
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
                let (endpoints, serving) = endpoints(&slices, port.name.as_deref());
                fronts.insert(Front {
                    protocol: port.protocol.as_deref().unwrap_or("TCP").to_lowercase(),
                    address: SocketAddr::new(address, u16::try_from(port.port).unwrap_or_default()),
                    endpoints,
                    serving,
                    is_sticky,
                });
            }
        }
    }
    fronts
}

/// Where the pods behind a port are: those for new flows, which are ready or else still serve; and all that serve.
fn endpoints(slices: &[&EndpointSlice], port: Option<&str>) -> (BTreeSet<SocketAddr>, BTreeSet<SocketAddr>) {
    let (mut ready, mut serving) = (BTreeSet::new(), BTreeSet::new());
    for slice in slices {
        let named = |name: Option<&str>| name.unwrap_or_default() == port.unwrap_or_default();
        let number = slice.ports.iter().flatten().find(|p| named(p.name.as_deref())).and_then(|p| p.port);
        let Some(number) = number.and_then(|number| u16::try_from(number).ok()) else { continue };
        for endpoint in &slice.endpoints {
            let conditions = endpoint.conditions.clone().unwrap_or_default();
            let addresses = endpoint.addresses.iter().filter_map(|address| address.parse::<IpAddr>().ok());
            for address in addresses.map(|address| SocketAddr::new(address, number)) {
                let is_ready = conditions.ready.unwrap_or(true);
                if is_ready {
                    ready.insert(address);
                }
                if is_ready || conditions.serving.unwrap_or(is_ready) {
                    serving.insert(address);
                }
            }
        }
    }
    (if ready.is_empty() { serving.clone() } else { ready }, serving)
}

/// What `nft` is fed.
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
        for Front { protocol, address, endpoints, is_sticky, .. } in
            fronts.iter().filter(|front| Ip::of(front.address.ip()) == *ip)
        {
            let to = format!("{word} daddr {} {protocol} dport {}", address.ip(), address.port());
            for (n, endpoint) in endpoints.iter().enumerate() {
                let left = endpoints.len() - n;
                let draw = if *is_sticky && endpoints.len() > 1 {
                    // The same seed for all, or each would draw anew.
                    format!("jhash {word} saddr mod {} seed 0x1 {n}", endpoints.len())
                } else if left > 1 {
                    format!("numgen random mod {left} 0")
                } else {
                    String::new()
                };
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

/// The ways to what serves.
fn ways(fronts: &BTreeSet<Front>) -> BTreeSet<Way> {
    let udp = fronts.iter().filter(|front| front.protocol == "udp");
    udp.flat_map(|front| front.serving.iter().map(|to| (front.address.ip(), to.ip()))).collect()
}

/// Of the ways that flows may have, those that they may have no more, and those that they are left on. As kube-proxy has done it
/// since 1.32 (pkg/proxy/conntrack): where anything serves, flows to what does not serve end; where nothing does, none. Which
/// endpoints new flows are given makes no difference.
fn gone(made: &Made, wanted: &BTreeSet<Front>) -> (BTreeSet<Way>, BTreeSet<Way>) {
    let (before, after) = (ways(&made.fronts), ways(wanted));
    let serves = |ways: &BTreeSet<Way>, service: &IpAddr| ways.iter().any(|(of, _)| of == service);
    let begins = after.iter().map(|(service, _)| *service).filter(|service| !serves(&before, service));
    let own = begins.map(|service| (service, service));
    let all = before.difference(&after).copied().chain(made.left.difference(&after).copied()).chain(own);
    all.partition(|(service, _)| serves(&after, service))
}

/// On a node.
fn make(node: &OpenPlace, script: &str, stale: &BTreeSet<Way>) -> Result<()> {
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
        with_affinity("ClientIP", endpoints)
    }

    fn with_affinity(affinity: &str, endpoints: &serde_json::Value) -> BTreeSet<Front> {
        let service = json!({
            "metadata": {"namespace": "internet", "name": "nat"},
            "spec": {
                "clusterIPs": ["10.96.0.7", "fd96::7"], "ports": [{"port": 5555, "protocol": "UDP"}],
                "sessionAffinity": affinity,
            },
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
    }

    const SERVICE: &str = "10.96.0.7";

    /// What ends, step by step, when the Service has these endpoints one after the other.
    fn ends(steps: &[serde_json::Value]) -> Vec<Vec<String>> {
        let mut made = Made::default();
        let step = |endpoints: &serde_json::Value| {
            let wanted = one(endpoints);
            let (stale, left) = gone(&made, &wanted);
            made = Made { fronts: wanted, left };
            assert!(stale.iter().all(|(service, _)| service.to_string() == SERVICE), "{stale:?}");
            stale.iter().map(|(_, endpoint)| endpoint.to_string()).collect()
        };
        steps.iter().map(step).collect()
    }

    #[test]
    fn flows_end_with_what_serves_not_with_what_is_chosen() {
        let at = |n: u8, ready, serving| endpoint(&format!("10.64.0.{n}"), ready, serving);
        let (a, b) = (at(1, true, true), at(2, true, true));
        let (a_draining, a_failing) = (at(1, false, true), at(1, false, false));
        let nothing: [&str; 0] = [];
        // It drains while another serves, and is gone.
        let drained = ends(&[json!([a]), json!([a_draining, b]), json!([a_draining, b]), json!([b])]);
        assert_eq!(drained, [&[SERVICE][..], &nothing, &nothing, &["10.64.0.1"]]);
        // It is not ready, nor is it about to end.
        let failed = ends(&[json!([a, b]), json!([a_failing, b]), json!([a, b])]);
        assert_eq!(failed, [&[SERVICE][..], &["10.64.0.1"], &nothing]);
        // Without anything that serves its flows are left, until something does: they were to it, or to nothing at all.
        let replaced = ends(&[json!([a]), json!([a_failing]), json!([]), json!([b]), json!([b])]);
        assert_eq!(replaced, [&[SERVICE][..], &nothing, &nothing, &["10.64.0.1", SERVICE], &nothing]);
        // It comes back as it was: its flows go on.
        let back = ends(&[json!([a]), json!([]), json!([a])]);
        assert_eq!(back, [&[SERVICE][..], &nothing, &[SERVICE]]);
    }

    #[test]
    fn nft_takes_the_rules() {
        let [a, b, c] = [1, 2, 3].map(|n| endpoint(&format!("10.64.0.{n}"), true, true));
        let listed = coil_netns::in_new(|| {
            let own = OpenPlace::own().unwrap();
            let list = || {
                let listed = own.command("nft").args(["list", "ruleset"]).output().unwrap().stdout;
                String::from_utf8(listed).unwrap()
            };
            let none = BTreeSet::new();
            for endpoints in [json!([a]), json!([]), json!([a, b])] {
                make(&own, &rules(Family::Dual, &one(&endpoints)).unwrap(), &none).unwrap();
            }
            let sticky = list();
            let spread = with_affinity("None", &json!([a, b, c]));
            make(&own, &rules(Family::Dual, &spread).unwrap(), &none).unwrap();
            (sticky, list())
        });
        let (sticky, spread) = listed.unwrap();
        assert_eq!(sticky.matches("mod 2 seed 0x1").count(), 2, "{sticky}");
        assert!(sticky.contains("ip6 daddr fd96::7 udp dport 5555 drop"), "{sticky}");
        for left in 2..=3 {
            assert_eq!(spread.matches(&format!("random mod {left} 0")).count(), 1, "{spread}");
        }
    }
}
