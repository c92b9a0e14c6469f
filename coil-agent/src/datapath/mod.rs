//! Maps, programs and attachments of the node's datapath.

mod desired;

pub use desired::{Desired, Egress, EgressId, Gateway, LocalPod, PolicyId};
