//! coil-router's work on a real routing table, with the API server. Needs root.
//!
//! ```text
//!   API server ──▶ router ──▶ main table of the node ── uplink ── 172.18.0.2, fd00:18::2
//! ```
#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

#[path = "../net/topology.rs"]
#[expect(dead_code, reason = "shared with the tests of the pod network")]
mod topology;

use std::time::{Duration, Instant};

use coil_agent::{
    net::{
        Rtnl,
        monitor::{Monitor, Topic},
        route::{MAIN_TABLE, Owned},
    },
    router::{self, Config, Metrics},
};
use coil_api::crd::{self, AddressBlock};
use coil_apitest::{Options, Server};
use k8s_openapi::{
    api::core::v1::Node, apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use prometheus::{Encoder as _, Registry, TextEncoder};
use serde_json::json;
use topology::{TestNs, Topology};

const LIMIT: Duration = Duration::from_secs(20);
const ROUTES: Owned = Owned { table: MAIN_TABLE, protocol: 31 };

/// A node with the router on it. Everything ends with it.
struct Bench {
    topology: Topology,
    client: Client,
    registry: Registry,
    _server: Server,
}

impl Bench {
    /// Runs a test; the router syncs by itself every `interval`.
    fn run<F: Future<Output = ()>>(interval: Duration, test: impl FnOnce(Self) -> F + Send) {
        let topology = Topology::new();
        let ns = coil_netns::NetNs::open(topology.node.path()).unwrap();
        ns.run(|| {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            runtime.unwrap().block_on(async {
                let server = Server::start(Options::default()).await.unwrap();
                let client = server.client().await.unwrap();
                let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
                for definition in crd::definitions() {
                    definitions.create(&PostParams::default(), &definition).await.unwrap();
                }
                let registry = Registry::new();
                let metrics = Metrics::register(&registry).unwrap();
                let config = Config { node: "n1".into(), routes: ROUTES, interval };
                let (ready, _) = tokio::sync::watch::channel(false);
                let rtnl = Rtnl::open().unwrap();
                let monitor = Monitor::open(&[Topic::Node]).unwrap();
                tokio::spawn(router::run(client.clone(), rtnl, monitor, config, metrics, ready));
                let bench = Self { topology, client, registry, _server: server };
                bench.node("n1", &["172.18.0.1", "fd00:18::1"]).await;
                test(bench).await;
            });
        })
        .unwrap();
    }

    fn host(&self) -> &TestNs {
        &self.topology.node
    }

    /// Creates or changes a Node.
    async fn node(&self, name: &str, addresses: &[&str]) {
        let api: Api<Node> = Api::all(self.client.clone());
        if api.get_opt(name).await.unwrap().is_none() {
            let node = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
            api.create(&PostParams::default(), &node).await.unwrap();
        }
        let addresses: Vec<_> =
            addresses.iter().map(|a| json!({"type": "InternalIP", "address": a})).collect();
        let status = Patch::Merge(json!({"status": {"addresses": addresses}}));
        api.patch_status(name, &PatchParams::default(), &status).await.unwrap();
    }

    async fn block(&self, index: i32, node: &str, ipv4: Option<&str>, ipv6: Option<&str>) {
        let block = json!({"apiVersion": "coil.cybozu.com/v2", "kind": "AddressBlock",
            "metadata": {"name": format!("default-{index}"), "labels": {"coil.cybozu.com/node": node}},
            "index": index, "ipv4": ipv4, "ipv6": ipv6});
        let api: Api<AddressBlock> = Api::all(self.client.clone());
        api.create(&PostParams::default(), &serde_json::from_value(block).unwrap()).await.unwrap();
    }

    /// The router's routes of both families, as `ip` shows them.
    fn routes(&self) -> Vec<String> {
        let text = self.host().ip("route show proto 31") + &self.host().ip("-6 route show proto 31");
        let short = |line: &str| line.split(" metric").next().unwrap().trim().to_owned();
        text.lines().map(short).collect()
    }

    /// Waits until the routes are these.
    async fn until(&self, wanted: &[&str]) {
        let start = Instant::now();
        while self.routes() != wanted {
            assert!(start.elapsed() < LIMIT, "{:?} instead of {wanted:?}", self.routes());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn metric(&self, name: &str) -> f64 {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        let line = text.lines().find(|line| line.starts_with(&format!("{name}{{node=\"n1\"}}")));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).split(' ').next_back().unwrap().parse().unwrap()
    }
}

/// Blocks of one family or both: their node moves, and goes.
fn follows(v4: bool, v6: bool) {
    Bench::run(Duration::from_secs(600), async |bench| {
        let of = |a: &'static [&'static str]| {
            let wanted = a.iter().filter(|a| if a.contains("::") { v6 } else { v4 });
            wanted.copied().collect::<Vec<_>>()
        };
        let [v4, v6] = [v4.then_some("10.64.0.0/27"), v6.then_some("fd64::/123")];
        bench.node("n2", &["172.18.0.2", "fd00:18::2"]).await;
        bench.block(0, "n2", v4, v6).await;
        bench.block(1, "n1", Some("10.64.0.32/27"), Some("fd64::20/123")).await;
        bench
            .until(&of(&["10.64.0.0/27 via 172.18.0.2 dev uplink", "fd64::/123 via fd00:18::2 dev uplink"]))
            .await;
        bench.node("n2", &["172.18.0.9", "fd00:18::9"]).await;
        bench
            .until(&of(&["10.64.0.0/27 via 172.18.0.9 dev uplink", "fd64::/123 via fd00:18::9 dev uplink"]))
            .await;
        let nodes: Api<Node> = Api::all(bench.client.clone());
        nodes.delete("n2", &DeleteParams::default()).await.unwrap();
        bench.until(&[]).await;
    });
}

#[test]
fn ipv4_blocks() {
    follows(true, false);
}

#[test]
fn ipv6_blocks() {
    follows(false, true);
}

#[test]
fn dual_stack_blocks() {
    follows(true, true);
}

#[test]
fn others_routes_stay_and_lost_ones_come_back() {
    Bench::run(Duration::from_secs(600), async |bench| {
        let host = bench.host();
        host.ip("route add 10.64.9.0/24 via 172.18.0.2 proto static");
        host.ip("-6 route add fd64:9::/64 via fd00:18::2 proto static");
        host.ip("route add 10.64.8.0/24 via 172.18.0.2 proto 31");
        bench.node("n2", &["172.18.0.2", "fd00:18::2"]).await;
        bench.block(0, "n2", Some("10.64.0.0/27"), Some("fd64::/123")).await;
        let wanted = ["10.64.0.0/27 via 172.18.0.2 dev uplink", "fd64::/123 via fd00:18::2 dev uplink"];
        bench.until(&wanted).await;
        assert!(bench.metric("coil_router_syncs_total") >= 1.0);
        assert!((bench.metric("coil_router_routes_synced") - 2.0).abs() < 1e-9);
        // Not by the interval, which is far away.
        host.ip("route del 10.64.0.0/27");
        host.ip("-6 route del fd64::/123");
        bench.until(&wanted).await;
        assert!(host.ip("route show 10.64.9.0/24").contains("proto static"));
        assert!(host.ip("-6 route show fd64:9::/64").contains("proto static"));
    });
}

#[test]
fn a_node_behind_a_router_gets_no_route_until_it_is_on_a_link() {
    Bench::run(Duration::from_secs(600), async |bench| {
        bench.node("n2", &["172.18.0.2", "fd00:18::2"]).await;
        bench.node("n3", &["192.0.2.3", "2001:db8:3::3"]).await;
        bench.block(0, "n2", Some("10.64.0.0/27"), None).await;
        bench.block(1, "n3", Some("10.64.0.32/27"), Some("fd64::20/123")).await;
        // The default route leads to n3; that is not enough, and the others' routes are made.
        let near = "10.64.0.0/27 via 172.18.0.2 dev uplink";
        bench.until(&[near]).await;
        bench.host().ip("addr add 192.0.2.1/24 dev uplink");
        bench.host().ip("addr add 2001:db8:3::1/64 dev uplink nodad");
        let far = ["10.64.0.32/27 via 192.0.2.3 dev uplink", "fd64::20/123 via 2001:db8:3::3 dev uplink"];
        bench.until(&[near, far[0], far[1]]).await;
        bench.host().ip("addr del 192.0.2.1/24 dev uplink");
        bench.host().ip("addr del 2001:db8:3::1/64 dev uplink");
        bench.until(&[near]).await;
    });
}

#[test]
fn of_two_ways_to_a_node_the_lower_metric_counts() {
    Bench::run(Duration::from_secs(600), async |bench| {
        let host = bench.host();
        // On the link, and a router's way to the same network that the kernel likes better; of IPv6 the other way.
        host.ip("route add 192.0.2.0/24 dev uplink metric 600");
        host.ip("route add 192.0.2.0/24 via 172.18.0.9 metric 100");
        host.ip("-6 route add 2001:db8:3::/64 dev uplink metric 100");
        host.ip("-6 route add 2001:db8:3::/64 via fd00:18::9 metric 600");
        bench.node("n2", &["192.0.2.2", "2001:db8:3::2"]).await;
        bench.block(0, "n2", Some("10.64.0.0/27"), Some("fd64::/123")).await;
        let six = "fd64::/123 via 2001:db8:3::2 dev uplink";
        bench.until(&[six]).await;
        host.ip("route del 192.0.2.0/24 via 172.18.0.9 metric 100");
        bench.until(&["10.64.0.0/27 via 192.0.2.2 dev uplink", six]).await;
    });
}

#[test]
fn every_interval_is_a_full_sync() {
    Bench::run(Duration::from_millis(200), async |bench| {
        bench.until(&[]).await;
        let start = Instant::now();
        while bench.registry.gather().is_empty() || bench.metric("coil_router_syncs_total") < 4.0 {
            assert!(start.elapsed() < LIMIT);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(bench.metric("coil_router_routes_synced").abs() < 1e-9);
    });
}

#[test]
fn again_on_a_real_server() {
    coil_apitest::again_on_a_real_server();
}
