//! CHECK names what is missing.

use serde_json::{Value, json};

use crate::{
    cluster::Cluster,
    runtime::{Attachment, Network, addresses},
    topology::TestNs,
};

#[test]
fn what_was_deleted_is_named() {
    Cluster::run(async |cluster| {
        let network = Network::of(&cluster, "1.1.0");
        cluster.objects.pod("p", json!({})).await;
        let ns = TestNs::new("p");
        let pod = Attachment::new("p", &ns);
        let mut added = network.add(&pod);
        let node = cluster.node();
        let (v4, v6) = (addresses(&added)[0].clone(), addresses(&added)[1].clone());
        let link = added["interfaces"][0]["name"].as_str().unwrap().to_owned();
        for (place, delete, parts) in [
            (&ns, "route del default", ["route to 0.0.0.0/0", "in the pod"]),
            (&ns, "-6 route del default", ["route to ::/0", "in the pod"]),
            (&ns, &format!("addr del {v4}/32 dev eth0"), ["address", &v4]),
            (&ns, &format!("addr del {v6}/128 dev eth0"), ["address", &v6]),
            (node, &format!("route del {v4} table 116"), ["table 116", &v4]),
            (node, &format!("-6 route del {v6} table 116"), ["table 116", &v6]),
            (&ns, "link del eth0", ["veth", "missing"]),
            (node, &format!("link del {link}"), ["veth", "missing"]),
        ] {
            if delete.contains(&link) {
                // The name is another one after the repair.
                node.ip(&format!("link del {}", added["interfaces"][0]["name"].as_str().unwrap()));
            } else {
                place.ip(delete);
            }
            let msg = network.check(&pod, &added).error(999, &parts);
            assert!(msg.contains("default/p"), "{msg}");
            // What a runtime does with it: again.
            network.del(&pod, &added).done();
            added = network.add(&pod);
            // The next one after the last used: the commands above are about the first pair.
            while addresses(&added) != [v4.clone(), v6.clone()] {
                network.del(&pod, &added).done();
                added = network.add(&pod);
            }
            network.check(&pod, &added).done();
        }
    });
}

#[test]
fn a_result_of_something_else_is_refused() {
    Cluster::run(async |cluster| {
        let network = Network::of(&cluster, "1.1.0");
        cluster.objects.pod("p", json!({})).await;
        let ns = TestNs::new("p");
        let pod = Attachment::new("p", &ns);
        let added = network.add(&pod);
        let changed = |change: &dyn Fn(&mut Value)| {
            let mut added = added.clone();
            change(&mut added);
            network.check(&pod, &added)
        };
        changed(&|a| a["ips"][0]["address"] = json!("10.64.0.77/32"))
            .error(999, &["10.64.0.77", "default/p"]);
        changed(&|a| a["interfaces"][1]["mac"] = json!("02:00:00:00:00:01"))
            .error(999, &["02:00:00:00:00:01"]);
        changed(&|a| a["interfaces"][0]["name"] = json!("veth-other")).error(999, &["veth-other", "missing"]);
        changed(&|a| a["interfaces"][1]["name"] = json!("eth7")).error(999, &["eth7"]);
        // Plugins after coil add what is theirs, and it need not be coil's to find it wrong.
        changed(&|a| a["dns"] = json!({"nameservers": ["10.96.0.10"]})).done();
        changed(&|a| a["routes"] = json!([])).done();
        // Another container of the same pod was never added.
        let other = Attachment { id: "other".into(), ..pod.clone() };
        network.check(&other, &added).error(3, &["other:eth0", "never added"]);
        // One of another namespace.
        let elsewhere = TestNs::new("q");
        let env = pod.env().set("CNI_NETNS", &elsewhere.path().display().to_string());
        network.with("prevResult", added.clone()).call("CHECK", &env).error(999, &["eth0", "missing"]);
    });
}
