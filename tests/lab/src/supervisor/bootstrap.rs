//! What a fresh cluster is given beside the manifests: pools; and the wait until it is ready.

use std::time::Duration;

use anyhow::{Context as _, Result};
use coil_api::crd::{AddressPool, AddressPoolSpec, SubnetSet};
use k8s_openapi::api::core::v1::{Namespace, Node};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ListParams, PostParams},
};
use tokio::time;

use super::webhooks;
use crate::config::{DEFAULT_POOL, EGRESS_POOL, Family, Ip};

/// How often a condition is looked at.
pub(super) const POLL: Duration = Duration::from_millis(50);
/// Addresses of a block, as a power of two.
const DEFAULT_BLOCK_BITS: i32 = 5;
const EGRESS_BLOCK_BITS: i32 = 3;

/// Waits until the server answers and has its first namespaces.
pub(super) async fn wait_for_api(client: &Client) -> Result<()> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    while namespaces.get_opt("kube-system").await.ok().flatten().is_none() {
        time::sleep(POLL).await;
    }
    Ok(())
}

/// Creates the pool of pods and the one of gateways.
pub(super) async fn create_pools(client: &Client, family: Family) -> Result<()> {
    let api: Api<AddressPool> = Api::all(client.clone());
    for (name, bits, subnet) in [
        (DEFAULT_POOL, DEFAULT_BLOCK_BITS, Ip::default_pool as fn(Ip) -> &'static str),
        (EGRESS_POOL, EGRESS_BLOCK_BITS, Ip::egress_pool),
    ] {
        let of = |ip| family.each().contains(&ip).then(|| subnet(ip).to_owned());
        let subnets = vec![SubnetSet { ipv4: of(Ip::V4), ipv6: of(Ip::V6) }];
        let pool = AddressPool::new(name, AddressPoolSpec { block_size_bits: bits, subnets });
        webhooks::once_answered(async || api.create(&PostParams::default(), &pool).await)
            .await
            .with_context(|| format!("cannot create pool {name}"))?;
    }
    Ok(())
}

/// Waits until every node is ready: its kubelet has registered it, and coild answers there.
pub(super) async fn wait_for_nodes(client: &Client, names: &[String]) -> Result<()> {
    let api: Api<Node> = Api::all(client.clone());
    loop {
        let nodes = api.list(&ListParams::default()).await.context("cannot list nodes")?.items;
        let ready = |name: &String| nodes.iter().any(|n| n.name_any() == *name && is_ready(n));
        if names.iter().all(ready) {
            return Ok(());
        }
        time::sleep(POLL).await;
    }
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
}
