//! The flow tables: forgetting what is idle, and marking what the kernel had before.

use std::net::SocketAddr;

use aya::{
    Ebpf,
    maps::{HashMap, MapData, MapError},
};
use coil_packet::{
    Addr,
    abi::{FlowKey, FlowValue},
    flow::{self, Limits},
    wire::tcp,
};
use ipnet::IpNet;

use super::{
    DatapathError,
    conntrack::{Connection, Ends},
    image::HostAddr,
    state::{StateNames, all, errno, remove},
    take,
};

type Flows<A> = HashMap<MapData, FlowKey<A>, FlowValue>;

/// The flow tables of one family.
pub(super) struct FlowTables<A: Addr> {
    names: [&'static str; 2],
    tcp: Flows<A>,
    datagrams: Flows<A>,
}

impl<A: HostAddr> FlowTables<A> {
    pub(super) fn adopt(ebpf: &mut Ebpf, names: StateNames) -> Result<Self, DatapathError> {
        Ok(Self {
            names: [names.flows, names.datagrams],
            tcp: take(ebpf, names.flows)?,
            datagrams: take(ebpf, names.datagrams)?,
        })
    }

    /// Removes what has run out, and what belongs to one of the addresses in `gone`.
    pub(super) fn sweep(&mut self, now: u32, limits: &Limits, gone: &[A]) -> Result<usize, DatapathError> {
        let is_gone = |addr: A| gone.iter().any(|g| g.same(addr));
        self.remove_where(|key, value| {
            let protocol = u8::try_from(key.protocol).unwrap_or(0);
            flow::expired(protocol, value, now, limits) || is_gone(key.low) || is_gone(key.high)
        })
    }

    /// Removes every fast flow: the kernel has had them in the meantime.
    pub(super) fn forget_fast(&mut self) -> Result<usize, DatapathError> {
        self.remove_where(|_, value| value.state == flow::FAST)
    }

    /// The same of some addresses. A new connection with the ends of an idle one is the kernel's then.
    pub(super) fn forget_fast_of(&mut self, addresses: &[A]) -> Result<usize, DatapathError> {
        if addresses.is_empty() {
            return Ok(0);
        }
        let theirs = |addr: A| addresses.iter().any(|address| address.same(addr));
        self.remove_where(|key, value| value.state == flow::FAST && (theirs(key.low) || theirs(key.high)))
    }

    fn remove_where(
        &mut self,
        doomed: impl Fn(&FlowKey<A>, &FlowValue) -> bool,
    ) -> Result<usize, DatapathError> {
        let mut removed = 0;
        for (table, name) in [(&mut self.tcp, self.names[0]), (&mut self.datagrams, self.names[1])] {
            for (key, value) in all(table, name)? {
                // Another look: a packet may have come since the table was read.
                if doomed(&key, &value) && table.get(&key, 0).is_ok_and(|value| doomed(&key, &value)) {
                    remove(table, &key, name)?;
                    removed += 1;
                }
            }
        }
        Ok(removed)
    }

    /// Marks a connection between two of the `pools` as the kernel's, in both forms that its packets have: before
    /// and after translation. False when a table has no room.
    pub(super) fn mark(
        &mut self,
        connection: &Connection,
        pools: &[IpNet],
        now: u32,
    ) -> Result<bool, DatapathError> {
        let in_pools = |end: &SocketAddr| pools.iter().any(|pool| pool.contains(&end.ip()));
        let value = FlowValue {
            seen: now,
            state: flow::KERNEL,
            phase: connection.phase as u8,
            ..FlowValue::default()
        };
        for ends in [&connection.original, &connection.reply] {
            if !in_pools(&ends.source) || !in_pools(&ends.destination) {
                continue;
            }
            let Some(key) = key::<A>(ends, connection.protocol) else { continue };
            let (table, name) = if connection.protocol == tcp::PROTOCOL {
                (&mut self.tcp, self.names[0])
            } else {
                (&mut self.datagrams, self.names[1])
            };
            match table.insert(key, value, NO_EXIST) {
                Ok(()) => {}
                Err(error) if errno(&error) == Some(nix::libc::EEXIST) => {}
                Err(error) if errno(&error) == Some(nix::libc::E2BIG) => return Ok(false),
                Err(source) => return Err(DatapathError::Map { name, action: "add an entry", source }),
            }
        }
        Ok(true)
    }

    /// TCP flows that the kernel ran into without knowing them.
    pub(super) fn clashes(&self) -> Result<Vec<FlowKey<A>>, DatapathError> {
        let name = self.names[0];
        let mut clashes = vec![];
        for (key, value) in all(&self.tcp, name)? {
            if value.state == flow::FAST && value.clash != 0 {
                clashes.push(key);
            }
        }
        Ok(clashes)
    }

    /// The clash is no more: connection tracking knows the flow.
    pub(super) fn settle(&mut self, key: &FlowKey<A>) -> Result<(), DatapathError> {
        let name = self.names[0];
        let failed = |action| move |source| DatapathError::Map { name, action, source };
        match self.tcp.get(key, 0) {
            // A packet that comes in between loses its second, no more.
            Ok(value) => match self.tcp.insert(key, FlowValue { clash: 0, ..value }, EXIST) {
                Err(MapError::KeyNotFound) | Ok(()) => Ok(()),
                Err(error) if errno(&error) == Some(nix::libc::ENOENT) => Ok(()),
                Err(error) => Err(failed("change an entry")(error)),
            },
            Err(MapError::KeyNotFound) => Ok(()),
            Err(error) => Err(failed("read an entry")(error)),
        }
    }
}

/// `BPF_NOEXIST` and `BPF_EXIST`.
const NO_EXIST: u64 = 1;
const EXIST: u64 = 2;

/// The key of a connection, by one pair of its ends.
fn key<A: HostAddr>(ends: &Ends, protocol: u8) -> Option<FlowKey<A>> {
    let (source, destination) = (A::of(ends.source.ip())?, A::of(ends.destination.ip())?);
    let one = (source.words(), ends.source.port());
    let other = (destination.words(), ends.destination.port());
    let protocol = u32::from(protocol);
    Some(if one < other {
        FlowKey { low: source, high: destination, low_port: one.1, high_port: other.1, protocol }
    } else {
        FlowKey { low: destination, high: source, low_port: other.1, high_port: one.1, protocol }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_of_a_connection_have_one_key() {
        let ends = |source: &str, destination: &str| Ends {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
        };
        let there = key::<[u8; 4]>(&ends("10.64.1.1:80", "10.64.0.2:40000"), 6).unwrap();
        assert_eq!(key::<[u8; 4]>(&ends("10.64.0.2:40000", "10.64.1.1:80"), 6), Some(there));
        assert_eq!((there.low, there.low_port, there.high_port), ([10, 64, 0, 2], 40000, 80));
        assert_eq!(key::<[u8; 16]>(&ends("10.64.0.2:40000", "10.64.1.1:80"), 6), None);
        // Of one address the port decides.
        let hairpin = key::<[u8; 4]>(&ends("10.64.0.2:80", "10.64.0.2:79"), 6).unwrap();
        assert_eq!((hairpin.low_port, hairpin.high_port), (79, 80));
    }
}
