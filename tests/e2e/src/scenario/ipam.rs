//! Pools and blocks.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result, ensure};
use coil_api::{
    crd::{AddressBlock, AddressPool, AddressPoolSpec, SubnetSet},
    names::{DEFAULT_EXPORT_TABLE, FINALIZER, LABEL_NODE, LABEL_POOL},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{
    Api, Resource as _, ResourceExt as _,
    api::{DeleteParams, ListParams, PostParams},
};

use super::{Outcome, control::dummy};
use crate::{
    cluster::{Cluster, LABEL, POOL},
    pods::Traffic,
    wait::until,
};

const NO_IPAM: Outcome = Outcome::NotHere("Coil gives no addresses here");

/// A pool's blocks of one address: as many as pods, in table 119 while they live, and gone with them.
pub(super) async fn blocks(cluster: &Cluster) -> Result<Outcome> {
    if !cluster.ipam {
        return Ok(NO_IPAM);
    }
    let (node, _) = cluster.two()?;
    let returned = async || {
        until("blocks without pods are returned", cluster.limit, async || {
            let left = blocks_of(cluster, node).await?;
            Ok(if left.is_empty() { Ok(()) } else { Err(format!("{left:?} are left")) })
        })
        .await
    };
    // Those of pods of earlier scenarios.
    returned().await?;
    for name in ["a", "b"] {
        cluster.serve(&Traffic::server(name, node)).await?;
    }
    let two = blocks_of(cluster, node).await?;
    ensure!(two.len() == 2, "two pods took {two:?}");

    let look =
        Traffic { host: true, ..Traffic::new("routes", node, &format!("routes {DEFAULT_EXPORT_TABLE}")) };
    let exported = cluster.run(&look).await?;
    let exported: BTreeSet<&str> = exported.lines().collect();
    for block in two.iter().flat_map(|(_, networks)| networks) {
        ensure!(exported.contains(block.as_str()), "{block} is not in table 119 of {node}: {exported:?}");
    }

    cluster
        .restart("coild", |pod| pod.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some(node))
        .await?;
    let kept = blocks_of(cluster, node).await?;
    ensure!(kept == two, "coild's restart made {two:?} into {kept:?}");
    cluster.serve(&Traffic::server("c", node)).await?;
    let three = blocks_of(cluster, node).await?;
    ensure!(
        three.len() == two.len() + 1 && three.is_superset(&two),
        "one more pod took {two:?} to {three:?}"
    );

    for name in ["a", "b", "c"] {
        cluster.remove(name).await?;
    }
    returned().await?;
    Ok(Outcome::Passed)
}

/// Names and networks of a node's blocks of the tests' pool.
async fn blocks_of(cluster: &Cluster, node: &str) -> Result<BTreeSet<(String, Vec<String>)>> {
    let api: Api<AddressBlock> = Api::all(cluster.client.clone());
    let params = ListParams::default().labels(&format!("{LABEL_POOL}={POOL},{LABEL_NODE}={node}"));
    let blocks = api.list(&params).await.context("cannot list AddressBlocks")?.items;
    let part = |block: &AddressBlock| {
        let networks = [block.block.ipv4.clone(), block.block.ipv6.clone()].into_iter().flatten().collect();
        (block.name_any(), networks)
    };
    Ok(blocks.iter().map(part).collect())
}

/// A pool is made with its finalizer, and goes; pools that cannot be right are refused.
pub(super) async fn pools(cluster: &Cluster) -> Result<Outcome> {
    if !cluster.ipam {
        return Ok(NO_IPAM);
    }
    let api: Api<AddressPool> = Api::all(cluster.client.clone());
    let made = api.create(&PostParams::default(), &dummy()).await.context("cannot create a pool")?;
    ensure!(
        made.finalizers().contains(&FINALIZER.to_owned()),
        "the pool has no finalizer: is the webhook there?"
    );
    api.delete(&made.name_any(), &DeleteParams::default()).await.context("cannot delete a pool")?;
    until("the pool is gone", cluster.limit, async || {
        let there = api.get_opt(&made.name_any()).await.context("cannot read a pool")?;
        Ok(there.map_or(Ok(()), |pool| Err(format!("it has {:?}", pool.finalizers()))))
    })
    .await?;
    // Blocks of 32 addresses do not fit into four: the definition itself may say so, before any webhook is asked.
    let subnets = SubnetSet { ipv4: Some("10.233.0.0/30".into()), ipv6: None };
    let wrong = AddressPoolSpec { block_size_bits: 5, subnets: vec![subnets] };
    refused(&api, wrong, "a subnet is smaller than one block").await?;
    // What the tests' pool has: only the webhook can know.
    let pool = api.get(POOL).await.context("cannot read the tests' pool")?;
    let (code, message) = refused(&api, pool.spec, &format!("AddressPool \"{POOL}\"")).await?;
    ensure!(is_webhooks(code, &message), "an overlap was not refused by {WEBHOOK}: {code}: {message}");
    Ok(Outcome::Passed)
}

/// Who judges pools.
const WEBHOOK: &str = "vaddresspool.kb.io";

/// A webhook's own judgement; one that cannot be reached is an error of the server's.
fn is_webhooks(code: u16, message: &str) -> bool {
    let denied = format!("admission webhook \"{WEBHOOK}\" denied the request");
    (400..500).contains(&code) && message.contains(&denied)
}

/// A pool that is refused, by a webhook or by its definition, for the reason that there is; code and message.
async fn refused(api: &Api<AddressPool>, spec: AddressPoolSpec, reason: &str) -> Result<(u16, String)> {
    let mut pool = AddressPool::new("coil-e2e-wrong", spec);
    pool.labels_mut().insert(LABEL.to_owned(), "true".to_owned());
    match api.create(&PostParams::default(), &pool).await {
        Ok(pool) => {
            api.delete(&pool.name_any(), &DeleteParams::default()).await.context("cannot delete a pool")?;
            anyhow::bail!("a pool was taken that is to be refused ({reason}): {:?}", pool.spec)
        }
        Err(kube::Error::Api(status)) if status.message.contains(reason) => {
            let by_rule = status.code == 422 && status.reason == "Invalid";
            ensure!(
                by_rule || is_webhooks(status.code, &status.message),
                "neither the webhook nor the definition refused: {}: {}",
                status.code,
                status.message
            );
            println!("   refused: {}", status.message);
            Ok((status.code, status.message.clone()))
        }
        Err(error) => anyhow::bail!("refused, but not because of {reason:?}: {error}"),
    }
}

/// How soon the leader finds a block of a node that is not there, once it leads, on a machine without other work.
const COLLECTED: Duration = Duration::from_secs(20);

/// A block of a node that never was goes when the leader looks, which it does at its start.
pub(super) async fn orphan(cluster: &Cluster) -> Result<Outcome> {
    if !cluster.ipam {
        return Ok(NO_IPAM);
    }
    let pools: Api<AddressPool> = Api::all(cluster.client.clone());
    let pool = pools.get(POOL).await.context("cannot read the tests' pool")?;
    let api: Api<AddressBlock> = Api::all(cluster.client.clone());
    let name = format!("{POOL}-100");
    let mut block: AddressBlock = serde_json::from_value(serde_json::json!({
        "apiVersion": AddressBlock::api_version(&()), "kind": AddressBlock::kind(&()),
        "metadata": {
            "name": name, "finalizers": [FINALIZER],
            "labels": {LABEL: "true", LABEL_POOL: POOL, LABEL_NODE: "coil-e2e-no-such-node"},
        },
        "index": 100,
    }))?;
    let net = |subnet: Option<&String>| -> Result<Option<String>> {
        let Some(subnet) = subnet else { return Ok(None) };
        let net: ipnet::IpNet = subnet.parse().with_context(|| format!("{subnet} is no network"))?;
        let address = net.hosts().nth(if net.addr().is_ipv4() { 99 } else { 100 });
        Ok(address.map(|ip| format!("{ip}/{}", net.max_prefix_len())))
    };
    let subnet = pool.spec.subnets.first().context("the tests' pool is empty")?;
    (block.block.ipv4, block.block.ipv6) = (net(subnet.ipv4.as_ref())?, net(subnet.ipv6.as_ref())?);
    block.metadata.owner_references = Some(vec![OwnerReference {
        controller: Some(true),
        block_owner_deletion: Some(true),
        ..pool.owner_ref(&()).context("the pool has no uid")?
    }]);
    api.create(&PostParams::default(), &block)
        .await
        .with_context(|| format!("cannot create AddressBlock {name}"))?;
    cluster.restart("coil-ipam-controller", |_| true).await?;
    until("the orphan is gone", cluster.limit.max(COLLECTED), async || {
        let there = api.get_opt(&name).await.context("cannot read a block")?;
        Ok(there.map_or(Ok(()), |_| Err("it is there".into())))
    })
    .await?;
    Ok(Outcome::Passed)
}
