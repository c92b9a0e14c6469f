//! coil-ipam-controller against an API server.
//!
//! ```text
//!   test (nodes, pools, requests) ──▶ API server ◀──▶ ipam::run
//! ```

use std::{collections::BTreeSet, time::Duration};

use crate::support::{Cluster, LIMIT, eventually};
use coil_api::crd::{AddressBlock, AddressPool, BlockRequest};
use coil_controller::ipam::{self, Options};
use http::{Request, Response};
use k8s_openapi::api::core::v1::{Event, Node};
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams},
    client::Body,
};
use prometheus::Registry;
use serde_json::json;
use tokio::{sync::watch, task::JoinHandle};

/// A controller that ends with this value.
struct Controller {
    task: JoinHandle<anyhow::Result<()>>,
    registry: Registry,
    ready: watch::Receiver<Option<String>>,
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Controller {
    fn start(cluster: &Cluster, gc_interval: Duration) -> Self {
        Self::with(cluster.client.clone(), gc_interval)
    }

    fn with(client: Client, gc_interval: Duration) -> Self {
        let registry = Registry::new();
        let (sender, ready) = watch::channel(Some("not started yet".to_owned()));
        let metrics = registry.clone();
        let task =
            tokio::spawn(async move { ipam::run(client, Options { gc_interval }, &metrics, sender).await });
        Self { task, registry, ready }
    }

    fn gauge(&self, name: &str, pool: &str) -> Option<f64> {
        let families = self.registry.gather();
        let family = families.iter().find(|f| f.name() == name)?;
        let metric = family.get_metric().iter().find(|m| m.get_label().iter().any(|l| l.value() == pool))?;
        Some(metric.get_gauge().get_value())
    }
}

/// A client that may list nodes and not watch them, as with the role that some installations of Coil v2 have.
fn without_watch_of_nodes(client: &Client) -> Client {
    let inner = client.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let inner = inner.clone();
        async move {
            let uri = request.uri();
            if uri.path() == "/api/v1/nodes" && uri.query().is_some_and(|query| query.contains("watch=")) {
                let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                    "message": "nodes is forbidden: cannot watch", "reason": "Forbidden", "code": 403});
                let body = Body::from(status.to_string().into_bytes());
                return Ok(Response::builder().status(403).body(body)?);
            }
            inner.send(request).await.map_err(tower::BoxError::from)
        }
    });
    Client::new(service, client.default_namespace())
}

const HOUR: Duration = Duration::from_secs(3600);

/// Waits for the answer to a request: the block's name, or the reason and message of the failure.
async fn answer(cluster: &Cluster, name: &str) -> Result<String, (String, String)> {
    let mut status = None;
    eventually(&format!("{name} is answered"), async || {
        status = cluster.all::<BlockRequest>().get(name).await.unwrap().status;
        status.as_ref().is_some_and(|s| s.is_true("Complete"))
    })
    .await;
    let status = status.unwrap();
    match status.conditions.iter().find(|c| c.type_ == "Failed") {
        None => Ok(status.address_block_name.unwrap()),
        Some(c) => Err((c.reason.clone().unwrap(), c.message.clone().unwrap())),
    }
}

async fn ask(cluster: &Cluster, node: &str, pool: &str) -> Result<String, (String, String)> {
    let request = cluster.request(node, pool).await;
    answer(cluster, &request.name_any()).await
}

/// What a node does when the last address of a block is freed.
async fn give_back(cluster: &Cluster, block: &str) {
    let blocks = cluster.all::<AddressBlock>();
    blocks.delete(block, &DeleteParams::default()).await.unwrap();
    let patch = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    blocks.patch(block, &PatchParams::default(), &patch).await.unwrap();
}

async fn block_names(cluster: &Cluster) -> Vec<String> {
    let list = cluster.all::<AddressBlock>().list(&ListParams::default()).await.unwrap();
    list.items.iter().map(ResourceExt::name_any).collect()
}

#[tokio::test]
async fn requests_get_blocks_of_every_family() {
    let cluster = Cluster::start().await;
    let controller = Controller::start(&cluster, HOUR);
    cluster.node("node1").await;
    for (pool, subnets, ipv4, ipv6) in [
        ("four", json!([{"ipv4": "10.1.0.0/24"}]), Some("10.1.0.0/29"), None),
        ("six", json!([{"ipv6": "fd01::/120"}]), None, Some("fd01::/125")),
        (
            "dual",
            json!([{"ipv4": "10.2.0.0/24", "ipv6": "fd02::/120"}]),
            Some("10.2.0.0/29"),
            Some("fd02::/125"),
        ),
    ] {
        cluster.pool(pool, 3, subnets).await;
        let name = ask(&cluster, "node1", pool).await.unwrap();
        assert_eq!(name, format!("{pool}-0"));
        let block = cluster.all::<AddressBlock>().get(&name).await.unwrap();
        assert_eq!((block.block.ipv4.as_deref(), block.block.ipv6.as_deref()), (ipv4, ipv6));
        assert_eq!(block.labels()["coil.cybozu.com/node"], "node1");
        assert_eq!(block.finalizers(), ["coil.cybozu.com"]);
        let owner = cluster.all::<AddressPool>().get(pool).await.unwrap();
        assert_eq!(Some(&block.owner_references()[0].uid), owner.uid().as_ref());
        eventually("the pool has the finalizer", async || {
            cluster.all::<AddressPool>().get(pool).await.unwrap().finalizers() == ["coil.cybozu.com"]
        })
        .await;
        eventually("the gauges follow", async || {
            controller.gauge("coil_controller_max_blocks", pool) == Some(32.0)
                && controller.gauge("coil_controller_allocated_blocks", pool) == Some(1.0)
        })
        .await;
    }
    assert_eq!(*controller.ready.borrow(), None);
}

#[tokio::test]
async fn an_exhausted_pool_says_so_and_recovers() {
    let cluster = Cluster::start().await;
    let _controller = Controller::start(&cluster, HOUR);
    cluster.node("node1").await;
    cluster.pool("small", 1, json!([{"ipv4": "10.0.0.0/30"}])).await;
    assert_eq!(ask(&cluster, "node1", "small").await.unwrap(), "small-0");
    cluster.node("node2").await;
    assert_eq!(ask(&cluster, "node2", "small").await.unwrap(), "small-1");
    cluster.node("node3").await;
    let (reason, message) = ask(&cluster, "node3", "small").await.unwrap_err();
    assert_eq!(reason, "out of blocks");
    assert_eq!(message, "pool small does not have free blocks");

    give_back(&cluster, "small-0").await;
    let requests = cluster.all::<BlockRequest>();
    requests.delete("req-small-node3", &DeleteParams::default()).await.unwrap();
    // The controller may hear of the request before it hears of the block: a node asks again.
    let mut block = None;
    eventually("the returned block is given again", async || {
        block = match ask(&cluster, "node3", "small").await {
            Ok(block) => Some(block),
            Err(_) => {
                requests.delete("req-small-node3", &DeleteParams::default()).await.unwrap();
                None
            }
        };
        block.is_some()
    })
    .await;
    assert_eq!(block.as_deref(), Some("small-0"));

    let patch =
        Patch::Merge(json!({"spec": {"subnets": [{"ipv4": "10.0.0.0/30"}, {"ipv4": "10.9.0.0/31"}]}}));
    cluster.all::<AddressPool>().patch("small", &PatchParams::default(), &patch).await.unwrap();
    cluster.node("node4").await;
    let mut appended = None;
    eventually("a block of the appended subnet", async || {
        appended = ask(&cluster, "node4", "small").await.ok();
        if appended.is_none() {
            requests.delete("req-small-node4", &DeleteParams::default()).await.unwrap();
        }
        appended.is_some()
    })
    .await;
    let block = cluster.all::<AddressBlock>().get("small-2").await.unwrap();
    assert_eq!(block.block.ipv4.as_deref(), Some("10.9.0.0/31"));
}

/// Reasons of the Events about an object.
async fn reasons(cluster: &Cluster, kind: &str, name: &str) -> BTreeSet<String> {
    let events = cluster.of::<Event>("default").list(&ListParams::default()).await.unwrap();
    let about = |e: &Event| {
        let object = &e.involved_object;
        (object.kind.as_deref(), object.name.as_deref()) == (Some(kind), Some(name))
    };
    events.items.into_iter().filter(about).filter_map(|e| e.reason).collect()
}

#[tokio::test]
async fn events_tell_of_exhaustion_room_and_malformed_objects() {
    let cluster = Cluster::without_rules().await;
    let _controller = Controller::start(&cluster, HOUR);
    cluster.node("node1").await;
    cluster.pool("small", 0, json!([{"ipv6": "fd00::/128"}])).await;
    assert_eq!(ask(&cluster, "node1", "small").await.unwrap(), "small-0");
    cluster.node("node2").await;
    ask(&cluster, "node2", "small").await.unwrap_err();
    let expect = async |kind: &str, name: &str, wanted: &[&str]| {
        let wanted: BTreeSet<String> = wanted.iter().map(|s| (*s).to_owned()).collect();
        eventually(&format!("Events of {kind} {name}"), async || {
            reasons(&cluster, kind, name).await == wanted
        })
        .await;
    };
    expect("AddressPool", "small", &["OutOfBlocks"]).await;
    give_back(&cluster, "small-0").await;
    expect("AddressPool", "small", &["BlocksAvailable", "OutOfBlocks"]).await;

    let labels = json!({"coil.cybozu.com/pool": "small", "coil.cybozu.com/node": "node1"});
    let metadata = json!({"name": "small-7", "labels": labels, "finalizers": ["coil.cybozu.com"]});
    cluster.create::<AddressBlock>(json!({"metadata": metadata, "index": 7, "ipv4": "ten"})).await;
    expect("AddressBlock", "small-7", &["Malformed"]).await;
    let resource = ApiResource::erase::<BlockRequest>(&());
    let requests = Api::<DynamicObject>::all_with(cluster.client.clone(), &resource);
    let empty =
        DynamicObject::new("odd", &resource).data(json!({"spec": {"nodeName": "", "poolName": "small"}}));
    requests.create(&PostParams::default(), &empty).await.unwrap();
    expect("BlockRequest", "odd", &["Malformed"]).await;
    cluster.node("node3").await;
    assert_eq!(ask(&cluster, "node3", "small").await.unwrap(), "small-0", "neighbours are served");
    let (reason, _) = ask(&cluster, "nowhere", "small").await.unwrap_err();
    assert_eq!(reason, "node not found");
}

#[tokio::test]
async fn the_search_goes_on_behind_the_last_block_also_in_a_new_leader() {
    let cluster = Cluster::start().await;
    cluster.pool("default", 3, json!([{"ipv4": "10.0.0.0/26"}])).await;
    for n in 0..8 {
        cluster.node(&format!("node{n}")).await;
    }
    for (n, block) in [(0, "default-0"), (1, "default-1"), (2, "default-2")] {
        let _controller = Controller::start(&cluster, HOUR);
        assert_eq!(ask(&cluster, &format!("node{n}"), "default").await.unwrap(), block);
        // The block is gone when the next leader comes; the answered request still tells of it.
        give_back(&cluster, block).await;
    }
}

#[tokio::test]
async fn a_deleted_pool_drains() {
    let cluster = Cluster::start().await;
    let _controller = Controller::start(&cluster, HOUR);
    cluster.node("node1").await;
    cluster.pool("default", 3, json!([{"ipv4": "10.0.0.0/24"}])).await;
    let block = ask(&cluster, "node1", "default").await.unwrap();
    let pools = cluster.all::<AddressPool>();
    eventually("the pool has the finalizer", async || {
        !pools.get("default").await.unwrap().finalizers().is_empty()
    })
    .await;
    pools.delete("default", &DeleteParams::default()).await.unwrap();
    cluster.node("node2").await;
    let mut refusal = None;
    eventually("a deleted pool gives nothing", async || {
        match ask(&cluster, "node2", "default").await {
            Err((reason, _)) => refusal = Some(reason),
            Ok(early) => {
                // The deletion had not reached the controller.
                give_back(&cluster, &early).await;
                let requests = cluster.all::<BlockRequest>();
                requests.delete("req-default-node2", &DeleteParams::default()).await.unwrap();
            }
        }
        refusal.is_some()
    })
    .await;
    assert_eq!(refusal.as_deref(), Some("pool is being deleted"));
    assert!(pools.get("default").await.is_ok(), "a block is left");
    give_back(&cluster, &block).await;
    eventually("the pool goes with its last block", async || {
        pools.get_opt("default").await.unwrap().is_none()
    })
    .await;
}

#[tokio::test]
async fn an_unused_pool_goes_at_once() {
    let cluster = Cluster::start().await;
    let _controller = Controller::start(&cluster, HOUR);
    cluster.pool("dummy", 5, json!([{"ipv4": "10.0.0.0/24"}])).await;
    let pools = cluster.all::<AddressPool>();
    eventually("the pool has the finalizer", async || {
        !pools.get("dummy").await.unwrap().finalizers().is_empty()
    })
    .await;
    pools.delete("dummy", &DeleteParams::default()).await.unwrap();
    eventually("the pool is gone", async || pools.get_opt("dummy").await.unwrap().is_none()).await;
}

#[tokio::test]
async fn blocks_of_absent_nodes_are_collected() {
    let cluster = Cluster::start().await;
    cluster.node("node1").await;
    cluster.node("node2").await;
    cluster.pool("default", 3, json!([{"ipv4": "10.0.0.0/24"}])).await;
    let orphan = json!({
        "metadata": {
            "name": "default-100",
            "labels": {"coil.cybozu.com/pool": "default", "coil.cybozu.com/node": "no-such-node"},
            "finalizers": ["coil.cybozu.com"],
        },
        "index": 100,
        "ipv4": "10.0.3.32/29",
    });
    cluster.create::<AddressBlock>(orphan).await;
    let _controller = Controller::start(&cluster, Duration::from_secs(1));
    eventually("the orphan is collected", async || block_names(&cluster).await.is_empty()).await;
    let first = ask(&cluster, "node1", "default").await.unwrap();
    let second = ask(&cluster, "node2", "default").await.unwrap();
    cluster.all::<Node>().delete("node1", &DeleteParams::default()).await.unwrap();
    eventually("the blocks of node1 are collected", async || !block_names(&cluster).await.contains(&first))
        .await;
    assert_eq!(block_names(&cluster).await, [second]);
}

#[tokio::test]
async fn nodes_that_may_not_be_watched_come_and_go() {
    let cluster = Cluster::start().await;
    cluster.pool("default", 3, json!([{"ipv4": "10.0.0.0/24"}])).await;
    let mut controller = Controller::with(without_watch_of_nodes(&cluster.client), Duration::from_secs(1));
    // From here on nobody tells it of nodes.
    tokio::time::timeout(LIMIT, controller.ready.wait_for(Option::is_none)).await.unwrap().unwrap();
    cluster.node("late").await;
    assert_eq!(ask(&cluster, "late", "default").await.unwrap(), "default-0");
    let (reason, _) = ask(&cluster, "absent", "default").await.unwrap_err();
    assert_eq!(reason, "node not found");
    cluster.all::<Node>().delete("late", &DeleteParams::default()).await.unwrap();
    eventually("its block is collected", async || block_names(&cluster).await.is_empty()).await;
}

#[tokio::test]
async fn a_crash_between_block_and_status_makes_no_second_block() {
    let cluster = Cluster::start().await;
    cluster.node("node1").await;
    cluster.pool("default", 3, json!([{"ipv4": "10.0.0.0/24"}])).await;
    let request = cluster.request("node1", "default").await;
    let made = json!({
        "metadata": {
            "name": "default-7",
            "labels": {
                "coil.cybozu.com/pool": "default",
                "coil.cybozu.com/node": "node1",
                "coil.cybozu.com/request": request.uid().unwrap(),
            },
            "finalizers": ["coil.cybozu.com"],
        },
        "index": 7,
        "ipv4": "10.0.0.56/29",
    });
    cluster.create::<AddressBlock>(made).await;
    let _controller = Controller::start(&cluster, HOUR);
    assert_eq!(answer(&cluster, "req-default-node1").await.unwrap(), "default-7");
    assert_eq!(block_names(&cluster).await, ["default-7"]);
}

#[tokio::test]
async fn a_restarted_controller_goes_on_where_it_was() {
    let cluster = Cluster::start().await;
    cluster.pool("default", 3, json!([{"ipv4": "10.0.0.0/24"}])).await;
    for n in 0..4 {
        let _controller = Controller::start(&cluster, HOUR);
        let node = format!("node{n}");
        cluster.node(&node).await;
        assert_eq!(ask(&cluster, &node, "default").await.unwrap(), format!("default-{n}"));
    }
}

#[tokio::test]
async fn a_malformed_pool_harms_only_itself() {
    let cluster = Cluster::without_rules().await;
    let _controller = Controller::start(&cluster, HOUR);
    cluster.node("node1").await;
    cluster.pool("bad", 5, json!([{"ipv4": "10.0.0.0/30"}])).await;
    cluster.pool("worse", 5, json!([{"ipv4": "not a subnet"}])).await;
    // Without a spec: the definition lets it pass.
    let resource = ApiResource::erase::<AddressPool>(&());
    let pools = Api::<DynamicObject>::all_with(cluster.client.clone(), &resource);
    pools.create(&PostParams::default(), &DynamicObject::new("empty", &resource)).await.unwrap();
    cluster.pool("good", 5, json!([{"ipv4": "10.1.0.0/24"}])).await;
    for (pool, part) in
        [("bad", "smaller than a block"), ("worse", "spec.subnets[0].ipv4"), ("empty", "spec")]
    {
        let (reason, message) = ask(&cluster, "node1", pool).await.unwrap_err();
        assert_eq!(reason, "malformed pool", "{message}");
        assert!(message.contains(part), "{message}");
    }
    let (reason, message) = ask(&cluster, "node1", "absent").await.unwrap_err();
    assert_eq!((reason.as_str(), message.as_str()), ("pool not found", "AddressPool absent does not exist"));
    assert_eq!(ask(&cluster, "node1", "good").await.unwrap(), "good-0");
}

/// Many nodes at once: each gets a block of its own.
#[tokio::test]
async fn a_hundred_nodes_at_once() {
    let cluster = Cluster::start().await;
    let _controller = Controller::start(&cluster, HOUR);
    cluster.pool("default", 2, json!([{"ipv4": "10.0.0.0/22", "ipv6": "fd00::/118"}])).await;
    let nodes: Vec<String> = (0..100).map(|n| format!("node{n}")).collect();
    for node in &nodes {
        cluster.node(node).await;
    }
    let answers = futures::future::join_all(nodes.iter().map(|n| ask(&cluster, n, "default"))).await;
    let names: BTreeSet<String> = answers.into_iter().map(Result::unwrap).collect();
    assert_eq!(names.len(), nodes.len());
    let blocks = cluster.all::<AddressBlock>().list(&ListParams::default()).await.unwrap();
    let subnets: BTreeSet<_> =
        blocks.items.iter().map(|b| (b.block.ipv4.clone(), b.block.ipv6.clone())).collect();
    assert_eq!(subnets.len(), nodes.len());
}
