//! One node without a cluster around it: an API server and coil-ipam-controller in this process, the built
//! coild, and a runtime that calls the built plugin.
//!
//! ```text
//!   this process                         node namespace                       pods
//!   API server, coil-ipam-controller ◀── coild ◀── coil ◀── runtime ──▶ 0, 1, 2, …
//!                                          │ uplink
//!                                        peer namespace
//! ```
//!
//! - [`place`]: the namespaces. Nothing of them is seen outside, and nothing is left.
//! - [`cluster`]: the API's objects, and coild.
//! - [`runtime`]: pods as a container runtime makes them.
//! - [`pair`]: two pods that reach each other.

pub mod cluster;
pub mod pair;
pub mod place;
pub mod runtime;

pub use cluster::{Cluster, Programs};
pub use pair::Pair;
pub use runtime::{Plugin, Sandbox};
