//! ADD, DEL and what is behind them for a pod that another plugin connected: coil adds egress, no more.

use std::{path::PathBuf, sync::Arc};

use coil_api::cni::code;
use coil_netns::NetNs;
use tracing::{info, warn};

use super::{
    Failure, Phases,
    locks::Locks,
    lookup,
    request::{Leaving, Request},
};
use crate::{
    egress::plan::{Attached, egresses_of},
    ipam::AttachmentId,
    net::{Alias, Link, name::PodIdentity, pod::PodLink},
    node::{Attachment, NewPod, Node},
    watch::index::PodInfo,
};

/// Takes a pod over: its link is marked, and its Egresses are programmed. On failure all is as before.
pub(super) async fn add(
    node: &Arc<Node>,
    locks: &Locks,
    request: &Request,
    ns: &NetNs,
    phases: &mut Phases,
) -> Result<Option<PodLink>, Failure> {
    let pod = lookup::pod_with_egresses(node, request).await?;
    phases.end("lookup");
    let ifname = &request.owner.ifname;
    let owner = AttachmentId { container_id: pod.uid.clone(), ifname: ifname.clone() };
    let _alone = locks.lock_too(&request.owner, &owner).await;
    let Some(link) = node.chained.find(ns, ifname).await? else {
        if egresses_of(&pod).is_empty() && pod.gateway_of.is_none() {
            info!(pod = %pod.key, ifname, "the interface is no end of a veth pair, and needs no egress");
            return Ok(None);
        }
        let msg = format!(
            "interface {ifname} is no end of a veth pair whose other end is on this node: Egresses work behind \
             plugins that make veth pairs, such as ptp and bridge"
        );
        return Err(Failure::new(code::INVALID_NETWORK_CONFIG, msg));
    };
    if link.addresses().is_empty() {
        let msg =
            format!("interface {ifname} has no address: the plugin before coil in the chain must give one");
        return Err(Failure::new(code::INVALID_NETWORK_CONFIG, msg));
    }
    match connect(node, request, ns, pod, &owner, link.clone(), phases).await {
        Ok(()) => Ok(Some(link)),
        Err(failure) => {
            if let Err(e) = remove(node, &owner, Some(link.host), Some(request.netns.clone())).await {
                warn!(%owner, error = %e, "cannot undo a failed ADD");
            }
            Err(failure)
        }
    }
}

async fn connect(
    node: &Arc<Node>,
    request: &Request,
    ns: &NetNs,
    pod: PodInfo,
    owner: &AttachmentId,
    link: PodLink,
    phases: &mut Phases,
) -> Result<(), Failure> {
    let identity = PodIdentity {
        namespace: pod.key.namespace.clone(),
        name: pod.key.name.clone(),
        uid: pod.uid.clone(),
        network: request.network.clone(),
    };
    // The runtime's own name of the attachment: DEL and GC come with that.
    let altnames = identity.altnames(&request.owner);
    let alias = Alias { pool: String::new(), owner: owner.clone() };
    node.chained.mark(&link.host, &alias, &altnames).await?;
    let routes = node.route_policy(egresses_of(&pod));
    let is_gateway = pod.gateway_of.is_some();
    let attached = Attached { link, pod: Some(pod), kernel_client: false, kernel_gateway: false };
    node.update_routes(ns, owner, &attached, routes.clone()).await?;
    phases.end("network");
    node.add(NewPod {
        owner: owner.clone(),
        attachment: Attachment::of(&altnames, owner),
        attached,
        netns: request.netns.clone(),
        routes,
    })
    .await?;
    super::add::must_be_served(node, owner, is_gateway)?;
    phases.end("datapath");
    Ok(())
}

/// Takes back what ADD did: the link itself is the other plugin's to remove.
pub(super) async fn del(
    node: &Arc<Node>,
    locks: &Locks,
    leaving: &Leaving,
    phases: &mut Phases,
) -> Result<(), Failure> {
    let known = || node.owner_of(&leaving.owner, leaving.uid.as_deref());
    let Some(owner) = known() else { return Ok(()) };
    let _alone = locks.lock_too(&leaving.owner, &owner).await;
    // With the lock: the pod may have another container by now.
    if known().as_ref() != Some(&owner) {
        return Ok(());
    }
    let netns = leaving.netns.clone().or_else(|| node.netns_of(&owner));
    remove(node, &owner, node.link_of(&owner), netns).await?;
    phases.end("datapath");
    Ok(())
}

/// Takes a pod out of the datapath, and Coil's marks and routes away.
pub(super) async fn remove(
    node: &Arc<Node>,
    owner: &AttachmentId,
    link: Option<Link>,
    netns: Option<PathBuf>,
) -> Result<(), Failure> {
    let index = link.map_or(0, |link| link.index);
    let unmarked = node.chained.unmark(index, owner).await;
    if let Err(e) = node.forget(owner).await {
        // Each later change tries again.
        warn!(%owner, error = %e, "the pod's entries in the datapath are still there");
    }
    // Mostly the pod is on its way out, and they go with its interface.
    if let Some(ns) = netns.and_then(|path| NetNs::open(path).ok())
        && let Err(e) = node.chained.clear_routes(&ns, &owner.ifname, index).await
    {
        warn!(%owner, error = %e, "routes of Coil's are still in the pod");
    }
    Ok(unmarked?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cni::fixture::{container, id, node},
        net::recover::Found,
    };

    #[tokio::test]
    async fn of_two_containers_of_a_pod_the_newer_is_recovered() {
        let node = node();
        let found = [7, 9, 8].map(|index| {
            let mut link = container("c").attached.link;
            link.host.index = index;
            let alias = Alias { pool: String::new(), owner: id("uid") };
            Found { alias, link, netns: None, kernel_client: false, kernel_gateway: false }
        });
        node.recover(found.into());
        assert_eq!(node.link_of(&id("uid")).map(|link| link.index), Some(9));
    }

    #[tokio::test]
    async fn the_del_of_a_container_that_was_replaced_meanwhile_removes_nothing() {
        let (node, locks) = (node(), Locks::default());
        let of = |name: &str| Leaving { owner: id(name), uid: Some("uid".into()), netns: None };
        node.add(container("first")).await.unwrap();
        let add = locks.lock(&id("uid")).await;
        let (leaving, mut phases) = (of("first"), Phases::default());
        let mut waiting = Box::pin(del(&node, &locks, &leaving, &mut phases));
        assert!(futures::poll!(&mut waiting).is_pending(), "an ADD of the same pod runs");
        node.add(container("second")).await.unwrap();
        drop(add);
        waiting.await.unwrap();
        assert_eq!(node.owner_of(&id("second"), None), Some(id("uid")));
        del(&node, &locks, &of("second"), &mut Phases::default()).await.unwrap();
        assert!(node.attachments().is_empty());
    }
}
