//! FOU to a pod whose kernel takes it off: from its peers alone, however it is wrapped up.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    process::Command,
};

use coil_agent::egress::kernel::peers;
use nix::{
    libc,
    sys::socket::{SockaddrStorage, bind},
};

use crate::{
    senders::{Addresses, PATIENCE, add_address, ip, join, next, socket as udp},
    topology::TestNs,
};

const POD: Addresses = ["10.64.0.1", "fd64::1"];
const GATEWAY: Addresses = ["10.64.7.7", "fd64:7::7"];
const STRANGER: Addresses = ["10.64.9.9", "fd64:9::9"];
const FOU: u16 = 5555;
const OTHER: u16 = 5556;
const UDP: u8 = 17;

/// A pod, and the rest.
struct Place {
    pod: TestNs,
    net: TestNs,
}

impl Place {
    fn new() -> Self {
        let place = Self { pod: TestNs::new("pod"), net: TestNs::new("net") };
        join(&place.pod, &place.net, ["eth0", "eth0"], ["02:00:00:00:00:01", "02:00:00:00:00:02"]);
        for v6 in [0, 1] {
            add_address(&place.pod, v6, POD[v6], "eth0");
            for own in [GATEWAY[v6], STRANGER[v6]] {
                add_address(&place.net, v6, own, "eth0");
            }
            for ns in [&place.pod, &place.net] {
                ns.ip(&format!("{} route add default dev eth0", ["-4", "-6"][v6]));
            }
        }
        place
    }

    fn allow(&self, v6: usize, port: u16, allowed: &[&str]) {
        self.allow_all(v6, port, &allowed.iter().map(|address| ip(address)).collect());
    }

    fn allow_all(&self, v6: usize, port: u16, allowed: &BTreeSet<IpAddr>) {
        self.pod.0.run(|| peers::allow(v6 == 1, port, allowed)).unwrap().unwrap();
    }

    fn dropped(&self, v6: usize) -> u64 {
        self.pod.0.run(|| peers::dropped(v6 == 1)).unwrap().unwrap().packets
    }

    fn send(&self, v6: usize, from: &str, port: u16, says: &str) {
        udp(&self.net, from, 0).send_to(says.as_bytes(), SocketAddr::new(ip(POD[v6]), port)).unwrap();
    }
}

/// A socket for packets of a protocol of IP; it takes and gives the same addresses as one of UDP.
fn raw(ns: &TestNs, own: &str, protocol: i32) -> UdpSocket {
    let family = if ip(own).is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let make = || -> nix::Result<OwnedFd> {
        // SAFETY: the call takes numbers, and what it returns is checked before anybody owns it.
        let fd = unsafe { libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
        let fd = nix::errno::Errno::result(fd)?;
        // SAFETY: the kernel just made this descriptor for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(ip(own), 0)))?;
        Ok(fd)
    };
    let socket = UdpSocket::from(ns.0.run(make).unwrap().unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// A datagram for FOU's port in two fragments: two headers of options before UDP, of which the first fragment has one. Of what
/// is cut up otherwise the kernel itself makes nothing.
fn hidden(from: &str, says: &str) -> [Vec<u8>; 2] {
    const FRAGMENT: u8 = 44;
    const OPTIONS: u8 = 60;
    let pair = [from, POD[1]].map(|address| address.parse::<Ipv6Addr>().unwrap().octets()).concat();
    let len = u16::try_from(8 + says.len()).unwrap().to_be_bytes();
    let ports = [OTHER, FOU].map(u16::to_be_bytes).concat();
    // The length is summed twice: of the pseudo header, and of the header.
    let summed = [&pair[..], &len, &[0, UDP], &ports, &len, says.as_bytes()].concat();
    let sum: u32 = summed
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or_default()))
        .sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    let options = [OPTIONS, 0, 1, 4, 0, 0, 0, 0, UDP, 0, 1, 4, 0, 0, 0, 0];
    let whole = [&options[..], &ports, &len, &sum.to_be_bytes(), says.as_bytes()].concat();
    let fragment = |offset: u16, more: u16, part: &[u8]| {
        let id = u32::from(says.as_bytes()[0]).to_be_bytes();
        let header = [&[OPTIONS, 0], &(offset | more).to_be_bytes()[..], &id].concat();
        let len = u16::try_from(header.len() + part.len()).unwrap().to_be_bytes();
        [&[0x60, 0, 0, 0], &len[..], &[FRAGMENT, 64], &pair, &header, part].concat()
    };
    [fragment(0, 1, &whole[..8]), fragment(8, 0, &whole[8..])]
}

#[test]
fn fou_comes_from_peers_alone() {
    let place = Place::new();
    for v6 in [0, 1] {
        place.allow(v6, FOU, &[GATEWAY[v6]]);
        place.allow(v6, FOU, &[GATEWAY[v6]]);
        let (fou, other) = (udp(&place.pod, POD[v6], FOU), udp(&place.pod, POD[v6], OTHER));
        place.send(v6, STRANGER[v6], OTHER, "something else");
        assert_eq!(next(&other).0, "something else");
        assert_eq!(place.dropped(v6), 0);
        let table = [["ip", "coil_peers"], ["ip6", "coil_peers"]][v6];
        let nft = || Command::new("nft").args(["list", "table"]).args(table).output();
        let listed = String::from_utf8(place.pod.0.run(nft).unwrap().unwrap().stdout).unwrap();
        for part in [
            "elements = { 5555 }".to_owned(),
            format!("elements = {{ {} }}", GATEWAY[v6]),
            format!("udp dport @ports {} saddr != @peers counter packets 0 bytes 0 drop", table[0]),
        ] {
            assert!(listed.contains(&part), "{part} is missing in:\n{listed}");
        }
        // Of several fragments, too.
        for size in [9, 3000] {
            let before = place.dropped(v6);
            place.send(v6, STRANGER[v6], FOU, &"s".repeat(size));
            place.send(v6, GATEWAY[v6], FOU, &"g".repeat(size));
            assert_eq!(next(&fou).0, "g".repeat(size));
            assert_eq!(place.dropped(v6) - before, 1, "{size} bytes");
        }
    }
}

#[test]
fn peers_and_ports_change_and_what_was_counted_stays() {
    let place = Place::new();
    for v6 in [0, 1] {
        let nobody = BTreeSet::new();
        place.pod.0.run(|| peers::admit(v6 == 1, &nobody)).unwrap().expect("no table, no rule");
        place.allow(v6, FOU, &[GATEWAY[v6], STRANGER[v6]]);
        let (fou, other) = (udp(&place.pod, POD[v6], FOU), udp(&place.pod, POD[v6], OTHER));
        place.send(v6, STRANGER[v6], FOU, "a gateway's");
        assert_eq!(next(&fou).0, "a gateway's");
        // Another port, and the first for tunnels of before.
        place.allow(v6, OTHER, &[GATEWAY[v6]]);
        for (port, socket) in [(FOU, &fou), (OTHER, &other)] {
            place.send(v6, STRANGER[v6], port, "a gateway's of before");
            place.send(v6, GATEWAY[v6], port, "a gateway's");
            assert_eq!(next(socket).0, "a gateway's");
        }
        assert_eq!(place.dropped(v6), 2);
        // More than one message takes, and others in their place.
        let many = |first: u32| -> BTreeSet<IpAddr> {
            let address = |n: u32| -> IpAddr {
                if v6 == 0 {
                    Ipv4Addr::from_bits(n).into()
                } else {
                    Ipv6Addr::from_bits(u128::from(n)).into()
                }
            };
            (first..first + 5000).map(address).chain([ip(GATEWAY[v6])]).collect()
        };
        for first in [0x0a80_0000, 0x0a90_0000] {
            place.allow_all(v6, FOU, &many(first));
            place.send(v6, STRANGER[v6], FOU, "a stranger's");
            place.send(v6, GATEWAY[v6], FOU, "a gateway's");
            assert_eq!(next(&fou).0, "a gateway's");
        }
        assert_eq!(place.dropped(v6), 4);
        place.allow(v6, FOU, &[]);
        let more = [ip(STRANGER[v6])].into();
        place.pod.0.run(|| peers::admit(v6 == 1, &more)).unwrap().unwrap();
        place.send(v6, STRANGER[v6], FOU, "a gateway's that came");
        assert_eq!(next(&fou).0, "a gateway's that came");
        place.allow(v6, FOU, &[]);
        place.send(v6, GATEWAY[v6], FOU, "nobody's any more");
        place.allow(v6, FOU, &[GATEWAY[v6]]);
        place.send(v6, GATEWAY[v6], FOU, "a gateway's again");
        assert_eq!(next(&fou).0, "a gateway's again");
        assert_eq!(place.dropped(v6), 5);
    }
}

#[test]
fn rules_that_somebody_took_away_come_back() {
    let place = Place::new();
    for (v6, family) in ["ip", "ip6"].into_iter().enumerate() {
        place.allow(v6, FOU, &[GATEWAY[v6]]);
        let flush = || Command::new("nft").args(["flush", "table", family, "coil_peers"]).status();
        assert!(place.pod.0.run(flush).unwrap().unwrap().success());
        place.allow(v6, FOU, &[GATEWAY[v6]]);
        let fou = udp(&place.pod, POD[v6], FOU);
        place.send(v6, STRANGER[v6], FOU, "a stranger's");
        place.send(v6, GATEWAY[v6], FOU, "a gateway's");
        assert_eq!(next(&fou).0, "a gateway's");
        assert_eq!(place.dropped(v6), 1);
    }
}

#[test]
fn packets_in_packets_without_udp_are_no_way_round() {
    let place = Place::new();
    for (v6, protocol) in [(0, libc::IPPROTO_IPIP), (1, libc::IPPROTO_IPV6)] {
        place.allow(v6, FOU, &[GATEWAY[v6]]);
        let pod = raw(&place.pod, POD[v6], protocol);
        for own in [STRANGER[v6], GATEWAY[v6]] {
            let says = format!("from {own}");
            raw(&place.net, own, protocol).send_to(says.as_bytes(), SocketAddr::new(ip(POD[v6]), 0)).unwrap();
        }
        assert_eq!(next(&pod).1.ip(), ip(GATEWAY[v6]));
        assert_eq!(place.dropped(v6), 1);
    }
}

#[test]
fn headers_in_pieces_are_no_way_round() {
    let place = Place::new();
    place.allow(1, FOU, &[GATEWAY[1]]);
    let fou = udp(&place.pod, POD[1], FOU);
    for (own, says) in [(STRANGER[1], "a stranger's"), (GATEWAY[1], "gateway's")] {
        let sender = raw(&place.net, own, libc::IPPROTO_RAW);
        for packet in hidden(own, says) {
            sender.send_to(&packet, SocketAddr::new(ip(POD[1]), 0)).unwrap();
        }
    }
    assert_eq!(next(&fou).0, "gateway's", "the kernel makes a datagram of what a peer sends so");
    assert!(place.dropped(1) > 0);
}
