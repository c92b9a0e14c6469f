//! What coild tells coil-egress about the gateway pod that both serve.
//!
//! coild listens on the abstract UNIX socket [`SOCKET`] inside the gateway pod's network
//! namespace; to each connection it writes one [`GatewayStatus`] as JSON and closes.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Name of the abstract UNIX socket (without the leading NUL).
pub const SOCKET: &str = "coil-gateway";

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
}
