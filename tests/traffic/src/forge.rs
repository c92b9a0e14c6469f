//! FOU that nobody asked for: what a forger sends to a gateway or to a client.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use anyhow::{Context as _, Result, bail};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::UdpSocket;

use super::unspecified;

const UDP: u8 = 17;
const UDP_HEADER: usize = 8;
const SAYS: &[u8] = b"forged";

/// Sends `times` datagrams to `to`, from an address that need not be this host's. In each is a datagram from `inner` to
/// `target`.
pub(super) async fn send(
    to: SocketAddr,
    from: Option<IpAddr>,
    inner: SocketAddr,
    target: SocketAddr,
    times: usize,
) -> Result<String> {
    let packet = match (inner, target) {
        (SocketAddr::V4(inner), SocketAddr::V4(target)) => v4(inner, target)?,
        (SocketAddr::V6(inner), SocketAddr::V6(target)) => v6(inner, target)?,
        _ => bail!("{inner} and {target} are of two families"),
    };
    let own = from.map_or(unspecified(to), |from| SocketAddr::new(from, 0));
    let socket = std::net::UdpSocket::from(nix_socket(own)?);
    socket.set_nonblocking(true)?;
    let socket = UdpSocket::from_std(socket)?;
    for _ in 0..times {
        socket.send_to(&packet, to).await.with_context(|| format!("cannot send to {to}"))?;
    }
    Ok(format!("{times} datagrams of {} bytes sent to {to}", packet.len()))
}

/// A socket bound to an address that may be somebody else's.
fn nix_socket(own: SocketAddr) -> Result<std::os::fd::OwnedFd> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, socket};
    use std::os::fd::AsRawFd as _;
    let family = if own.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    if !own.ip().is_unspecified() {
        // Of IPv6, too: the kernel takes this option for both.
        setsockopt(&socket, sockopt::IpTransparent, &true)?;
    }
    bind(socket.as_raw_fd(), &SockaddrStorage::from(own)).with_context(|| format!("cannot send as {own}"))?;
    Ok(socket)
}

fn v4(from: SocketAddrV4, to: SocketAddrV4) -> Result<Vec<u8>> {
    let udp = udp(from.port(), to.port(), &pseudo_v4(*from.ip(), *to.ip())?)?;
    let len = u16::try_from(20 + udp.len())?.to_be_bytes();
    let mut header = vec![0x45, 0, len[0], len[1], 0, 1, 0x40, 0, 64, UDP, 0, 0];
    header.extend(from.ip().octets());
    header.extend(to.ip().octets());
    let sum = checksum(&header).to_be_bytes();
    header[10..12].copy_from_slice(&sum);
    Ok([header, udp].concat())
}

fn v6(from: SocketAddrV6, to: SocketAddrV6) -> Result<Vec<u8>> {
    let udp = udp(from.port(), to.port(), &pseudo_v6(*from.ip(), *to.ip())?)?;
    let len = u16::try_from(udp.len())?.to_be_bytes();
    let header = [0x60, 0, 0, 0, len[0], len[1], UDP, 64];
    Ok([&header[..], &from.ip().octets(), &to.ip().octets(), &udp].concat())
}

fn pseudo_v4(from: Ipv4Addr, to: Ipv4Addr) -> Result<Vec<u8>> {
    let len = u16::try_from(UDP_HEADER + SAYS.len())?.to_be_bytes();
    Ok([&from.octets()[..], &to.octets(), &[0, UDP], &len].concat())
}

fn pseudo_v6(from: Ipv6Addr, to: Ipv6Addr) -> Result<Vec<u8>> {
    let len = u32::try_from(UDP_HEADER + SAYS.len())?.to_be_bytes();
    Ok([&from.octets()[..], &to.octets(), &len, &[0, 0, 0, UDP]].concat())
}

fn udp(from: u16, to: u16, pseudo: &[u8]) -> Result<Vec<u8>> {
    let len = u16::try_from(UDP_HEADER + SAYS.len())?;
    let mut packet = [from.to_be_bytes(), to.to_be_bytes(), len.to_be_bytes(), [0, 0]].concat();
    packet.extend(SAYS);
    let sum = match checksum(&[pseudo, &packet].concat()) {
        0 => 0xffff,
        sum => sum,
    };
    packet[6..8].copy_from_slice(&sum.to_be_bytes());
    Ok(packet)
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words =
        bytes.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w.get(1).copied().unwrap_or(0)])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    #[expect(clippy::cast_possible_truncation, reason = "at most 16 bits are left")]
    let sum = sum as u16;
    !sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_right() {
        let packet = v4("10.64.0.1:4000".parse().unwrap(), "198.51.100.9:7".parse().unwrap()).unwrap();
        assert_eq!((checksum(&packet[..20]), packet.len()), (0, 34));
        let pseudo = pseudo_v4([10, 64, 0, 1].into(), [198, 51, 100, 9].into()).unwrap();
        assert_eq!(checksum(&[&pseudo, &packet[20..]].concat()), 0);
        let packet = v6("[fd64::1]:4000".parse().unwrap(), "[2001:db8:9::9]:7".parse().unwrap()).unwrap();
        let pseudo = pseudo_v6("fd64::1".parse().unwrap(), "2001:db8:9::9".parse().unwrap()).unwrap();
        assert_eq!((checksum(&[&pseudo, &packet[40..]].concat()), packet.len()), (0, 54));
    }
}
