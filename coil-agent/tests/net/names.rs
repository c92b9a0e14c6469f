//! Names of pods' links, takeover of what an older Coil or a killed agent left, and what goes wrong in the
//! middle.

use coil_agent::{
    ipam::AttachmentId,
    net::{
        host::HostAddresses,
        name,
        pod::{HostSide, PodNetError, PodNetwork},
        recover,
    },
};

use coil_netns::NetNs;

use crate::topology::{NODE_V4, NODE_V6, POD_TABLE, TestNs, Topology, allocation, identity};

fn owner(container: &str) -> AttachmentId {
    AttachmentId { container_id: container.into(), ifname: "eth0".into() }
}

/// The pair is made at once: names, hardware addresses and MTU on both sides, and nothing waits for
/// duplicates.
#[test]
fn both_ends_are_complete() {
    let topology = Topology::new();
    let pod = TestNs::new("pod");
    topology.run(async |network, rtnl| {
        let alloc = allocation("c", Some("10.64.0.5"), Some("fd64::5"));
        let link = network.setup(&pod.0, &alloc, &identity("u"), Vec::new()).await.unwrap();
        let host = topology.node.ip(&format!("-d link show {}", link.host.name));
        for part in [
            "alias COIL:default:c:eth0",
            "altname coil.c.eth0",
            "altname coil-u",
            "mtu 1400",
            "state UP",
            "addrgenmode none",
            &format!("link/ether {}", link.host.mac),
        ] {
            assert!(host.contains(part), "{part}: {host}");
        }
        let inner = pod.ip("-d link show eth0");
        for part in ["mtu 1400", "state UP", "addrgenmode none", &format!("link/ether {}", link.mac)] {
            assert!(inner.contains(part), "{part}: {inner}");
        }
        let addresses =
            pod.ip("addr show dev eth0") + &topology.node.ip(&format!("addr show dev {}", link.host.name));
        assert!(!addresses.contains("tentative"), "{addresses}");
        for own in ["10.64.0.5/32", "fd64::5/128", NODE_V4, NODE_V6, &link.host.mac.link_local().to_string()]
        {
            assert!(addresses.contains(own), "{own}: {addresses}");
        }
        let neighbours = pod.ip("neigh show dev eth0");
        let permanent = format!("{} lladdr {} PERMANENT", link.host.mac.link_local(), link.host.mac);
        assert!(neighbours.contains(&permanent), "{neighbours}");
        assert!(
            neighbours.contains(&format!("{NODE_V4} lladdr {} PERMANENT", link.host.mac)),
            "{neighbours}"
        );
        // By each of its names it is the same link.
        let altnames = identity("u").altnames(&alloc.owner);
        assert_eq!(altnames.len(), 3, "attachment, pod and network");
        for name in altnames.iter().chain([&link.host.name]) {
            assert_eq!(rtnl.link_by_name(name).await.unwrap().unwrap().index, link.host.index, "{name}");
        }
    });
}

#[test]
fn calicos_name_and_a_stale_link_of_it() {
    let topology = Topology::new();
    let (old, new) = (TestNs::new("old"), TestNs::new("new"));
    topology.run(async |network, _| {
        let network = network.with_calico_names(true);
        let pod = identity("u");
        let first = allocation("first", Some("10.64.0.5"), Some("fd64::5"));
        let link = network.setup(&old.0, &first, &pod, Vec::new()).await.unwrap();
        assert_eq!(link.host.name, pod.calico_name());
        assert_eq!(link.host.name.len(), 15);
        // The pod's next sandbox, before the DEL of this one.
        let second = allocation("second", Some("10.64.0.6"), Some("fd64::6"));
        let again = network.setup(&new.0, &second, &pod, Vec::new()).await.unwrap();
        assert_eq!(again.host.name, link.host.name);
        assert!(!old.ip("-o link").contains("eth0"), "the stale one is gone");
        // The DEL that comes late takes nothing away.
        network.remove(&first.owner).await.unwrap();
        network.check(&new.0, &second).await.unwrap();
        network.remove(&second.owner).await.unwrap();
        assert!(!topology.node.ip("-o link").contains("veth"));
    });
}

/// An agent that is killed right after it made the pair leaves a link without an alias.
#[test]
fn half_a_link_is_replaced_and_removed() {
    let topology = Topology::new();
    let pod = TestNs::new("pod");
    let path = pod.path();
    let netns = path.file_name().unwrap().to_str().unwrap();
    topology.run(async |network, _| {
        let alloc = allocation("c", Some("10.64.0.5"), Some("fd64::5"));
        let link = network.setup(&pod.0, &alloc, &identity("u"), Vec::new()).await.unwrap();
        network.remove(&alloc.owner).await.unwrap();
        let half = || {
            topology.node.ip(&format!("link add {} type veth peer name eth0 netns {netns}", link.host.name));
        };
        half();
        network.setup(&pod.0, &alloc, &identity("u"), Vec::new()).await.unwrap();
        network.check(&pod.0, &alloc).await.unwrap();
        network.remove(&alloc.owner).await.unwrap();
        half();
        network.remove(&alloc.owner).await.unwrap();
        assert!(!topology.node.ip("-o link").contains("veth"));
        // A link of that name that is another attachment's stays, and is not in the way.
        half();
        topology.node.ip(&format!("link set {} alias COIL:default:other:eth0", link.host.name));
        network.remove(&alloc.owner).await.unwrap();
        assert!(topology.node.ip("-o link").contains(&link.host.name));
        let second = TestNs::new("second");
        let other = network.setup(&second.0, &alloc, &identity("v"), Vec::new()).await.unwrap();
        assert_ne!(other.host.name, link.host.name);
    });
}

/// Links of Coil v2 have no alternative names, and those of 2.0.1 their routes in the main table.
#[test]
fn pods_of_older_versions_are_taken_over() {
    let topology = Topology::new();
    let (a, b) = (TestNs::new("a"), TestNs::new("b"));
    let make = |ns: &TestNs, link: &str, container: &str| {
        let path = ns.path();
        let netns = path.file_name().unwrap().to_str().unwrap();
        topology.node.ip(&format!("link add {link} type veth peer name eth0 netns {netns}"));
        topology.node.ip(&format!("link set {link} up alias COIL:default:{container}:eth0"));
    };
    make(&a, "vetha", "a");
    make(&b, "vethb", "b");
    topology.node.ip("route add 10.64.0.1 dev vetha table 116 proto 30");
    topology.node.ip("-6 route add fd64::1 dev vetha table 116 proto 30");
    // Calico has made the protocol of one of them "boot".
    topology.node.ip("route add 10.64.0.2 dev vethb proto 30");
    topology.node.ip("-6 route add fd64::2 dev vethb proto boot");
    topology.node.ip("route add 192.0.2.7 dev vethb proto static");
    topology.run(async |network, rtnl| {
        let without = recover::pods(&rtnl, POD_TABLE, false).await.unwrap();
        let b_of = |found: &[recover::Found]| {
            found.iter().find(|f| f.alias.owner == owner("b")).unwrap().allocation()
        };
        assert!(without.iter().all(|f| f.alias.owner == owner("a")), "b has no address that is known");
        for _ in 0..2 {
            let found = recover::pods(&rtnl, POD_TABLE, true).await.unwrap();
            assert_eq!(found.len(), 2);
            assert_eq!(b_of(&found), allocation("b", Some("10.64.0.2"), Some("fd64::2")));
        }
        let table = topology.node.ip("route show table 116") + &topology.node.ip("-6 route show table 116");
        for address in ["10.64.0.1", "10.64.0.2", "fd64::1", "fd64::2"] {
            assert!(table.contains(&format!("{address} dev veth")), "{table}");
        }
        assert!(!table.contains("192.0.2.7"), "somebody else's: {table}");
        // They can be found, and so removed, as any other.
        for container in ["a", "b"] {
            assert!(rtnl.link_by_name(&name::of_attachment(&owner(container))).await.unwrap().is_some());
            network.remove(&owner(container)).await.unwrap();
        }
        assert!(!topology.node.ip("-o link").contains("veth"));
    });
}

#[test]
fn a_pod_whose_namespace_has_no_path_is_known_all_the_same() {
    let topology = Topology::new();
    let pod = TestNs::new("pod");
    topology.run(async |network, rtnl| {
        let alloc = allocation("c", Some("10.64.0.5"), Some("fd64::5"));
        let link = network.setup(&pod.0, &alloc, &identity("u"), Vec::new()).await.unwrap();
        NetNs::remove(&pod.path()).unwrap();
        let found = async || recover::pods(&rtnl, POD_TABLE, false).await.unwrap().pop().unwrap();
        let plain = found().await;
        assert_eq!((plain.netns, plain.link.mac, plain.kernel_client), (None, link.mac, false));
        pod.ip("link add name fou4_0a400005 type bridge");
        assert!(found().await.kernel_client, "links of the kernel's own egress");
    });
}

#[test]
fn a_family_without_a_gateway_is_named_and_nothing_is_made() {
    let topology = Topology::new();
    let pod = TestNs::new("pod");
    topology.run(async |network, rtnl| {
        let only_v6 = HostAddresses { ipv4: None, ipv6: NODE_V6.parse().ok() };
        let network = PodNetwork::new(rtnl, POD_TABLE, only_v6, network.mtu());
        let alloc = allocation("c", Some("10.64.0.5"), Some("fd64::5"));
        let error = network.setup(&pod.0, &alloc, &identity("u"), Vec::new()).await.unwrap_err();
        assert!(matches!(error, PodNetError::NoGateway { .. }), "{error}");
        assert!(
            error.to_string().contains("10.64.0.5") && error.to_string().contains("InternalIP"),
            "{error}"
        );
        assert!(!topology.node.ip("-o link").contains("veth") && !pod.ip("-o link").contains("eth0"));
        // The Node gets its address.
        let addresses = HostAddresses { ipv4: NODE_V4.parse().ok(), ..only_v6 };
        assert!(network.follow(HostSide { addresses, mtu: 1380 }));
        network.setup(&pod.0, &alloc, &identity("u"), Vec::new()).await.unwrap();
        assert!(pod.ip("link show eth0").contains("mtu 1380"));
    });
}

#[test]
fn a_namespace_that_goes_leaves_nothing() {
    let topology = Topology::new();
    topology.run(async |network, rtnl| {
        let alloc = allocation("c", Some("10.64.0.5"), Some("fd64::5"));
        let pod = TestNs::new("pod");
        let ns = coil_netns::NetNs::open(pod.path()).unwrap();
        // Its file goes, and then its last user.
        drop(pod);
        network.setup(&ns, &alloc, &identity("u"), Vec::new()).await.unwrap();
        drop(ns);
        let start = std::time::Instant::now();
        while rtnl.link_by_name("coil.c.eth0").await.unwrap().is_some() {
            assert!(start.elapsed() < std::time::Duration::from_secs(20), "the link outlives its namespace");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        assert!(!topology.node.ip("route show table all").contains("10.64.0.5"));
        network.remove(&alloc.owner).await.unwrap();
        // A file that is no namespace any more.
        let file = std::path::Path::new("/etc/hostname");
        let gone = coil_netns::NetNs::open(file).unwrap();
        let error = network.setup(&gone, &alloc, &identity("u"), Vec::new()).await.unwrap_err();
        assert!(error.to_string().contains("/etc/hostname") || error.to_string().contains("veth"), "{error}");
        assert!(!topology.node.ip("-o link").contains("veth"));
    });
}
