//! What coild tells the gateway pods of this node.

use std::{
    net::IpAddr,
    sync::{Arc, Weak, atomic::Ordering},
};

use coil_api::{annotation::EgressRef, gateway::GatewayStatus};
use coil_netns::NetNs;

use super::{Node, lock};
use crate::{
    egress::gateway::{GatewayError, GatewayPod},
    ipam::AttachmentId,
};

impl Node {
    /// Serves a gateway pod its socket.
    pub(super) fn serve_gateway(
        self: &Arc<Self>,
        owner: &AttachmentId,
        ns: &NetNs,
        egress: &EgressRef,
        addresses: Vec<IpAddr>,
    ) -> Result<(), GatewayError> {
        // The socket's task must not keep its own owner alive.
        let (node, egress, id) = (Arc::downgrade(self), egress.clone(), owner.clone());
        let inside = ns.try_clone()?;
        let status = Arc::new(move || {
            let connections = inside.run(connections).ok().flatten();
            status_of(&node, &id, &egress, &addresses, connections)
        });
        let gateway = GatewayPod::prepare(ns, status)?;
        if let Some(entry) = lock(&self.pods).get_mut(owner) {
            entry.gateway = Some(gateway);
        }
        Ok(())
    }
}

/// Connections that the kernel tracks in the calling thread's network namespace.
fn connections() -> Option<u64> {
    std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").ok()?.trim().parse().ok()
}

fn status_of(
    node: &Weak<Node>,
    owner: &AttachmentId,
    egress: &EgressRef,
    addresses: &[IpAddr],
    connections: Option<u64>,
) -> GatewayStatus {
    let mut status = GatewayStatus {
        ready: false,
        reason: "coild is stopping".to_owned(),
        namespace: egress.namespace.clone(),
        egress: egress.name.clone(),
        addresses: addresses.to_vec(),
        flows: 0,
    };
    let Some(node) = node.upgrade() else { return status };
    status.reason = match node.plane.with(|plane| plane.flows(addresses)) {
        None => match &node.settings.kernel_egress_missing {
            Some(missing) => {
                format!("this node's datapath is the kernel alone ({}), and {missing}", node.plane.reason())
            }
            None => {
                status.flows = connections.unwrap_or_default();
                node.kernel_reason(owner)
            }
        },
        Some(Err(e)) => format!("cannot read the datapath's maps: {e}"),
        Some(Ok(_)) if !node.applied.load(Ordering::Relaxed) => {
            "the datapath is not programmed; coild's log says why".to_owned()
        }
        Some(Ok(flows)) => {
            status.flows = flows;
            String::new()
        }
    };
    status.ready = status.reason.is_empty();
    status
}
