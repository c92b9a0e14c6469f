//! Egress by the kernel: what a pod should have, and making it so.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
};

use coil_netns::NetNs;
use tracing::warn;

use super::{Node, lock};
use crate::{
    egress::{
        gateway::OWN_PORTS,
        kernel::{
            KernelError,
            apply::{self, Common},
            found, peers,
            plan::{self as inside, Via, Wanted},
        },
        plan::{self, Attached},
    },
    ipam::AttachmentId,
    net::run_inside,
    watch::index::ObjectKey,
};

impl Node {
    /// Whether clients and gateways of Egresses can be served here, by the programs or by the kernel.
    #[must_use]
    pub fn serves_egress(&self) -> bool {
        self.plane.serves_egress() || self.settings.kernel_egress_missing.is_none()
    }

    /// Whether the kernel alone does egress on this node.
    fn by_kernel(&self) -> bool {
        !self.plane.serves_egress() && self.settings.egress && self.settings.kernel_egress_missing.is_none()
    }

    /// Why nothing was made inside a pod that needs it; none when it was, or none is needed.
    #[must_use]
    pub fn kernel_trouble(&self, owner: &AttachmentId) -> Option<String> {
        // Where the programs do it, a gateway's kernel does other protocols alone: it is a gateway without.
        lock(&self.pods)
            .get(owner)
            .filter(|_| self.by_kernel())
            .and_then(|entry| entry.kernel_trouble.clone())
    }

    /// Why a gateway's kernel does not do what the programs leave to it; empty when it does, or will.
    pub(super) fn lacks_beside_programs(&self, owner: &AttachmentId) -> String {
        let missing = self.settings.kernel_egress_missing.clone();
        let trouble = || lock(&self.pods).get(owner).and_then(|entry| entry.kernel_trouble.clone());
        missing.or_else(trouble).unwrap_or_default()
    }

    /// Why a gateway that the kernel is takes no clients; empty when it does.
    pub(super) fn kernel_reason(&self, owner: &AttachmentId) -> String {
        if !self.feed.knows_clients() {
            return "the clients of all nodes are not known yet".to_owned();
        }
        match lock(&self.pods).get(owner) {
            Some(entry) if entry.kernel.is_some() => entry.kernel_trouble.clone().unwrap_or_default(),
            Some(entry) => {
                entry.kernel_trouble.clone().unwrap_or_else(|| "its namespace is not ready".to_owned())
            }
            None => "the pod is gone".to_owned(),
        }
    }

    /// What a pod's namespace should have. None where nothing is Coil's to make.
    fn kernel_wanted(&self, attached: &Attached, ifname: &str) -> Result<Option<Wanted>, String> {
        let Some(pod) = attached.pod.as_ref() else { return Ok(None) };
        // Beside the programs, a gateway's kernel does what they do not.
        let beside = self.plane.serves_egress()
            && self.settings.kernel_egress_missing.is_none()
            && pod.gateway_of.is_some();
        // A client of the Go version goes on by its own tunnels, also where the programs serve all others.
        let by_tunnels = self.plane.serves_egress() && self.settings.egress && attached.kernel_client;
        // An annotation that has become wrong changes nothing of what is there.
        if !beside && (!self.by_kernel() && !by_tunnels || pod.egresses.is_err()) {
            return Ok(None);
        }
        let egresses = if beside && !by_tunnels { &[] } else { plan::egresses_of(pod) };
        // What an earlier agent made for clients goes on until they are all known. A new pod that is a client, too, does not wait.
        let is_new_client = !egresses.is_empty() && !attached.kernel_client;
        if pod.gateway_of.is_some() && !is_new_client && !self.feed.knows_clients() {
            return Ok(None);
        }
        let facts = self.facts();
        let own = attached.link.addresses();
        let adopted = by_tunnels && pod.gateway_of.is_none();
        let mut wanted = Wanted { ports: beside.then_some(OWN_PORTS), adopted, ..Wanted::default() };
        self.feed.read(|index| {
            let mut vias = BTreeMap::new();
            for egress in egresses {
                let key = ObjectKey::new(&egress.namespace, &egress.name);
                // What has no Egress has no tunnel.
                let Some(info) = index.egresses.get(&key) else { continue };
                // What it led to nobody knows, so what is there stays: tunnels, and destinations that are closed.
                if info.unknown {
                    return Err(format!(
                        "Egress {egress} cannot be understood: the pod's tunnels and routes stay as they are until it is put \
                         right"
                    ));
                }
                let service = index.services.get(&key).cloned().unwrap_or_default();
                if service.is_empty() {
                    return Err(format!("Egress {egress} has no Service with an address yet"));
                }
                let originating_only = plan::originating_only(index, &facts, egress);
                let gateways = index.gateways(egress).into_iter().map(|endpoint| endpoint.address).collect();
                let via = Via { service, gateways, sport_auto: info.sport_auto, originating_only };
                vias.insert(plan::egress_id(egress), via);
            }
            inside::client(&mut wanted, &own, &plan::policy(index, &facts, egresses), &vias);
            Ok(())
        })?;
        self.add_gateway(&mut wanted, attached, ifname);
        Ok(Some(wanted))
    }

    /// Adds what a gateway has for its clients; nothing for another pod.
    fn add_gateway(&self, wanted: &mut Wanted, attached: &Attached, ifname: &str) {
        let Some(egress) = attached.pod.as_ref().and_then(|pod| pod.gateway_of.as_ref()) else { return };
        self.feed.read(|index| {
            let key = ObjectKey::new(&egress.namespace, &egress.name);
            // One that is gone, or cannot be understood, does not say.
            let info = index.egresses.get(&key).filter(|info| !info.unknown);
            let sport_auto = info.map(|info| info.sport_auto);
            let clients: Vec<_> = index.clients_of(egress).into_iter().map(|(_, address)| address).collect();
            inside::gateway(wanted, &attached.link.addresses(), ifname, &clients, sport_auto);
        });
    }

    /// What a gateway should have that is a client, too, of Egresses that cannot be followed: it goes on for its own clients,
    /// and what it has as a client stays.
    async fn gateway_alone(
        &self,
        attached: &Attached,
        ifname: &str,
        netns: &Path,
    ) -> Result<Wanted, KernelError> {
        let mut wanted = found::client(&NetNs::open(netns)?).await?;
        wanted.peers.extend(self.gateways_of(attached));
        let beside = self.plane.serves_egress() && self.settings.kernel_egress_missing.is_none();
        wanted.ports = beside.then_some(OWN_PORTS);
        self.add_gateway(&mut wanted, attached, ifname);
        Ok(wanted)
    }

    /// Whether a gateway is not to wait for the Egresses that it is a client of: one that runs, while its own clients are known.
    fn goes_on(&self, attached: &Attached, made: bool) -> bool {
        let is_gateway = attached.pod.as_ref().is_some_and(|pod| pod.gateway_of.is_some());
        is_gateway && (made || attached.kernel_client) && self.feed.knows_clients()
    }

    /// Makes the inside of a pod what it should be. Trouble is logged once, and tried again later.
    pub(super) async fn follow_by_kernel(&self, owner: &AttachmentId) {
        let Some((attached, before, netns, failed)) = lock(&self.pods).get(owner).map(|entry| {
            (
                entry.attached.clone(),
                entry.kernel.clone(),
                entry.netns.clone(),
                entry.kernel_trouble.is_some(),
            )
        }) else {
            return;
        };
        // By the programs, too: its metrics tell them.
        if attached.pod.as_ref().is_some_and(|pod| pod.gateway_of.is_some()) && self.settings.egress {
            self.feed.watch_clients(&self.client);
        }
        let mut wanted = self.kernel_wanted(&attached, &owner.ifname);
        let mut as_client = None;
        if let (Err(trouble), Some(netns)) = (&wanted, &netns) {
            if let Err(e) = self.admit_gateways(&attached, netns).await {
                warn!(container = %owner, error = super::chain(&e), "new gateways of the pod's Egresses cannot send to it yet");
            }
            if self.goes_on(&attached, before.is_some()) {
                as_client = Some(trouble.clone());
                let alone = self.gateway_alone(&attached, &owner.ifname, netns).await;
                wanted = alone.map(Some).map_err(|e| super::chain(&e));
            }
        }
        self.note_as_client(owner, as_client);
        if let (Ok(Some(wanted)), Some(before)) = (&mut wanted, &before) {
            wanted.keep_ports(before);
        }
        let result = match (wanted, netns) {
            (Ok(None), _) | (Ok(Some(_)), None) => return,
            // What failed may have been half done, also where it is not wanted any more.
            (Ok(Some(wanted)), _) if !failed && before.as_ref() == Some(&wanted) => return,
            // Nothing was ever needed.
            (Ok(Some(wanted)), _)
                if !failed && before.is_none() && !attached.kernel_client && wanted == Wanted::default() =>
            {
                return;
            }
            (Ok(Some(wanted)), Some(netns)) => {
                let common = Common { port: self.settings.facts.fou_port };
                let made = async {
                    let ns = NetNs::open(&netns)?;
                    apply::apply(&ns, &owner.ifname, common, before.as_ref(), &wanted).await
                };
                made.await.map(|()| wanted).map_err(|e| super::chain(&e))
            }
            (Err(e), _) => Err(e),
        };
        let told = self.note_kernel(owner, result);
        if told && let Err(e) = self.put(owner).await {
            warn!(container = %owner, error = %e, "other protocols do not reach the gateway's kernel yet");
        }
    }

    /// Tunnels that stay as they are lead to a Service, which gets new gateways all the same.
    async fn admit_gateways(&self, attached: &Attached, netns: &Path) -> Result<(), KernelError> {
        let gateways = self.gateways_of(attached);
        let admit = move || [false, true].into_iter().try_for_each(|v6| peers::admit(v6, &gateways));
        run_inside(&NetNs::open(netns)?, admit).await?.map_err(KernelError::Peers)
    }

    /// The gateways of a client's Egresses.
    fn gateways_of(&self, attached: &Attached) -> BTreeSet<IpAddr> {
        let egresses = attached.pod.as_ref().map(plan::egresses_of).unwrap_or_default();
        self.feed.read(|index| {
            let gateways = egresses.iter().flat_map(|egress| index.gateways(egress));
            gateways.map(|endpoint| endpoint.address).collect()
        })
    }

    /// Remembers why a gateway is not followed as the client that it is, too, and says it once.
    fn note_as_client(&self, owner: &AttachmentId, trouble: Option<String>) {
        let mut pods = lock(&self.pods);
        let Some(entry) = pods.get_mut(owner) else { return };
        if let Some(trouble) =
            trouble.as_ref().filter(|trouble| entry.trouble_as_client.as_ref() != Some(trouble))
        {
            warn!(container = %owner, error = trouble, "what the gateway has as a client stays; it goes on for its own clients");
        }
        entry.trouble_as_client = trouble;
    }

    /// Remembers what was made inside a pod. True when the programs are to know.
    fn note_kernel(&self, owner: &AttachmentId, result: Result<Wanted, String>) -> bool {
        let mut pods = lock(&self.pods);
        let Some(entry) = pods.get_mut(owner) else { return false };
        match result {
            Ok(wanted) => {
                let is_new = wanted.ports.is_some() && !entry.attached.kernel_gateway;
                entry.attached.kernel_gateway = wanted.ports.is_some();
                entry.kernel = Some(wanted);
                entry.kernel_trouble = None;
                is_new
            }
            Err(e) => {
                if entry.kernel_trouble.as_ref() != Some(&e) {
                    warn!(container = %owner, error = e, "the pod's egress by the kernel is not as it should be");
                }
                entry.kernel_trouble = Some(e);
                false
            }
        }
    }
}

#[cfg(test)]
mod tests;
