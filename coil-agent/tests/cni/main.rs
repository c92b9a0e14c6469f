//! Conformance with the CNI specification 1.1.0: the plugin as it is installed, called as runtimes call it,
//! with the real coild over the embedded API server. Needs root.
//!
//! ```text
//!   node namespace                                                           pod namespaces
//!   coil-ipam-controller ──▶ API server ◀── coild ◀── coil ◀── runtime        a, b, …
//!                                                     └ behind ptp or bridge (module chained)
//! ```
//!
//! The pool has one block: four addresses of each family.
#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

mod add;
mod chained;
mod check;
#[path = "../coild/cluster.rs"]
#[expect(dead_code, reason = "shared with the tests of coild")]
mod cluster;
mod down;
mod gc;
mod invalid;
#[path = "../coild/roles.rs"]
mod roles;
mod runtime;
#[path = "../net/topology.rs"]
#[expect(dead_code, reason = "shared with the tests of the pod network")]
mod topology;
