//! DEL, and the same for pods that went without it.

use std::sync::Arc;

use tracing::warn;

use super::{Failure, Phases, chained, locks::Locks, request::Leaving};
use crate::{
    ipam::{AttachmentId, NodeIpam},
    node::{Connected, Node},
};

/// Removes whatever is left of an attachment, by the runtime's name of it.
pub(super) async fn del(
    node: &Arc<Node>,
    locks: &Locks,
    leaving: &Leaving,
    phases: &mut Phases,
) -> Result<(), Failure> {
    match &node.ipam {
        Some(ipam) => disconnect(node, ipam, &leaving.owner, phases).await,
        None => chained::del(node, locks, leaving, phases).await,
    }
}

/// The same, by the name under which the node knows a connected pod.
pub(super) async fn del_known(
    node: &Arc<Node>,
    owner: &AttachmentId,
    phases: &mut Phases,
) -> Result<(), Failure> {
    if let Some(ipam) = &node.ipam {
        return disconnect(node, ipam, owner, phases).await;
    }
    let (link, netns) = (node.link_of(owner), node.netns_of(owner));
    chained::remove(node, owner, link, netns).await
}

/// Addresses are free only when nothing leads to them any more.
async fn disconnect(
    node: &Arc<Node>,
    ipam: &NodeIpam,
    owner: &AttachmentId,
    phases: &mut Phases,
) -> Result<(), Failure> {
    node.network.remove(owner).await?;
    phases.end("network");
    if let Err(e) = node.forget(owner).await {
        // The programs went with the link, and each later change tries again.
        warn!(%owner, error = %e, "the pod's link is gone, its entries in the datapath are not");
    }
    phases.end("datapath");
    ipam.free(owner).await;
    phases.end("address");
    Ok(())
}

/// Lets go of pods whose links are gone: their namespaces were removed without DEL, or the plugin removed
/// them while coild was starting. Says which.
pub(super) async fn lost(node: &Arc<Node>, locks: &Locks) -> Result<Vec<AttachmentId>, Failure> {
    let mut gone = Vec::new();
    for Connected { owner, .. } in node.attachments() {
        let _alone = locks.lock(&owner).await;
        // With the lock: an ADD of the same attachment may have made a new link in between.
        if node.has_lost_link(&owner).await? {
            del_known(node, &owner, &mut Phases::default()).await?;
            gone.push(owner);
        }
    }
    Ok(gone)
}
