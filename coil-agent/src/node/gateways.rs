//! What coild tells the gateway pods of this node.

use std::{
    net::IpAddr,
    sync::{Arc, Weak, atomic::Ordering},
};

use coil_api::{annotation::EgressRef, gateway::GatewayStatus};
use coil_netns::NetNs;

use super::{Node, lock};
use crate::{
    egress::{
        gateway::{GatewayError, GatewayPod},
        support,
    },
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
        let (node, egress) = (Arc::downgrade(self), egress.clone());
        let status = Arc::new(move || status_of(&node, &egress, &addresses));
        let gateway = GatewayPod::prepare(ns, status)?;
        if let Some(entry) = lock(&self.pods).get_mut(owner) {
            entry.gateway = Some(gateway);
        }
        Ok(())
    }
}

fn status_of(node: &Weak<Node>, egress: &EgressRef, addresses: &[IpAddr]) -> GatewayStatus {
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
        None => format!(
            "this node's datapath is the kernel alone ({}): {}",
            node.plane.reason(),
            support::without_ebpf()
        ),
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
