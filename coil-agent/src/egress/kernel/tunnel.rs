//! FOU ports and tunnel links, in the calling thread's network namespace.
//!
//! Numbers are those of `linux/fou.h`, `linux/if_tunnel.h`, `linux/if_link.h`.

use std::io;

use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_ROUTE};
use nix::libc;

use super::{
    KernelError,
    plan::Tunnel,
    set::{address, octets},
};
use crate::datapath::netlink::{ACK, CREATE, NESTED, REQUEST, exchange, find, generic_family, message, pack};

const FOU_ADD: u8 = 1;
/// Protocols inside: IPv4 and IPv6.
const IPIP: u8 = 4;
const IPV6: u8 = 41;
/// What tunnels of a family carry.
pub(super) const INNER: [u8; 2] = [IPIP, IPV6];

const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
const SET_LINK: u16 = 19;
const IFNAME: u16 = 3;
const LINKINFO: u16 = 18;
const KIND: u16 = 1;
const DATA: u16 = 2;
/// `IFF_UP`.
const UP: u32 = 1;
/// TTL and hop limit of tunnels.
const TTL: u8 = 225;
/// `IP6_TNL_F_IGN_ENCAP_LIMIT`: no options header before UDP.
const NO_ENCAP_LIMIT: u32 = 1;
/// `TUNNEL_ENCAP_FOU`.
const ENCAP_FOU: u16 = 1;
/// `IFLA_IPTUN_LOCAL` and `IFLA_IPTUN_REMOTE`.
const LOCAL: u16 = 2;
const REMOTE: u16 = 3;
/// `IFLA_IPTUN_ENCAP_SPORT` and `IFLA_IPTUN_ENCAP_DPORT`.
const SPORT: u16 = 17;
const DPORT: u16 = 18;

/// Links that receive from any peer, by family: name and kind.
pub const RECEIVERS: [(&str, &str); 2] = [("coil_ipip4", "ipip"), ("coil_ipip6", "ip6tnl")];
/// Links that the modules make by themselves: their names, and Coil's names for them.
pub const OTHERS: [(&str, &str); 2] = [("tunl0", "coil_tunl"), ("ip6tnl0", "coil_ip6tnl")];

/// Makes this namespace take FOU of a family at `port`, from any peer. Doing it twice changes nothing.
///
/// # Errors
/// When the kernel lacks a module or refuses.
pub fn listen(port: u16, v6: bool) -> Result<(), KernelError> {
    let failed = |doing: String| move |source| KernelError::Tunnel { doing, source };
    existing(add_port(port, v6)).map_err(failed(format!("listen for FOU on UDP port {port}")))?;
    let name = RECEIVERS[usize::from(v6)].0;
    existing(add_receiver(v6)).map_err(failed(format!("make link {name}")))?;
    set_up(name).map_err(failed(format!("set up link {name}")))
}

/// Makes the link that receives from any peer.
pub(in crate::egress) fn add_receiver(v6: bool) -> io::Result<()> {
    let (name, kind) = RECEIVERS[usize::from(v6)];
    // IFLA_IPTUN_COLLECT_METADATA; ip6tnl carries IPv6 alone.
    let mut data = pack(19, &[]);
    if v6 {
        data.extend(pack(9, &[IPV6]));
    }
    add_link(name, kind, &data)
}

/// Makes the link to a peer. It must not exist.
///
/// # Errors
/// When the kernel lacks a module or refuses.
pub fn add(name: &str, tunnel: &Tunnel, port: u16) -> Result<(), KernelError> {
    let failed =
        |source| KernelError::Tunnel { doing: format!("make link {name} to {}", tunnel.remote), source };
    add_tunnel(name, tunnel, port).map_err(failed)?;
    set_up(name).map_err(failed)
}

/// Makes the link to a peer, and leaves it down.
pub(in crate::egress) fn add_tunnel(name: &str, tunnel: &Tunnel, port: u16) -> io::Result<()> {
    let [sport, dport] = ports(tunnel, port);
    let v6 = tunnel.local.is_ipv6();
    let mut data = [
        pack(LOCAL, &octets(tunnel.local)),
        pack(REMOTE, &octets(tunnel.remote)),
        pack(4, &[TTL]),
        pack(15, &ENCAP_FOU.to_ne_bytes()),
        // No UDP checksum.
        pack(16, &0_u16.to_ne_bytes()),
        pack(SPORT, &sport.to_be_bytes()),
        pack(DPORT, &dport.to_be_bytes()),
    ]
    .concat();
    if v6 {
        data.extend([pack(8, &NO_ENCAP_LIMIT.to_ne_bytes()), pack(9, &[IPV6])].concat());
    } else {
        // Path MTU discovery: DF set.
        data.extend(pack(10, &[1]));
    }
    add_link(name, if v6 { "ip6tnl" } else { "ipip" }, &data)
}

/// The UDP ports of a tunnel's FOU. The source is 0 where each flow has its own.
const fn ports(tunnel: &Tunnel, port: u16) -> [u16; 2] {
    [if matches!(tunnel.sport_auto, Some(true)) { 0 } else { port }, port]
}

/// Whether the tunnel of this name has other ports than it should; not where there is none, or nobody says which.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn has_other_ports(name: &str, tunnel: &Tunnel, port: u16) -> io::Result<bool> {
    if tunnel.sport_auto.is_none() {
        return Ok(false);
    }
    let there =
        data_of(name)?.and_then(|data| [SPORT, DPORT].iter().map(|kind| port_in(&data, *kind)).collect());
    Ok(there.is_some_and(|there: Vec<u16>| there != ports(tunnel, port)))
}

/// The tunnel of this name; none where there is none, or it is no tunnel between two addresses.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn read(name: &str) -> io::Result<Option<Tunnel>> {
    let of = |data: &[u8]| {
        let end = |kind| address(find(data, kind)?);
        let (local, remote) = (end(LOCAL)?, end(REMOTE)?);
        Some(Tunnel { local, remote, sport_auto: Some(port_in(data, SPORT)? == 0) })
    };
    Ok(data_of(name)?.as_deref().and_then(of))
}

/// What a link's kind says of it; none where there is no such link, or its kind says nothing.
fn data_of(name: &str) -> io::Result<Option<Vec<u8>>> {
    let mut found = None;
    let question = message(GET_LINK, REQUEST | ACK, &header(0, 0), &named(name));
    let asked = exchange(NETLINK_ROUTE, &question, |body| {
        let data = body.get(header(0, 0).len()..).and_then(|list| find(find(list, LINKINFO)?, DATA));
        found = data.map(<[u8]>::to_vec);
    });
    match asked {
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        other => other.map(|()| found),
    }
}

fn port_in(data: &[u8], kind: u16) -> Option<u16> {
    Some(u16::from_be_bytes(*find(data, kind)?.first_chunk()?))
}

/// Makes UDP packets at `port` those of FOU.
pub(in crate::egress) fn add_port(port: u16, v6: bool) -> io::Result<()> {
    let family = generic_family("fou")?;
    let af = u8::try_from(if v6 { libc::AF_INET6 } else { libc::AF_INET }).unwrap_or_default();
    let protocol = INNER[usize::from(v6)];
    // FOU_ATTR_PORT, _AF, _IPPROTO, _TYPE: direct.
    let list = [pack(1, &port.to_be_bytes()), pack(2, &[af]), pack(3, &[protocol]), pack(4, &[1])].concat();
    exchange(NETLINK_GENERIC, &message(family, REQUEST | ACK, &[FOU_ADD, 1, 0, 0], &list), |_| {})
}

fn header(change: u32, flags: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&change.to_ne_bytes());
    header
}

fn named(name: &str) -> Vec<u8> {
    pack(IFNAME, &[name.as_bytes(), &[0]].concat())
}

fn add_link(name: &str, kind: &str, data: &[u8]) -> io::Result<()> {
    let info = [pack(KIND, kind.as_bytes()), pack(DATA | NESTED, data)].concat();
    let list = [named(name), pack(LINKINFO | NESTED, &info)].concat();
    exchange(NETLINK_ROUTE, &message(NEW_LINK, REQUEST | ACK | CREATE, &header(0, 0), &list), |_| {})
}

fn set_up(name: &str) -> io::Result<()> {
    exchange(NETLINK_ROUTE, &message(SET_LINK, REQUEST | ACK, &header(UP, UP), &named(name)), |_| {})
}

/// What is there already is as good as made.
fn existing(made: io::Result<()>) -> io::Result<()> {
    match made {
        Err(e) if matches!(e.raw_os_error(), Some(libc::EEXIST | libc::EALREADY | libc::EADDRINUSE)) => {
            Ok(())
        }
        other => other,
    }
}
