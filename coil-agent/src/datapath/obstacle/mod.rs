//! What on this node keeps pods' packets with the kernel: whatever would treat them differently on the way
//! that the programs cut short.
//!
//! ```text
//! nft, legacy ──► rules (chains of the forward, postrouting and mangle hooks) ──┐
//! xfrm, ip rules ───────────────────────────────────────────────────────────────┴─► the first obstacle
//! links ──► pods' links with queues or filters of others ──► those pods alone
//! ```
//!
//! What cannot be read is an obstacle, too.

mod legacy;
mod links;
mod nft;
mod routing;
mod rules;

use std::io;

pub use links::foreign as foreign_links;

/// A look at one kind of obstacle.
type Look = fn() -> io::Result<Option<String>>;

/// Says what keeps all pods of this node with the kernel, if something does. Looks at this thread's network
/// namespace.
#[must_use]
pub fn find() -> Option<String> {
    let looks: [(&str, Look); 5] = [
        ("XFRM policies", routing::policies),
        ("routing rules", routing::marked_rules),
        ("nftables", nft::find),
        ("iptables", legacy::find4),
        ("ip6tables", legacy::find6),
    ];
    looks.into_iter().find_map(|(what, look)| match look() {
        Ok(found) => found,
        Err(error) => Some(format!("{what} cannot be read: {error}")),
    })
}
