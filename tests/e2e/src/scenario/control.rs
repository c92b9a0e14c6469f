//! The programs themselves: ready, measured, led, trusted.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, bail, ensure};
use coil_api::crd::{AddressPool, AddressPoolSpec, Egress, SubnetSet};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Pod, Secret},
};
use kube::{
    Api, Resource as _, ResourceExt as _,
    api::{DeleteParams, PostParams},
};

use super::Outcome;
use crate::{
    cluster::{Cluster, NAMESPACE, SYSTEM},
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

/// A pod reads the metrics of each program, at the port that users know, unless the manifest has another.
pub(super) async fn metrics(cluster: &Cluster) -> Result<Outcome> {
    let mut read = 0;
    for pod in cluster.coil_pods(None).await? {
        let component = pod.labels().get(coil_api::names::LABEL_APP_COMPONENT).cloned().unwrap_or_default();
        let (known, word) = match component.as_str() {
            // Requests are counted from the first one on.
            "coild" => (9384, "coil_datapath_info"),
            // Pools and certificates come later than the first answer.
            "coil-ipam-controller" => (9386, "process_resident_memory_bytes"),
            "coil-router" => (9388, "coil_router_syncs_total"),
            "coil-egress-controller" => (9396, "process_resident_memory_bytes"),
            other => bail!("{} is a pod of Coil's that these tests do not know: {other}", pod.name_any()),
        };
        let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
        let told = containers.flat_map(|c| c.args.iter().flatten()).any(|arg| arg.contains(METRICS_FLAG));
        let port = metrics_port(&pod)?;
        ensure!(told || port == known, "{component} has its metrics at port {port}, not at {known}");
        cluster.look_at_metrics(&pod, word).await?;
        read += 1;
    }
    ensure!(read > 0, "there is no pod of Coil's");
    Ok(Outcome::Passed)
}

/// What moves a program's metrics to another port.
const METRICS_FLAG: &str = "--metrics-addr";

fn metrics_port(pod: &Pod) -> Result<u16> {
    let ports = pod.spec.iter().flat_map(|spec| &spec.containers).flat_map(|c| c.ports.iter().flatten());
    let port = ports.into_iter().find(|port| port.name.as_deref() == Some("metrics"));
    let port = port.with_context(|| format!("{} has no metrics port", pod.name_any()))?;
    Ok(u16::try_from(port.container_port)?)
}

impl Cluster {
    /// Reads a pod's metrics, and looks for a word.
    async fn look_at_metrics(&self, pod: &Pod, word: &str) -> Result<()> {
        let ip: IpAddr =
            *addresses(pod).first().with_context(|| format!("{} has no address", pod.name_any()))?;
        let url = SocketAddr::new(ip, metrics_port(pod)?);
        let words = format!("http-get --contains {word} http://{url}/metrics");
        // From its own node: a standby's node may be the only one that reaches it.
        let node = self.nodes.first().context("no node")?;
        self.run(&Traffic::new("metrics", node, &words)).await.map(drop).with_context(|| pod.name_any())
    }
}

/// Every coild says that it forwards by what is wanted: scenarios could pass by another path.
pub(super) async fn datapath(cluster: &Cluster) -> Result<Outcome> {
    let Some(mode) = &cluster.datapath else {
        return Ok(Outcome::NotHere("--datapath is not given"));
    };
    let pods = cluster.coil_pods(Some("coild")).await?;
    ensure!(!pods.is_empty(), "there is no pod of coild");
    for pod in &pods {
        cluster.look_at_metrics(pod, &format!("coil_datapath_info{{mode=\"{mode}\"")).await?;
    }
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

/// The Secret of each controller that makes one is deleted: it comes back with other content, and objects are judged
/// as before.
pub(super) async fn certificates(cluster: &Cluster) -> Result<Outcome> {
    let mut renewed = 0;
    for (installed, part) in [(cluster.ipam, "ipam"), (cluster.egress, "egress")] {
        let rotates = installed
            && cluster.has_flag(&format!("coil-{part}-controller"), "--enable-cert-rotation").await?;
        if rotates {
            renew(cluster, part).await?;
            renewed += 1;
        }
    }
    if renewed == 0 {
        return Ok(Outcome::NotHere("the controllers do not make certificates"));
    }
    Ok(Outcome::Passed)
}

async fn renew(cluster: &Cluster, part: &str) -> Result<()> {
    let api: Api<Secret> = Api::namespaced(cluster.client.clone(), SYSTEM);
    let name = &format!("coilv2-{part}-webhook-server-cert");
    let old = api.get(name).await.with_context(|| format!("cannot read Secret {name}"))?;
    api.delete(name, &DeleteParams::default())
        .await
        .with_context(|| format!("cannot delete Secret {name}"))?;
    until(&format!("Secret {name} is made anew"), cluster.limit, async || {
        let new = api.get_opt(name).await.context("cannot read a Secret")?;
        let other = new.is_some_and(|new| new.data != old.data && new.data.is_some());
        Ok(if other { Ok(()) } else { Err("it is not there".into()) })
    })
    .await?;
    let pools: Api<AddressPool> = Api::all(cluster.client.clone());
    let egresses: Api<Egress> = Api::namespaced(cluster.client.clone(), NAMESPACE);
    until(&format!("{part} objects are judged with the new certificate"), cluster.limit, async || {
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        let asked = match part {
            "ipam" => pools.create(&dry, &dummy()).await.map(drop),
            _ => egresses.create(&dry, &dummy_egress()?).await.map(drop),
        };
        Ok(asked.map_err(|error| error.to_string()))
    })
    .await
}

/// An Egress that is right.
fn dummy_egress() -> Result<Egress> {
    Ok(serde_json::from_value(serde_json::json!({
        "apiVersion": Egress::api_version(&()), "kind": Egress::kind(&()),
        "metadata": {"name": "dummy"}, "spec": {"destinations": ["192.0.2.0/24"]},
    }))?)
}

/// A pool that is right.
pub(super) fn dummy() -> AddressPool {
    let subnets = SubnetSet { ipv4: Some("10.232.0.0/24".into()), ipv6: None };
    let mut pool =
        AddressPool::new("coil-e2e-dummy", AddressPoolSpec { block_size_bits: 0, subnets: vec![subnets] });
    pool.labels_mut().insert(crate::cluster::LABEL.to_owned(), "true".to_owned());
    pool
}
