//! Who may send to a pod whose kernel does its egress: to a gateway, out of the links to its clients, and FOU to any such
//! pod. Links stand for the tunnels, with somebody behind each who sends in all names.
//!
//! ```text
//!  two clients ── fou4_…, fou6_… ── gateway ── eth0 ── world
//! ```
//!
//! A datagram that must not arrive is sent before one that does, on the same way: the first that comes tells.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use coil_agent::egress::kernel::{
    nft::{self, Counts, Links},
    plan,
};

use crate::topology::TestNs;

/// By family, IPv4 first.
pub(crate) type Addresses = [&'static str; 2];

const CLIENTS: [Addresses; 2] = [["10.64.1.2", "fd64:1::2"], ["10.64.1.3", "fd64:1::3"]];
const GATEWAY: Addresses = ["10.64.7.7", "fd64:7::7"];
const STRANGER: Addresses = ["10.64.9.9", "fd64:9::9"];
const WORLD: Addresses = ["198.51.100.1", "2001:db8:9::1"];
/// Of a client's own links, by family.
const OF_CLIENT: Addresses = ["four", "six"];
/// `ip`'s options.
const FAMILIES: Addresses = ["-4", "-6"];
const LENGTHS: [u8; 2] = [32, 128];
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
const PORT: u16 = 7000;

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn add_address(ns: &TestNs, v6: usize, address: &str, link: &str) {
    let nodad = if v6 == 1 { "nodad" } else { "" };
    ns.ip(&format!("addr add {address}/{} dev {link} {nodad}", LENGTHS[v6]));
}

/// A link between two namespaces, up, with names and MAC addresses for both sides.
pub(crate) fn join(a: &TestNs, b: &TestNs, [of_a, of_b]: [&str; 2], [mac_a, mac_b]: [&str; 2]) {
    let path = b.path();
    let there = path.file_name().unwrap().to_str().unwrap();
    a.ip(&format!(
        "link add {of_a} address {mac_a} type veth peer name {of_b} address {mac_b} netns {there}"
    ));
    a.ip(&format!("link set {of_a} up"));
    b.ip(&format!("link set {of_b} up"));
}

/// A socket at an address of a namespace; one that waits for a datagram does so with patience.
pub(crate) fn socket(ns: &TestNs, own: &str, port: u16) -> UdpSocket {
    let socket = ns.0.run(|| UdpSocket::bind(SocketAddr::new(ip(own), port))).unwrap().unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// What comes next, and from where.
pub(crate) fn next(socket: &UdpSocket) -> (String, SocketAddr) {
    let mut buffer = [0; 4096];
    let (len, from) = socket.recv_from(&mut buffer).expect("a datagram");
    (String::from_utf8_lossy(&buffer[..len]).into_owned(), from)
}

struct Place {
    clients: [TestNs; 2],
    gateway: TestNs,
    world: TestNs,
}

impl Place {
    fn new() -> Self {
        let (gateway, world) = (TestNs::new("gateway"), TestNs::new("world"));
        let place = Self { clients: [TestNs::new("client"), TestNs::new("other")], gateway, world };
        join(&place.gateway, &place.world, ["eth0", "eth0"], ["02:00:00:00:00:01", "02:00:00:00:00:02"]);
        for v6 in [0, 1] {
            add_address(&place.gateway, v6, GATEWAY[v6], "eth0");
            add_address(&place.world, v6, WORLD[v6], "eth0");
            place.gateway.ip(&format!("{} route add default dev eth0", FAMILIES[v6]));
            place.world.ip(&format!("{} route add default dev eth0", FAMILIES[v6]));
            for client in [0, 1] {
                place.join_client(client, v6);
            }
        }
        let settings = || -> std::io::Result<()> {
            for link in std::fs::read_dir("/proc/sys/net/ipv4/conf")? {
                std::fs::write(link?.path().join("rp_filter"), "0")?;
            }
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
            std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")
        };
        place.gateway.0.run(settings).unwrap().unwrap();
        place
    }

    /// The link that stands for the tunnel; nobody on it is asked for an address.
    fn join_client(&self, client: usize, v6: usize) {
        let (own, ns, family) = (CLIENTS[client][v6], &self.clients[client], FAMILIES[v6]);
        let name = plan::tunnel_name(ip(own));
        let macs = [0, 1].map(|side| format!("02:00:00:01:{client}{v6}:0{side}"));
        join(&self.gateway, ns, [&name, OF_CLIENT[v6]], [&macs[0], &macs[1]]);
        self.gateway.ip(&format!("{family} route add {own} dev {name}"));
        self.gateway.ip(&format!("{family} neigh add {own} lladdr {} dev {name} nud permanent", macs[1]));
        for address in [CLIENTS[0][v6], CLIENTS[1][v6], STRANGER[v6]] {
            add_address(ns, v6, address, OF_CLIENT[v6]);
        }
        let via = format!("{} dev {}", GATEWAY[v6], OF_CLIENT[v6]);
        ns.ip(&format!(
            "{family} neigh add {} lladdr {} dev {} nud permanent",
            GATEWAY[v6], macs[0], OF_CLIENT[v6]
        ));
        ns.ip(&format!("{family} route add default via {via} onlink"));
    }

    /// What the gateway pod's rules are, with these links.
    fn ensure(&self, links: &Links) {
        let make = || GATEWAY.iter().try_for_each(|own| nft::ensure(ip(own), "eth0", None, links));
        self.gateway.0.run(make).unwrap().unwrap();
    }

    fn counts(&self, v6: usize) -> Counts {
        self.gateway.0.run(|| nft::counts(ip(GATEWAY[v6]))).unwrap().unwrap()
    }

    fn send(&self, client: usize, from: &str, to: &str, says: &str) {
        socket(&self.clients[client], from, 0)
            .send_to(says.as_bytes(), SocketAddr::new(ip(to), PORT))
            .unwrap();
    }
}

/// The links to these clients, of both families.
fn links(clients: &[usize]) -> Links {
    let of = |client: &usize| CLIENTS[*client].map(|own| (plan::tunnel_name(ip(own)), ip(own)));
    Links { clients: clients.iter().flat_map(of).collect(), own: BTreeSet::new() }
}

#[test]
fn a_client_sends_in_its_own_name_alone() {
    let place = Place::new();
    place.ensure(&links(&[0, 1]));
    for v6 in [0, 1] {
        let (world, gateway) =
            (socket(&place.world, WORLD[v6], PORT), socket(&place.gateway, GATEWAY[v6], PORT));
        for (receiver, to) in [(&world, WORLD[v6]), (&gateway, GATEWAY[v6])] {
            let before = place.counts(v6).forged.packets;
            place.send(0, CLIENTS[1][v6], to, "as the other client");
            place.send(0, STRANGER[v6], to, "as a stranger");
            place.send(0, CLIENTS[0][v6], to, "as itself");
            let (says, from) = next(receiver);
            assert_eq!(says, "as itself", "to {to}");
            let seen = if to == WORLD[v6] { GATEWAY[v6] } else { CLIENTS[0][v6] };
            assert_eq!(from.ip(), ip(seen), "to {to}");
            assert_eq!(place.counts(v6).forged.packets - before, 2, "to {to}");
        }
        place.send(1, CLIENTS[1][v6], WORLD[v6], "the other as itself");
        assert_eq!(next(&world).0, "the other as itself");
    }
}

#[test]
fn clients_come_and_go_and_flows_of_others_stay() {
    let place = Place::new();
    place.ensure(&links(&[0, 1]));
    for v6 in [0, 1] {
        let world = socket(&place.world, WORLD[v6], PORT);
        let flow = socket(&place.clients[0], CLIENTS[0][v6], 0);
        let goes_on = || {
            flow.send_to(b"on", SocketAddr::new(ip(WORLD[v6]), PORT)).unwrap();
            let (says, from) = next(&world);
            assert_eq!(says, "on");
            world.send_to(b"back", from).unwrap();
            assert_eq!(next(&flow).0, "back");
            from
        };
        let translated = goes_on();
        let before = place.counts(v6);
        assert_eq!(before.masqueraded.packets, 1);

        place.ensure(&links(&[0]));
        place.send(1, CLIENTS[1][v6], WORLD[v6], "no client any more");
        assert_eq!(goes_on(), translated, "the flow keeps its port");
        let now = place.counts(v6);
        assert_eq!(now.forged.packets - before.forged.packets, 1);
        assert_eq!(now.masqueraded, before.masqueraded);

        place.ensure(&links(&[0, 1]));
        place.send(1, CLIENTS[1][v6], WORLD[v6], "a client again");
        assert_eq!(next(&world).0, "a client again");
        assert_eq!(goes_on(), translated);
        assert_eq!(place.counts(v6).forged, now.forged);
    }
}

/// A gateway that is a client, too: what its own gateways send is for itself.
#[test]
fn what_comes_from_a_gateways_own_gateway_is_for_itself_alone() {
    let place = Place::new();
    let own = CLIENTS[1].map(|service| plan::tunnel_name(ip(service))).into();
    place.ensure(&Links { own, ..links(&[0]) });
    for v6 in [0, 1] {
        let (world, gateway) =
            (socket(&place.world, WORLD[v6], PORT), socket(&place.gateway, GATEWAY[v6], PORT));
        place.send(1, STRANGER[v6], GATEWAY[v6], "an answer");
        assert_eq!(next(&gateway).0, "an answer");
        let before = place.counts(v6).forged.packets;
        place.send(1, STRANGER[v6], WORLD[v6], "for others");
        place.send(0, CLIENTS[0][v6], WORLD[v6], "a client's");
        assert_eq!(next(&world).0, "a client's");
        assert_eq!(place.counts(v6).forged.packets - before, 1);
    }
}
