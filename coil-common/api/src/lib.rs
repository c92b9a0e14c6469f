//! What Coil's programs share when they speak to each other and to Kubernetes.
//!
//! - [`names`]: labels, annotations, defaults: everything that has a name users rely on.
//! - `crd` (feature `crd`): the custom resources of `coil.cybozu.com/v2`.
//! - [`annotation`]: the one place where annotations are parsed.
//! - [`cni`]: network configuration, results and errors of the CNI specification.
//! - `rpc` (feature `cni`): the protocol between the `coil` plugin and coild.
//! - `flags` (feature `flags`): command-line values in Go's notation.
//! - [`gateway`]: what coild tells coil-egress.
//! - `validate` (feature `crd`): what makes a pool or an Egress wrong.

pub mod annotation;
pub mod cni;
#[cfg(feature = "crd")]
pub mod crd;
#[cfg(feature = "flags")]
pub mod flags;
pub mod gateway;
pub mod names;
#[cfg(feature = "cni")]
pub mod rpc;
#[cfg(feature = "crd")]
pub mod validate;
