//! Single packets that the programs dropped: a sample, with what they were.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use aya::{
    Ebpf,
    maps::{MapData, RingBuf},
};
use coil_packet::{Path, Reason, abi::Event};

use super::{DatapathError, take};

/// A packet that a program dropped. For ICMP echo, ports are identifiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// The program.
    pub path: Path,
    /// Why.
    pub reason: Reason,
    /// Where it came from.
    pub source: SocketAddr,
    /// Where it should have gone.
    pub destination: SocketAddr,
    /// IP protocol.
    pub protocol: u8,
    /// The link that the program runs on.
    pub ifindex: u32,
    /// Bytes with the Ethernet header.
    pub bytes: u32,
}

impl fmt::Display for Dropped {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, destination, protocol, ifindex, bytes, .. } = self;
        let (path, reason) = (self.path.name(), self.reason.name());
        write!(out, "{path} dropped a packet ({reason}): {source} to {destination}, protocol {protocol}, ")?;
        write!(out, "{bytes} bytes, on interface {ifindex}")
    }
}

/// The ring of the programs that this agent has loaded. Those of an earlier agent tell nobody.
pub(super) struct Events(RingBuf<MapData>);

impl Events {
    pub(super) fn adopt(ebpf: &mut Ebpf) -> Result<Self, DatapathError> {
        take(ebpf, "coil_events").map(Self)
    }

    /// What was told since the last time.
    pub(super) fn take(&mut self) -> Vec<Dropped> {
        let mut dropped = vec![];
        while let Some(item) = self.0.next() {
            dropped.extend(parse(&item));
        }
        dropped
    }
}

fn parse(bytes: &[u8]) -> Option<Dropped> {
    let event: Event = bytemuck::try_pod_read_unaligned(bytes.get(..size_of::<Event>())?).ok()?;
    let address = |[high, low]: [u64; 2]| match event.family {
        0 => u32::try_from(low).ok().map(|bits| IpAddr::V4(bits.into())),
        _ => Some(IpAddr::V6((u128::from(high) << 64 | u128::from(low)).into())),
    };
    Some(Dropped {
        path: *Path::ALL.get(usize::from(event.path))?,
        reason: *Reason::ALL.get(usize::from(event.reason))?,
        source: SocketAddr::new(address(event.src)?, event.sport),
        destination: SocketAddr::new(address(event.dst)?, event.dport),
        protocol: event.protocol,
        ifindex: event.ifindex,
        bytes: event.len,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_becomes_a_line() {
        let mut event = Event {
            src: [0, 0x0a40_0001],
            dst: [0, 0xc633_6409],
            ifindex: 7,
            len: 60,
            sport: 40000,
            dport: 80,
            protocol: 6,
            path: Path::FromPod as u8,
            family: 0,
            reason: Reason::NoGateway as u8,
        };
        let line = parse(bytemuck::bytes_of(&event)).unwrap().to_string();
        let wanted = "from_pod dropped a packet (no-gateway): 10.64.0.1:40000 to 198.51.100.9:80, protocol 6, 60 bytes, \
                      on interface 7";
        assert_eq!(line, wanted);
        event = Event { family: 1, src: [0xfd64 << 48, 1], dst: [0x2001_0db8 << 32, 9], ..event };
        let line = parse(bytemuck::bytes_of(&event)).unwrap().to_string();
        assert!(line.contains("[fd64::1]:40000 to [2001:db8::9]:80"), "{line}");
        event.reason = 255;
        assert_eq!(parse(bytemuck::bytes_of(&event)), None);
        assert_eq!(parse(&[0; 47]), None);
    }
}
