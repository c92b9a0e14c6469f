//! coil-egress-controller: what stands behind an Egress.
//!
//! ```text
//!  Egress ──▶ Deployment (gateway pods), Service (their endpoints), PodDisruptionBudget
//!         ──▶ ServiceAccount of its namespace, subjects of the ClusterRoleBinding
//!         ◀── status: available replicas, selector, conditions
//! ```
//!
//! - [`template`], [`objects`]: what is wanted. Pure.
//! - [`ensure`]: the difference to what is there, and writing it.
//! - [`status`]: what users see. Pure.
//! - `unready`: what gateways say of themselves that are not ready.
//! - [`notice`]: the Events that tell of it.
//! - [`binding`]: the one ClusterRoleBinding over all Egress namespaces.
//! - [`controller`]: the loop. Each Egress is worked on by itself, so that one in trouble
//!   delays no other.

pub mod binding;
pub mod controller;
pub mod ensure;
pub mod image;
pub mod notice;
pub mod objects;
pub mod status;
pub mod template;
mod unready;

pub use controller::run;

/// What all gateways of this controller have in common.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Image of the gateway container unless the template names one.
    pub image: String,
    /// UDP port of the encapsulation.
    pub port: u16,
    /// `--backend` of coil-egress.
    pub backend: Backend,
}

/// Which tool holds the kernel's NAT rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Backend {
    /// Accepted for Coil v2's manifests; coil-egress serves it by nftables.
    Iptables,
    /// nftables.
    Nftables,
}

impl std::fmt::Display for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        })
    }
}
