//! Tables that the programs write: what they hold, what has run out, what was counted.

use std::net::IpAddr;

use aya::{
    Ebpf, Pod,
    maps::{HashMap, MapData, MapError, PerCpuArray},
};
use coil_packet::{Family, Path, Reason, abi::Counter, counter_index};
use nix::time::{ClockId, clock_gettime};

use super::{DatapathError, ports::Look, take, usage::Counting};

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
    /// A number of [`coil_packet::nat::State`].
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

/// What a look at all leases is for.
pub(super) struct Survey {
    pub(super) look: Look,
    pub(super) counting: Counting,
    /// IPv4's are all seen.
    pub(super) v4_is_done: bool,
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
    pub(super) tally: &'static str,
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

/// Removes an entry, if it is still there.
pub(super) fn remove<K: Pod, V: Pod>(
    map: &mut HashMap<MapData, K, V>,
    key: &K,
    name: &'static str,
) -> Result<(), DatapathError> {
    match map.remove(key) {
        Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
        Err(error) if errno(&error) == Some(nix::libc::ENOENT) => Ok(()),
        Err(source) => Err(DatapathError::Map { name, action: "remove an entry", source }),
    }
}
