//! ADD, and the sequence of a runtime: ADD, CHECK, DEL, DEL.

use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, Setup},
    runtime::{Attachment, Network, VERSIONS, addresses, gc_env, pod_routes, understood},
    topology::{NODE_V4, TestNs},
};

/// Each version in turn, on a cluster of these families.
fn sequence(v4: bool, v6: bool) {
    Cluster::run_with(Setup { v4, v6, ..Setup::default() }, async |cluster| {
        for (i, version) in VERSIONS.iter().enumerate() {
            let name = format!("p{i}");
            cluster.objects.pod(&name, json!({})).await;
            let ns = TestNs::new(&name);
            let (network, pod) = (Network::of(&cluster, version), Attachment::new(&name, &ns));
            let added = network.add(&pod);
            result_of_version(&added, version, &pod);
            let families: Vec<bool> =
                understood(&added).ips.iter().map(|ip| ip.address.addr().is_ipv4()).collect();
            assert_eq!((families.contains(&true), families.contains(&false)), (v4, v6), "{added}");
            for address in addresses(&added) {
                assert!(ns.ip("-o addr show dev eth0").contains(&address), "{address}");
                assert!(cluster.node().reaches(&ns, address.parse().unwrap()), "node to {address}");
            }
            if *version == "0.3.1" {
                network.check(&pod, &added).error(1, &["CHECK", "0.4.0"]);
            } else {
                network.check(&pod, &added).done();
            }
            for _ in 0..2 {
                network.del(&pod, &added).done();
            }
            assert!(!ns.ip("-o link").contains("eth0"));
            if *version != "0.3.1" {
                network.check(&pod, &added).error(3, &["never added"]);
            }
        }
        assert_eq!(pod_routes(&cluster), "");
    });
}

fn result_of_version(added: &Value, version: &str, pod: &Attachment<'_>) {
    assert_eq!(added["cniVersion"], version);
    let [host, eth0] = &understood(added).interfaces[..] else { panic!("two interfaces: {added}") };
    assert_eq!((eth0.name.as_str(), eth0.sandbox.as_ref()), ("eth0", Some(&pod.netns())));
    assert_eq!(host.sandbox, None);
    assert!(pod.ns.ip("-o link show eth0").contains(eth0.mac.as_ref().unwrap()), "{added}");
    let newest = version == "1.1.0";
    assert_eq!(eth0.mtu, newest.then_some(1400), "{version}");
    for ip in added["ips"].as_array().unwrap() {
        let v4 = !ip["address"].as_str().unwrap().contains(':');
        let family = if v4 { json!("4") } else { json!("6") };
        assert_eq!(ip.get("version"), Some(&family).filter(|_| version.starts_with("0.")), "{ip}");
        assert_eq!(ip["interface"], 1);
        let gateway = ip["gateway"].as_str().unwrap();
        assert_eq!(gateway == NODE_V4, v4, "{gateway}");
        let default = if v4 { "0.0.0.0/0" } else { "::/0" };
        let route = added["routes"].as_array().unwrap().iter().find(|r| r["dst"] == default).unwrap();
        assert_eq!(route["gw"], gateway);
    }
}

#[test]
fn every_version_v4() {
    sequence(true, false);
}

#[test]
fn every_version_v6() {
    sequence(false, true);
}

#[test]
fn every_version_dual_stack() {
    sequence(true, true);
}

#[test]
fn add_again_after_a_lost_answer_gives_the_same() {
    Cluster::run(async |cluster| {
        cluster.objects.pod("p", json!({})).await;
        let ns = TestNs::new("p");
        let (network, pod) = (Network::of(&cluster, "1.1.0"), Attachment::new("p", &ns));
        let first = network.add(&pod);
        let second = network.add(&pod);
        assert_eq!(addresses(&first), addresses(&second));
        network.check(&pod, &second).done();

        let (one, other) = std::thread::scope(|scope| {
            let adds = [(); 2].map(|()| scope.spawn(|| network.add(&pod)));
            let [one, other] = adds.map(|add| add.join().unwrap());
            (one, other)
        });
        assert_eq!((addresses(&one), addresses(&other)), (addresses(&first), addresses(&first)));
        let links = cluster.node().ip("-o link show type veth");
        // One of the two is the one that is there; which, the lock decided.
        assert_eq!(links.lines().filter(|l| l.contains("COIL:")).count(), 1, "{links}");
        let last = [&one, &other].into_iter().find(|added| network.check(&pod, added).ok);
        network.del(&pod, last.unwrap()).done();
        assert_eq!(pod_routes(&cluster), "");
    });
}

#[test]
fn an_interface_that_is_there_is_not_taken() {
    Cluster::run(async |cluster| {
        cluster.objects.pod("p", json!({})).await;
        let ns = TestNs::new("p");
        let (network, pod) = (Network::of(&cluster, "1.0.0"), Attachment::new("p", &ns));
        ns.ip("link add eth0 type bridge");
        network.call("ADD", &pod.env()).error(4, &["CNI_IFNAME", "eth0", "already"]);
        assert!(ns.ip("-d link show eth0").contains("bridge"), "it is left alone");
        network.with("prevResult", json!({})).call("DEL", &pod.env()).done();
        assert!(ns.ip("-d link show eth0").contains("bridge"), "by DEL too");
        ns.ip("link del eth0");
        network.add(&pod);
    });
}

#[test]
fn a_pod_can_have_two_attachments() {
    Cluster::run(async |cluster| {
        cluster.objects.pod("p", json!({})).await;
        let ns = TestNs::new("p");
        let (network, pod) = (Network::of(&cluster, "1.1.0"), Attachment::new("p", &ns));
        let added = network.add(&pod);
        // Its addresses and routes are in the way of eth0's: what a second interface is for is up to who asks.
        ns.ip("route flush table main");
        ns.ip("-6 route flush table main");
        let second = network.call("ADD", &pod.env().set("CNI_IFNAME", "net1")).result();
        assert_ne!(addresses(&added), addresses(&second));
        network.with("prevResult", second).call("DEL", &pod.env().set("CNI_IFNAME", "net1")).done();
        assert!(ns.ip("-o link").contains("eth0"), "the other attachment stays");
        network.del(&pod, &added).done();
    });
}

#[test]
fn del_in_any_order_and_state() {
    Cluster::run(async |cluster| {
        cluster.objects.pod("p", json!({})).await;
        let network = Network::of(&cluster, "1.0.0");
        let ns = TestNs::new("p");
        let pod = Attachment::new("p", &ns);
        // Before any ADD; without a result; with one that cannot be read; without arguments.
        network.call("DEL", &pod.env()).done();
        network
            .with("prevResult", json!("nonsense"))
            .call("DEL", &pod.env().set("CNI_ARGS", "nonsense"))
            .done();
        let added = network.add(&pod);
        network.call("DEL", &pod.env().without("CNI_NETNS").without("CNI_ARGS")).done();
        assert!(!ns.ip("-o link").contains("eth0"));

        // The namespace went first.
        let added_again = network.add(&pod);
        assert_eq!(addresses(&added_again).len(), addresses(&added).len());
        let gone = pod.netns();
        let (env, id) = (pod.env(), pod.id.clone());
        drop(ns);
        for netns in [gone.as_str(), ""] {
            network
                .with("prevResult", added_again.clone())
                .call("DEL", &env.clone().set("CNI_NETNS", netns))
                .done();
        }
        network.with("prevResult", added_again).call("CHECK", &env).error(3, &[&id]);
        assert_eq!(pod_routes(&cluster), "");
    });
}

#[test]
fn status_and_version() {
    Cluster::run(async |mut cluster| {
        let network = Network::of(&cluster, "1.1.0");
        // The first look may come before the lists.
        let start = std::time::Instant::now();
        while !network.call("STATUS", &gc_env()).ok {
            assert!(start.elapsed() < std::time::Duration::from_secs(20), "not ready");
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        let answer = network.call("VERSION", &gc_env()).result();
        assert_eq!(answer, json!({"cniVersion": "1.1.0", "supportedVersions": VERSIONS}));
        cluster.stop();
        network.call("STATUS", &gc_env()).error(50, &["coild.sock"]);
    });
}

#[test]
fn without_egress_annotations_mean_nothing() {
    Cluster::run_with(Setup { egress: false, ..Setup::default() }, async |cluster| {
        cluster.objects.pod("p", json!({"egress.coil.cybozu.com/internet": "nat,,"})).await;
        let ns = TestNs::new("p");
        let (network, pod) = (Network::of(&cluster, "1.0.0"), Attachment::new("p", &ns));
        let added = network.add(&pod);
        network.check(&pod, &added).done();
        network.del(&pod, &added).done();
    });
}
