//! DEL and CHECK.

use std::sync::Arc;

use coil_api::cni::code;
use coil_netns::NetNs;
use tracing::warn;

use super::{Failure, Phases, request::Request};
use crate::{ipam::AttachmentId, node::Node};

/// Removes whatever is left of an attachment; its addresses are free only when nothing leads to them
/// any more.
pub(super) async fn del(node: &Arc<Node>, owner: &AttachmentId, phases: &mut Phases) -> Result<(), Failure> {
    node.network.remove(owner).await?;
    phases.end("network");
    if let Err(e) = node.forget(owner).await {
        // The programs went with the link, and each later change tries again.
        warn!(%owner, error = %e, "the pod's link is gone, its entries in the datapath are not");
    }
    phases.end("datapath");
    node.ipam.free(owner).await;
    phases.end("address");
    Ok(())
}

/// Finds out whether all that ADD made is there.
pub(super) async fn check(node: &Node, request: &Request) -> Result<(), Failure> {
    let Some(allocation) = node.ipam.get(&request.owner) else {
        let msg = format!("attachment {} has no address here: it was never added", request.owner);
        return Err(Failure::new(code::UNKNOWN_CONTAINER, msg));
    };
    let ns = NetNs::open(&request.netns)
        .map_err(|e| Failure::new(code::UNKNOWN_CONTAINER, super::failure::with_causes(&e)))?;
    Ok(node.network.check(&ns, &allocation).await?)
}
