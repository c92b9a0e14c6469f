//! Node IPAM with the real controller and an API server in this process.
//!
//! ```text
//!   test (pods) ──▶ NodeIpam ──▶ API server ◀──▶ coil-ipam-controller
//! ```

#![expect(clippy::unwrap_used, reason = "a test: what fails is a failure")]

use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
    ops::Deref,
    time::{Duration, Instant},
};

use coil_agent::ipam::{Allocation, AttachmentId, IpamError, NodeIpam};
use coil_api::{
    cni::code,
    crd::{AddressBlock, AddressPool, BlockRequest},
};
use coil_apitest::{Kind, LIMIT, Server, eventually};
use coil_controller::ipam::Options;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::{
    ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use prometheus::Registry;
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinHandle};

struct Cluster {
    api: coil_apitest::Cluster,
    controller: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Deref for Cluster {
    type Target = coil_apitest::Cluster;

    fn deref(&self) -> &coil_apitest::Cluster {
        &self.api
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop_controller();
    }
}

impl Cluster {
    /// With the node `node1`, and a controller.
    async fn start() -> Self {
        Self::over(coil_apitest::Cluster::start().await).await
    }

    async fn over(api: coil_apitest::Cluster) -> Self {
        let mut cluster = Self { api, controller: None };
        cluster.create::<Node>(json!({"metadata": {"name": "node1"}})).await;
        cluster.start_controller();
        cluster
    }

    fn start_controller(&mut self) {
        let (client, ready) = (self.client.clone(), watch::Sender::new(None));
        self.controller = Some(tokio::spawn(async move {
            let options = Options { gc_interval: Duration::from_secs(3600) };
            coil_controller::ipam::run(client, options, &Registry::new(), ready).await
        }));
    }

    fn stop_controller(&mut self) {
        self.controller.take().iter().for_each(JoinHandle::abort);
    }

    async fn pool(&self, name: &str, bits: u32, subnet: Value) {
        self.api.pool(name, bits, json!([subnet])).await;
    }

    async fn blocks(&self) -> Vec<String> {
        let list = self.all::<AddressBlock>().list(&ListParams::default()).await.unwrap();
        list.items.iter().map(ResourceExt::name_any).collect()
    }

    fn ipam(&self) -> (NodeIpam, watch::Receiver<BTreeSet<IpNet>>) {
        let (sender, receiver) = watch::channel(BTreeSet::new());
        (NodeIpam::new(self.client.clone(), "node1".into(), sender), receiver)
    }
}

fn pod(n: usize) -> AttachmentId {
    AttachmentId { container_id: format!("container{n}"), ifname: "eth0".into() }
}

fn show(a: &Allocation) -> Vec<String> {
    let addresses = a.ipv4.map(IpAddr::from).into_iter().chain(a.ipv6.map(IpAddr::from));
    addresses.map(|a| a.to_string()).collect()
}

#[tokio::test]
async fn an_address_comes_and_goes_in_every_family() {
    let cluster = Cluster::start().await;
    for (pool, subnet, addresses, networks) in [
        ("four", json!({"ipv4": "10.1.0.0/24"}), vec!["10.1.0.0"], vec!["10.1.0.0/29"]),
        ("six", json!({"ipv6": "fd01::/120"}), vec!["fd01::"], vec!["fd01::/125"]),
        (
            "dual",
            json!({"ipv4": "10.2.0.0/24", "ipv6": "fd02::/120"}),
            vec!["10.2.0.0", "fd02::"],
            vec!["10.2.0.0/29", "fd02::/125"],
        ),
    ] {
        let (ipam, mut owned) = cluster.ipam();
        cluster.pool(pool, 3, subnet).await;
        let first = ipam.allocate(pool, &pod(1)).await.unwrap();
        assert_eq!(show(&first), addresses);
        assert_eq!(ipam.allocate(pool, &pod(1)).await.unwrap(), first, "the same owner");
        assert_ne!(show(&ipam.allocate(pool, &pod(2)).await.unwrap()), addresses);
        let wanted: BTreeSet<IpNet> = networks.iter().map(|n| n.parse().unwrap()).collect();
        owned.wait_for(|o| *o == wanted).await.unwrap();

        ipam.free(&pod(1)).await.unwrap();
        assert_eq!(ipam.get(&pod(1)), None);
        assert_eq!(cluster.blocks().await, [format!("{pool}-0")], "a pod is left");
        ipam.free(&pod(2)).await.unwrap();
        owned.wait_for(BTreeSet::is_empty).await.unwrap();
        eventually("the block is returned", async || cluster.blocks().await.is_empty()).await;
        assert!(ipam.allocate(pool, &pod(3)).await.is_ok(), "and another is got");
        ipam.free(&pod(3)).await.unwrap();
        eventually("that is returned too", async || cluster.blocks().await.is_empty()).await;
    }
}

/// Many waiters share the requests, and none waits for the end of the limit.
#[tokio::test]
async fn waiters_share_requests_and_lose_no_wake_up() {
    let cluster = Cluster::start().await;
    cluster.pool("default", 3, json!({"ipv4": "10.0.0.0/24", "ipv6": "fd00::/120"})).await;
    let (ipam, _owned) = cluster.ipam();
    let start = Instant::now();
    let pods: Vec<AttachmentId> = (0..40).map(pod).collect();
    let all = futures::future::join_all(pods.iter().map(|p| ipam.allocate("default", p))).await;
    let addresses: HashSet<_> = all.into_iter().map(|a| show(&a.unwrap())).collect();
    assert_eq!(addresses.len(), 40, "no address twice");
    assert_eq!(cluster.blocks().await.len(), 5, "no block in vain");
    assert!(start.elapsed() < Duration::from_secs(9), "{:?}", start.elapsed());
    let freed = futures::future::join_all(pods.iter().map(|p| ipam.free(p))).await;
    assert!(freed.iter().all(Option::is_some));
    eventually("every block is returned", async || cluster.blocks().await.is_empty()).await;
}

#[tokio::test]
async fn errors_name_the_object_and_go_when_it_is_mended() {
    // Whose definitions take a pool that no block can be cut from.
    let cluster = Cluster::over(coil_apitest::Cluster::without_rules().await).await;
    let (ipam, _owned) = cluster.ipam();
    let error = ipam.allocate("later", &pod(1)).await.unwrap_err();
    assert!(matches!(&error, IpamError::PoolNotFound { pool } if pool == "later"), "{error}");
    cluster.pool("later", 0, json!({"ipv4": "10.0.0.0/32"})).await;
    ipam.allocate("later", &pod(1)).await.unwrap();

    let error = ipam.allocate("later", &pod(2)).await.unwrap_err();
    assert!(matches!(&error, IpamError::OutOfBlocks { pool, .. } if pool == "later"), "{error}");
    assert!(error.to_string().contains("append a subnet to spec.subnets"), "{error}");
    let more = Patch::Merge(json!({"spec": {"subnets": [{"ipv4": "10.0.0.0/32"}, {"ipv4": "10.0.1.0/32"}]}}));
    cluster.all::<AddressPool>().patch("later", &PatchParams::default(), &more).await.unwrap();
    eventually("the request that failed is made again", async || {
        ipam.allocate("later", &pod(2)).await.is_ok()
    })
    .await;

    cluster.pool("bad", 5, json!({"ipv4": "10.0.0.0/30"})).await;
    let error = ipam.allocate("bad", &pod(3)).await.unwrap_err();
    assert!(matches!(&error, IpamError::RequestFailed { .. }), "{error}");
    assert!(error.to_string().contains("smaller than a block"), "{error}");

    cluster.all::<AddressPool>().delete("later", &DeleteParams::default()).await.unwrap();
    let error = ipam.allocate("later", &pod(4)).await.unwrap_err();
    assert!(matches!(&error, IpamError::PoolDeleted { pool } if pool == "later"), "{error}");
}

/// A pool of one block, which goes back with its last pod while the next one comes.
#[tokio::test]
async fn a_full_pool_waits_for_the_block_that_this_node_returns() {
    let cluster = Cluster::start().await;
    cluster.pool("one", 0, json!({"ipv4": "10.0.0.7/32", "ipv6": "fd00::7/128"})).await;
    let (ipam, _owned) = cluster.ipam();
    for n in 0..20 {
        ipam.allocate("one", &pod(n)).await.unwrap();
        ipam.free(&pod(n)).await.unwrap();
    }
}

#[tokio::test]
async fn a_block_that_nobody_waits_for_any_more_is_returned() {
    let mut cluster = Cluster::start().await;
    cluster.pool("default", 0, json!({"ipv4": "10.0.0.0/24", "ipv6": "fd00::/120"})).await;
    let (ipam, _owned) = cluster.ipam();
    let first = ipam.allocate("default", &pod(1)).await.unwrap();
    cluster.stop_controller();
    let second = tokio::spawn({
        let ipam = ipam.clone();
        async move { ipam.allocate("default", &pod(2)).await }
    });
    let requests = cluster.all::<BlockRequest>();
    let name = "req-default-node1";
    let is_open = |request: &BlockRequest| request.status.as_ref().is_none_or(|s| s.conditions.is_empty());
    eventually("a block is asked for", async || {
        requests.get_opt(name).await.unwrap().is_some_and(|r| is_open(&r))
    })
    .await;
    ipam.free(&pod(1)).await.unwrap();
    let second = second.await.unwrap().unwrap();
    assert_eq!(show(&second), show(&first), "the address that was freed");
    cluster.start_controller();
    eventually("the request is answered, and its block returned", async || {
        let answered = requests.get_opt(name).await.unwrap().is_some_and(|r| !is_open(&r));
        answered && cluster.blocks().await == ["default-0"]
    })
    .await;
    assert_eq!(ipam.get(&pod(2)), Some(second));
}

#[tokio::test]
async fn without_a_controller_the_wait_ends_and_the_next_one_goes_on() {
    let mut cluster = Cluster::start().await;
    cluster.stop_controller();
    cluster.pool("default", 3, json!({"ipv6": "fd00::/120"})).await;
    let (ipam, _owned) = cluster.ipam();
    let error = ipam.allocate("default", &pod(1)).await.unwrap_err();
    assert!(
        matches!(&error, IpamError::Timeout { request, .. } if request == "req-default-node1"),
        "{error}"
    );
    assert!(error.to_string().contains("coil-ipam-controller"), "{error}");
    assert_eq!(error.code(), code::TRY_AGAIN_LATER);
    let before = cluster.all::<BlockRequest>().get("req-default-node1").await.unwrap();
    cluster.start_controller();
    ipam.allocate("default", &pod(1)).await.unwrap();
    let after = cluster.all::<BlockRequest>().get("req-default-node1").await.unwrap();
    assert_eq!(before.uid(), after.uid(), "the open request was waited for");
    assert_eq!(cluster.blocks().await, ["default-0"]);
}

/// Coil v2: restarting coild keeps blocks, a new pod then takes exactly one more block.
#[tokio::test]
async fn a_restart_keeps_addresses_and_blocks() {
    let cluster = Cluster::start().await;
    cluster.pool("default", 1, json!({"ipv4": "10.0.0.0/24", "ipv6": "fd00::/120"})).await;
    let (ipam, _owned) = cluster.ipam();
    let mut pods = Vec::new();
    for n in 0..4 {
        pods.push(ipam.allocate("default", &pod(n)).await.unwrap());
    }
    ipam.free(&pod(3)).await.unwrap();
    pods.truncate(3);
    drop(ipam);

    let (ipam, mut owned) = cluster.ipam();
    ipam.recover(pods.clone());
    tokio::time::timeout(LIMIT, ipam.synced()).await.unwrap();
    ipam.gc().await.unwrap();
    assert_eq!(cluster.blocks().await, ["default-0", "default-1"]);
    owned.wait_for(|o| o.len() == 4).await.unwrap();
    for known in &pods {
        assert_eq!(ipam.allocate("default", &known.owner).await.unwrap(), *known);
    }
    let next = ipam.allocate("default", &pod(10)).await.unwrap();
    assert!(pods.iter().all(|p| p.ipv4 != next.ipv4 && p.ipv6 != next.ipv6));
    assert_eq!(cluster.blocks().await.len(), 2, "the free address in hand");
    ipam.allocate("default", &pod(11)).await.unwrap();
    assert_eq!(cluster.blocks().await.len(), 3, "exactly one more");
    drop(ipam);

    // All pods are gone when the agent comes back.
    let (ipam, mut owned) = cluster.ipam();
    ipam.recover(Vec::new());
    tokio::time::timeout(LIMIT, ipam.synced()).await.unwrap();
    ipam.gc().await.unwrap();
    assert_eq!(cluster.blocks().await, Vec::<String>::new());
    owned.wait_for(BTreeSet::is_empty).await.unwrap();
}

#[tokio::test]
async fn reserved_blocks_are_announced_and_never_used() {
    let cluster = Cluster::start().await;
    cluster.pool("default", 3, json!({"ipv4": "10.0.0.0/24"})).await;
    let labels = json!({
        "coil.cybozu.com/pool": "default",
        "coil.cybozu.com/node": "node1",
        "coil.cybozu.com/reserved": "true",
    });
    let metadata = json!({"name": "default-0", "labels": labels, "finalizers": ["coil.cybozu.com"]});
    let block = json!({"metadata": metadata, "index": 0, "ipv4": "10.0.0.0/29"});
    cluster.create::<AddressBlock>(block).await;
    let (ipam, mut owned) = cluster.ipam();
    tokio::time::timeout(LIMIT, ipam.synced()).await.unwrap();
    assert_eq!(show(&ipam.allocate("default", &pod(1)).await.unwrap()), ["10.0.0.8"]);
    owned.wait_for(|o| o.len() == 2).await.unwrap();
    ipam.free(&pod(1)).await.unwrap();
    ipam.gc().await.unwrap();
    eventually("the other block is returned", async || cluster.blocks().await == ["default-0"]).await;
}

#[tokio::test]
async fn an_api_outage_stops_no_allocation_from_blocks_in_hand() {
    let mut cluster = Cluster::start().await;
    cluster.pool("default", 2, json!({"ipv4": "10.0.0.0/24"})).await;
    let (ipam, owned) = cluster.ipam();
    ipam.allocate("default", &pod(0)).await.unwrap();
    tokio::time::timeout(LIMIT, ipam.synced()).await.unwrap();
    cluster.stop_controller();
    let spare = Server::start_kind(&Kind::Embedded, coil_apitest::Options::default()).await.unwrap();
    std::mem::replace(&mut cluster.api.server, spare).stop().await;

    for n in 1..4 {
        ipam.allocate("default", &pod(n)).await.unwrap();
    }
    let error = ipam.allocate("default", &pod(9)).await.unwrap_err();
    assert_eq!(error.code(), code::TRY_AGAIN_LATER, "{error}");
    for n in 0..4 {
        ipam.free(&pod(n)).await.unwrap();
    }
    // The block could not be returned: it is still there for the next pod.
    eventually("the block is in hand again", async || ipam.allocate("default", &pod(5)).await.is_ok()).await;
    assert_eq!(owned.borrow().len(), 1, "and announced");
}

#[test]
fn again_on_a_real_server() {
    coil_apitest::again_on_a_real_server();
}
