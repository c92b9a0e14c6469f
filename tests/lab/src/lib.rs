//! A Coil cluster in network namespaces: real programs, real packets, nothing installed.
//!
//! ```text
//!  host                       the lab: one PID namespace, one mount namespace, many network namespaces
//!  ─────────────────────────  ────────────────────────────────────────────────────────────────────────
//!  coil-lab up ─▶ keeper ───▶ init ─▶ supervisor ─┬─▶ control: API server, controllers, scheduler
//!  kubectl ───127.0.0.1:N──────────▶ proxy ───────┘   world:   echo and HTTP server
//!  coil-lab exec, node, world ─ setns ───────────────▶ nodeN:  kubelet, coild, coil-router, pods
//! ```
//!
//! - [`config`]: options and addresses.
//! - [`kernel`]: what egress by the kernel alone needs.
//! - `topology`: namespaces and wires; `place`: a network with a mount namespace.
//! - `keeper`, `init`, `supervisor`: from a command to a running lab, and how nothing is left of it.
//! - `kubelet`, `cluster`: what stands in for the parts of Kubernetes that Coil works with.
//! - `demo`: shows that all of it works; the traffic tools are `coil-traffic`'s.
//! - [`Lab`]: the same for tests.

pub mod config;
pub mod kernel;

mod access;
mod capabilities;
mod cli;
mod cluster;
mod demo;
mod down;
mod enter;
mod init;
mod keeper;
mod kubelet;
mod lab;
mod place;
mod programs;
mod remains;
mod signals;
mod state;
mod supervisor;
mod topology;
mod world;

pub use cli::main;
pub use lab::{Done, Lab};
pub use remains::Remains;
