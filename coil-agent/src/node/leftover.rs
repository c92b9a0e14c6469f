//! Taking programs of an earlier run off the node, once the kernel does what they did.

use tracing::{error, info, warn};

use super::{Entry, Node, lock};
use crate::egress::plan;

impl Node {
    /// Removes what an earlier run left when no client and no gateway needs it any more: not before, as clients would leave
    /// without a gateway, and what comes to a gateway would find none.
    pub(super) fn remove_leftover(&self) {
        if !self.plane.has_leftover() {
            return;
        }
        let waiting = self.pods_without_egress();
        if !waiting.is_empty() {
            let text = waiting.join(", ");
            if std::mem::replace(&mut *lock(&self.waiting), text.clone()) != text {
                warn!(
                    pods = text,
                    "eBPF programs of an earlier run stay on the node: these clients and gateways of Egresses are not served \
                     by the kernel yet. If that stays so, delete the pods, or start coild with --datapath auto"
                );
            }
            return;
        }
        match self.plane.remove_leftover() {
            Ok(removed) => info!(?removed, "took the eBPF programs of an earlier run off the node"),
            Err(e) => error!(error = %e, "cannot take the eBPF programs of an earlier run off the node"),
        }
    }

    /// Clients and gateways whose egress the kernel does not do.
    fn pods_without_egress(&self) -> Vec<String> {
        let facts = lock(&self.facts).clone();
        let served = |entry: &Entry| entry.kernel.is_some() && entry.kernel_trouble.is_none();
        self.feed.read(|index| {
            let pods = lock(&self.pods);
            let waiting = pods.values().filter(|entry| !served(entry)).filter_map(|entry| {
                let pod = entry.attached.pod.as_ref()?;
                let policy = plan::policy(index, &facts, plan::egresses_of(pod));
                let gateway = self.settings.egress && pod.gateway_of.is_some();
                let concerned = gateway || policy.values().any(Option::is_some);
                concerned.then(|| pod.key.to_string())
            });
            waiting.collect()
        })
    }
}
