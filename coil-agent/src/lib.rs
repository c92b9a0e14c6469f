//! The node agent of Coil, coil-router, coil-egress and coil-installer.

pub mod datapath;
pub mod egress;
pub mod installer;
pub mod ipam;
pub mod net;
pub mod router;
pub mod serve;
