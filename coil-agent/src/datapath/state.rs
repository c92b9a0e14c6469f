//! Tables that the programs write: what they hold, what has run out, what was counted.

use std::{collections::BTreeMap, net::IpAddr};

use aya::{
    Ebpf, Pod,
    maps::{HashMap, MapData, MapError, PerCpuArray},
};
use coil_packet::{
    Addr, Family, Path, Reason,
    abi::{Counter, NatKey, NatRevKey, NatRevValue, NatValue, PinKey, PinValue},
    counter_index,
    flow::Limits,
    nat,
};
use nix::time::{ClockId, clock_gettime};

use super::{DatapathError, flows::FlowTables, image::HostAddr, outgrown::Outgrown, take};

/// One counter of the programs, summed over all CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The program.
    pub path: Path,
    /// The address family.
    pub family: Family,
    /// The reason, which also says the verdict.
    pub reason: Reason,
    /// Packets, a GSO packet counted once.
    pub packets: u64,
    /// Bytes with the Ethernet header.
    pub bytes: u64,
}

/// A live translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NatEntry {
    /// The gateway pod.
    pub gateway: IpAddr,
    /// The client pod.
    pub client: IpAddr,
    /// The address outside.
    pub remote: IpAddr,
    /// IP protocol.
    pub protocol: u8,
    /// The client's port (echo identifier).
    pub client_port: u16,
    /// The gateway's port.
    pub port: u16,
    /// The remote's port, 0 for ICMP echo.
    pub remote_port: u16,
    /// A number of [`nat::State`].
    pub state: u8,
    /// Seconds since the last packet.
    pub idle: u32,
}

/// What a sweep removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Flows between pods.
    pub flows: usize,
    /// Translations.
    pub translations: usize,
    /// Flows of which the kernel was told, because it had given their ports to another.
    pub clashes: usize,
}

/// Seconds of the clock that the programs stamp entries with.
#[must_use]
pub fn monotonic_seconds() -> u32 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| u32::try_from(time.tv_sec()).unwrap_or(u32::MAX))
}

/// The counters of all programs.
pub(super) struct Counters(PerCpuArray<MapData, Counter>);

impl Counters {
    const NAME: &str = "coil_counters";

    pub(super) fn adopt(ebpf: &mut Ebpf) -> Result<Self, DatapathError> {
        take(ebpf, Self::NAME).map(Self)
    }

    pub(super) fn read(&self) -> Result<Vec<Reading>, DatapathError> {
        let mut readings = vec![];
        for path in Path::ALL {
            for family in [Family::V4, Family::V6] {
                for &reason in Reason::ALL {
                    let cpus = self.0.get(&counter_index(path, family, reason), 0).map_err(|source| {
                        DatapathError::Map { name: Self::NAME, action: "read it", source }
                    })?;
                    let packets = cpus.iter().map(|c| c.packets).sum();
                    let bytes = cpus.iter().map(|c| c.bytes).sum();
                    readings.push(Reading { path, family, reason, packets, bytes });
                }
            }
        }
        Ok(readings)
    }
}

/// Names of the maps that the programs write.
#[derive(Clone, Copy)]
pub(super) struct StateNames {
    pub(super) flows: &'static str,
    pub(super) datagrams: &'static str,
    pub(super) nat: &'static str,
    pub(super) nat_rev: &'static str,
    pub(super) pin: &'static str,
    pub(super) lent: &'static str,
    pub(super) returned: &'static str,
}

/// Flows and translations of one family.
pub(super) struct FamilyState<A: Addr> {
    names: StateNames,
    pub(super) flows: FlowTables<A>,
    nat: HashMap<MapData, NatKey<A>, NatValue>,
    nat_rev: HashMap<MapData, NatRevKey<A>, NatRevValue<A>>,
    pin: HashMap<MapData, PinKey<A>, PinValue<A>>,
    /// Ports that each client was ever lent, as the programs count.
    lent: HashMap<MapData, A, u32>,
    /// How many of these it has no more.
    returned: HashMap<MapData, A, u32>,
}

impl<A: HostAddr> FamilyState<A> {
    pub(super) fn adopt(ebpf: &mut Ebpf, names: StateNames) -> Result<Self, DatapathError> {
        Ok(Self {
            names,
            flows: FlowTables::adopt(ebpf, names)?,
            nat: take(ebpf, names.nat)?,
            nat_rev: take(ebpf, names.nat_rev)?,
            pin: take(ebpf, names.pin)?,
            lent: take(ebpf, names.lent)?,
            returned: take(ebpf, names.returned)?,
        })
    }

    /// Moves in what maps of before hold. The reverse entries first: without its own a forward entry counts for nothing.
    pub(super) fn take_over(&mut self, outgrown: &Outgrown) -> Result<usize, DatapathError> {
        Ok(outgrown.move_to(self.names.nat_rev, &mut self.nat_rev)?
            + outgrown.move_to(self.names.nat, &mut self.nat)?
            + outgrown.move_to(self.names.pin, &mut self.pin)?
            + outgrown.move_to(self.names.lent, &mut self.lent)?
            + outgrown.move_to(self.names.returned, &mut self.returned)?)
    }

    /// The live translations.
    pub(super) fn translations(&self, now: u32) -> Result<Vec<NatEntry>, DatapathError> {
        let mut entries = vec![];
        for (key, value) in all(&self.nat_rev, self.names.nat_rev)? {
            let protocol = u8::try_from(key.protocol).unwrap_or(0);
            if nat::expired(protocol, &value, now) {
                continue;
            }
            entries.push(NatEntry {
                gateway: key.gateway.into(),
                client: value.client.into(),
                remote: key.remote.into(),
                protocol,
                client_port: value.client_port,
                port: key.port,
                remote_port: key.remote_port,
                state: value.state,
                idle: now.saturating_sub(value.seen),
            });
        }
        Ok(entries)
    }

    /// Removes what has run out, and what belongs to one of the addresses in `gone`.
    pub(super) fn sweep(&mut self, now: u32, limits: &Limits, gone: &[A]) -> Result<Swept, DatapathError> {
        let mut swept = Swept { flows: self.flows.sweep(now, limits, gone)?, translations: 0, clashes: 0 };
        let is_gone = |addr: A| gone.iter().any(|g| g.same(addr));
        // Before the leases are counted: what is lent meanwhile counts as in use until the next time.
        let lent = all(&self.lent, self.names.lent)?;
        let mut in_use: BTreeMap<IpAddr, u32> = BTreeMap::new();
        for (key, value) in all(&self.nat_rev, self.names.nat_rev)? {
            let protocol = u8::try_from(key.protocol).unwrap_or(0);
            if nat::expired(protocol, &value, now) || is_gone(key.gateway) || is_gone(value.client) {
                remove(&mut self.nat_rev, &key, self.names.nat_rev)?;
                swept.translations += 1;
            } else {
                *in_use.entry(value.client.into()).or_default() += 1;
            }
        }
        self.settle(&lent, &in_use)?;
        // A forward entry counts only while its reverse entry points back. The programs insert that first,
        // so an entry without one is left over.
        for (key, value) in all(&self.nat, self.names.nat)? {
            let reverse = NatRevKey {
                gateway: key.gateway,
                remote: key.remote,
                port: value.port,
                remote_port: key.remote_port,
                protocol: key.protocol,
            };
            let points_back = self
                .nat_rev
                .get(&reverse, 0)
                .is_ok_and(|lease| lease.client.same(key.client) && lease.client_port == key.client_port);
            if !points_back {
                remove(&mut self.nat, &key, self.names.nat)?;
            }
        }
        Ok(swept)
    }
}

impl<A: HostAddr> FamilyState<A> {
    /// Tells the programs how many of the ports that they lent have come back.
    fn settle(&mut self, lent: &[(A, u32)], in_use: &BTreeMap<IpAddr, u32>) -> Result<(), DatapathError> {
        for (client, count) in lent {
            let has = in_use.get(&(*client).into()).copied().unwrap_or_default();
            if has == 0 {
                // What is lent at this moment is not counted until then.
                remove(&mut self.returned, client, self.names.returned)?;
                remove(&mut self.lent, client, self.names.lent)?;
                continue;
            }
            let name = self.names.returned;
            self.returned
                .insert(*client, count.wrapping_sub(has), 0)
                .map_err(|source| DatapathError::Map { name, action: "change an entry", source })?;
        }
        Ok(())
    }
}

/// All entries. One that the programs remove meanwhile is left out.
pub(super) fn all<K: Pod, V: Pod>(
    map: &HashMap<MapData, K, V>,
    name: &'static str,
) -> Result<Vec<(K, V)>, DatapathError> {
    map.iter().collect::<Result<_, _>>().map_err(|source| DatapathError::Map {
        name,
        action: "read it",
        source,
    })
}

/// The kernel's error number.
pub(super) fn errno(error: &MapError) -> Option<i32> {
    match error {
        MapError::SyscallError(error) => error.io_error.raw_os_error(),
        _ => None,
    }
}

pub(super) fn remove<K: Pod, V: Pod>(
    map: &mut HashMap<MapData, K, V>,
    key: &K,
    name: &'static str,
) -> Result<(), DatapathError> {
    match map.remove(key) {
        Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
        Err(source) => Err(DatapathError::Map { name, action: "remove an entry", source }),
    }
}
