//! A warning before a gateway has no port left towards some remote.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use coil_api::annotation::EgressRef;
use tracing::warn;

use super::{
    Node, lock,
    tell::{PORTS_RUN_OUT, publish},
};
use crate::datapath::{CALM, Remote, Usage};

/// Percentage of the ports towards one remote: a warning comes beyond it, and another one only after they have been
/// below [`CALM`].
const WARN: u32 = 80;

/// A gateway's address and one of its remotes.
type Towards = (IpAddr, Remote);

impl Node {
    /// Looks at what the last sweep found, and writes an Event on the Egress of a gateway whose ports run out.
    pub fn warn_of_ports(self: &Arc<Self>) {
        let Some(usage) = self.plane.with(|plane| plane.usage()) else { return };
        let news = news(&mut lock(&self.port_warnings), &usage, |gateway| self.egress_of(gateway));
        for ((gateway, remote), ports, egress) in news {
            let all = coil_packet::nat::PORTS;
            let note = format!(
                "{ports} of {all} ports of the gateway {gateway} are in use towards {remote}: when none is left, new \
                 flows to it fail; more replicas have more ports"
            );
            warn!(%egress, %gateway, %remote, ports, "ports run out");
            let node = self.clone();
            tokio::spawn(async move {
                if !publish(node.client.clone(), egress, PORTS_RUN_OUT, note).await {
                    // The next time.
                    lock(&node.port_warnings).remove(&(gateway, remote));
                }
            });
        }
    }

    /// The Egress of the gateway with an address, once its pod is known.
    fn egress_of(&self, gateway: IpAddr) -> Option<EgressRef> {
        lock(&self.pods).values().find_map(|entry| {
            let pod = entry.attached.pod.as_ref()?;
            let own = entry.attached.link.addresses();
            pod.gateway_of.clone().filter(|_| own.contains(&gateway))
        })
    }
}

/// What is beyond [`WARN`] now and was not told of; `told` follows. Gateways of no known Egress wait until theirs is.
fn news(
    told: &mut BTreeSet<Towards>,
    usage: &Usage,
    egress_of: impl Fn(IpAddr) -> Option<EgressRef>,
) -> Vec<(Towards, u32, EgressRef)> {
    let beyond = |percent| {
        let gateways = usage.iter();
        gateways.flat_map(move |(gateway, used)| {
            used.beyond(percent).map(|(remote, ports)| ((*gateway, remote), ports))
        })
    };
    let crowded: BTreeSet<Towards> = beyond(CALM).map(|(towards, _)| towards).collect();
    told.retain(|towards| crowded.contains(towards));
    let known = beyond(WARN).filter_map(|(towards, ports)| Some((towards, ports, egress_of(towards.0)?)));
    known.filter(|(towards, ..)| told.insert(*towards)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::GatewayUse;

    fn gateway() -> IpAddr {
        "10.64.0.3".parse().unwrap()
    }

    fn remote(port: u16) -> Remote {
        Remote { address: "198.51.100.1".parse().unwrap(), port, protocol: 6 }
    }

    /// Ports in use towards remotes, of which [`GatewayUse::crowded`] has those beyond [`CALM`].
    fn usage(ports: &[(u16, u32)]) -> Usage {
        let crowded = ports.iter().map(|(port, ports)| (remote(*port), *ports)).collect();
        [(gateway(), GatewayUse { crowded, ..GatewayUse::default() })].into()
    }

    fn nat(_: IpAddr) -> Option<EgressRef> {
        Some(EgressRef { namespace: "internet".into(), name: "nat".into() })
    }

    #[test]
    fn a_remote_is_told_of_once_until_it_is_calm() {
        let mut told = BTreeSet::new();
        let mut after = |ports| news(&mut told, &usage(&[(443, ports)]), nat).len();
        assert_eq!([after(40_000), after(50_000), after(51_000)], [0, 1, 0]);
        assert_eq!([after(45_000), after(50_000)], [0, 0], "75 % is not calm");
        assert_eq!([after(30_000), after(50_000)], [0, 1]);
        assert_eq!(news(&mut told, &Usage::new(), nat), [], "the gateway is gone");
        assert!(told.is_empty());
    }

    #[test]
    fn each_remote_is_told_of() {
        let mut told = BTreeSet::new();
        let mut after = |ports: &[(u16, u32)]| {
            let news = news(&mut told, &usage(ports), nat).into_iter();
            news.map(|((_, remote), ..)| remote.port).collect::<Vec<u16>>()
        };
        assert_eq!(after(&[(443, 50_000)]), [443]);
        assert_eq!(after(&[(443, 50_000), (80, 49_000)]), [80], "also the second");
        assert_eq!(after(&[(443, 49_000), (80, 50_000), (22, 48_000)]), [22]);
        assert_eq!(after(&[(80, 50_000), (22, 48_000)]).len(), 0);
        assert_eq!(after(&[(443, 50_000), (80, 50_000), (22, 48_000)]), [443], "it was calm");
    }

    #[test]
    fn what_nobody_was_told_comes_again() {
        let (mut told, usage) = (BTreeSet::new(), usage(&[(443, 50_000)]));
        assert_eq!(news(&mut told, &usage, |_| None), [], "the pod is not known yet");
        assert_eq!(news(&mut told, &usage, nat).len(), 1);
        assert_eq!(news(&mut told, &usage, nat), []);
        // The Event could not be written.
        told.remove(&(gateway(), remote(443)));
        assert_eq!(news(&mut told, &usage, nat).len(), 1);
    }
}
