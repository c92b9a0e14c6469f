//! ADD: all of it, or nothing.

use std::{net::IpAddr, sync::Arc};

use coil_api::cni::{CniResult, code};
use coil_netns::{NetNs, NetNsError};
use tracing::warn;

use super::{
    Failure, Phases, chained,
    locks::Locks,
    lookup::{self, Wanted},
    request::Request,
    result,
};
use crate::{
    egress::plan::{Attached, egresses_of},
    ipam::{Allocation, AttachmentId, NodeIpam},
    net::{name::PodIdentity, pod::PodNetError},
    node::{Attachment, NewPod, Node},
};

/// What became of an ADD, and what the log tells of it.
#[derive(Debug)]
pub(super) struct Added {
    pub(super) result: CniResult,
    /// Empty behind another plugin.
    pub(super) pool: String,
    pub(super) addresses: Vec<IpAddr>,
}

pub(super) async fn add(
    node: &Arc<Node>,
    locks: &Locks,
    request: &Request,
    phases: &mut Phases,
) -> Result<Added, Failure> {
    request.check_place(node.ipam.is_some())?;
    let ns = NetNs::open(&request.netns).map_err(|e| no_namespace(&e))?;
    let Some(ipam) = &node.ipam else {
        let link = chained::add(node, locks, request, &ns, phases).await?;
        let addresses = link.map(|link| link.addresses()).unwrap_or_default();
        return Ok(Added { result: result::nothing(), pool: String::new(), addresses });
    };
    let wanted = lookup::wanted(node, request).await?;
    phases.end("lookup");
    let allocation = ipam.allocate(&wanted.pool, &request.owner).await?;
    phases.end("address");
    match connect(node, request, &ns, wanted, &allocation, phases).await {
        Ok(result) => {
            let addresses = result.ips.iter().map(|ip| ip.address.addr()).collect();
            Ok(Added { result, pool: allocation.pool, addresses })
        }
        Err(failure) => {
            undo(node, ipam, request).await;
            Err(failure)
        }
    }
}

fn no_namespace(error: &NetNsError) -> Failure {
    let msg = format!("CNI_NETNS: {}", super::failure::with_causes(error));
    Failure::new(code::INVALID_ENVIRONMENT, msg)
}

async fn connect(
    node: &Arc<Node>,
    request: &Request,
    ns: &NetNs,
    wanted: Wanted,
    allocation: &Allocation,
    phases: &mut Phases,
) -> Result<CniResult, Failure> {
    let pod = wanted.pod;
    let routes = node.route_policy(egresses_of(&pod));
    let identity = PodIdentity {
        namespace: pod.key.namespace.clone(),
        name: pod.key.name.clone(),
        uid: pod.uid.clone(),
        network: request.network.clone(),
    };
    let link = node.network.setup(ns, allocation, &identity, routes.clone()).await.map_err(|e| match e {
        PodNetError::NetNs(e) if e.is_gone() => no_namespace(&e),
        e => e.into(),
    })?;
    phases.end("network");
    let (ifname, gateways) = (&request.owner.ifname, node.network.gateways(&link));
    let result = result::result(ns, ifname, &link, gateways, node.network.mtu(), routes.clone());
    let is_gateway = pod.gateway_of.is_some();
    let new = NewPod {
        owner: request.owner.clone(),
        attachment: Attachment::of(&identity.altnames(&request.owner), &request.owner),
        attached: Attached { link, pod: Some(pod), kernel_client: false, kernel_gateway: false },
        netns: request.netns.clone(),
        routes,
    };
    node.add(new).await?;
    must_be_served(node, &request.owner, is_gateway)?;
    phases.end("datapath");
    Ok(result)
}

/// A gateway whose socket is not there would never be ready; a client whose tunnels are not there would get out
/// without a gateway.
pub(super) fn must_be_served(node: &Node, owner: &AttachmentId, is_gateway: bool) -> Result<(), Failure> {
    if let Some(trouble) = node.kernel_trouble(owner) {
        return Err(Failure::new(code::TRY_AGAIN_LATER, trouble));
    }
    if is_gateway && !node.gateway_is_served(owner) {
        let msg = "it is an egress gateway, and its namespace cannot be prepared; coild's log says why";
        return Err(Failure::new(code::INTERNAL, msg));
    }
    Ok(())
}

/// Back to before. What fails here is logged: the error that led here is the one to report.
async fn undo(node: &Arc<Node>, ipam: &NodeIpam, request: &Request) {
    if let Err(e) = node.network.remove(&request.owner).await {
        // Something may still lead to the addresses: DEL, which comes for every failed ADD, frees them.
        warn!(owner = %request.owner, error = %e, "cannot undo the network of a failed ADD");
        return;
    }
    if let Err(e) = node.forget(&request.owner).await {
        warn!(owner = %request.owner, error = %e, "cannot undo the datapath of a failed ADD");
    }
    ipam.free(&request.owner).await;
}
