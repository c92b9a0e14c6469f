//! GC removes what the runtime does not know, and nothing else.

use serde_json::{Value, json};

use crate::{
    cluster::Cluster,
    runtime::{Attachment, Network, addresses, gc_env, pod_routes},
    topology::TestNs,
};

fn connected(pod: &Attachment<'_>) -> bool {
    pod.ns.ip("-o link").contains("eth0")
}

#[test]
fn stale_attachments_go_and_live_ones_stay() {
    Cluster::run(async |mut cluster| {
        let network = Network::of(&cluster, "1.1.0");
        let names = ["a", "b", "c", "d"];
        let namespaces = names.map(TestNs::new);
        for name in names {
            cluster.objects.pod(name, json!({})).await;
        }
        let [a, b, c, d] = [0, 1, 2, 3].map(|i| Attachment::new(names[i], &namespaces[i]));
        let other = network.with("name", json!("other-network"));
        let added = [&a, &b, &c].map(|pod| network.add(pod));
        let others = other.add(&d);

        // Nothing is known to be stale without a list.
        network.call("GC", &gc_env()).done();
        network.with("cni.dev/valid-attachments", Value::Null).call("GC", &gc_env()).done();
        assert!([&a, &b, &c, &d].into_iter().all(connected));

        network.gc(&[&a, &b]).done();
        assert!(connected(&a) && connected(&b) && !connected(&c));
        assert!(connected(&d), "another network's runtime knows it");
        network.check(&c, &added[2]).error(3, &["never added"]);
        network.check(&a, &added[0]).done();
        other.check(&d, &others).done();
        network.del(&c, &added[2]).done();

        // After a restart the networks are known from the links; each key is read; both together count.
        cluster.restart().await;
        let both = network
            .with("cni.dev/attachments", json!([a.name()]))
            .with("cni.dev/valid-attachments", json!([b.name()]));
        both.call("GC", &gc_env()).done();
        assert!(connected(&a) && connected(&b) && connected(&d));
        network.with("cni.dev/attachments", json!([b.name()])).call("GC", &gc_env()).done();
        assert!(!connected(&a) && connected(&b) && connected(&d));
        network.gc(&[]).done();
        assert!(!connected(&b) && connected(&d));
        other.gc(&[]).done();
        assert!(!connected(&d));
        assert_eq!(pod_routes(&cluster), "");

        // The addresses are free again.
        let mut all: Vec<String> =
            [&a, &b, &c, &d].into_iter().flat_map(|p| addresses(&network.add(p))).collect();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 8);
    });
}

#[test]
fn what_gc_is_given_is_checked() {
    Cluster::run(async |cluster| {
        let network = Network::of(&cluster, "1.1.0");
        cluster.objects.pod("a", json!({})).await;
        let ns = TestNs::new("a");
        let a = Attachment::new("a", &ns);
        network.add(&a);
        for list in [json!({}), json!(["a"]), json!([{"containerID": "a"}]), json!([{"ifname": "eth0"}])] {
            network.with("cni.dev/valid-attachments", list.clone()).call("GC", &gc_env()).error(6, &[]);
        }
        network.gc(&[]).document.is_null().then_some(()).unwrap();
        for version in ["0.3.1", "0.4.0", "1.0.0"] {
            Network::of(&cluster, version).gc(&[]).error(1, &["GC", "1.1.0"]);
            Network::of(&cluster, version).call("STATUS", &gc_env()).error(1, &["STATUS", "1.1.0"]);
        }
        network.call("GC", &gc_env().without("CNI_PATH")).error(4, &["CNI_PATH"]);
    });
}
