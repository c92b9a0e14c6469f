//! Egress, as the node sees it.

pub mod policy;
