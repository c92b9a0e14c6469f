//! The kernel's connection tracking: what it knows, how long it remembers, and telling it of a flow.
//!
//! Numbers are those of `linux/netfilter/nfnetlink_conntrack.h`, which never change.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
};

use coil_packet::{
    flow::{Limits, Phase},
    wire::{tcp, udp},
};
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::netlink::{ACK, CREATE, DUMP, NESTED, REQUEST, attributes, exchange, find, message, pack};

/// Source and destination of one direction, as on the wire. ICMP echo: its identifier is the port of the
/// requester.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ends {
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
}

impl Ends {
    const fn turned(self) -> Self {
        Self { source: self.destination, destination: self.source }
    }
}

/// A connection that the kernel tracks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Connection {
    pub(super) protocol: u8,
    pub(super) original: Ends,
    pub(super) reply: Ends,
    pub(super) phase: Phase,
}

const SUBSYSTEM: u16 = 1 << 8;
const NEW: u16 = SUBSYSTEM;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;

/// Attributes of a connection.
mod attribute {
    pub(super) const ORIGINAL: u16 = 1;
    pub(super) const REPLY: u16 = 2;
    pub(super) const STATUS: u16 = 3;
    pub(super) const PROTOINFO: u16 = 4;
    pub(super) const TIMEOUT: u16 = 7;
    /// In a tuple.
    pub(super) const IP: u16 = 1;
    pub(super) const PROTO: u16 = 2;
    /// In its protocol part.
    pub(super) const NUMBER: u16 = 1;
    pub(super) const SOURCE_PORT: u16 = 2;
    pub(super) const DESTINATION_PORT: u16 = 3;
    pub(super) const ICMP_ID: u16 = 4;
    pub(super) const ICMP_TYPE: u16 = 5;
    pub(super) const ICMPV6_ID: u16 = 7;
    pub(super) const ICMPV6_TYPE: u16 = 8;
    /// In PROTOINFO.
    pub(super) const TCP: u16 = 1;
    pub(super) const TCP_STATE: u16 = 1;
    pub(super) const TCP_FLAGS: [u16; 2] = [4, 5];
}

/// `TCP_CONNTRACK_ESTABLISHED`.
const ESTABLISHED: u8 = 3;
/// `IP_CT_TCP_FLAG_BE_LIBERAL`: sequence numbers are not looked at.
const LIBERAL: u8 = 8;
/// `IPS_SEEN_REPLY | IPS_ASSURED | IPS_CONFIRMED`.
const STATUS: u32 = 2 | 4 | 8;
/// `IPS_SRC_NAT`.
const SOURCE_TRANSLATED: u32 = 16;
/// `TCP_CONNTRACK_TIME_WAIT`, behind which nothing is open.
const TIME_WAIT: u8 = 7;
/// Seconds for which the kernel is told of a flow.
const TOLD: u32 = 600;

/// Everything that is tracked in this network namespace and that a flow table has room for.
pub(super) fn dump() -> io::Result<Vec<Connection>> {
    let mut connections = vec![];
    let request = message(GET, REQUEST | DUMP, &header(0), &[]);
    exchange(NETLINK_NETFILTER, &request, |body| connections.extend(connection(body)))?;
    Ok(connections)
}

/// How many connections of this network namespace are masqueraded and not over.
pub(crate) fn masqueraded() -> io::Result<u64> {
    let mut count = 0;
    let request = message(GET, REQUEST | DUMP, &header(0), &[]);
    exchange(NETLINK_NETFILTER, &request, |body| count += u64::from(is_masqueraded(body)))?;
    Ok(count)
}

/// Makes the kernel know a TCP connection that it has not seen, so that it gives its ports to no other, and
/// forget the one that it gave them to.
pub(super) fn tell(ends: Ends) -> io::Result<()> {
    for reply in [ends, ends.turned()] {
        let delete = message(DELETE, REQUEST | ACK, &header(family(&ends)), &tuple(attribute::REPLY, reply));
        match exchange(NETLINK_NETFILTER, &delete, |_| ()) {
            Err(error) if error.raw_os_error() != Some(nix::libc::ENOENT) => return Err(error),
            _ => {}
        }
    }
    let flags = attribute::TCP_FLAGS.map(|kind| pack(kind, &[LIBERAL, LIBERAL]));
    let state = pack(attribute::TCP_STATE, &[ESTABLISHED]);
    let protocol = pack(attribute::TCP | NESTED, &[&state[..], &flags[0], &flags[1]].concat());
    let attributes = [
        tuple(attribute::ORIGINAL, ends),
        tuple(attribute::REPLY, ends.turned()),
        pack(attribute::STATUS, &STATUS.to_be_bytes()),
        pack(attribute::TIMEOUT, &TOLD.to_be_bytes()),
        pack(attribute::PROTOINFO | NESTED, &protocol),
    ];
    let request = message(NEW, REQUEST | ACK | CREATE, &header(family(&ends)), &attributes.concat());
    exchange(NETLINK_NETFILTER, &request, |_| ())
}

/// How long IPVS remembers a datagram's way unless `ipvsadm --set` says otherwise.
const IPVS_UDP: u32 = 300;

/// How long this network namespace's connection tracking remembers. What it does not say is Linux's default:
/// then it tracks nothing.
pub(super) fn limits() -> Limits {
    let read = |names: &[&str], default: u32| {
        let values = names.iter().filter_map(|name| {
            fs::read_to_string(format!("/proc/sys/net/netfilter/nf_conntrack_{name}"))
                .ok()?
                .trim()
                .parse()
                .ok()
        });
        values.max().unwrap_or(default)
    };
    let default = Limits::default();
    // kube-proxy may translate by IPVS, which keeps connections of its own.
    let ipvs = if fs::exists("/proc/thread-self/net/ip_vs").unwrap_or(false) { IPVS_UDP } else { 0 };
    Limits {
        tcp_new: read(&["tcp_timeout_syn_sent", "tcp_timeout_syn_recv"], default.tcp_new),
        tcp_open: read(
            &["tcp_timeout_established", "tcp_timeout_unacknowledged", "tcp_timeout_max_retrans"],
            default.tcp_open,
        ),
        tcp_closing: read(
            &[
                "tcp_timeout_fin_wait",
                "tcp_timeout_close_wait",
                "tcp_timeout_last_ack",
                "tcp_timeout_time_wait",
                "tcp_timeout_close",
                "tcp_timeout_unacknowledged",
                "tcp_timeout_max_retrans",
            ],
            default.tcp_closing,
        ),
        udp: read(&["udp_timeout", "udp_timeout_stream"], default.udp).max(ipvs),
        echo: read(&["icmp_timeout", "icmpv6_timeout"], default.echo),
    }
}

/// What an answer says; nothing for what no flow table holds.
fn connection(body: &[u8]) -> Option<Connection> {
    // `struct nfgenmsg` comes first.
    let list = body.get(4..)?;
    let (mut original, mut reply, mut phase) = (None, None, Phase::Open);
    for (kind, value) in attributes(list) {
        match kind {
            attribute::ORIGINAL => original = ends(value),
            attribute::REPLY => reply = ends(value),
            attribute::PROTOINFO => phase = phase_of(value),
            _ => {}
        }
    }
    let ((protocol, original), (_, reply)) = (original?, reply?);
    Some(Connection { protocol, original, reply, phase })
}

fn is_masqueraded(body: &[u8]) -> bool {
    let list = body.get(4..).unwrap_or_default();
    let status = find(list, attribute::STATUS).and_then(|status| status.first_chunk());
    let is_over =
        find(list, attribute::PROTOINFO).and_then(tcp_state).is_some_and(|state| state >= TIME_WAIT);
    status.is_some_and(|status| u32::from_be_bytes(*status) & SOURCE_TRANSLATED != 0) && !is_over
}

fn tcp_state(protoinfo: &[u8]) -> Option<u8> {
    find(find(protoinfo, attribute::TCP)?, attribute::TCP_STATE)?.first().copied()
}

fn phase_of(protoinfo: &[u8]) -> Phase {
    match tcp_state(protoinfo) {
        Some(0..=2) => Phase::New,
        Some(4..) => Phase::Closing,
        _ => Phase::Open,
    }
}

fn ends(tuple: &[u8]) -> Option<(u8, Ends)> {
    let (mut addresses, mut number) = ([None; 2], 0);
    let (mut ports, mut echo, mut kind) = ([0; 2], None, 0);
    let word = |value: &[u8]| value.first_chunk().map(|port| u16::from_be_bytes(*port));
    for (part, value) in attributes(tuple) {
        for (attribute, value) in attributes(value) {
            match (part, attribute) {
                (attribute::IP, 1 | 3) => addresses[0] = address(value),
                (attribute::IP, 2 | 4) => addresses[1] = address(value),
                (attribute::PROTO, attribute::NUMBER) => number = *value.first()?,
                (attribute::PROTO, attribute::SOURCE_PORT) => ports[0] = word(value)?,
                (attribute::PROTO, attribute::DESTINATION_PORT) => ports[1] = word(value)?,
                (attribute::PROTO, attribute::ICMP_ID | attribute::ICMPV6_ID) => echo = word(value),
                (attribute::PROTO, attribute::ICMP_TYPE | attribute::ICMPV6_TYPE) => kind = *value.first()?,
                _ => {}
            }
        }
    }
    match (number, kind, echo) {
        (tcp::PROTOCOL | udp::PROTOCOL, ..) => {}
        // Echo request and reply, of ICMP and ICMPv6.
        (1, 8, Some(id)) | (58, 128, Some(id)) => ports = [id, 0],
        (1, 0, Some(id)) | (58, 129, Some(id)) => ports = [0, id],
        _ => return None,
    }
    let [source, destination] = addresses;
    let ends = Ends {
        source: SocketAddr::new(source?, ports[0]),
        destination: SocketAddr::new(destination?, ports[1]),
    };
    Some((number, ends))
}

fn address(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => <[u8; 4]>::try_from(value).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(value).ok().map(IpAddr::from),
        _ => None,
    }
}

/// `struct nfgenmsg`.
pub(super) const fn header(family: u8) -> [u8; 4] {
    [family, 0, 0, 0]
}

fn family(ends: &Ends) -> u8 {
    let family = if ends.source.is_ipv4() { nix::libc::AF_INET } else { nix::libc::AF_INET6 };
    u8::try_from(family).unwrap_or_default()
}

/// A tuple of TCP.
fn tuple(kind: u16, ends: Ends) -> Vec<u8> {
    let (first, addresses) = match (ends.source.ip(), ends.destination.ip()) {
        (IpAddr::V4(s), IpAddr::V4(d)) => (1, [s.octets().to_vec(), d.octets().to_vec()]),
        (s, d) => (3, [octets6(s), octets6(d)]),
    };
    let ip = [pack(first, &addresses[0]), pack(first + 1, &addresses[1])].concat();
    let protocol = [
        pack(attribute::NUMBER, &[tcp::PROTOCOL]),
        pack(attribute::SOURCE_PORT, &ends.source.port().to_be_bytes()),
        pack(attribute::DESTINATION_PORT, &ends.destination.port().to_be_bytes()),
    ];
    let parts = [pack(attribute::IP | NESTED, &ip), pack(attribute::PROTO | NESTED, &protocol.concat())];
    pack(kind | NESTED, &parts.concat())
}

fn octets6(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends_of(source: &str, destination: &str) -> Ends {
        Ends { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    #[test]
    fn what_is_packed_is_read_back() {
        for (source, destination) in [("10.0.0.1:40000", "10.0.0.2:80"), ("[fd00::1]:40000", "[fd00::2]:80")]
        {
            let ends = ends_of(source, destination);
            let list = [tuple(attribute::ORIGINAL, ends), tuple(attribute::REPLY, ends.turned())].concat();
            let read = connection(&[&[0; 4], &list[..]].concat()).unwrap();
            let expected =
                Connection { protocol: 6, original: ends, reply: ends.turned(), phase: Phase::Open };
            assert_eq!(read, expected);
        }
    }

    #[test]
    fn nonsense_is_no_connection() {
        let whole = tuple(attribute::ORIGINAL, ends_of("10.0.0.1:1", "10.0.0.2:2"));
        for len in 0..whole.len() {
            assert_eq!(connection(&[&[0; 4], &whole[..len]].concat()), None);
        }
    }
}
