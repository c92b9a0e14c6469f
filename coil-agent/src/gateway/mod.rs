//! coil-egress: the program in a gateway pod.
//!
//! The node's coild translates; this program tells Kubernetes how that is going. It asks coild
//! over the pod's abstract socket, turns the answer into readiness and metrics, and keeps a
//! terminating pod alive while clients still have flows through it.
//!
//! - [`settings`]: what the pod says about itself.
//! - [`state`]: readiness and draining. Pure.
//! - [`ask`]: one question to coild.
//! - [`run`]: the program.

pub mod ask;
mod metrics;
mod run;
pub mod settings;
pub mod state;

pub use run::{Endpoints, LIMIT, run};
