//! Wrong input, with the specification's codes; nothing is left behind.

use serde_json::{Value, json};

use crate::{
    cluster::Cluster,
    runtime::{Attachment, Network, call, gc_env, plugin},
    topology::TestNs,
};

#[test]
fn wrong_environments() {
    Cluster::run(async |cluster| {
        cluster.objects.pod("p", json!({})).await;
        let ns = TestNs::new("p");
        let (network, pod) = (Network::of(&cluster, "1.0.0"), Attachment::new("p", &ns));
        let env = pod.env();
        let added = json!({"cniVersion": "1.0.0"});
        for (verb, needed) in [
            ("ADD", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"][..]),
            ("CHECK", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"]),
            ("DEL", &["CNI_CONTAINERID", "CNI_IFNAME"]),
        ] {
            let network = if verb == "ADD" {
                network.with("x", json!(1))
            } else {
                network.with("prevResult", added.clone())
            };
            for &name in needed {
                network.call(verb, &env.clone().without(name)).error(4, &[name]);
                network.call(verb, &env.clone().set(name, "")).error(4, &[name]);
            }
            network.call(verb, &gc_env()).error(4, needed);
            for id in ["-a", "a/b", "a:b", "a b", "ü"] {
                network.call(verb, &env.clone().set("CNI_CONTAINERID", id)).error(4, &["CNI_CONTAINERID"]);
            }
            for name in [".", "..", "a/b", "a:b", "a b", "sixteen-letters0"] {
                network.call(verb, &env.clone().set("CNI_IFNAME", name)).error(4, &["CNI_IFNAME"]);
            }
        }
        for verb in ["", "BREW", "add"] {
            network.call(verb, &env).error(4, &["CNI_COMMAND"]);
        }
        let add = |env| network.call("ADD", &env);
        add(env.clone().set("CNI_NETNS", "/run/netns/not-there")).error(4, &["CNI_NETNS", "not-there"]);
        add(env.clone().set("CNI_NETNS", "/etc/passwd")).error(4, &["CNI_NETNS"]);
        add(env.clone().set("CNI_NETNS", "/proc/self/ns/net")).error(4, &["CNI_NETNS", "node's own"]);
        let own = cluster.node().path().display().to_string();
        add(env.clone().set("CNI_NETNS", &own)).error(4, &["CNI_NETNS", "node's own"]);
        add(env.clone().set("CNI_ARGS", "K8S_POD_NAME")).error(4, &["CNI_ARGS"]);
        add(env.clone().without("CNI_ARGS")).error(4, &["K8S_POD_NAMESPACE", "K8S_POD_NAME"]);
        let some = "K8S_POD_NAMESPACE=default;K8S_POD_NAME=";
        add(env.clone().set("CNI_ARGS", some)).error(4, &["no K8S_POD_NAME:"]);
        add(env.clone().set("CNI_ARGS", &format!("{some}nobody")))
            .error(3, &["default/nobody", "does not exist"]);
        assert!(!ns.ip("-o link").contains("eth0"));
        assert!(!cluster.node().ip("-o link").contains("COIL:"), "nothing is left");
        network.add(&pod);
    });
}

#[test]
fn wrong_configurations() {
    Cluster::run(async |cluster| {
        cluster.objects.pod("p", json!({})).await;
        let ns = TestNs::new("p");
        let (network, pod) = (Network::of(&cluster, "1.0.0"), Attachment::new("p", &ns));
        let env = pod.env();
        for text in ["", "{", "[]", "null", "\"coil\"", "{\"cniVersion\": 1}"] {
            for verb in ["ADD", "DEL", "CHECK"] {
                call(&plugin(), verb, text, &env).error(6, &[]);
            }
            for verb in ["GC", "STATUS"] {
                call(&plugin(), verb, text, &gc_env()).error(6, &[]);
            }
            assert_eq!(call(&plugin(), "VERSION", text, &gc_env()).result()["cniVersion"], "1.1.0");
        }
        let refused = |verb: &str, key: &str, value: Value, code: u64, part: &str| {
            let before = if verb == "CHECK" && key != "prevResult" { json!({}) } else { Value::Null };
            network.with("prevResult", before).with(key, value).call(verb, &env).error(code, &[part]);
        };
        for verb in ["ADD", "DEL", "CHECK"] {
            for version in ["0.2.0", "1.2.0", "2.0.0", "nonsense", ""] {
                refused(verb, "cniVersion", json!(version), 1, "1.1.0");
            }
            refused(verb, "name", Value::Null, 6, "configuration");
            refused(verb, "name", json!(""), 7, "name");
            refused(verb, "name", json!("a/b"), 7, "a/b");
            refused(verb, "socket", json!("relative.sock"), 7, "relative.sock");
        }
        refused(
            "ADD",
            "runtimeConfig",
            json!({"mac": "02:00:00:00:00:01"}),
            2,
            "\"mac\": \"02:00:00:00:00:01\"",
        );
        refused("ADD", "runtimeConfig", json!({"ips": ["10.64.0.9/32"]}), 2, "ips");
        refused("CHECK", "prevResult", Value::Null, 7, "prevResult");
        for verb in ["ADD", "CHECK"] {
            refused(
                verb,
                "prevResult",
                json!({"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.1/24"}}),
                1,
                "0.2.0",
            );
            refused(verb, "prevResult", json!({"cniVersion": "9.9.9"}), 1, "9.9.9");
            refused(verb, "prevResult", json!([]), 6, "prevResult");
            refused(verb, "prevResult", json!({"ips": [{"address": "10.0.0.1"}]}), 6, "prevResult");
        }
        // It gives the addresses, so nobody can have come before.
        refused(
            "ADD",
            "prevResult",
            json!({"ips": [{"address": "10.0.0.1/24"}]}),
            7,
            "first plugin in the chain",
        );
        refused("ADD", "prevResult", json!({}), 7, "--enable-ipam=false");
        assert!(!ns.ip("-o link").contains("eth0"));
        network.add(&pod);
    });
}
