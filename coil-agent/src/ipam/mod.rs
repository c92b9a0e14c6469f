//! Addresses of this node's pods.
//!
//! ```text
//!  gRPC Add ──▶ NodeIpam::allocate ──▶ Table (blocks in hand, who has what)
//!                      │ nothing free        ▲            │ owned blocks
//!                      ▼                     │            ▼
//!               BlockRequest ──▶ AddressBlock watch    table 119
//! ```
//!
//! - `slots`: the addresses of one block. Pure.
//! - `table`: the node's blocks and allocations. Pure; every decision is taken there.
//! - `request`: asks coil-ipam-controller for a block and waits for the answer.
//! - `departure`: returns a block to its pool.
//! - `node`: [`NodeIpam`], which ties them together.

mod departure;
mod error;
mod node;
mod request;
mod slots;
mod table;

use std::net::{Ipv4Addr, Ipv6Addr};

pub use error::IpamError;
pub use node::{BlockEvent, NodeIpam};

/// One network attachment of a container: CNI's container id and interface name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AttachmentId {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
}

impl std::fmt::Display for AttachmentId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.container_id, self.ifname)
    }
}

/// The addresses of one attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allocation {
    /// The AddressPool.
    pub pool: String,
    /// Who has them.
    pub owner: AttachmentId,
    /// The IPv4 address, of an IPv4 or dual-stack pool.
    pub ipv4: Option<Ipv4Addr>,
    /// The IPv6 address, of an IPv6 or dual-stack pool.
    pub ipv6: Option<Ipv6Addr>,
}
