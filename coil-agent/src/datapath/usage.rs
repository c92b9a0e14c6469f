//! What the leases of this node's gateways come to: for metrics, and to warn before ports run out.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    net::{IpAddr, SocketAddr},
};

use coil_packet::{
    Addr,
    abi::{NatRevKey, NatRevValue, Tally},
    nat::{PORTS, State},
    wire::{tcp, udp},
};

/// Percentage of a gateway's ports towards one remote up to which nobody needs to know.
pub const CALM: u32 = 70;

/// An end outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Remote {
    /// Its address.
    pub address: IpAddr,
    /// Its port, 0 for ICMP echo.
    pub port: u16,
    /// IP protocol.
    pub protocol: u8,
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = SocketAddr::new(self.address, self.port);
        match self.protocol {
            tcp::PROTOCOL => write!(f, "{end}/tcp"),
            udp::PROTOCOL => write!(f, "{end}/udp"),
            _ => write!(f, "{}/icmp", self.address),
        }
    }
}

/// The flows of one gateway's address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GatewayUse {
    /// By protocol and number of the state ([`coil_packet::nat::State`]).
    pub flows: BTreeMap<(u8, u8), u64>,
    /// The remote with most of its ports, and how many.
    pub busiest: Option<(Remote, u32)>,
    /// All remotes with more than [`CALM`] percent of its ports, and how many. They are few: each takes 42,000 flows.
    pub crowded: BTreeMap<Remote, u32>,
    /// Flows that had ever been begun when these were looked at.
    pub begun: u64,
}

impl GatewayUse {
    /// All flows; each has a port.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.flows.values().sum()
    }

    /// Those that are not over: a TCP connection that was closed or reset keeps its port for minutes more.
    #[must_use]
    pub fn open(&self) -> u64 {
        let over = |state| [State::Closed, State::Reset].map(|over| over as u8).contains(&state);
        self.flows.iter().filter(|((_, state), _)| !over(*state)).map(|(_, flows)| flows).sum()
    }

    /// The remotes that have more than this percentage of the ports, of [`CALM`] or more.
    pub fn beyond(&self, percent: u32) -> impl Iterator<Item = (Remote, u32)> {
        let crowded = self.crowded.iter().map(|(remote, ports)| (*remote, *ports));
        crowded.filter(move |(_, ports)| is_beyond(*ports, percent))
    }
}

/// True for more ports than this percentage of all.
fn is_beyond(ports: u32, percent: u32) -> bool {
    u64::from(ports) * 100 > u64::from(PORTS) * u64::from(percent)
}

/// A gateway's address as it is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GatewayNow {
    /// As of the last sweep.
    pub used: GatewayUse,
    /// As of now.
    pub tally: Tally,
}

impl GatewayNow {
    /// Open flows, at most: what began since the last sweep may have ended.
    #[must_use]
    pub fn flows(&self) -> u64 {
        self.used.open() + self.tally.lent.packets.saturating_sub(self.used.begun)
    }
}

/// By gateway address.
pub type Usage = BTreeMap<IpAddr, GatewayUse>;

/// Counts leases.
#[derive(Debug, Default)]
pub(super) struct Counting {
    usage: Usage,
    remotes: HashMap<(IpAddr, Remote), u32>,
}

impl Counting {
    /// A gateway that has begun so many flows. To be told before the leases are looked at.
    pub(super) fn begins(&mut self, gateway: IpAddr, begun: u64) {
        self.usage.entry(gateway).or_default().begun = begun;
    }

    /// A live lease.
    pub(super) fn saw<A: Addr + Into<IpAddr>>(&mut self, key: &NatRevKey<A>, value: &NatRevValue<A>) {
        let protocol = u8::try_from(key.protocol).unwrap_or(0);
        let gateway: IpAddr = key.gateway.into();
        let used = self.usage.entry(gateway).or_default();
        *used.flows.entry((protocol, value.state)).or_default() += 1;
        let remote = Remote { address: key.remote.into(), port: key.remote_port, protocol };
        *self.remotes.entry((gateway, remote)).or_default() += 1;
    }

    /// The sums.
    pub(super) fn end(mut self) -> Usage {
        for ((gateway, remote), ports) in self.remotes {
            let used = self.usage.entry(gateway).or_default();
            if used.busiest.is_none_or(|(_, most)| ports > most) {
                used.busiest = Some((remote, ports));
            }
            if is_beyond(ports, CALM) {
                used.crowded.insert(remote, ports);
            }
        }
        self.usage
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_counted_by_remote() {
        let mut counting = Counting::default();
        let value = NatRevValue {
            client: [10, 64, 0, 1],
            seen: 0,
            client_port: 1,
            state: 1,
            pad: 0,
            known: coil_packet::abi::Known::default(),
        };
        let mut lend = |remote_port, ports| {
            for port in 0..ports {
                let key = NatRevKey {
                    gateway: [10, 64, 1, 1],
                    remote: [198, 51, 100, 1],
                    port,
                    remote_port,
                    protocol: 6,
                };
                counting.saw(&key, &value);
            }
        };
        lend(443, 48_000);
        lend(80, 10);
        lend(8443, 42_000);
        let usage = counting.end();
        let used = &usage[&IpAddr::from([10, 64, 1, 1])];
        assert_eq!((used.total(), used.flows[&(6, 1)]), (90_010, 90_010));
        let beyond = |percent| used.beyond(percent).map(|(remote, ports)| (remote.port, ports));
        assert_eq!(beyond(80).collect::<Vec<_>>(), [(443, 48_000)], "48000 of 59973");
        assert_eq!(beyond(81).count(), 0);
        assert_eq!(beyond(CALM).collect::<Vec<_>>(), [(443, 48_000), (8443, 42_000)]);
        assert_eq!(used.busiest.map(|(remote, _)| remote.port), Some(443));
    }

    #[test]
    fn flows_since_the_last_look_count() {
        let gateway = IpAddr::from([10, 64, 1, 1]);
        let mut counting = Counting::default();
        counting.begins(gateway, 100);
        let used = counting.end()[&gateway].clone();
        let mut now = GatewayNow { used, tally: Tally::default() };
        now.tally.lent.packets = 103;
        assert_eq!(now.flows(), 3);
        now.used.flows = [((6, State::Closed as u8), 7), ((6, State::Reset as u8), 5), ((17, 1), 2)].into();
        assert_eq!((now.flows(), now.used.total()), (5, 14), "what is over holds nobody up");
    }
}
