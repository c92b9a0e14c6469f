//! What the node needs to know of the cluster, kept in memory.
//!
//! ```text
//! API server ──watch──▶ feed ──apply / remove / replace──▶ Index ──▶ pure functions
//! ```
//!
//! - [`index`]: plain data, tested without a cluster.
//! - [`objects`]: what is taken out of each kind of object.
//! - [`feed`]: the watches; nothing there grows with the cluster but pools, nodes, namespaces and Egresses.

pub mod feed;
pub mod index;
pub mod objects;

pub use feed::{Feed, Scope};
pub use index::Index;
