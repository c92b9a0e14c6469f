//! The node agent of Coil, coil-router, coil-egress and coil-installer.

pub mod cni;
pub mod coild;
pub mod datapath;
pub mod egress;
pub mod gateway;
pub mod installer;
pub mod ipam;
pub mod metrics;
pub mod net;
pub mod node;
pub mod plane;
pub mod router;
pub mod watch;
