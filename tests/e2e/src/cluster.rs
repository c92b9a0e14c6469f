//! What the cluster has: nodes, families, Coil's own pods; and what every scenario does with it.

use std::{fmt, net::IpAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use coil_api::{
    crd::{AddressPool, AddressPoolSpec, Egress, SubnetSet},
    names::{ANN_POOL, APP_NAME, LABEL_APP_COMPONENT, LABEL_APP_NAME},
};
use k8s_openapi::{
    api::core::v1::{Namespace, Node, Pod},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Config, ResourceExt as _,
    api::{DeleteParams, ListParams, ObjectMeta, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};

use crate::{options::Options, wait::until};

/// Where Coil's programs are.
pub(crate) const SYSTEM: &str = "kube-system";
/// The tests' namespace, and how the names of all others begin.
pub(crate) const NAMESPACE: &str = "coil-e2e";
/// The tests' pool: a block is one address, so that blocks can be counted.
pub(crate) const POOL: &str = "coil-e2e";
/// Every object of the tests has this label.
pub(crate) const LABEL: &str = "coil-e2e";

/// A running cluster.
pub(crate) struct Cluster {
    pub(crate) client: Client,
    /// Nodes that pods can be put on, by name.
    pub(crate) nodes: Vec<String>,
    /// An address of each family that the nodes have, to tell families by.
    pub(crate) families: Vec<Family>,
    /// Coil gives addresses.
    pub(crate) ipam: bool,
    /// Coil does egress NAT.
    pub(crate) egress: bool,
    pub(crate) image: String,
    pub(crate) limit: Duration,
    /// What every node is said to forward by.
    pub(crate) datapath: Option<String>,
    pool: SubnetSet,
    world: Vec<IpAddr>,
}

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl Cluster {
    /// Looks at the cluster.
    pub(crate) async fn find(options: &Options) -> Result<Self> {
        let client = client(options).await?;
        let nodes = Api::<Node>::all(client.clone()).list(&ListParams::default()).await;
        let nodes = nodes.context("cannot list nodes")?.items;
        let usable: Vec<&Node> = nodes.iter().filter(|node| is_usable(node)).collect();
        ensure!(usable.len() >= 2, "{} nodes can have pods: two are needed", usable.len());
        let addresses: Vec<IpAddr> = usable.iter().flat_map(|node| node_addresses(node)).collect();
        let families = [Family::V4, Family::V6].into_iter();
        let families: Vec<Family> =
            families.filter(|family| addresses.iter().any(|ip| Family::of(*ip) == *family)).collect();
        let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
        let has = async |plural: &str| {
            let found = definitions.get_opt(&format!("{plural}.{}", coil_api::names::GROUP)).await;
            found.map(|found| found.is_some()).context("cannot read definitions")
        };
        let subnet = |family| {
            let subnet = options.pool.iter().find(|net| Family::of(net.addr()) == family);
            subnet.filter(|_| families.contains(&family)).map(ToString::to_string)
        };
        let world = options.world.iter().copied().filter(|ip| families.contains(&Family::of(*ip))).collect();
        Ok(Self {
            nodes: usable.iter().map(|node| node.name_any()).collect(),
            ipam: has("addresspools").await?,
            egress: has("egresses").await?,
            image: options.image.clone(),
            limit: options.limit(),
            datapath: options.datapath.clone(),
            pool: SubnetSet { ipv4: subnet(Family::V4), ipv6: subnet(Family::V6) },
            world,
            families,
            client,
        })
    }

    /// Makes what every scenario needs.
    pub(crate) async fn prepare(&self) -> Result<()> {
        if self.ipam {
            self.make_pool(POOL, 0, self.pool.clone()).await?;
        }
        self.make_namespace(NAMESPACE).await
    }

    /// Removes what a scenario left in the tests' namespace.
    pub(crate) async fn clear(&self) -> Result<()> {
        let egresses: Api<Egress> = Api::namespaced(self.client.clone(), NAMESPACE);
        if self.egress {
            let deleted = egresses.delete_collection(&DeleteParams::default(), &ListParams::default()).await;
            deleted.map(drop).context("cannot delete Egresses")?;
        }
        let pods = self.pods();
        pods.delete_collection(&DeleteParams::default(), &ListParams::default())
            .await
            .context("cannot delete pods")?;
        until("the tests' pods are gone", self.limit, async || {
            let left = pods.list_metadata(&ListParams::default()).await.context("cannot list pods")?.items;
            Ok(if left.is_empty() { Ok(()) } else { Err(format!("{} are left", left.len())) })
        })
        .await
    }

    pub(crate) async fn make_pool(&self, name: &str, bits: i32, subnets: SubnetSet) -> Result<()> {
        let mut pool =
            AddressPool::new(name, AddressPoolSpec { block_size_bits: bits, subnets: vec![subnets] });
        pool.metadata.labels = Some([(LABEL.to_owned(), "true".to_owned())].into());
        let made = Api::all(self.client.clone()).create(&PostParams::default(), &pool).await;
        made.map(drop).with_context(|| format!("cannot create AddressPool {name}"))
    }

    /// A namespace whose pods have addresses of the tests' pool.
    pub(crate) async fn make_namespace(&self, name: &str) -> Result<()> {
        let namespace = Namespace {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                labels: Some(
                    [
                        (LABEL.to_owned(), "true".to_owned()),
                        // The world's pod has the node's network.
                        ("pod-security.kubernetes.io/enforce".to_owned(), "privileged".to_owned()),
                    ]
                    .into(),
                ),
                annotations: Some([(ANN_POOL.to_owned(), POOL.to_owned())].into()).filter(|_| self.ipam),
                ..ObjectMeta::default()
            },
            ..Namespace::default()
        };
        let made = Api::all(self.client.clone()).create(&PostParams::default(), &namespace).await;
        made.map(drop).with_context(|| format!("cannot create Namespace {name}"))
    }

    /// The world's addresses of the cluster's families.
    pub(crate) fn world(&self) -> &[IpAddr] {
        &self.world
    }

    /// Two nodes.
    pub(crate) fn two(&self) -> Result<(&str, &str)> {
        match self.nodes.as_slice() {
            [a, b, ..] => Ok((a, b)),
            _ => anyhow::bail!("two nodes are needed"),
        }
    }

    /// Coil's own pods of a component, or of all but gateways.
    pub(crate) async fn coil_pods(&self, component: Option<&str>) -> Result<Vec<Pod>> {
        let mut selector = format!("{LABEL_APP_NAME}={APP_NAME}");
        if let Some(component) = component {
            selector += &format!(",{LABEL_APP_COMPONENT}={component}");
        }
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), SYSTEM);
        let found = pods.list(&ListParams::default().labels(&selector)).await;
        Ok(found.with_context(|| format!("cannot list Coil's pods in {SYSTEM}"))?.items)
    }

    /// Whether a component is started with a flag that is on.
    pub(crate) async fn has_flag(&self, component: &str, flag: &str) -> Result<bool> {
        let pods = self.coil_pods(Some(component)).await?;
        let containers = pods.iter().flat_map(|pod| pod.spec.iter().flat_map(|spec| &spec.containers));
        let mut args = containers.flat_map(|c| c.command.iter().chain(&c.args).flatten());
        Ok(args.any(|arg| arg == flag || *arg == format!("{flag}=true")))
    }
}

impl fmt::Display for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { nodes, families, ipam, egress, .. } = self;
        write!(f, "nodes {}; families {families:?}; IPAM {ipam}; egress {egress}", nodes.join(", "))
    }
}

async fn client(options: &Options) -> Result<Client> {
    let config = match &options.kubeconfig {
        None => Config::infer().await.context("no cluster: give --kubeconfig")?,
        Some(path) => {
            let text =
                std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            let kubeconfig = Kubeconfig::from_yaml(&text)?;
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                .await
                .with_context(|| format!("{} cannot be used", path.display()))?
        }
    };
    Client::try_from(config).context("cannot make a client")
}

fn is_usable(node: &Node) -> bool {
    let spec = node.spec.clone().unwrap_or_default();
    let tainted = spec.taints.iter().flatten().any(|taint| taint.effect == "NoExecute");
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True");
    ready && !tainted && spec.unschedulable != Some(true)
}

/// The addresses by which other nodes reach a node.
pub(crate) fn node_addresses(node: &Node) -> Vec<IpAddr> {
    let all = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    all.filter(|address| address.type_ == "InternalIP").filter_map(|a| a.address.parse().ok()).collect()
}
