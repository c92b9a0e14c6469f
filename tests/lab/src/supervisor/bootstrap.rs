//! What a fresh cluster is given: definitions, pools; and the wait until it is ready.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result};
use coil_api::crd::{AddressPool, AddressPoolSpec, SubnetSet};
use k8s_openapi::{
    api::{
        core::v1::{Namespace, Node},
        rbac::v1::ClusterRole,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ListParams, PostParams},
};
use serde_json::json;
use tokio::time;

use super::webhooks;
use crate::config::{DEFAULT_POOL, EGRESS_POOL, Family, Ip};

/// How often a condition is looked at.
pub(super) const POLL: Duration = Duration::from_millis(50);
/// The definitions as they are shipped.
const CRDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/crds");
/// The role that coil-egress-controller binds gateways' service accounts to.
const EGRESS_ROLE: &str = "coil-egress";
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

/// Installs every definition of `deploy/crds`, and waits until each is served.
pub(super) async fn install_crds(client: &Client) -> Result<()> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let files = std::fs::read_dir(CRDS).with_context(|| format!("cannot read {CRDS}"))?;
    let mut names = Vec::new();
    for path in files.flatten().map(|file| file.path()).filter(|p| p.extension().is_some_and(|e| e == "yaml"))
    {
        let crd = read_crd(&path)?;
        api.create(&PostParams::default(), &crd)
            .await
            .with_context(|| format!("cannot create the definition of {}", path.display()))?;
        names.push(crd.name_any());
    }
    for name in names {
        while !is_established(&api.get(&name).await?) {
            time::sleep(POLL).await;
        }
    }
    Ok(())
}

fn read_crd(path: &Path) -> Result<CustomResourceDefinition> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_yaml_ng::from_str(&text).with_context(|| format!("{} is no definition", path.display()))
}

fn is_established(crd: &CustomResourceDefinition) -> bool {
    let conditions = crd.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|c| c.type_ == "Established" && c.status == "True")
}

/// Creates the role that gateway pods are bound to: a real API server asks for it.
pub(super) async fn create_roles(client: &Client) -> Result<()> {
    let rule = |group: &str, resources: &[&str]| json!({"apiGroups": [group], "resources": resources, "verbs": ["get", "list", "watch"]});
    let role = json!({"metadata": {"name": EGRESS_ROLE}, "rules": [
        rule("", &["pods", "services"]), rule("coil.cybozu.com", &["egresses"])]});
    let role: ClusterRole = serde_json::from_value(role)?;
    let api: Api<ClusterRole> = Api::all(client.clone());
    api.create(&PostParams::default(), &role).await.context("cannot create the role of gateways")?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_definitions_are_found() {
        let files = std::fs::read_dir(CRDS).unwrap().flatten();
        let read: Vec<_> = files.map(|f| read_crd(&f.path()).unwrap()).collect();
        assert_eq!(read.len(), coil_api::crd::definitions().len());
    }
}
