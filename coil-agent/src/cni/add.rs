//! ADD: all of it, or nothing.

use std::sync::Arc;

use coil_api::cni::{CniResult, code};
use coil_netns::NetNs;
use tracing::warn;

use super::{
    Failure, Phases,
    lookup::{self, Wanted},
    request::Request,
    result,
};
use crate::{
    egress::plan::{Attached, egresses_of},
    ipam::Allocation,
    net::name::PodIdentity,
    node::{NewPod, Node},
};

/// What the log tells of an ADD that succeeded.
#[derive(Debug)]
pub(super) struct Added {
    pub(super) result: CniResult,
    pub(super) allocation: Allocation,
}

pub(super) async fn add(node: &Arc<Node>, request: &Request, phases: &mut Phases) -> Result<Added, Failure> {
    let ns = NetNs::open(&request.netns)
        .map_err(|e| Failure::new(code::INVALID_ENVIRONMENT, super::failure::with_causes(&e)))?;
    let wanted = lookup::wanted(node, request).await?;
    phases.end("lookup");
    let allocation = node.ipam.allocate(&wanted.pool, &request.owner).await?;
    phases.end("address");
    match connect(node, request, &ns, wanted, &allocation, phases).await {
        Ok(result) => Ok(Added { result, allocation }),
        Err(failure) => {
            undo(node, request).await;
            Err(failure)
        }
    }
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
    };
    let link = node.network.setup(ns, allocation, &identity, routes.clone()).await?;
    phases.end("network");
    let result =
        result::result(ns, &request.owner.ifname, &link, node.network.gateways(&link), node.network.mtu());
    let is_gateway = pod.gateway_of.is_some();
    let new = NewPod {
        owner: request.owner.clone(),
        attached: Attached { link, pod: Some(pod), kernel_client: false },
        netns: request.netns.clone(),
        routes,
    };
    node.add(new).await?;
    if is_gateway && !node.gateway_is_served(&request.owner) {
        let msg = "it is an egress gateway, and its namespace cannot be prepared; coild's log says why";
        return Err(Failure::new(code::INTERNAL, msg));
    }
    phases.end("datapath");
    Ok(result)
}

/// Back to before. What fails here is logged: the error that led here is the one to report.
async fn undo(node: &Arc<Node>, request: &Request) {
    if let Err(e) = node.network.remove(&request.owner).await {
        warn!(owner = %request.owner, error = %e, "cannot undo the network of a failed ADD");
    }
    if let Err(e) = node.forget(&request.owner).await {
        warn!(owner = %request.owner, error = %e, "cannot undo the datapath of a failed ADD");
    }
    node.ipam.free(&request.owner).await;
}
