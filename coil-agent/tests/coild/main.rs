//! The real coild over the embedded API server. Needs root.
//!
//! ```text
//!   node namespace                                                   pod namespaces
//!   coil-ipam-controller ──▶ API server ◀── coild ◀── gRPC ── test     a, b, …
//! ```
//!
//! The pool has one block: four addresses of each family.
#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

mod cluster;
mod roles;
#[path = "../net/topology.rs"]
#[expect(dead_code, reason = "shared with the tests of the pod network")]
mod topology;

use std::{collections::BTreeSet, os::unix::fs::PermissionsExt};

use cluster::Cluster;
use coil_api::cni::{CniResult, code};
use serde_json::json;
use topology::TestNs;

#[test]
fn pods_come_and_go_and_coild_is_killed() {
    Cluster::run(async |mut cluster| {
        let mode = std::fs::metadata(cluster.socket()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let (a, b) = (TestNs::new("a"), TestNs::new("b"));
        cluster.objects.pod("a", json!({})).await;
        cluster.objects.pod("b", json!({})).await;
        let result: CniResult = cluster.add("a", &a).await.unwrap();
        assert_eq!(result.interfaces.len(), 2);
        let first: BTreeSet<_> = result.ips.iter().map(|ip| ip.address).collect();
        assert_eq!(first.len(), 2, "dual stack");
        cluster.check("a", &a).await.unwrap();
        cluster.until_exported("10.64.0.0/30 dev lo proto 30 scope link").await;

        cluster.restart().await;
        cluster.check("a", &a).await.unwrap();
        let second: BTreeSet<_> =
            cluster.add("b", &b).await.unwrap().ips.iter().map(|ip| ip.address).collect();
        assert!(first.is_disjoint(&second), "{first:?} {second:?}");
        assert!(b.reaches(&a, first.first().unwrap().addr()));

        for _ in 0..2 {
            cluster.del("a", &a).await.unwrap();
        }
        // Asked to end, it leaves b as it is.
        cluster.terminate();
        cluster.until_ended().await;
        assert!(b.ip("-o link").contains("eth0"));
        cluster.go_on().await;
        cluster.check("b", &b).await.unwrap();
        assert!(!a.ip("-o link").contains("eth0"));
        assert_eq!(cluster.check("a", &a).await.unwrap_err().code, code::UNKNOWN_CONTAINER as i32);
        let table = cluster.node().ip("route show table 116");
        assert_eq!(table.lines().count(), 1, "only b: {table}");
    });
}

#[test]
fn what_is_wrong_is_named_and_mended() {
    Cluster::run(async |cluster| {
        let pod = TestNs::new("p");
        let failure = |e: coil_api::rpc::CniError, parts: &[&str]| {
            assert!(parts.iter().all(|part| e.msg.contains(part)), "{}", e.msg);
            let links = cluster.node().ip("-o link");
            assert!(!links.contains("veth"), "nothing is left behind: {links}");
            assert!(!pod.ip("-o link").contains("eth0"));
            e.code
        };
        let add = || cluster.add("p", &pod);

        let code_of = failure(add().await.unwrap_err(), &["default/p", "does not exist in the API"]);
        assert_eq!(code_of, code::UNKNOWN_CONTAINER as i32);

        cluster.objects.pod("p", json!({"egress.coil.cybozu.com/internet": "nat,,"})).await;
        failure(add().await.unwrap_err(), &["default/p", "egress.coil.cybozu.com/internet"]);

        cluster.objects.annotate_pod("p", json!({"egress.coil.cybozu.com/internet": "nat"})).await;
        failure(add().await.unwrap_err(), &["default/p", "Egress internet/nat does not exist", "create it"]);

        cluster.objects.egress("internet", "nat").await;
        failure(add().await.unwrap_err(), &["default/p", "internet/nat", "--datapath ebpf"]);

        cluster.objects.annotate_pod("p", json!({"egress.coil.cybozu.com/internet": null})).await;
        cluster.objects.annotate_namespace(json!({"coil.cybozu.com/pool": "nowhere"})).await;
        cluster.until_add_fails("p", &pod, "nowhere").await;
        failure(
            add().await.unwrap_err(),
            &["default/p", "AddressPool \"nowhere\" does not exist", "create it"],
        );

        cluster.objects.annotate_namespace(json!({"coil.cybozu.com/pool": null})).await;
        cluster.until_added("p", &pod).await;
        cluster.check("p", &pod).await.unwrap();
    });
}

#[test]
fn many_adds_at_once_fill_the_pool_and_each_has_its_own() {
    Cluster::run(async |cluster| {
        let names: Vec<String> = (0..5).map(|i| format!("p{i}")).collect();
        let pods: Vec<TestNs> = names.iter().map(|name| TestNs::new(name)).collect();
        for name in &names {
            cluster.objects.pod(name, json!({})).await;
        }
        let adds = pods.iter().zip(&names).take(4).map(|(ns, name)| cluster.add(name, ns));
        let mut addresses = BTreeSet::new();
        for result in futures::future::join_all(adds).await {
            addresses.extend(result.unwrap().ips.iter().map(|ip| ip.address));
        }
        assert_eq!(addresses.len(), 8, "every address of both families of the block");

        let error = cluster.add("p4", &pods[4]).await.unwrap_err();
        let parts = ["default/p4", "AddressPool \"default\" is out of blocks", "append a subnet"];
        assert!(parts.iter().all(|part| error.msg.contains(part)), "{}", error.msg);
        assert!(!pods[4].ip("-o link").contains("eth0"));
        cluster.del("p0", &pods[0]).await.unwrap();
        cluster.add("p4", &pods[4]).await.unwrap();
    });
}

#[test]
fn again_on_a_real_server() {
    coil_apitest::again_on_a_real_server();
}
