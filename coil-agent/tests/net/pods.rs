//! Pod networks in real namespaces; the picture is in `topology`.

use std::net::IpAddr;

use crate::topology::{NODE_V4, NODE_V6, POD_TABLE, TestNs, Topology, allocation, identity};
use coil_agent::net::{
    host::HostAddresses,
    name,
    pod::{HostSide, PodNetError},
    recover,
};

/// The namespace's veths; the kernel makes links of its own where it has tunnels.
fn links(ns: &TestNs) -> Vec<String> {
    let all = ns.ip("-o link show type veth");
    all.lines().map(|line| line.split(": ").nth(1).unwrap().split('@').next().unwrap().to_owned()).collect()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Two pods, of IPv4, IPv6 or both: each other and the node, at once, in both directions; then gone.
fn add_and_remove(v4: bool, v6: bool) {
    let topology = Topology::new();
    let (a, b) = (TestNs::new("a"), TestNs::new("b"));
    let of = |on: bool, address: &'static str| on.then_some(address);
    let alloc_a = allocation("a", of(v4, "10.64.0.0"), of(v6, "fd64::"));
    let alloc_b = allocation("b", of(v4, "10.64.0.1"), of(v6, "fd64::1"));
    topology.run(async |network, rtnl| {
        let pod_a = network.setup(&a.0, &alloc_a, &identity("uid-a"), Vec::new()).await.unwrap();
        let pod_b = network.setup(&b.0, &alloc_b, &identity("uid-b"), Vec::new()).await.unwrap();
        assert_eq!(network.mtu(), 1400, "the uplink's");
        assert!(a.ip("link show eth0").contains("mtu 1400"));
        for (pod, other) in pod_a.addresses().into_iter().zip(pod_b.addresses()) {
            assert!(a.reaches(&b, other), "{pod} to {other}");
            assert!(b.reaches(&a, pod), "{other} to {pod}");
            assert!(topology.node.reaches(&a, pod), "node to {pod}");
            let node = if pod.is_ipv4() { NODE_V4 } else { NODE_V6 };
            assert!(a.reaches(&topology.node, ip(node)), "{pod} to node");
        }
        assert_eq!(pod_a.addresses().len(), usize::from(v4) + usize::from(v6));
        network.check(&a.0, &alloc_a).await.unwrap();

        let mut found = recover::pods(&rtnl, POD_TABLE, false).await.unwrap();
        found.sort_by(|x, y| x.alias.owner.cmp(&y.alias.owner));
        assert_eq!(
            found.iter().map(recover::Found::allocation).collect::<Vec<_>>(),
            [alloc_a.clone(), alloc_b.clone()]
        );
        assert_eq!(found[0].netns.as_deref(), Some(a.path().as_path()));
        assert_eq!(found[0].link.mac, pod_a.mac);
        let names = &found[0].link.host.altnames;
        assert_eq!(names[..], identity("uid-a").altnames(&alloc_a.owner)[..]);
        assert_eq!((names[0].as_str(), name::uid_of(names)), ("coil.a.eth0", Some("uid-a")));
        assert!(!found[0].kernel_client);

        for _ in 0..2 {
            network.remove(&alloc_a.owner).await.unwrap();
        }
        assert!(matches!(network.check(&a.0, &alloc_a).await, Err(PodNetError::Missing { .. })));
        assert!(links(&a).is_empty(), "the pod's side goes too");
        assert_eq!(recover::pods(&rtnl, POD_TABLE, false).await.unwrap().len(), 1);
    });
    topology.run(async |network, _| {
        // The namespace, and with it the link, goes before DEL.
        drop(b);
        network.remove(&alloc_b.owner).await.unwrap();
    });
    drop(a);
}

#[test]
fn ipv4_pods() {
    add_and_remove(true, false);
}

#[test]
fn ipv6_pods() {
    add_and_remove(false, true);
}

#[test]
fn dual_stack_pods() {
    add_and_remove(true, true);
}

#[test]
fn a_failed_setup_leaves_nothing_and_works_once_mended() {
    let topology = Topology::new();
    let pod = TestNs::new("pod");
    let alloc = allocation("c", Some("10.64.0.5"), Some("fd64::5"));
    topology.run(async |network, _| {
        // The last step is the one that fails.
        topology.node.ip("-6 route add fd64::5/128 dev lo table 116 proto static");
        let error =
            network.setup(&pod.0, &alloc, &identity("uid-c"), Vec::new()).await.unwrap_err().to_string();
        assert!(error.contains("fd64::5/128") && error.contains("table 116"), "{error}");
        assert_eq!(links(&topology.node), ["uplink"]);
        assert!(links(&pod).is_empty());
        assert!(
            !topology.node.ip("route show table all").contains("10.64.0.5"),
            "the other family's route too"
        );
        topology.node.ip("-6 route del fd64::5/128 dev lo table 116");
        network.setup(&pod.0, &alloc, &identity("uid-c"), Vec::new()).await.unwrap();
        network.check(&pod.0, &alloc).await.unwrap();
    });
}

#[test]
fn an_interface_of_somebody_else_stays() {
    let topology = Topology::new();
    let pod = TestNs::new("pod");
    pod.ip("link add eth0 type veth peer name other");
    topology.run(async |network, _| {
        let alloc = allocation("c", Some("10.64.0.5"), None);
        let error = network.setup(&pod.0, &alloc, &identity("uid-c"), Vec::new()).await.unwrap_err();
        assert!(matches!(&error, PodNetError::InterfaceExists { ifname, .. } if ifname == "eth0"), "{error}");
        assert_eq!(links(&pod), ["other", "eth0"]);
        assert_eq!(links(&topology.node), ["uplink"]);
    });
}

#[test]
fn check_names_what_is_missing() {
    let topology = Topology::new();
    topology.run(async |network, _| {
        let damages = [
            ("pod", "addr del 10.64.0.5/32 dev eth0", "address 10.64.0.5"),
            ("pod", "-6 route del default", "::/0"),
            ("node", "route del 10.64.0.5 table 116", "route to 10.64.0.5"),
            ("pod", "link del eth0", "alias"),
        ];
        for (i, (place, damage, named)) in damages.into_iter().enumerate() {
            let pod = TestNs::new("pod");
            let alloc = allocation(&format!("c{i}"), Some("10.64.0.5"), Some("fd64::5"));
            network.setup(&pod.0, &alloc, &identity(&format!("uid-{i}")), Vec::new()).await.unwrap();
            if place == "pod" {
                pod.ip(damage)
            } else {
                topology.node.ip(damage)
            };
            let error = network.check(&pod.0, &alloc).await.unwrap_err().to_string();
            assert!(error.contains(named), "{damage}: {error}");
            network.remove(&alloc.owner).await.unwrap();
        }
    });
}

#[test]
fn check_takes_the_gateway_that_a_pod_was_made_with() {
    let topology = Topology::new();
    let (old, new) = (TestNs::new("old"), TestNs::new("new"));
    topology.run(async |network, _| {
        let first = allocation("c", Some("10.64.0.5"), Some("fd64::5"));
        network.setup(&old.0, &first, &identity("uid-c"), Vec::new()).await.unwrap();
        let moved = HostAddresses { ipv4: "172.18.0.77".parse().ok(), ..network.side().addresses };
        assert!(network.follow(HostSide { addresses: moved, ..network.side() }));
        let second = allocation("d", Some("10.64.0.6"), None);
        network.setup(&new.0, &second, &identity("uid-d"), Vec::new()).await.unwrap();
        assert!(old.ip("route").contains("default via 172.18.0.1 "));
        assert!(new.ip("route").contains("default via 172.18.0.77 "));
        network.check(&old.0, &first).await.unwrap();
        network.check(&new.0, &second).await.unwrap();
        // Its own gateway is needed all the same.
        old.ip("route del 172.18.0.1");
        let error = network.check(&old.0, &first).await.unwrap_err().to_string();
        assert!(error.contains("the route to 172.18.0.1/32 in the pod"), "{error}");
    });
}

#[test]
fn routes_of_a_client_follow_its_policy() {
    let topology = Topology::new();
    let pod = TestNs::new("pod");
    topology.run(async |network, _| {
        let alloc = allocation("c", Some("10.64.0.5"), Some("fd64::5"));
        let policy =
            |lines: &[(&str, bool)]| lines.iter().map(|(net, e)| (net.parse().unwrap(), *e)).collect();
        let world = policy(&[("0.0.0.0/0", true), ("10.0.0.0/8", false), ("2001:db8::/32", true)]);
        let link = network.setup(&pod.0, &alloc, &identity("uid-c"), world).await.unwrap();
        let routes = pod.ip("route") + &pod.ip("-6 route");
        let line = |start: &str| routes.lines().find(|line| line.starts_with(start)).unwrap().to_owned();
        assert!(line("default via 172.18.0.1").contains("mtu 1372 advmss 1332"), "{routes}");
        assert!(!line("10.0.0.0/8 via 172.18.0.1").contains("mtu"), "{routes}");
        assert!(line("2001:db8::/32 via fe80::").contains("mtu 1352 advmss 1292"), "{routes}");
        assert!(!line("default via fe80::").contains("mtu"), "{routes}");

        let narrow = policy(&[("198.51.100.0/24", true)]);
        network.update_routes(&pod.0, "eth0", &link, narrow).await.unwrap();
        let routes = pod.ip("route") + &pod.ip("-6 route");
        assert!(!routes.contains("10.0.0.0/8") && !routes.contains("2001:db8"), "{routes}");
        assert!(routes.contains("198.51.100.0/24 via 172.18.0.1 dev eth0 proto 30 mtu 1372"), "{routes}");
        assert!(
            routes.contains("default via 172.18.0.1 dev eth0 proto 30 \n"),
            "the full MTU again: {routes}"
        );
        let same = policy(&[("198.51.100.0/24", true)]);
        let changes = network.update_routes(&pod.0, "eth0", &link, same).await.unwrap();
        assert_eq!((changes.set, changes.removed), (0, 0));
        network.check(&pod.0, &alloc).await.unwrap();
    });
}

#[test]
fn many_at_once() {
    let topology = Topology::new();
    let pods: Vec<TestNs> = (0..20).map(|i| TestNs::new(&format!("p{i}"))).collect();
    topology.run(async |network, rtnl| {
        let allocations: Vec<_> = (0..20)
            .map(|i| allocation(&format!("c{i}"), Some(&format!("10.64.0.{i}")), Some(&format!("fd64::{i}"))))
            .collect();
        let names: Vec<_> = (0..20).map(|i| identity(&format!("uid-{i}"))).collect();
        let setups = pods
            .iter()
            .zip(&allocations)
            .zip(&names)
            .map(|((pod, allocation), name)| network.setup(&pod.0, allocation, name, Vec::new()));
        for result in futures::future::join_all(setups).await {
            result.unwrap();
        }
        assert_eq!(recover::pods(&rtnl, POD_TABLE, false).await.unwrap().len(), 20);
        let removals = allocations.iter().map(|a| network.remove(&a.owner));
        for result in futures::future::join_all(removals).await {
            result.unwrap();
        }
        assert_eq!(links(&topology.node), ["uplink"]);
        assert_eq!(recover::pods(&rtnl, POD_TABLE, false).await.unwrap().len(), 0);
    });
}
