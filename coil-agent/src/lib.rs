//! The node agent of Coil, coil-router and coil-egress.

pub mod datapath;
pub mod installer;
pub mod ipam;
pub mod net;
