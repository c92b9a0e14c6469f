//! What coild tells the gateway pods of this node.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Weak, atomic::Ordering},
};

use coil_api::{
    annotation::EgressRef,
    gateway::{Busiest, FlowCount, GatewayClient, GatewaySeen, GatewayStatus, Translated},
};
use coil_netns::NetNs;
use coil_packet::nat;

use super::{Node, lock};
use crate::{
    datapath::GatewayNow,
    egress::{
        gateway::{GatewayError, GatewayPod},
        kernel::{
            nft,
            plan::tunnel_name,
            tracked::{Tracked, tracked},
        },
    },
    ipam::AttachmentId,
    plane::PlaneError,
    watch::index::ObjectKey,
};

/// Most translations of a family on one node: the size of `coil_nat4` and `coil_nat6`.
const MOST_FLOWS: u64 = 1_000_000;

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
        let status = Arc::new(move || status_of(&node, &id, &egress, &addresses, &inside));
        let gateway = GatewayPod::prepare(ns, status)?;
        if let Some(entry) = lock(&self.pods).get_mut(owner) {
            entry.gateway = Some(gateway);
        }
        Ok(())
    }

    /// The clients of an Egress; none while those of all nodes are not known.
    fn clients(&self, egress: &EgressRef, by_kernel: bool) -> Option<Vec<GatewayClient>> {
        if !self.feed.knows_clients() {
            return None;
        }
        let clients = self.feed.read(|index| index.clients_of(egress));
        let client = |(key, address): (ObjectKey, IpAddr)| GatewayClient {
            namespace: key.namespace,
            name: key.name,
            address,
            interface: if by_kernel { tunnel_name(address) } else { String::new() },
        };
        Some(clients.into_iter().map(client).collect())
    }
}

fn status_of(
    node: &Weak<Node>,
    owner: &AttachmentId,
    egress: &EgressRef,
    addresses: &[IpAddr],
    inside: &NetNs,
) -> GatewayStatus {
    let mut status = GatewayStatus {
        ready: false,
        reason: "coild is stopping".to_owned(),
        namespace: egress.namespace.clone(),
        egress: egress.name.clone(),
        addresses: addresses.to_vec(),
        flows: 0,
        seen: GatewaySeen::default(),
    };
    let Some(node) = node.upgrade() else { return status };
    let now = node.plane.with(|plane| {
        let now = |address: &IpAddr| Ok::<_, PlaneError>((*address, plane.gateway(*address)?));
        addresses.iter().map(now).collect::<Result<Vec<_>, _>>()
    });
    status.reason = match now {
        None => match &node.settings.kernel_egress_missing {
            Some(missing) => {
                format!("this node's datapath is the kernel alone ({}), and {missing}", node.plane.reason())
            }
            None => {
                // A namespace that is just going says nothing.
                let seen = inside.run(|| seen_by_kernel(addresses)).ok();
                (status.flows, status.seen) = seen.unwrap_or_default();
                node.kernel_reason(owner)
            }
        },
        Some(Err(e)) => format!("cannot read the datapath's maps: {}", super::chain(e.as_ref())),
        Some(Ok(_)) if !node.applied.load(Ordering::Relaxed) => {
            "the datapath is not programmed; coild's log says why".to_owned()
        }
        Some(Ok(now)) => {
            status.flows = now.iter().map(|(_, now)| now.flows()).sum();
            status.seen = seen_by_programs(&now);
            status.seen.lacks = node.lacks_beside_programs(owner);
            String::new()
        }
    };
    status.seen.clients = node.clients(egress, !node.plane.serves_egress());
    status.ready = status.reason.is_empty();
    status
}

const fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "ipv4" } else { "ipv6" }
}

/// What the kernel of the calling thread's network namespace has: flows, and the rest.
fn seen_by_kernel(addresses: &[IpAddr]) -> (u64, GatewaySeen) {
    let (mut translated, mut forged) = (BTreeMap::new(), BTreeMap::new());
    for address in addresses {
        let Ok(counts) = nft::counts(*address) else { continue };
        let family = family(*address).to_owned();
        forged.insert(family.clone(), counts.forged.packets);
        let of_family = Translated {
            packets: counts.masqueraded.packets,
            bytes: counts.masqueraded.bytes,
            invalid_packets: counts.invalid.packets,
            invalid_bytes: counts.invalid.bytes,
        };
        translated.insert(family, of_family);
    }
    let Tracked { entries, limit, in_use } = tracked();
    let seen = GatewaySeen { limit, tracked: Some(entries), translated, forged, ..GatewaySeen::default() };
    (in_use, seen)
}

/// What the programs have.
fn seen_by_programs(now: &[(IpAddr, GatewayNow)]) -> GatewaySeen {
    let mut seen = GatewaySeen { limit: MOST_FLOWS * now.len() as u64, ..GatewaySeen::default() };
    let mut flows: BTreeMap<(u8, u8), u64> = BTreeMap::new();
    for (address, GatewayNow { used, tally }) in now {
        let translated = Translated {
            packets: tally.lent.packets,
            bytes: tally.lent.bytes,
            invalid_packets: tally.invalid.packets,
            invalid_bytes: tally.invalid.bytes,
        };
        seen.translated.insert(family(*address).to_owned(), translated);
        for (kind, count) in &used.flows {
            *flows.entry(*kind).or_default() += count;
        }
        if let Some((remote, ports)) = used.busiest
            && seen.busiest.as_ref().is_none_or(|busiest| u64::from(ports) > busiest.ports)
        {
            let ports = u64::from(ports);
            seen.busiest = Some(Busiest { remote: remote.to_string(), ports, of: u64::from(nat::PORTS) });
        }
        for (reason, count) in
            [("no-port", tally.no_port), ("tables-full", tally.no_room), ("client-quota", tally.no_quota)]
        {
            *seen.failures.entry(reason.to_owned()).or_default() += count.packets;
        }
    }
    let count = |((protocol, state), flows): ((u8, u8), u64)| FlowCount {
        protocol: protocol_name(protocol).to_owned(),
        state: nat::State::ALL.get(usize::from(state)).map_or("unknown", |state| state.name()).to_owned(),
        flows,
    };
    seen.flows = flows.into_iter().map(count).collect();
    seen
}

/// The name of a protocol that is translated.
pub(super) const fn protocol_name(protocol: u8) -> &'static str {
    match protocol {
        6 => "tcp",
        17 => "udp",
        _ => "icmp",
    }
}

#[cfg(test)]
mod tests {
    use coil_packet::abi::{Counter, Tally};

    use super::*;
    use crate::datapath::{GatewayUse, Remote};

    #[test]
    fn both_families_are_told_of() {
        let of = |packets| Counter { packets, bytes: packets * 60 };
        let remote = Remote { address: "198.51.100.1".parse().unwrap(), port: 443, protocol: 6 };
        let used = GatewayUse {
            flows: [((6, 1), 5), ((17, 0), 2)].into(),
            busiest: Some((remote, 4)),
            begun: 9,
            ..GatewayUse::default()
        };
        let tally = Tally { lent: of(10), invalid: of(1), no_port: of(3), ..Tally::default() };
        let six = GatewayNow { tally: Tally { lent: of(2), ..Tally::default() }, ..GatewayNow::default() };
        let now =
            [("10.64.0.3".parse().unwrap(), GatewayNow { used, tally }), ("fd64::3".parse().unwrap(), six)];
        let seen = seen_by_programs(&now);
        assert_eq!(seen.limit, 2_000_000);
        assert_eq!(seen.translated["ipv4"].packets, 10);
        assert_eq!((seen.translated["ipv4"].invalid_bytes, seen.translated["ipv6"].bytes), (60, 120));
        let flows: Vec<(&str, &str, u64)> =
            seen.flows.iter().map(|f| (f.protocol.as_str(), f.state.as_str(), f.flows)).collect();
        assert_eq!(flows, [("tcp", "established", 5), ("udp", "new", 2)]);
        assert_eq!((seen.failures["no-port"], seen.failures["client-quota"]), (3, 0));
        let busiest = seen.busiest.unwrap();
        assert_eq!((busiest.remote.as_str(), busiest.ports), ("198.51.100.1:443/tcp", 4));
        assert_eq!(now[0].1.flows() + now[1].1.flows(), 7 + 1 + 2);
    }
}
