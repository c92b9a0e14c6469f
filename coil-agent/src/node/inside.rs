//! What the index says of the insides of pods: routes and links of clients, and gateways.

use std::sync::Arc;

use coil_netns::NetNs;
use tracing::warn;

use super::{
    Node,
    in_time::{AT_ONCE, LIMIT, in_time},
    lock,
};
use crate::{
    egress::plan,
    ipam::AttachmentId,
    net::{offload, pod::RoutePolicy, run_inside},
};

impl Node {
    /// The insides of all pods. One that takes long goes on by itself, and is looked at again when it has ended.
    pub(super) async fn follow_all_inside(self: &Arc<Self>) {
        let late = lock(&self.late).clone();
        let owners: Vec<AttachmentId> =
            lock(&self.pods).keys().filter(|owner| !late.contains(owner)).cloned().collect();
        let all = owners.into_iter().map(|owner| {
            let (node, id) = (self.clone(), owner.clone());
            (owner, async move { node.follow_inside(&id).await })
        });
        for (owner, task) in in_time(all, AT_ONCE, LIMIT).await {
            warn!(container = %owner, "what is done inside the pod takes long; the others go on");
            lock(&self.late).insert(owner.clone());
            let node = self.clone();
            tokio::spawn(async move {
                // However it ended, it is tried again.
                let _ = task.await;
                lock(&node.late).remove(&owner);
                // One that always takes so long is not all that is done.
                tokio::time::sleep(LIMIT).await;
                node.again.notify_one();
            });
        }
    }

    /// Routes of a client, and a gateway's namespace. Trouble is logged, and tried again later.
    pub(super) async fn follow_inside(self: &Arc<Self>, owner: &AttachmentId) {
        let Some(inside) = lock(&self.pods).get(owner).map(|entry| entry.inside.clone()) else { return };
        let _one_at_a_time = inside.lock().await;
        self.follow_by_kernel(owner).await;
        let Some((attached, routes, netns, served, segments)) = lock(&self.pods).get(owner).map(|entry| {
            let served = entry.gateway.is_some();
            (entry.attached.clone(), entry.routes.clone(), entry.netns.clone(), served, entry.segments_udp)
        }) else {
            return;
        };
        let (Some(pod), Some(netns)) = (attached.pod.as_ref(), netns) else { return };
        let client = self.plane.serves_egress() && !attached.kernel_client;
        let wanted = if client { self.route_policy(plan::egresses_of(pod)) } else { RoutePolicy::new() };
        let other_routes = routes.as_ref() != Some(&wanted);
        // A burst of datagrams that is one packet until the last link does not survive the tunnel.
        let segment = !wanted.iter().any(|(_, egress)| *egress);
        let other_segments = if segment { segments == Some(false) } else { segments != Some(false) };
        let to_serve = pod.gateway_of.as_ref().filter(|_| !served);
        if !other_routes && !other_segments && to_serve.is_none() {
            return;
        }
        let result = async {
            let ns = NetNs::open(&netns)?;
            if other_routes {
                self.update_routes(&ns, owner, &attached, wanted.clone()).await?;
                if let Some(entry) = lock(&self.pods).get_mut(owner) {
                    entry.routes = Some(wanted);
                }
            }
            if let Some(egress) = to_serve {
                self.serve_gateway(owner, &ns, egress, attached.link.addresses())?;
            }
            if other_segments {
                let ifname = owner.ifname.clone();
                run_inside(&ns, move || offload::segment_udp(&ifname, segment)).await??;
                if let Some(entry) = lock(&self.pods).get_mut(owner) {
                    entry.segments_udp = Some(segment);
                }
            }
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
        };
        if let Err(e) = result.await {
            warn!(pod = %pod.key, container = %owner, error = %e, "cannot follow a change inside the pod");
        }
    }
}
