//! The node agent of Coil, coil-router and coil-egress.

pub mod datapath;
