//! The programs themselves: ready, measured, led, trusted.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use coil_api::crd::{AddressPool, AddressPoolSpec, SubnetSet};
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Secret};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, PostParams},
};

use super::Outcome;
use crate::{
    cluster::{Cluster, SYSTEM},
    pods::{Traffic, addresses, is_ready, shown},
    wait::until,
};

/// Every pod of Coil's, and coild on every node.
pub(super) async fn ready(cluster: &Cluster) -> Result<Outcome> {
    until("Coil's pods are ready", cluster.limit, async || {
        let pods = cluster.coil_pods(None).await?;
        let unready: Vec<String> = pods.iter().filter(|pod| !is_ready(pod)).map(shown).collect();
        let coild = cluster.coil_pods(Some("coild")).await?;
        let on = |node: &&String| {
            coild.iter().any(|p| p.spec.as_ref().and_then(|s| s.node_name.as_ref()) == Some(*node))
        };
        let without: Vec<&String> = cluster.nodes.iter().filter(|node| !on(node)).collect();
        Ok(match (unready.is_empty(), without.is_empty()) {
            (true, true) => Ok(()),
            _ => Err(format!("{}; nodes without coild: {without:?}", unready.join("; "))),
        })
    })
    .await?;
    Ok(Outcome::Passed)
}

/// A pod reads the metrics of each program, by the port that its manifest names.
pub(super) async fn metrics(cluster: &Cluster) -> Result<Outcome> {
    let mut read = 0;
    for pod in cluster.coil_pods(None).await? {
        let component = pod.labels().get(coil_api::names::LABEL_APP_COMPONENT).cloned().unwrap_or_default();
        let ports = pod.spec.iter().flat_map(|spec| &spec.containers).flat_map(|c| c.ports.iter().flatten());
        let port = ports.into_iter().find(|port| port.name.as_deref() == Some("metrics"));
        let port =
            u16::try_from(port.with_context(|| format!("{component} has no metrics port"))?.container_port)?;
        let word = match component.as_str() {
            // Requests are counted from the first one on.
            "coild" => "coil_datapath_info",
            "coil-router" => "coil_router_syncs_total",
            // Pools and certificates come later than the first answer.
            _ => "process_resident_memory_bytes",
        };
        let ip: IpAddr =
            *addresses(&pod).first().with_context(|| format!("{} has no address", pod.name_any()))?;
        let url = format!("http-get --contains {word} http://{}/metrics", SocketAddr::new(ip, port));
        // From its own node: a standby's node may be the only one that reaches it.
        let node = cluster.nodes.first().context("no node")?;
        cluster.run(&Traffic::new("metrics", node, &url)).await.with_context(|| pod.name_any())?;
        read += 1;
    }
    ensure!(read > 0, "there is no pod of Coil's");
    Ok(Outcome::Passed)
}

/// The Leases of the controllers that are installed.
pub(super) async fn leases(cluster: &Cluster) -> Result<Outcome> {
    let api: Api<Lease> = Api::namespaced(cluster.client.clone(), SYSTEM);
    for (installed, name) in [(cluster.ipam, "coil-ipam-leader"), (cluster.egress, "coil-egress-leader")] {
        if installed {
            until(&format!("Lease {name} is held"), cluster.limit, async || {
                let lease = api.get_opt(name).await.context("cannot read a Lease")?;
                let holder = lease.and_then(|lease| lease.spec?.holder_identity).filter(|h| !h.is_empty());
                Ok(holder.map(drop).ok_or_else(|| "nobody holds it".to_owned()))
            })
            .await?;
        }
    }
    Ok(Outcome::Passed)
}

/// The Secret of the pools' webhook is deleted: it comes back with other content, and pools are judged as before.
pub(super) async fn certificates(cluster: &Cluster) -> Result<Outcome> {
    if !cluster.ipam {
        return Ok(Outcome::NotHere("Coil gives no addresses here"));
    }
    if !cluster.has_flag("coil-ipam-controller", "--enable-cert-rotation").await? {
        return Ok(Outcome::NotHere("the controllers do not make certificates"));
    }
    let api: Api<Secret> = Api::namespaced(cluster.client.clone(), SYSTEM);
    let name = "coilv2-ipam-webhook-server-cert";
    let old = api.get(name).await.with_context(|| format!("cannot read Secret {name}"))?;
    api.delete(name, &DeleteParams::default())
        .await
        .with_context(|| format!("cannot delete Secret {name}"))?;
    until("the Secret is made anew", cluster.limit, async || {
        let new = api.get_opt(name).await.context("cannot read a Secret")?;
        let other = new.is_some_and(|new| new.data != old.data && new.data.is_some());
        Ok(if other { Ok(()) } else { Err("it is not there".into()) })
    })
    .await?;
    let pools: Api<AddressPool> = Api::all(cluster.client.clone());
    until("pools are judged with the new certificate", cluster.limit, async || {
        let asked = pools.create(&PostParams { dry_run: true, ..PostParams::default() }, &dummy()).await;
        Ok(asked.map(drop).map_err(|error| error.to_string()))
    })
    .await?;
    Ok(Outcome::Passed)
}

/// A pool that is right.
pub(super) fn dummy() -> AddressPool {
    let subnets = SubnetSet { ipv4: Some("10.232.0.0/24".into()), ipv6: None };
    let mut pool =
        AddressPool::new("coil-e2e-dummy", AddressPoolSpec { block_size_bits: 0, subnets: vec![subnets] });
    pool.labels_mut().insert(crate::cluster::LABEL.to_owned(), "true".to_owned());
    pool
}
