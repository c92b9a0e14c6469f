//! Egress NAT: from clients on one node through gateways on another to a world on a third; where there is none, or another
//! plugin translates what leaves a node, the gateways' node itself has the world's addresses.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context as _, Result, ensure};
use coil_api::{
    crd::Egress,
    gateway::{KERNEL_LACKS, OTHERS_DROPPED},
    names::{
        ANN_EGRESS_PREFIX, APP_NAME, COMPONENT_EGRESS, LABEL_APP_COMPONENT, LABEL_APP_INSTANCE,
        LABEL_APP_NAME,
    },
};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Node, Service},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, Resource as _, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::Outcome;
use crate::{
    cluster::{Cluster, NAMESPACE, node_addresses},
    pods::{ECHO, PORT, Traffic, WHOAMI},
    wait::until,
};

const EGRESS: &str = "nat";
/// The label by which pods choose a node.
const HOSTNAME: &str = "kubernetes.io/hostname";
/// How often a megabyte is echoed.
const TIMES: usize = 101;
/// How long a client talks while its Egress changes: turns, and milliseconds between two.
const TALK: (usize, u64) = (200, 100);

pub(super) async fn fixed_port(cluster: &Cluster) -> Result<Outcome> {
    through_gateways(cluster, false).await
}

pub(super) async fn auto_port(cluster: &Cluster) -> Result<Outcome> {
    through_gateways(cluster, true).await
}

async fn through_gateways(cluster: &Cluster, auto_port: bool) -> Result<Outcome> {
    if !cluster.egress {
        return Ok(Outcome::NotHere("Coil does no egress NAT here"));
    }
    let (near, far) = cluster.two()?;
    serve_world(cluster, far).await?;
    if !make_egress(cluster, far, json!({"fouSourcePortAuto": auto_port})).await? {
        return cannot_be_here(cluster).await;
    }
    visit(cluster, near, &gateways(cluster).await?).await?;
    tunnels(cluster, &cluster.run(&client(near, "links")).await?).await?;
    survives_an_update(cluster, near).await?;
    change_ports(cluster, near, !auto_port).await?;
    remove_egress(cluster).await?;
    remove_world(cluster).await?;
    Ok(Outcome::Passed)
}

/// All gateways with their addresses, also those that are terminating.
async fn gateways(cluster: &Cluster) -> Result<BTreeMap<String, Vec<IpAddr>>> {
    let selector = format!(
        "{LABEL_APP_NAME}={APP_NAME},{LABEL_APP_COMPONENT}={COMPONENT_EGRESS},{LABEL_APP_INSTANCE}={EGRESS}"
    );
    cluster.gateways(&selector).await
}

/// A client's visits to the world, which sees one of these gateways each time.
async fn visit(cluster: &Cluster, node: &str, gateways: &BTreeMap<String, Vec<IpAddr>>) -> Result<()> {
    for ip in cluster.world() {
        let seen = cluster.run(&client(node, &format!("visit --times {TIMES} {ip} {PORT}"))).await?;
        let seen: IpAddr = seen.parse().with_context(|| format!("{seen:?} is no address"))?;
        ensure!(
            gateways.values().flatten().any(|gateway| *gateway == seen),
            "{ip} saw {seen}, which is none of the gateways {gateways:?}"
        );
        println!("   {ip} echoed {TIMES} MiB and saw the gateway {seen}");
    }
    Ok(())
}

/// The world's server, on addresses that a node has for it; the gateways' node has routes there.
async fn serve_world(cluster: &Cluster, gateways: &str) -> Result<()> {
    let first = cluster.world().first().copied();
    let words = format!("world {PORT} {}", list(cluster.world(), " "));
    let pod = Traffic {
        host: true,
        probe: Some(first),
        ..Traffic::new("world", world_node(cluster, gateways), &words)
    };
    cluster.serve(&pod).await?;
    route_to_world(cluster, "route", gateways, gateways).await
}

/// The node that has the world's addresses: a third one where there is one, else that of the gateways. Behind another
/// plugin it is that of the gateways, too: such plugins translate what leaves a node, and the world would see the node.
fn world_node<'a>(cluster: &'a Cluster, gateways: &'a str) -> &'a str {
    cluster.nodes.get(2).filter(|_| cluster.ipam).map_or(gateways, String::as_str)
}

/// Routes to the world on a node that is another than the world's.
async fn route_to_world(cluster: &Cluster, name: &str, node: &str, gateways: &str) -> Result<()> {
    let world = world_node(cluster, gateways);
    if world == node {
        return Ok(());
    }
    let of = Api::<Node>::all(cluster.client.clone()).get(world).await.context("cannot read a Node")?;
    let words = format!("route {} --via {}", list(cluster.world(), " "), list(&node_addresses(&of), ","));
    cluster.serve(&Traffic { host: true, ..Traffic::new(name, node, &words) }).await.map(drop)
}

fn list(ips: &[IpAddr], by: &str) -> String {
    ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(by)
}

async fn remove_world(cluster: &Cluster) -> Result<()> {
    cluster.remove("route").await?;
    cluster.remove("world").await
}

fn egresses(cluster: &Cluster) -> Api<Egress> {
    Api::namespaced(cluster.client.clone(), NAMESPACE)
}

/// An Egress to the world, with two gateways on a node and a budget; waits until both serve. False when it says that
/// the node's kernel cannot do it.
async fn make_egress(cluster: &Cluster, node: &str, more: Value) -> Result<bool> {
    let destinations: Vec<String> =
        cluster.world().iter().map(|ip| ipnet::IpNet::from(*ip).to_string()).collect();
    let of = Api::<Node>::all(cluster.client.clone()).get(node).await.context("cannot read a Node")?;
    // Mostly the node's name, but not in every cloud.
    let hostname =
        of.labels().get(HOSTNAME).with_context(|| format!("node {node} has no label {HOSTNAME}"))?;
    let mut egress = json!({
        "apiVersion": Egress::api_version(&()), "kind": Egress::kind(&()),
        "metadata": {"name": EGRESS},
        "spec": {
            "replicas": 2, "destinations": destinations,
            "podDisruptionBudget": {"maxUnavailable": 1},
            "template": {"spec": {
                "nodeSelector": {HOSTNAME: hostname}, "tolerations": [{"operator": "Exists"}],
                "terminationGracePeriodSeconds": 5, "containers": [{"name": "egress"}],
            }},
        },
    });
    for (field, value) in more.as_object().into_iter().flatten() {
        egress["spec"][field] = value.clone();
    }
    let egress: Egress = serde_json::from_value(egress)?;
    egresses(cluster).create(&PostParams::default(), &egress).await.context("cannot create an Egress")?;
    let possible = until("both gateways are available", cluster.limit, async || {
        let egress = egresses(cluster).get(EGRESS).await.context("cannot read the Egress")?;
        let status = egress.status.unwrap_or_default();
        // Gateways that are ready may lack something beside what makes them gateways.
        let beside = format!("{OTHERS_DROPPED}{KERNEL_LACKS}");
        let lacks = |message: &str| message.replace(&beside, "").contains(KERNEL_LACKS);
        let lacks = status.conditions.iter().flatten().any(|c| lacks(&c.message));
        Ok(match status.replicas {
            Some(2) => Ok(true),
            _ if lacks => Ok(false),
            _ => Err(format!("{status:?}")),
        })
    })
    .await?;
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(cluster.client.clone(), NAMESPACE);
    budgets.get(EGRESS).await.map(drop).context("the Egress has no PodDisruptionBudget")?;
    Ok(possible)
}

async fn cannot_be_here(cluster: &Cluster) -> Result<Outcome> {
    remove_egress(cluster).await?;
    remove_world(cluster).await?;
    Ok(Outcome::NotHere("the nodes' kernel lacks what egress without eBPF needs; the Egress said so"))
}

/// Deletes the Egress: what it owns goes with it.
async fn remove_egress(cluster: &Cluster) -> Result<()> {
    egresses(cluster).delete(EGRESS, &DeleteParams::default()).await.context("cannot delete the Egress")?;
    let of = |what: &str| format!("cannot read the {what}");
    let client = || cluster.client.clone();
    until("the Egress's objects are gone", cluster.limit, async || {
        let left = [
            Api::<Deployment>::namespaced(client(), NAMESPACE)
                .get_opt(EGRESS)
                .await
                .with_context(|| of("Deployment"))?
                .map(|o| o.name_any()),
            Api::<Service>::namespaced(client(), NAMESPACE)
                .get_opt(EGRESS)
                .await
                .with_context(|| of("Service"))?
                .map(|o| o.name_any()),
            Api::<PodDisruptionBudget>::namespaced(client(), NAMESPACE)
                .get_opt(EGRESS)
                .await
                .with_context(|| of("budget"))?
                .map(|o| o.name_any()),
        ];
        Ok(if left.iter().all(Option::is_none) { Ok(()) } else { Err(format!("{left:?}")) })
    })
    .await
}

/// Changes the Egress. While the controller starts anew, its webhook is not there: then again.
async fn change(cluster: &Cluster, patch: Value) -> Result<()> {
    let patch = Patch::Merge(patch);
    until("the webhook of Egresses answers", cluster.limit, async || {
        match egresses(cluster).patch(EGRESS, &PatchParams::default(), &patch).await {
            Ok(_) => Ok(Ok(())),
            Err(kube::Error::Api(status))
                if status.code == 500 && status.message.contains("failed calling webhook") =>
            {
                Ok(Err(status.message))
            }
            Err(e) => Err(anyhow::Error::new(e).context("cannot change the Egress")),
        }
    })
    .await
}

/// Other source ports are other gateways: when those before are gone, clients leave through these.
async fn change_ports(cluster: &Cluster, node: &str, auto_port: bool) -> Result<()> {
    let before = gateways(cluster).await?;
    change(cluster, json!({"spec": {"fouSourcePortAuto": auto_port}})).await?;
    let deployments: Api<Deployment> = Api::namespaced(cluster.client.clone(), NAMESPACE);
    let now = until("the gateways have changed", cluster.limit, async || {
        let deployment = deployments.get(EGRESS).await.context("cannot read the Deployment")?;
        let containers =
            deployment.spec.iter().flat_map(|spec| spec.template.spec.iter().flat_map(|s| &s.containers));
        let told =
            containers.flat_map(|c| c.args.iter().flatten()).any(|arg| arg.contains("--enable-sport-auto"));
        let status = deployment.status.clone().unwrap_or_default();
        let numbers = [status.updated_replicas, status.replicas, status.available_replicas];
        let observed = status.observed_generation == deployment.metadata.generation;
        let now = gateways(cluster).await?;
        // By their names: a new one may have an address that one before has given back.
        let replaced = now.keys().all(|gateway| !before.contains_key(gateway));
        let done = told == auto_port && observed && numbers == [Some(2); 3] && replaced;
        Ok(if done { Ok(now) } else { Err(format!("{status:?}; there are {now:?}, there were {before:?}")) })
    })
    .await?;
    visit(cluster, node, &now).await
}

/// A client's connections, one of each family, go on while the destinations of its Egress change.
async fn survives_an_update(cluster: &Cluster, node: &str) -> Result<()> {
    let (times, pause) = TALK;
    let talkers = cluster.world().iter().enumerate().map(|(n, world)| {
        let to = SocketAddr::new(*world, ECHO);
        let words = format!("tcp-echo --bytes 10000 --times {times} --pause {pause} {to}");
        Traffic { name: format!("talker-{n}"), ..client(node, &words) }
    });
    let talkers: Vec<Traffic> = talkers.collect();
    ensure!(!talkers.is_empty(), "the world has no address of this cluster's families");
    for talker in &talkers {
        cluster.create(talker).await?;
    }
    let phase = async |talker: &Traffic| {
        let pod = cluster.pods().get(&talker.name).await.context("cannot read the client")?;
        Ok::<_, anyhow::Error>(pod.status.and_then(|status| status.phase).unwrap_or_default())
    };
    for talker in &talkers {
        until("the client runs", cluster.limit, async || {
            let phase = phase(talker).await?;
            Ok(if phase == "Pending" { Err(phase) } else { Ok(()) })
        })
        .await?;
    }
    let mut destinations: Vec<String> =
        cluster.world().iter().map(|ip| ipnet::IpNet::from(*ip).to_string()).collect();
    for world in cluster.world() {
        destinations.push(if world.is_ipv4() { "192.0.2.0/24".into() } else { "2001:db8::/32".into() });
    }
    change(cluster, json!({"spec": {"destinations": destinations}})).await?;
    for talker in &talkers {
        let phase = phase(talker).await?;
        ensure!(phase != "Succeeded", "{} had all its answers before the Egress changed", talker.name);
    }
    for talker in &talkers {
        println!("   over a change of the Egress: {}", cluster.result(&talker.name).await?);
        cluster.remove(&talker.name).await?;
    }
    Ok(())
}

fn client(node: &str, words: &str) -> Traffic {
    let annotations = [(format!("{ANN_EGRESS_PREFIX}{NAMESPACE}"), EGRESS.to_owned())].into();
    Traffic { annotations, ..Traffic::new("client", node, words) }
}

/// The kernel's path has exactly one tunnel for each family to the one Egress; the eBPF path has none.
async fn tunnels(cluster: &Cluster, links: &str) -> Result<()> {
    let kernel = cluster.has_flag("coild", "--datapath=kernel").await?;
    ensure!(links.lines().any(|link| link == "lo"), "a client's links are not known: {links:?}");
    for (prefix, v4) in [("fou4_", true), ("fou6_", false)] {
        let count = links.lines().filter(|link| link.starts_with(prefix)).count();
        let needed = kernel && cluster.world().iter().any(|world| world.is_ipv4() == v4);
        ensure!(
            count <= 1 && count >= usize::from(needed),
            "a client of one Egress has {count} links {prefix}…: {links}"
        );
    }
    Ok(())
}

/// Who comes in from a destination of an Egress that is originating only is answered the way they came, past the
/// gateways.
pub(super) async fn originating_only(cluster: &Cluster) -> Result<Outcome> {
    if !cluster.egress {
        return Ok(Outcome::NotHere("Coil does no egress NAT here"));
    }
    let (near, far) = cluster.two()?;
    serve_world(cluster, far).await?;
    route_to_world(cluster, "route-near", near, far).await?;
    // Where coild says it for all Egresses, none has to say it itself.
    let all = cluster.has_flag("coild", "--enable-originating-only").await?;
    if !make_egress(cluster, far, if all { json!({}) } else { json!({"originatingOnly": true}) }).await? {
        cluster.remove("route-near").await?;
        return cannot_be_here(cluster).await;
    }
    let server = Traffic { annotations: client(near, "").annotations, ..Traffic::server("server", near) };
    let addresses = cluster.serve(&server).await?;
    let mut visits = 0;
    for ip in addresses {
        let to = SocketAddr::new(ip, WHOAMI);
        for from in cluster.world().iter().filter(|world| world.is_ipv4() == ip.is_ipv4()) {
            let words = format!("whoami --from {from} {to}");
            let visitor = Traffic { host: true, ..Traffic::new("visitor", world_node(cluster, far), &words) };
            let seen = cluster.run(&visitor).await?;
            ensure!(seen == from.to_string(), "{to} saw {seen}, not {from}");
            println!("   {from} reached the client {ip}");
            visits += 1;
        }
    }
    ensure!(visits > 0, "neither family is both the world's and the client's");
    cluster.remove("server").await?;
    remove_egress(cluster).await?;
    cluster.remove("route-near").await?;
    remove_world(cluster).await?;
    Ok(Outcome::Passed)
}
