//! Egress, as the node sees it.
//!
//! - [`policy`]: which destinations leave through which Egress. Pure.
//! - [`plan`]: from the index and the node's pods to the wanted datapath. Pure.
//! - [`support`]: what a node without eBPF lacks.
//! - [`kernel`]: egress by the kernel, inside pods.
//! - [`gateway`]: what coild does inside a gateway pod's namespace.

pub mod gateway;
pub mod kernel;
pub mod plan;
pub mod policy;
pub mod support;
