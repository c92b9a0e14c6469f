//! What the node looks for by itself: its links and addresses, what is in the way of eBPF, and whether the kernel
//! still has what it was given.

use ipnet::IpNet;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tracing::{info, warn};

use super::{Node, lock};
use crate::{
    datapath::obstacle,
    egress::plan::NodeFacts,
    net::{
        self, RtnlError,
        host::HostAddresses,
        pod::{HostSide, PodLink},
    },
    plane,
};

/// The component in Events.
pub(super) const REPORTER: &str = "coild";

/// Kinds of what can be other than this agent left it; label values of `coil_datapath_drift_total`.
pub mod drift {
    /// Entries of maps.
    pub const MAP: &str = "map";
    /// Attachments of programs.
    pub const PROGRAM: &str = "program";
    /// Routes to pods.
    pub const ROUTE: &str = "route";
    /// Routing rules.
    pub const RULE: &str = "rule";
    /// All.
    pub const ALL: [&str; 4] = [MAP, PROGRAM, ROUTE, RULE];
}

impl Node {
    /// Looks again at the node's own links and addresses.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn look_at_node(&self) -> Result<(), RtnlError> {
        let mut facts = self.settings.facts.clone();
        let (internal, pools) = self.feed.read(|index| {
            let own = index.nodes.iter().find(|(key, _)| key.name == self.settings.name);
            (own.map(|(_, addresses)| addresses.clone()).unwrap_or_default(), index.pool_subnets())
        });
        facts.pools = pools;
        let pools: Vec<IpNet> = facts.pools.iter().copied().collect();
        let links = self.rtnl.links().await?;
        let mut uplinks = if self.settings.devices.is_empty() {
            net::host::uplinks(&self.rtnl, &internal, &pools).await?
        } else {
            let named = links.iter().filter(|link| self.settings.devices.contains(&link.name));
            named.map(|link| link.index).collect()
        };
        // The programs read and write frames. Answers that came in there would miss them.
        let bare: Vec<&str> = links
            .iter()
            .filter(|link| uplinks.contains(&link.index) && !link.ethernet)
            .map(|link| link.name.as_str())
            .collect();
        let bare =
            (!bare.is_empty()).then(|| format!("the uplinks {} have no MAC addresses", bare.join(", ")));
        uplinks.retain(|index| links.iter().any(|link| link.index == *index && link.ethernet));
        facts.uplinks = uplinks;
        facts.own_addresses = net::host::own_addresses(&self.rtnl).await?;
        facts.own_addresses.extend(&internal);
        facts.own_addresses.sort_unstable();
        facts.own_addresses.dedup();
        if facts.forward {
            self.look_for_obstacles(&mut facts, &pools, bare);
        }
        *lock(&self.facts) = facts;
        self.tell_of_fallback();
        if !internal.is_empty() {
            let side =
                HostSide { addresses: HostAddresses::of(&internal), mtu: net::host::mtu(&self.rtnl).await? };
            if self.network.follow(side) {
                info!(addresses = ?internal, mtu = side.mtu, "new pods follow the node's network");
            }
        }
        Ok(())
    }

    /// Looks at what would treat pods' packets differently on the way that the programs cut short.
    fn look_for_obstacles(&self, facts: &mut NodeFacts, pools: &[IpNet], bare: Option<String>) {
        let links = lock(&self.pods).values().map(|entry| entry.attached.link.host.index).collect();
        let (obstacle, uplinks, foreign) = tokio::task::block_in_place(|| {
            (obstacle::find(pools), obstacle::on_uplinks(&facts.uplinks), obstacle::foreign_links(&links))
        });
        let uplinks = uplinks.unwrap_or_else(|e| Some(format!("uplinks' filters cannot be read: {e}")));
        facts.obstacle = bare.or(obstacle).or(uplinks);
        match foreign {
            Ok(foreign) => facts.foreign_links = foreign,
            Err(e) => facts.obstacle = Some(format!("pods' queues cannot be read: {e}")),
        }
        let before = lock(&self.facts).obstacle.clone();
        match (&before, &facts.obstacle) {
            (before, Some(now)) if before.as_ref() != Some(now) => {
                warn!(reason = now, "the kernel alone forwards from pod to pod");
            }
            (Some(_), None) => info!("eBPF forwards from pod to pod"),
            _ => {}
        }
    }

    /// The datapath's mode, and why it is not eBPF or not for all packets.
    #[must_use]
    pub fn datapath_state(&self) -> (&'static str, String) {
        let mode = self.plane.mode();
        let chosen = self.settings.by_host_stack.filter(|_| mode == "ebpf").map(str::to_owned);
        let obstacle = lock(&self.facts).obstacle.clone();
        (mode, chosen.or(obstacle).unwrap_or_else(|| self.plane.reason().to_owned()))
    }

    /// Writes an Event on the Node when the kernel takes over from eBPF, or gives back.
    fn tell_of_fallback(&self) {
        let (_, reason) = self.datapath_state();
        let before = std::mem::replace(&mut *lock(&self.told), reason.clone());
        if before == reason || reason == plane::CHOSEN || self.settings.by_host_stack == Some(&reason) {
            return;
        }
        let (type_, word, note) = if reason.is_empty() {
            (EventType::Normal, "DatapathByEbpf", "eBPF forwards from pod to pod again".to_owned())
        } else {
            (EventType::Warning, "DatapathByKernel", format!("the kernel forwards from pod to pod: {reason}"))
        };
        let event = Event {
            type_,
            reason: word.to_owned(),
            note: Some(note),
            action: "ChooseDatapath".to_owned(),
            secondary: None,
        };
        let node = k8s_openapi::api::core::v1::ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(self.settings.name.clone()),
            // As the kubelet does: `kubectl describe node` looks for it.
            uid: Some(self.settings.name.clone()),
            ..Default::default()
        };
        let recorder = Recorder::new(self.client.clone(), Reporter::from(REPORTER));
        tokio::spawn(async move {
            if let Err(e) = recorder.publish(&event, &node).await {
                warn!(error = %e, "cannot write an Event about the datapath");
            }
        });
    }

    /// Compares with the kernel what it was given, counts what is not there any more, and gives it again. The maps'
    /// and programs' turn comes with the next [`Node::reconcile`].
    ///
    /// # Errors
    /// When the kernel cannot be asked, or refuses.
    pub(super) async fn repair(&self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        if self.applied.load(std::sync::atomic::Ordering::Relaxed)
            && let Some(drift) = self.plane.with(|plane| plane.check())
        {
            let drift = drift?;
            self.count_drift(drift::MAP, drift.entries);
            self.count_drift(drift::PROGRAM, drift.programs);
        }
        let Some(priority) = self.settings.pod_rule else { return Ok(()) };
        let rules = net::host::prepare(&self.rtnl, self.network.pod_table(), priority).await?;
        self.count_drift(drift::RULE, rules);
        let links: Vec<PodLink> =
            lock(&self.pods).values().map(|entry| entry.attached.link.clone()).collect();
        let routes = self.network.restore_routes(&links).await?;
        self.count_drift(drift::ROUTE, routes);
        Ok(())
    }

    fn count_drift(&self, kind: &str, number: usize) {
        if number > 0 {
            warn!(kind, number, "somebody changed what is Coil's; it is put right");
            self.drift.with_label_values(&[kind]).inc_by(number as u64);
        }
    }
}
