//! Connections that come in to a client of the kernel's: answered the way they came where an Egress is originating-only, and
//! nowhere else. Links stand for the tunnels, and what leaves by one of them comes to nobody.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use coil_agent::{
    egress::kernel::{
        incoming,
        plan::{self, Via, Wanted},
        rules,
    },
    net::Rtnl,
};
use ipnet::IpNet;

use crate::topology::TestNs;

const OWN: [&str; 2] = ["10.64.0.1", "fd64::1"];
/// An originating-only Egress and another, whose destination lies inside of the first's: their Services and destinations, and
/// somebody there.
const EGRESSES: [[(&str, &str, &str); 2]; 2] = [
    [("10.96.0.7", "198.51.100.0/24", "198.51.100.1"), ("fd96::7", "2001:db8:9::/64", "2001:db8:9::1")],
    [
        ("10.96.0.8", "198.51.100.128/25", "198.51.100.129"),
        ("fd96::8", "2001:db8:9::8000/113", "2001:db8:9::8001"),
    ],
];
const PATIENCE: Duration = Duration::from_secs(10);
/// How long an answer that does not come is waited for.
const NEVER: Duration = Duration::from_millis(300);

/// The pod, and the world on the other end of its link.
struct Place {
    pod: TestNs,
    world: TestNs,
}

impl Place {
    fn new() -> Self {
        let (pod, world) = (TestNs::new("client"), TestNs::new("world"));
        let path = world.path();
        let name = path.file_name().unwrap().to_str().unwrap();
        pod.ip(&format!("link add eth0 type veth peer name host netns {name}"));
        pod.ip("link set eth0 up");
        pod.ip("link set lo up");
        world.ip("link set host up");
        for (v6, family, len) in [(0, "-4", 32), (1, "-6", 128)] {
            let nodad = if v6 == 1 { "nodad" } else { "" };
            pod.ip(&format!("addr add {}/{len} dev eth0 {nodad}", OWN[v6]));
            pod.ip(&format!("{family} route add default dev eth0"));
            for egress in EGRESSES {
                world.ip(&format!("addr add {}/{len} dev host {nodad}", egress[v6].2));
                let name = plan::tunnel_name(egress[v6].0.parse().unwrap());
                pod.ip(&format!("link add {name} type veth peer name {name}p"));
                pod.ip(&format!("link set {name} up"));
                pod.ip(&format!("link set {name}p up"));
            }
            world.ip(&format!("{family} route add {} dev host", OWN[v6]));
        }
        // As for every client.
        for name in ["all", "eth0"] {
            pod.0
                .run(|| std::fs::write(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"), "0"))
                .unwrap()
                .unwrap();
        }
        Self { pod, world }
    }

    /// Makes what is wanted, but for the tunnels.
    fn make(&self, wanted: &Wanted) {
        for ((table, net), name) in &wanted.routes {
            self.pod.ip(&format!("{} route replace {net} dev {name} table {table}", family(net)));
        }
        for (table, net) in &wanted.passed {
            self.pod.ip(&format!("{} route replace throw {net} table {table}", family(net)));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let rtnl = Rtnl::open_in(&self.pod.0).unwrap().unwrap();
            rules::sync(&rtnl, &wanted.rules).await.unwrap();
        });
        let marked = wanted.incoming.clone();
        let made = self.pod.0.run(move || -> io::Result<()> {
            for v6 in [false, true] {
                if marked.contains(&v6) {
                    // Twice changes nothing.
                    incoming::ensure(v6, "eth0")?;
                    incoming::ensure(v6, "eth0")?;
                } else {
                    incoming::remove(v6)?;
                }
            }
            Ok(())
        });
        made.unwrap().unwrap();
    }

    /// Whether the pod answers somebody in the world: a TCP connection, and a datagram. `wait`: how long that may take.
    fn answers(&self, who: &str, own: &str, wait: Duration) -> (bool, bool) {
        let (who, own): (IpAddr, IpAddr) = (who.parse().unwrap(), own.parse().unwrap());
        let server = self.pod.0.run(|| TcpListener::bind(SocketAddr::new(own, 8000))).unwrap().unwrap();
        let echo = self.pod.0.run(|| UdpSocket::bind(SocketAddr::new(own, 8000))).unwrap().unwrap();
        let tcp = self.world.0.run(|| connect(who, SocketAddr::new(own, 8000), wait)).unwrap();
        let asker = self.world.0.run(|| UdpSocket::bind(SocketAddr::new(who, 0))).unwrap().unwrap();
        asker.send_to(b"ask", SocketAddr::new(own, 8000)).unwrap();
        echo.set_read_timeout(Some(PATIENCE)).unwrap();
        let (len, from) = echo.recv_from(&mut [0; 16]).unwrap();
        assert_eq!((len, from.ip()), (3, who));
        echo.send_to(b"answer", from).unwrap();
        asker.set_read_timeout(Some(wait)).unwrap();
        let udp = asker.recv(&mut [0; 16]).is_ok();
        drop(server);
        (tcp, udp)
    }

    /// The link by which the pod's own packets leave.
    fn way(&self, to: &str) -> String {
        let output = self.pod.0.run(|| std::process::Command::new("ip").args(["route", "get", to]).output());
        let text = String::from_utf8(output.unwrap().unwrap().stdout).unwrap();
        text.split(" dev ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or_default().to_owned()
    }
}

fn family(net: &IpNet) -> &'static str {
    if net.addr().is_ipv4() { "-4" } else { "-6" }
}

/// From an address of one's own; std has no way to.
fn connect(own: IpAddr, to: SocketAddr, wait: Duration) -> bool {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, socket};
    use std::os::fd::AsRawFd as _;
    let family = if own.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, SockFlag::empty(), None).unwrap();
    bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(own, 0))).unwrap();
    let stream = TcpStream::from(socket);
    // Of `connect` itself.
    stream.set_write_timeout(Some(wait)).unwrap();
    connect(stream.as_raw_fd(), &SockaddrStorage::from(to)).is_ok()
}

/// What a client of these Egresses wants; `originating`: whether each is.
fn client(originating: [Option<bool>; 2]) -> Wanted {
    let mut policy: BTreeMap<IpNet, Option<u32>> = BTreeMap::new();
    let mut egresses = BTreeMap::new();
    for (id, (egress, originating)) in (1..).zip(EGRESSES.iter().zip(originating)) {
        let Some(originating_only) = originating else { continue };
        policy.extend(egress.iter().map(|(_, net, _)| (net.parse().unwrap(), Some(id))));
        let service = egress.iter().map(|(service, ..)| service.parse().unwrap()).collect();
        egresses.insert(id, Via { service, gateways: Vec::new(), sport_auto: false, originating_only });
    }
    let own: Vec<IpAddr> = OWN.iter().map(|own| own.parse().unwrap()).collect();
    let mut wanted = Wanted::default();
    plan::client(&mut wanted, &own, &policy, &egresses);
    wanted
}

#[test]
fn who_comes_in_is_answered_where_the_egress_is_originating_only() {
    let place = Place::new();
    for (originating, answered) in [
        ([Some(false), None], [false, false]),
        ([Some(true), None], [true, true]),
        ([Some(true), Some(false)], [true, false]),
        ([Some(false), Some(true)], [false, true]),
        ([Some(false), Some(false)], [false, false]),
    ] {
        let wanted = client(originating);
        place.make(&wanted);
        for v6 in [0, 1] {
            for (n, answered) in answered.into_iter().enumerate() {
                let who = EGRESSES[n][v6].2;
                let seen = place.answers(who, OWN[v6], if answered { PATIENCE } else { NEVER });
                assert_eq!(seen, (answered, answered), "{who} with {originating:?}");
                // What the pod begins itself leaves by a tunnel in any case.
                let way = place.way(who);
                assert!(way.starts_with("fou"), "{who} by {way:?} with {originating:?}");
            }
        }
        for table in [117, 118, plan::TABLE_INCOMING] {
            for family in ["-4", "-6"] {
                // A table that never had a route does not exist.
                let flush = || {
                    std::process::Command::new("ip")
                        .args([family, "route", "flush", "table", &table.to_string()])
                        .output()
                };
                place.pod.0.run(flush).unwrap().unwrap();
            }
        }
    }
    // No client any more: no mark, no rule.
    place.make(&Wanted::default());
    assert_eq!(place.answers(EGRESSES[0][0].2, OWN[0], PATIENCE), (true, true));
    let left = place.pod.0.run(|| std::process::Command::new("nft").args(["list", "ruleset"]).output());
    assert_eq!(String::from_utf8(left.unwrap().unwrap().stdout).unwrap(), "");
    assert_eq!(BTreeSet::<bool>::new(), client([None, None]).incoming);
}
