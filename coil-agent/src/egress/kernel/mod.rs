//! Egress by the kernel: tunnels, rules and routes inside pods, as Coil v2 makes them.
//!
//! ```text
//!  client pod                                   gateway pod
//!  rule 1800 link-local, Service ─▶ main        UDP 5555 ─▶ fou ─▶ fou4_CLIENT ─▶ forward ─▶ masquerade ─▶ eth0
//!  rule 1850, 1851 marked ─▶ 120, main
//!  rule 1900 ─▶ 117 ─▶ fou4_SERVICE ─┐          rule 2000 iif eth0, own ICMP ─▶ 118 ─▶ fou4_CLIENT ─▶ client
//!  rule 2000 in-cluster ─▶ main      ├─FOU─▶
//!  rule 2100 ─▶ 118 ─▶ fou4_SERVICE ─┘
//! ```
//!
//! - [`plan`]: what a pod's namespace should have. Pure.
//! - [`tunnel`]: FOU ports and links.
//! - [`rules`]: routing rules.
//! - [`nft`] does the masquerading, and drops what is of no client.
//! - [`peers`] says who may send FOU to a pod.
//! - [`tracked`]: what connection tracking has of it.
//! - [`incoming`] marks connections that came in, which originating-only Egresses leave alone.
//! - [`apply`]: all of it, inside a pod's namespace; [`found`]: what of a client is there.

pub mod apply;
mod closed;
pub mod found;
pub mod incoming;
pub mod nft;
pub mod peers;
pub mod plan;
pub mod rules;
mod ruleset;
mod set;
pub mod tracked;
pub mod tunnel;

use coil_netns::NetNsError;

use crate::net::RtnlError;

/// The inside of a pod cannot be made what it should be.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A link, a rule or a route was refused.
    #[error(transparent)]
    Rtnl(#[from] RtnlError),
    /// The pod's namespace cannot be used.
    #[error(transparent)]
    NetNs(#[from] NetNsError),
    /// A tunnel was refused.
    #[error(
        "cannot {doing}: {source}; without the kernel modules fou, fou6, ipip and ip6_tunnel there is no egress by the kernel"
    )]
    Tunnel {
        /// What was being done.
        doing: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// Masquerading was refused.
    #[error(
        "cannot masquerade in the gateway pod: {0}; it needs the kernel modules nf_tables, nft_masq and nft_ct"
    )]
    Masquerade(#[source] std::io::Error),
    /// Saying who may send FOU was refused.
    #[error("cannot say who may send FOU to the pod: {0}; it needs the kernel module nf_tables")]
    Peers(#[source] std::io::Error),
    /// Marking connections was refused.
    #[error(
        "cannot mark connections that come in: {0}; originating-only Egresses need the kernel modules nf_tables and nft_ct"
    )]
    Incoming(#[source] std::io::Error),
    /// The pod's own interface is missing.
    #[error("the pod has no interface {0}")]
    NoInterface(String),
}
