//! Egress by the kernel fails closed: what is meant for a tunnel goes by one or not at all.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
};

use coil_agent::egress::kernel::{
    apply::{self, Common},
    found,
    plan::{self, Via, Wanted},
};
use coil_api::names::DEFAULT_PROTOCOL;
use ipnet::IpNet;

use crate::topology::TestNs;

const OWN: [&str; 2] = ["10.64.0.1", "fd64::1"];
const SERVICES: [&str; 2] = ["10.96.0.7", "fd96::7"];
/// Destinations of the Egress, private ones among them, and addresses of each.
const WORLD: [(&str, &str); 4] = [
    ("198.51.100.0/24", "198.51.100.1"),
    ("10.20.0.0/16", "10.20.0.1"),
    ("2001:db8:9::/64", "2001:db8:9::1"),
    ("fdaa::/64", "fdaa::1"),
];
/// Addresses of the node, inside of the private destinations: never egress.
const NODE: [&str; 2] = ["10.20.0.9", "fdaa::9"];
const COMMON: Common = Common { port: 5555 };

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn via(services: &[&str], sport_auto: bool, originating_only: bool) -> Via {
    Via { service: addresses(services), gateways: Vec::new(), sport_auto, originating_only }
}

/// A client whose Egress has a Service with these addresses.
fn client(services: &[&str], sport_auto: bool) -> Wanted {
    let net = |text: &str| -> IpNet { text.parse().unwrap() };
    let mut policy: BTreeMap<IpNet, Option<_>> = WORLD.iter().map(|(of, _)| (net(of), Some(1))).collect();
    policy.extend([(net("10.0.0.0/8"), None), (net("fc00::/7"), None)]);
    policy.extend(addresses(&NODE).into_iter().map(|own| (own.into(), None)));
    let via = via(services, sport_auto, false);
    let mut wanted = Wanted::default();
    plan::client(&mut wanted, &addresses(&OWN), &policy, &[(1, via)].into());
    wanted
}

/// A pod's namespace, with a way to everywhere.
fn pod() -> (TestNs, TestNs) {
    let (pod, node) = (TestNs::new("client"), TestNs::new("node"));
    let path = node.path();
    let name = path.file_name().unwrap().to_str().unwrap();
    pod.ip(&format!("link add eth0 type veth peer name host netns {name}"));
    pod.ip("link set eth0 up");
    node.ip("link set host up");
    pod.ip(&format!("addr add {}/32 dev eth0", OWN[0]));
    pod.ip(&format!("addr add {}/128 dev eth0 nodad", OWN[1]));
    pod.ip("route add default dev eth0");
    pod.ip("-6 route add default dev eth0");
    (pod, node)
}

/// What the Go version made of a client, as far as routes and rules go: a link stands for each tunnel.
fn made_by_go(pod: &TestNs) {
    for (family, service, of) in [("-4", SERVICES[0], &WORLD[..2]), ("-6", SERVICES[1], &WORLD[2..])] {
        let name = plan::tunnel_name(service.parse().unwrap());
        pod.ip(&format!("link add {name} type veth peer name {name}p"));
        pod.ip(&format!("link set {name} up"));
        pod.ip(&format!("link set {name}p up"));
        for (priority, table) in [(1900, 117), (2100, 118)] {
            pod.ip(&format!("{family} rule add priority {priority} lookup {table}"));
        }
        for (to, table) in [(of[0].0, 118), (of[1].0, 117)] {
            pod.ip(&format!("{family} route add {to} dev {name} table {table} protocol {DEFAULT_PROTOCOL}"));
        }
    }
    for (_, to) in WORLD {
        assert!(way(pod, to).is_some_and(|link| link.starts_with("fou")), "{to} by the Go version's tunnel");
    }
}

/// The link by which a packet leaves; none when it does not.
fn way(pod: &TestNs, to: &str) -> Option<String> {
    let route = |args: &[&str]| {
        let output = pod.0.run(|| std::process::Command::new("ip").args(args).output()).unwrap().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let text = route(&["route", "get", to]);
    text.split(" dev ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next())
        .map(str::to_owned)
        .filter(|_| !text.contains("unreachable"))
}

/// The tunnel to a Service, by its number and in words; none where the kernel has no FOU.
fn tunnel(pod: &TestNs, service: &str) -> Option<(u32, String)> {
    let name = plan::tunnel_name(service.parse().unwrap());
    let show = || std::process::Command::new("ip").args(["-d", "-o", "link", "show", &name]).output();
    let text = String::from_utf8(pod.0.run(show).unwrap().unwrap().stdout).unwrap();
    let index = text.split(':').next()?.parse().ok()?;
    Some((index, text))
}

fn apply(pod: &TestNs, before: Option<&Wanted>, wanted: &Wanted) -> bool {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(apply::apply(&pod.0, "eth0", COMMON, before, wanted)).is_ok()
}

/// Where the kernel has FOU, what leaves does so by a tunnel; where it has none, nothing leaves. What else the pod sends is
/// as ever.
#[test]
fn a_client_leaves_by_a_tunnel_or_not_at_all() {
    let (pod, _node) = pod();
    for (_, to) in WORLD {
        assert_eq!(way(&pod, to).as_deref(), Some("eth0"), "{to} before all");
    }
    let whole = client(&SERVICES, false);
    let made = apply(&pod, None, &whole);
    for (_, to) in WORLD {
        let way = way(&pod, to);
        let by_tunnel = way.as_deref().is_some_and(|link| link.starts_with("fou"));
        assert!(by_tunnel == made && way.is_none() != made, "{to} by {way:?}; tunnels: {made}");
    }
    let others = ["10.1.2.3", "203.0.113.9", "fdbb::1", "2001:db8:8::1"];
    for to in others.iter().chain(&NODE).chain(&SERVICES) {
        assert_eq!(way(&pod, to).as_deref(), Some("eth0"), "{to} is no egress");
    }
    // The node's addresses are others now.
    let mut moved = whole.clone();
    moved.passed.clear();
    assert_eq!(apply(&pod, made.then_some(&whole), &moved), made);
    for to in NODE {
        let way = way(&pod, to);
        let by_tunnel = way.as_deref().is_some_and(|link| link.starts_with("fou"));
        assert!(by_tunnel == made && way.is_none() != made, "{to} by {way:?} is egress now; tunnels: {made}");
    }
    // Another kind of source ports: the tunnels are made anew.
    let other = client(&SERVICES, true);
    assert_eq!(apply(&pod, made.then_some(&moved), &other), made);
    for (_, to) in WORLD {
        assert_ne!(way(&pod, to).as_deref(), Some("eth0"), "{to} while tunnels change");
    }
    // An agent that starts knows nothing of before: what is as it should be stays, and what became wrong does not.
    for (wanted, sport, stays) in [(&other, "auto", true), (&whole, "5555", false)] {
        let before = SERVICES.map(|service| tunnel(&pod, service));
        assert_eq!(apply(&pod, None, wanted), made);
        for (service, before) in SERVICES.iter().zip(before) {
            let Some((index, text)) = tunnel(&pod, service) else {
                assert!(!made, "no tunnel to {service}");
                continue;
            };
            assert!(text.contains(&format!("encap-sport {sport} ")), "{text}");
            assert_eq!(before.is_some_and(|(before, _)| before == index), stays, "{text}");
        }
    }
    // A Service of one family.
    let v4 = client(&SERVICES[..1], true);
    assert_eq!(apply(&pod, made.then_some(&whole), &v4), made);
    for (_, to) in &WORLD[2..] {
        assert_eq!(way(&pod, to), None, "{to} without a gateway of its family");
    }
    // No client any more.
    assert!(apply(&pod, made.then_some(&v4), &Wanted::default()));
    for (_, to) in WORLD {
        assert_eq!(way(&pod, to).as_deref(), Some("eth0"), "{to} after all");
    }
}

/// Clients of the Go version have nothing behind their routes: what loses its tunnel is closed, what keeps it stays.
#[test]
fn a_client_of_the_go_version_leaves_by_a_tunnel_or_not_at_all() {
    let adopted = |wanted: Wanted| Wanted { adopted: true, ..wanted };
    // What is open: the Egress's destinations of IPv4 alone, none.
    let unknown = Wanted { tunnels: BTreeMap::new(), routes: BTreeMap::new(), ..client(&SERVICES, false) };
    for (wanted, open) in [(client(&SERVICES[..1], false), 2), (unknown, 0)] {
        let (pod, _node) = pod();
        made_by_go(&pod);
        let wanted = adopted(wanted);
        assert!(apply(&pod, None, &wanted), "nothing is to be made");
        // And again, when the routes are gone.
        for before in [None, Some(&wanted)] {
            for (n, (_, to)) in WORLD.iter().enumerate() {
                let by_tunnel = way(&pod, to).is_some_and(|link| link.starts_with("fou"));
                assert_eq!(by_tunnel, n < open, "{to} of {open} open");
                assert_eq!(way(&pod, to).is_some(), by_tunnel, "{to} of {open} open");
            }
            for to in NODE {
                assert_eq!(way(&pod, to).as_deref(), Some("eth0"), "{to} is the node");
            }
            assert!(apply(&pod, before, &wanted));
        }
    }
    // Another kind of source ports: the tunnels are made anew, or nothing leaves.
    let (pod, _node) = pod();
    made_by_go(&pod);
    let (whole, other) = (adopted(client(&SERVICES, false)), adopted(client(&SERVICES, true)));
    let made = apply(&pod, Some(&whole), &other);
    for (_, to) in WORLD {
        let way = way(&pod, to);
        let by_tunnel = way.as_deref().is_some_and(|link| link.starts_with("fou"));
        assert!(by_tunnel == made && way.is_none() != made, "{to} by {way:?}; tunnels: {made}");
    }
}

/// Destinations change hands between an originating-only Egress and another: what answers connections that came in from there
/// follows at once, whatever it was before.
#[test]
fn destinations_change_hands() {
    let (pod, _node) = pod();
    let nets: [[IpNet; 2]; 2] =
        [["198.51.100.0/24", "203.0.113.0/24"], ["2001:db8:9::/64", "2001:db8:8::/64"]]
            .map(|f| f.map(|n| n.parse().unwrap()));
    // Egress 1 is originating-only, Egress 2 is not.
    let wanted = |first: u32, second: u32| {
        let policy = nets.iter().flat_map(|[a, b]| [(*a, Some(first)), (*b, Some(second))]).collect();
        let of = |originating_only| via(&SERVICES, false, originating_only);
        let mut wanted = Wanted::default();
        plan::client(&mut wanted, &addresses(&OWN), &policy, &[(1, of(true)), (2, of(false))].into());
        wanted
    };
    for (first, second) in [(1, 2), (2, 1), (1, 2)] {
        let _ = apply(&pod, None, &wanted(first, second));
        for (family, [a, b]) in ["-4", "-6"].into_iter().zip(nets) {
            let args = [family, "route", "show", "table", "120"];
            let output = pod.0.run(|| std::process::Command::new("ip").args(args).output()).unwrap().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            let fates = [(a, first), (b, second)].map(|(net, egress)| {
                let kind = if egress == 1 { "throw" } else { "unreachable" };
                (format!("{kind} {net}"), net)
            });
            for (fate, net) in fates {
                assert!(text.contains(&fate), "{fate} is missing: {text}");
                let dead = text
                    .lines()
                    .filter(|line| line.contains(&net.to_string()) && !line.starts_with(&net.to_string()));
                assert_eq!(dead.count(), 1, "{net} has one fate: {text}");
            }
        }
    }
}

/// A gateway that is a client, too, of an Egress of which nobody can say what it is: its own clients come and go, and it still
/// leaves by its tunnels or not at all.
#[test]
fn a_gateway_follows_its_clients_and_stays_a_client() {
    const CLIENTS: [[&str; 2]; 2] = [["10.64.1.2", "fd64:1::2"], ["10.64.1.3", "fd64:1::3"]];
    let (pod, _node) = pod();
    let gateway = |of: Wanted, clients: [&str; 2]| {
        let mut wanted = of;
        plan::gateway(&mut wanted, &addresses(&OWN), "eth0", &addresses(&clients), Some(false));
        wanted
    };
    let whole = gateway(client(&SERVICES, false), CLIENTS[0]);
    let made = apply(&pod, None, &whole);
    let read = || {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(found::client(&pod.0)).unwrap()
    };
    let before = SERVICES.map(|service| tunnel(&pod, service));
    // By an agent that has made what is there, and by one that starts.
    for (known, clients) in [(true, CLIENTS[1]), (false, CLIENTS[0])] {
        let kept = read();
        assert_eq!(kept.closed, whole.closed, "of the client");
        let wanted = gateway(kept, clients);
        assert_eq!(wanted.rules, whole.rules);
        if made {
            let expected = gateway(client(&SERVICES, false), clients);
            assert_eq!((&wanted.tunnels, &wanted.routes), (&expected.tunnels, &expected.routes));
            assert_eq!(wanted.peers, expected.peers);
        }
        assert_eq!(apply(&pod, (known && made).then_some(&whole), &wanted), made);
        for (_, to) in WORLD {
            let way = way(&pod, to);
            let by_tunnel = way.as_deref().is_some_and(|link| link.starts_with("fou"));
            assert!(by_tunnel == made && way.is_none() != made, "{to} by {way:?}; tunnels: {made}");
        }
        assert_eq!(
            SERVICES.map(|service| tunnel(&pod, service)),
            before,
            "the client's tunnels are the same"
        );
        for each in CLIENTS {
            let there = each.map(|client| tunnel(&pod, client).is_some());
            assert_eq!(there, [made && each == clients; 2], "tunnels to {each:?}");
        }
    }
}

/// An agent that starts, or looks again, finds all as it should be: what a client sends meanwhile leaves as ever, and where the
/// kernel has no FOU nothing of it does.
#[test]
fn looking_again_changes_nothing_for_packets() {
    const TIMES: usize = 20;
    let (pod, _node) = pod();
    for (family, service) in ["-4", "-6"].into_iter().zip(SERVICES) {
        // Nobody answers for the gateway.
        pod.ip(&format!("{family} neigh add {service} lladdr 02:00:00:00:00:99 dev eth0 nud permanent"));
    }
    let wanted = client(&SERVICES, true);
    let made = apply(&pod, None, &wanted);
    let ways = WORLD.map(|(_, to)| {
        let own = if to.contains(':') { OWN[1] } else { OWN[0] };
        let socket = pod.0.run(|| UdpSocket::bind((own, 0))).unwrap().unwrap();
        (socket, SocketAddr::new(to.parse().unwrap(), 7))
    });
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut sent = 0;
            while !done.load(Ordering::Relaxed) {
                for (socket, to) in &ways {
                    let left = socket.send_to(b"x", to);
                    assert_eq!(left.is_ok(), made, "datagram {sent} to {to}: {left:?}");
                    sent += 1;
                }
            }
            sent
        });
        let again = (0..TIMES)
            .map(|n| apply(&pod, (made && n % 2 == 1).then_some(&wanted), &wanted))
            .collect::<Vec<_>>();
        done.store(true, Ordering::Relaxed);
        assert_eq!(again, [made; TIMES]);
        assert!(sender.join().unwrap() > TIMES, "it was sent all the time");
    });
}
