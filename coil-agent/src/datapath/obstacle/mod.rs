//! What on this node keeps pods' packets with the kernel: whatever would treat them differently on the way
//! that the programs cut short.
//!
//! ```text
//! nft, legacy ──► rules (chains of the hooks that the programs pass by) ──┐
//! xfrm, ip rules ───────────────────────────────────────────────────────────────┴─► the first obstacle
//! links ──► programs of others on uplinks ────────────────────────────────────────┘
//!       └─► pods' links with queues, filters or programs of others ──► those pods alone
//! ```
//!
//! What cannot be read is an obstacle, too.

mod expressions;
mod legacy;
mod links;
mod nft;
mod routing;
mod rules;

use std::io;

use ipnet::IpNet;

use super::netlink::consistent;

pub(super) use links::programs;
pub use links::{foreign as foreign_links, on_uplinks};

/// A look at one kind of obstacle.
type Look = fn(&[IpNet]) -> io::Result<Option<String>>;

/// Says what keeps all pods of this node with the kernel, if something does: pods have addresses of `pools`. Looks
/// at this thread's network namespace.
#[must_use]
pub fn find(pools: &[IpNet]) -> Option<String> {
    let looks: [(&str, Look); 5] = [
        ("XFRM policies", |_| routing::policies()),
        ("routing rules", |_| routing::marked_rules()),
        ("nftables", nft::find),
        ("iptables", legacy::find4),
        ("ip6tables", legacy::find6),
    ];
    looks.into_iter().find_map(|(what, look)| match consistent(|| look(pools)) {
        Ok(found) => found,
        Err(error) => Some(format!("{what} cannot be read: {error}")),
    })
}
