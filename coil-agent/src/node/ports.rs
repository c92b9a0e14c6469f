//! A warning before a gateway has no port left towards some remote.

use std::{collections::BTreeSet, net::IpAddr};

use tracing::warn;

use super::{
    Node, lock,
    tell::{PORTS_RUN_OUT, publish},
};
use crate::datapath::{Remote, Usage};

/// Percentages of the ports towards one remote: a warning comes beyond the first, and another one only after they have
/// been below the second.
const WARN: u32 = 80;
const CALM: u32 = 70;

impl Node {
    /// Looks at what the last sweep found, and writes an Event on the Egress of a gateway whose ports run out.
    pub fn warn_of_ports(&self) {
        let Some(usage) = self.plane.with(|plane| plane.usage()) else { return };
        let news = news(&mut lock(&self.port_warnings), &usage);
        for (gateway, remote, ports) in news {
            let egress = lock(&self.pods).values().find_map(|entry| {
                let pod = entry.attached.pod.as_ref()?;
                let own = entry.attached.link.addresses();
                pod.gateway_of.clone().filter(|_| own.contains(&gateway))
            });
            let Some(egress) = egress else { continue };
            let all = coil_packet::nat::PORTS;
            let note = format!(
                "{ports} of {all} ports of the gateway {gateway} are in use towards {remote}: when none is left, new \
                 flows to it fail; more replicas have more ports"
            );
            warn!(%egress, %gateway, %remote, ports, "ports run out");
            let client = self.client.clone();
            tokio::spawn(publish(client, egress, PORTS_RUN_OUT, note));
        }
    }
}

/// What is beyond [`WARN`] now and was not told of; `told` follows.
fn news(told: &mut BTreeSet<IpAddr>, usage: &Usage) -> Vec<(IpAddr, Remote, u32)> {
    told.retain(|gateway| usage.get(gateway).is_some_and(|used| used.beyond(CALM).is_some()));
    let beyond = usage.iter().filter_map(|(gateway, used)| {
        let (remote, ports) = used.beyond(WARN)?;
        Some((*gateway, remote, ports))
    });
    beyond.filter(|(gateway, ..)| told.insert(*gateway)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::GatewayUse;

    #[test]
    fn a_gateway_is_told_of_once_until_it_is_calm() {
        let gateway: IpAddr = "10.64.0.3".parse().unwrap();
        let usage = |ports| -> Usage {
            let remote = Remote { address: "198.51.100.1".parse().unwrap(), port: 443, protocol: 6 };
            [(gateway, GatewayUse { busiest: Some((remote, ports)), ..GatewayUse::default() })].into()
        };
        let mut told = BTreeSet::new();
        let mut after = |ports| news(&mut told, &usage(ports)).len();
        assert_eq!([after(40_000), after(50_000), after(51_000)], [0, 1, 0]);
        assert_eq!([after(45_000), after(50_000)], [0, 0], "75 % is not calm");
        assert_eq!([after(30_000), after(50_000)], [0, 1]);
    }
}
