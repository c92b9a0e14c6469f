//! What a lab is made of: its options, and every address in it.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use anyhow::{Result, bail};
use coil_apitest::Assets;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The lab's name when none is given.
pub const DEFAULT_NAME: &str = "coil";
/// The namespace that holds the API server and the controllers.
pub const CONTROL: &str = "control";
/// The namespace that stands for everything outside the cluster.
pub const WORLD: &str = "world";
/// The namespace of a host that the world reaches by a narrow link.
pub const FAR: &str = "far";
/// MTU of the LAN when none is given.
pub const LAN_MTU: u32 = 1500;
/// MTU of the link between the world and [`FAR`].
pub const FAR_MTU: u32 = 1280;
/// The namespace with the bridge that joins the others.
pub const FABRIC: &str = "fabric";
/// Port of the API server.
pub const API_PORT: u16 = 6443;
/// The pool of namespaces that ask for none.
pub const DEFAULT_POOL: &str = "default";
/// The pool whose addresses the world has routes to.
pub const EGRESS_POOL: &str = "egress";
/// Pods' network, as the runtime of each node is configured.
pub const CONFLIST: &str = r#"{"cniVersion":"1.0.0","name":"k8s-pod-network","plugins":[{"type":"coil","socket":"/run/coild.sock"}]}"#;

/// Names longer than this would not fit where the lab puts them.
const NAME_MAX: usize = 40;
const MAX_NODES: u8 = 9;

/// The address families of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4 only
    V4,
    /// IPv6 only
    V6,
    /// Both, IPv4 first
    Dual,
}

/// One address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ip {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The families, in the order that a pod's addresses have.
    #[must_use]
    pub fn each(self) -> &'static [Ip] {
        match self {
            Self::V4 => &[Ip::V4],
            Self::V6 => &[Ip::V6],
            Self::Dual => &[Ip::V4, Ip::V6],
        }
    }
}

impl Ip {
    /// `IPv4` or `IPv6`, as the API writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// The option of `ip` and `ping` that picks the family.
    #[must_use]
    pub fn flag(self) -> &'static str {
        match self {
            Self::V4 => "-4",
            Self::V6 => "-6",
        }
    }

    /// The family of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The LAN that joins nodes, control and world.
    #[must_use]
    pub fn lan(self, host: u8) -> IpNet {
        match self {
            Self::V4 => net(Ipv4Addr::new(172, 18, 0, host), 24),
            Self::V6 => net(Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, host.into()), 64),
        }
    }

    /// The world's public address, where its server listens.
    #[must_use]
    pub fn world(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(198, 51, 100, 9).into(),
            Self::V6 => Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 9).into(),
        }
    }

    /// The network between the world (host 1) and [`FAR`] (host 2).
    #[must_use]
    pub fn far(self, host: u8) -> IpNet {
        match self {
            Self::V4 => net(Ipv4Addr::new(192, 0, 2, host), 24),
            Self::V6 => net(Ipv6Addr::new(0x2001, 0xdb8, 0xfa, 0, 0, 0, 0, host.into()), 64),
        }
    }

    /// The network of [`Ip::world`]: what the lab's Egresses lead to.
    #[must_use]
    pub fn world_net(self) -> IpNet {
        match self {
            Self::V4 => net(Ipv4Addr::new(198, 51, 100, 0), 24),
            Self::V6 => net(Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 0), 64),
        }
    }

    /// Addresses that the world has routes to: blocks outside these stay inside the cluster.
    #[must_use]
    pub fn routable(self) -> IpNet {
        match self {
            Self::V4 => net(Ipv4Addr::new(203, 0, 113, 0), 24),
            Self::V6 => net(Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 0), 112),
        }
    }

    /// The subnet of [`DEFAULT_POOL`].
    #[must_use]
    pub fn default_pool(self) -> &'static str {
        match self {
            Self::V4 => "10.64.0.0/16",
            Self::V6 => "fd64::/112",
        }
    }

    /// The subnet of [`EGRESS_POOL`].
    #[must_use]
    pub fn egress_pool(self) -> &'static str {
        match self {
            Self::V4 => "203.0.113.0/24",
            Self::V6 => "2001:db8:113::/120",
        }
    }

    /// The range of Service addresses.
    #[must_use]
    pub fn services(self) -> &'static str {
        match self {
            Self::V4 => "10.96.0.0/16",
            Self::V6 => "fd96::/112",
        }
    }
}

fn net(address: impl Into<IpAddr>, prefix: u8) -> IpNet {
    IpNet::new_assert(address.into(), prefix)
}

/// A kind of API server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Api {
    /// The one of the tests
    Embedded,
    /// kube-apiserver with etcd
    Real,
}

/// What carries routes to pods between nodes and to the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Routing {
    /// coil-router on the nodes; the lab tells control and the world
    Router,
    /// BIRD 2 everywhere, configured as docs/routing.md says
    Bird,
}

/// What [`crate::Lab::start`] and `coil-lab up` are told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
pub struct Options {
    /// Name of the lab; several run side by side
    #[arg(long, default_value = DEFAULT_NAME)]
    pub name: String,
    /// How the nodes move packets: auto, ebpf or kernel
    #[arg(long, default_value = "auto", value_parser = ["auto", "ebpf", "kernel"])]
    pub datapath: String,
    /// Address families of the cluster
    #[arg(long, value_enum, default_value_t = Family::Dual)]
    pub family: Family,
    /// The API server: the embedded one, or a real kube-apiserver; by default the real one where
    /// KUBEBUILDER_ASSETS or /usr/local/kubebuilder/bin has it
    #[arg(long, value_enum)]
    pub api: Option<Api>,
    /// Number of nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_NODES)))]
    pub nodes: u8,
    /// What carries routes between nodes and to the world
    #[arg(long, value_enum, default_value_t = Routing::Router)]
    pub routing: Routing,
    /// Start with the programs of another build, in this folder; `roll` then brings this build's
    #[arg(long, value_name = "DIR")]
    pub programs: Option<PathBuf>,
    /// MTU of the LAN that joins the nodes with each other and with the world
    #[arg(long, default_value_t = LAN_MTU, value_parser = clap::value_parser!(u32).range(1280..=9500))]
    pub mtu: u32,
    /// One more flag for the coild of every node; may be given several times
    #[arg(long = "coild-flag", value_name = "FLAG", allow_hyphen_values = true)]
    pub coild: Vec<String>,
}

impl Options {
    /// A lab of three nodes with everything at its default.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            datapath: "auto".into(),
            family: Family::Dual,
            api: None,
            nodes: 3,
            routing: Routing::Router,
            programs: None,
            mtu: LAN_MTU,
            coild: Vec::new(),
        }
    }

    /// The programs of the real API server, when the lab runs on it.
    ///
    /// # Errors
    /// When it is asked for and not there.
    pub fn real_api(&self) -> Result<Option<Assets>> {
        match (self.api, Assets::find()?) {
            (Some(Api::Embedded), _) => Ok(None),
            (Some(Api::Real), None) => Err(coil_apitest::Error::NoAssets.into()),
            (_, found) => Ok(found),
        }
    }

    /// Names of the nodes, first to last.
    #[must_use]
    pub fn node_names(&self) -> Vec<String> {
        (1..=self.nodes).map(node_name).collect()
    }

    /// Address of the API server inside the lab.
    #[must_use]
    pub fn api_address(&self) -> IpAddr {
        self.family.each()[0].lan(CONTROL_HOST).addr()
    }

    /// The members of the LAN and their host numbers in it.
    #[must_use]
    pub fn members(&self) -> Vec<(String, u8)> {
        (1..=self.nodes)
            .map(|n| (node_name(n), n))
            .chain([(CONTROL.to_owned(), CONTROL_HOST), (WORLD.to_owned(), WORLD_HOST)])
            .collect()
    }
}

/// Host number of [`CONTROL`] in the LAN.
pub const CONTROL_HOST: u8 = 10;
/// Host number of [`WORLD`] in the LAN: the nodes' default router.
pub const WORLD_HOST: u8 = 254;

/// Name of the n-th node, from 1.
#[must_use]
pub fn node_name(n: u8) -> String {
    format!("node{n}")
}

/// The LAN addresses of a node.
///
/// # Errors
/// When no node has this name.
pub fn node_addresses(family: Family, node: &str) -> Result<Vec<IpAddr>> {
    match (1..=MAX_NODES).find(|n| node_name(*n) == node) {
        Some(n) => Ok(family.each().iter().map(|ip| ip.lan(n).addr()).collect()),
        None => bail!("{node:?} is not a node: nodes are called {} and so on", node_name(1)),
    }
}

/// Checks a lab's name: it becomes part of paths.
///
/// # Errors
/// When it is not a DNS label or too long.
pub fn check_name(name: &str) -> Result<()> {
    if coil_api::annotation::is_dns_label(name) && name.len() <= NAME_MAX {
        return Ok(());
    }
    bail!(
        "{name:?} cannot be a lab's name: use lower-case letters, digits and '-', {NAME_MAX} characters at most"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_have_distinct_hosts() {
        let mut hosts: Vec<u8> =
            Options { nodes: MAX_NODES, ..Options::named("x") }.members().iter().map(|m| m.1).collect();
        let count = hosts.len();
        hosts.sort_unstable();
        hosts.dedup();
        assert_eq!(hosts.len(), count);
    }

    #[test]
    fn pools_and_routable_prefixes_agree() {
        for ip in [Ip::V4, Ip::V6] {
            let egress: IpNet = ip.egress_pool().parse().unwrap();
            let default: IpNet = ip.default_pool().parse().unwrap();
            assert!(ip.routable().contains(&egress));
            assert!(!ip.routable().contains(&default));
            assert!(ip.world_net().contains(&ip.world()));
        }
    }

    #[test]
    fn names_become_paths() {
        check_name("coil-2").unwrap();
        for bad in ["", "../x", "Coil", "a_b", &"x".repeat(NAME_MAX + 1)] {
            assert!(check_name(bad).unwrap_err().to_string().contains("lab's name"), "{bad}");
        }
    }

    #[test]
    fn the_conflist_is_json_with_one_plugin() {
        let list: serde_json::Value = serde_json::from_str(CONFLIST).unwrap();
        assert_eq!(list["plugins"].as_array().map(Vec::len), Some(1));
    }
}
