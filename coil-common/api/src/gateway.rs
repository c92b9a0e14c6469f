//! What coild tells coil-egress about the gateway pod that both serve.
//!
//! coild listens on the abstract UNIX socket [`SOCKET`] inside the gateway pod's network
//! namespace; to each connection it writes one [`GatewayStatus`] as JSON and closes.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};

/// Name of the abstract UNIX socket (without the leading NUL).
pub const SOCKET: &str = "coil-gateway";

/// How a reason begins for which no gateway of a node can ever be ready without eBPF. It gets into the Egress's conditions.
pub const KERNEL_LACKS: &str = "this kernel lacks";
/// How a gateway that is ready begins to say what it does without.
pub const OTHERS_DROPPED: &str = "protocols other than TCP, UDP and ICMP echo are dropped: ";

/// The state of one gateway pod, as the node's coild sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayStatus {
    /// The pod may take traffic.
    pub ready: bool,
    /// Why it may not; empty when ready.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Namespace of the Egress.
    pub namespace: String,
    /// Name of the Egress.
    pub egress: String,
    /// The addresses that clients are translated to.
    pub addresses: Vec<IpAddr>,
    /// Translated flows that are in use now.
    pub flows: u64,
    /// What its metrics tell besides. An older coild does not say.
    #[serde(default)]
    pub seen: GatewaySeen,
}

/// What was seen of a gateway's traffic.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewaySeen {
    /// Most flows that there can be at once; 0 when that is not known.
    pub limit: u64,
    /// Where the kernel translates: all that its connection tracking has, flows and others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tracked: Option<u64>,
    /// Its clients; none while those of all nodes are not known.
    pub clients: Option<Vec<GatewayClient>>,
    /// By family: `ipv4`, `ipv6`.
    pub translated: BTreeMap<String, Translated>,
    /// By family: packets that the pod's own kernel dropped as of no client.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub forged: BTreeMap<String, u64>,
    /// By protocol and state.
    pub flows: Vec<FlowCount>,
    /// The remote towards which most ports are lent.
    pub busiest: Option<Busiest>,
    /// Attempts to lend a port that failed, by reason.
    pub failures: BTreeMap<String, u64>,
    /// Why its node's kernel does not do what the programs leave to it; empty when it does.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub lacks: String,
}

/// An address of a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayClient {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// The address.
    pub address: IpAddr,
    /// The tunnel link to it in the gateway pod; empty when there is none.
    #[serde(default)]
    pub interface: String,
}

/// Counters of one family. As nftables' rules count: of each connection the first packet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Translated {
    /// Packets that began a translation.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packets of no connection that is known, which were dropped.
    pub invalid_packets: u64,
    /// Their bytes.
    pub invalid_bytes: u64,
}

/// Flows of one protocol in one state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowCount {
    /// `tcp`, `udp` or `icmp`.
    pub protocol: String,
    /// The state's name.
    pub state: String,
    /// How many.
    pub flows: u64,
}

/// Ports that are lent towards one remote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Busiest {
    /// Address and port.
    pub remote: String,
    /// How many ports.
    pub ports: u64,
    /// Of so many.
    pub of: u64,
}
