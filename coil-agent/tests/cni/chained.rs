//! Behind the reference plugins ptp and bridge: coil changes nothing of their network, and marks the pod's link.

use std::path::Path;

use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, Setup},
    runtime::{Attachment, Network, REFERENCE, addresses, call},
    topology::TestNs,
};

/// The plugin before coil.
struct Before {
    kind: &'static str,
    config: Value,
    _state: tempfile::TempDir,
}

impl Before {
    fn new(kind: &'static str, v4: bool, v6: bool) -> Self {
        let path = Path::new(REFERENCE).join(kind);
        assert!(path.exists(), "{} is missing: `cargo xtask setup` installs it", path.display());
        let state = tempfile::tempdir().unwrap();
        let of = |on: bool, text: &str| Some(text.to_owned()).filter(|_| on);
        let ranges: Vec<Value> = [of(v4, "10.244.0.0/24"), of(v6, "fd00:10:244::/64")]
            .into_iter()
            .flatten()
            .map(|subnet| json!([{"subnet": subnet}]))
            .collect();
        let routes: Vec<Value> = [of(v4, "0.0.0.0/0"), of(v6, "::/0")]
            .into_iter()
            .flatten()
            .map(|dst| json!({"dst": dst}))
            .collect();
        let config = json!({"cniVersion": "1.0.0", "name": "k8s-pod-network", "type": kind, "ipMasq": false,
            "bridge": "cni0", "isGateway": true,
            "ipam": {"type": "host-local", "dataDir": state.path(), "ranges": ranges, "routes": routes}});
        Self { kind, config, _state: state }
    }

    fn call(&self, verb: &str, pod: &Attachment<'_>) -> Value {
        let answer = call(&Path::new(REFERENCE).join(self.kind), verb, &self.config.to_string(), &pod.env());
        assert!(answer.ok, "{} {verb}: {}", self.kind, answer.document);
        answer.document
    }
}

/// Index and line of the node's link with an alias.
fn marked(cluster: &Cluster, uid: &str) -> Vec<(u32, String)> {
    let links = cluster.node().ip("-o link");
    let ours = links.lines().filter(|line| line.contains(&format!("alias COIL::{uid}:eth0")));
    ours.map(|line| (line.split(':').next().unwrap().trim().parse().unwrap(), line.to_owned())).collect()
}

/// The index of the other end of the pod's link, as the pod sees it.
fn peer(ns: &TestNs) -> u32 {
    let line = ns.ip("-o link show eth0");
    line.split("@if").nth(1).unwrap().split(':').next().unwrap().parse().unwrap()
}

fn behind(kind: &'static str, v4: bool, v6: bool) {
    Cluster::run_with(Setup { v4, v6, ipam: false, ..Setup::default() }, async |mut cluster| {
        let before = Before::new(kind, v4, v6);
        let network = Network::of(&cluster, "1.0.0");
        let (ns, other_ns) = (TestNs::new("p"), TestNs::new("q"));
        let (pod, other) = (Attachment::new("p", &ns), Attachment::new("q", &other_ns));
        let uid = cluster.objects.pod("p", json!({})).await;
        let other_uid = cluster.objects.pod("q", json!({})).await;

        network.call("ADD", &pod.env()).error(7, &["--enable-ipam=false", "another plugin"]);
        let first = before.call("ADD", &pod);
        let routes = ns.ip("route") + &ns.ip("-6 route");
        let added = network.with("prevResult", first.clone()).call("ADD", &pod.env()).result();
        assert_eq!(added, first, "the result is passed on");
        assert_eq!(addresses(&added).len(), usize::from(v4) + usize::from(v6));
        assert_eq!(ns.ip("route") + &ns.ip("-6 route"), routes, "a pod without Egresses keeps its routes");
        let [(index, _)] = marked(&cluster, &uid)[..] else { panic!("one link has the alias") };
        assert_eq!(index, peer(&ns), "the pod's own peer");
        network.check(&pod, &added).done();
        // Again, after a lost answer.
        let again = network.with("prevResult", first.clone()).call("ADD", &pod.env()).result();
        assert_eq!(again, first);
        assert_eq!(marked(&cluster, &uid).len(), 1);

        // Names in the result decide nothing.
        let others_first = before.call("ADD", &other);
        let mut misleading = others_first.clone();
        misleading["interfaces"] = json!([{"name": "uplink"}, {"name": "lo"}, others_first["interfaces"][0]]);
        misleading["ips"] = json!([]);
        network.with("prevResult", misleading).call("ADD", &other.env()).result();
        let [(others, _)] = marked(&cluster, &other_uid)[..] else { panic!("one link has the alias") };
        assert_eq!(others, peer(&other_ns));

        cluster.restart().await;
        network.check(&pod, &added).done();
        network.check(&other, &others_first).done();
        ns.ip(&format!("addr del {} dev eth0", added["ips"][0]["address"].as_str().unwrap()));
        network.check(&pod, &added).error(999, &["address", &addresses(&added)[0], "missing"]);

        // coil first, as runtimes do it; and again. The link is the other plugin's.
        for _ in 0..2 {
            network.del(&pod, &added).done();
        }
        assert!(marked(&cluster, &uid).is_empty());
        let link = cluster.node().ip("-o -d link");
        assert!(!link.contains(&pod.id) && link.contains(&other.id), "{link}");
        assert_eq!(peer(&ns), index);
        network.check(&pod, &added).error(999, &["missing"]);
        before.call("DEL", &pod);
        network.del(&pod, &added).done();

        // GC, by the container's id, though the alias has the pod's UID.
        let newest = Network::of(&cluster, "1.1.0");
        newest.gc(&[&other]).done();
        assert_eq!(marked(&cluster, &other_uid).len(), 1);
        newest.gc(&[]).done();
        assert!(marked(&cluster, &other_uid).is_empty());
        newest.check(&other, &others_first).error(3, &["never added"]);
        before.call("DEL", &other);
    });
}

#[test]
fn ptp_v4() {
    behind("ptp", true, false);
}

#[test]
fn ptp_v6() {
    behind("ptp", false, true);
}

#[test]
fn ptp_dual_stack() {
    behind("ptp", true, true);
}

#[test]
fn bridge_v4() {
    behind("bridge", true, false);
}

#[test]
fn bridge_v6() {
    behind("bridge", false, true);
}

#[test]
fn bridge_dual_stack() {
    behind("bridge", true, true);
}

/// Coil v2 of Go marks the link with the pod's UID, and nothing says which container it is.
#[test]
fn a_pod_of_coil_v2_is_found_by_its_uid() {
    Cluster::run_with(Setup { ipam: false, v6: false, ..Setup::default() }, async |mut cluster| {
        let before = Before::new("ptp", true, false);
        let network = Network::of(&cluster, "1.0.0");
        let (ns, other_ns) = (TestNs::new("p"), TestNs::new("q"));
        let (pod, other) = (Attachment::new("p", &ns), Attachment::new("q", &other_ns));
        let uid = cluster.objects.pod("p", json!({})).await;
        let other_uid = cluster.objects.pod("q", json!({})).await;
        let first = before.call("ADD", &pod);
        cluster.stop();
        let link = first["interfaces"][0]["name"].as_str().unwrap();
        cluster.node().ip(&format!("link set {link} alias COIL::{uid}:eth0"));
        cluster.go_on().await;

        let checked = network.with("prevResult", first.clone());
        let args = |uid: &str| {
            let text = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=p;K8S_POD_UID=";
            pod.env().set("CNI_ARGS", &format!("{text}{uid}"))
        };
        checked.call("CHECK", &args(&uid)).done();
        checked.call("CHECK", &pod.env()).done();
        checked.call("CHECK", &args(&other_uid)).error(3, &["never added"]);
        // A name alone could be that of the pod that came after.
        checked.call("DEL", &pod.env()).done();
        assert_eq!(marked(&cluster, &uid).len(), 1);
        checked.call("DEL", &args(&uid)).done();
        assert!(marked(&cluster, &uid).is_empty());
        checked.call("CHECK", &args(&uid)).error(3, &["never added"]);

        // A pod that has another container by now is not its.
        let others_first = before.call("ADD", &other);
        network.with("prevResult", others_first).call("ADD", &other.env()).result();
        let text = format!("K8S_POD_NAMESPACE=default;K8S_POD_NAME=q;K8S_POD_UID={other_uid}");
        let earlier = other.env().set("CNI_CONTAINERID", "earlier").set("CNI_ARGS", &text);
        network.call("DEL", &earlier).done();
        assert_eq!(marked(&cluster, &other_uid).len(), 1);
        before.call("DEL", &other);
        before.call("DEL", &pod);
    });
}

#[test]
fn what_cannot_be_served_leaves_no_mark() {
    Cluster::run_with(Setup { ipam: false, v6: false, ..Setup::default() }, async |mut cluster| {
        let before = Before::new("ptp", true, false);
        let network = Network::of(&cluster, "1.0.0");
        let ns = TestNs::new("p");
        let pod = Attachment::new("p", &ns);
        cluster.objects.pod("p", json!({"egress.coil.cybozu.com/internet": "nat"})).await;
        let first = before.call("ADD", &pod);
        let chained = network.with("prevResult", first);
        chained.call("ADD", &pod.env()).error(999, &["internet/nat", "does not exist"]);
        cluster.objects.egress("internet", "nat").await;
        chained.call("ADD", &pod.env()).error(999, &["internet/nat", "--datapath ebpf"]);
        assert!(!cluster.node().ip("-o link").contains("COIL:"));
        before.call("DEL", &pod);

        // A client behind a plugin that makes no veth; a pod that needs nothing of coil does not mind.
        ns.ip("link add eth0 type bridge");
        ns.ip("addr add 10.244.9.9/24 dev eth0");
        let other_kind = network.with("prevResult", json!({"cniVersion": "1.0.0"}));
        let plain_ns = TestNs::new("q");
        let plain = Attachment::new("q", &plain_ns);
        cluster.objects.pod("q", json!({})).await;
        plain_ns.ip("link add eth0 type bridge");
        other_kind.call("ADD", &plain.env()).result();
        other_kind.call("CHECK", &plain.env()).done();
        other_kind.call("DEL", &plain.env()).done();

        // With the daemon down there is nothing of coil's that keeps the other plugin from going on.
        cluster.stop();
        network.call("DEL", &plain.env()).done();
        assert!(plain_ns.ip("-o link").contains("eth0"));
    });
}

#[test]
fn a_client_behind_ptp_has_its_egress_from_the_first_packet() {
    Cluster::run_with(Setup { ipam: false, ebpf: true, ..Setup::default() }, async |mut cluster| {
        let before = Before::new("ptp", true, true);
        let network = Network::of(&cluster, "1.0.0");
        let ns = TestNs::new("p");
        let pod = Attachment::new("p", &ns);
        cluster.objects.egress("internet", "nat").await;
        let uid = cluster.objects.pod("p", json!({"egress.coil.cybozu.com/internet": "nat"})).await;
        let first = before.call("ADD", &pod);
        let added = network.with("prevResult", first.clone()).call("ADD", &pod.env()).result();
        assert_eq!(added, first);
        let filters = || {
            let [(_, line)] = &marked(&cluster, &uid)[..] else { panic!("one link has the alias") };
            let link = line.split(": ").nth(1).unwrap().split('@').next().unwrap().to_owned();
            cluster.node().0.run(|| {
                let tc = std::process::Command::new("tc")
                    .args(["filter", "show", "dev", &link, "ingress"])
                    .output();
                String::from_utf8(tc.unwrap().stdout).unwrap()
            })
        };
        assert!(filters().unwrap().contains("from_pod"), "the program sees the first packet");
        let route = ns.ip("route show 198.51.100.0/24");
        assert!(
            route.contains("mtu 1472") && route.contains("proto 30"),
            "room for the outer headers: {route}"
        );
        assert!(ns.ip("route show default").contains("via"), "ptp's own is there as before");
        network.check(&pod, &added).done();
        cluster.restart().await;
        network.check(&pod, &added).done();
        network.del(&pod, &added).done();
        assert!(marked(&cluster, &uid).is_empty());
        let routes = ns.ip("route") + &ns.ip("-6 route");
        assert!(!routes.contains("proto 30"), "the namespace may live on: {routes}");
        assert!(ns.ip("route show default").contains("via"), "ptp's own are there still");
        before.call("DEL", &pod);
    });
}
