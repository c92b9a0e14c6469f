//! An upgrade from Coil v2 in Go: its programs, which still run, are refused nothing after Coil's roles have been applied.

use std::path::Path;
use std::process::Command;

use coil_apiserver::{Attributes, Policy};
use serde::Deserialize as _;
use serde_json::{Value, json};

const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy");

const POOLS: &str = "coil.cybozu.com addresspools";
const BLOCKS: &str = "coil.cybozu.com addressblocks";
const REQUESTS: &str = "coil.cybozu.com blockrequests";
const ANSWERS: &str = "coil.cybozu.com blockrequests/status";
const EGRESSES: &str = "coil.cybozu.com egresses";

/// What Coil v2's programs with addresses ask for: account, group and resource, verbs. From the permissions that
/// their sources declare; the leader's Lease is below.
const ADDRESSES: &[(&str, &str, &str)] = &[
    ("coild", BLOCKS, "get list update patch delete"),
    ("coild", REQUESTS, "get list watch create delete"),
    ("coild", ANSWERS, "get"),
    ("coil-router", BLOCKS, "get list watch"),
    ("coil-router", "- nodes", "list"),
    ("coil-ipam-controller", POOLS, "get list watch update patch"),
    ("coil-ipam-controller", BLOCKS, "get list watch create update patch delete"),
    ("coil-ipam-controller", REQUESTS, "get list watch"),
    ("coil-ipam-controller", ANSWERS, "get update patch"),
    ("coil-ipam-controller", "- nodes", "get list"),
    ("coil-ipam-controller", "- secrets", "get list watch update"),
    (
        "coil-ipam-controller",
        "admissionregistration.k8s.io mutatingwebhookconfigurations",
        "get list watch update",
    ),
    (
        "coil-ipam-controller",
        "admissionregistration.k8s.io validatingwebhookconfigurations",
        "get list watch update",
    ),
];

/// The account of gateways, in a namespace that has an Egress.
const GATEWAYS: &str = "coil-egress";
const GATEWAYS_NAMESPACE: &str = "internet";

/// What those with egress ask for, also without addresses.
const EGRESS: &[(&str, &str, &str)] = &[
    ("coild", "- namespaces", "get list watch"),
    ("coild", "- services", "get list watch"),
    ("coild", "- pods", "get list watch"),
    ("coild", "- nodes", "get"),
    ("coild", EGRESSES, "get list watch"),
    (GATEWAYS, "- pods", "get list watch"),
    ("coil-egress-controller", EGRESSES, "get list watch"),
    ("coil-egress-controller", "coil.cybozu.com egresses/status", "get update patch"),
    ("coil-egress-controller", "- services", "get list watch create update patch"),
    ("coil-egress-controller", "- serviceaccounts", "get list watch create update patch"),
    ("coil-egress-controller", "- pods", "get list watch"),
    ("coil-egress-controller", "apps deployments", "get list watch create update patch"),
    ("coil-egress-controller", "policy poddisruptionbudgets", "get list watch create update patch delete"),
    ("coil-egress-controller", "rbac.authorization.k8s.io clusterrolebindings", "get list watch"),
    ("coil-egress-controller", "- secrets", "get list watch update"),
    (
        "coil-egress-controller",
        "admissionregistration.k8s.io mutatingwebhookconfigurations",
        "get list watch update",
    ),
    (
        "coil-egress-controller",
        "admissionregistration.k8s.io validatingwebhookconfigurations",
        "get list watch update",
    ),
];

/// Requests about one object, for which a program knows the name.
const NAMED: &[(&str, &str, &str, &str)] = &[
    ("coil-ipam-controller", "coordination.k8s.io leases", "get update", "kube-system/coil-ipam-leader"),
    ("coil-ipam-controller", "coordination.k8s.io leases", "create", "kube-system/"),
    ("coil-egress-controller", "coordination.k8s.io leases", "get update", "kube-system/coil-egress-leader"),
    ("coil-egress-controller", "coordination.k8s.io leases", "create", "kube-system/"),
    ("coil-egress-controller", "rbac.authorization.k8s.io clusterrolebindings", "update", "/coil-egress"),
];

/// The binding that the egress controllers make, Coil's and that of Coil v2.
fn binding() -> Value {
    json!({
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "coil-egress"},
        "roleRef": {"kind": "ClusterRole", "name": "coil-egress"},
        "subjects": [{"kind": "ServiceAccount", "namespace": GATEWAYS_NAMESPACE, "name": GATEWAYS}],
    })
}

/// What is applied during an upgrade, and made.
fn upgrading(overlay: &str) -> Vec<Value> {
    [built(overlay), built("from-v2"), vec![binding()]].concat()
}

fn built(of: &str) -> Vec<Value> {
    let done = Command::new("kubectl").arg("kustomize").arg(Path::new(DEPLOY).join(of)).output().unwrap();
    assert!(done.status.success(), "{of}: {}", String::from_utf8_lossy(&done.stderr));
    let text = String::from_utf8(done.stdout).unwrap();
    serde_yaml_ng::Deserializer::from_str(&text)
        .map(|document| Value::deserialize(document).unwrap())
        .collect()
}

fn requests(account: &str, resource: &str, verbs: &str, object: &str) -> Vec<Attributes> {
    let (group, resource) = resource.split_once(' ').unwrap();
    let (namespace, name) = object.split_once('/').unwrap();
    let home = if account == GATEWAYS { GATEWAYS_NAMESPACE } else { "kube-system" };
    let request = |verb: &str| Attributes {
        user: format!("system:serviceaccount:{home}:{account}"),
        groups: Vec::new(),
        verb: verb.to_owned(),
        group: group.trim_matches('-').to_owned(),
        resource: resource.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    };
    verbs.split(' ').map(request).collect()
}

/// The requests that these objects' roles refuse.
fn refused(objects: &[Value], asked: &[&[(&str, &str, &str)]]) -> Vec<String> {
    let policy = Policy::new(objects);
    let any =
        asked.iter().copied().flatten().flat_map(|(account, of, verbs)| requests(account, of, verbs, "/"));
    any.filter(|request| !policy.allows(request))
        .map(|request| format!("{} {request}", request.user))
        .collect()
}

#[test]
fn programs_of_v2_are_refused_nothing() {
    for (overlay, asked) in
        [("overlays/with-router", &[ADDRESSES, EGRESS][..]), ("overlays/egress-only", &[EGRESS])]
    {
        let narrow = [built(overlay), vec![binding()]].concat();
        assert!(
            refused(&narrow, asked).len() > 5,
            "{overlay} has all that Coil v2 asks for: what is from-v2 for?"
        );
        assert_eq!(refused(&upgrading(overlay), asked), Vec::<String>::new(), "{overlay}");
    }
    let policy = Policy::new(&upgrading("overlays/with-router"));
    for (account, of, verbs, object) in NAMED {
        for request in requests(account, of, verbs, object) {
            assert!(policy.allows(&request), "{request}");
        }
    }
}

/// It holds what Coil v2 asks for and Coil's own roles lack, and no more.
#[test]
fn each_permission_is_for_v2() {
    let all = upgrading("overlays/with-router");
    let mut looked_at = 0;
    for (index, role) in all.iter().enumerate() {
        let name = role["metadata"]["name"].as_str().unwrap();
        if role["kind"] != "ClusterRole" || !name.ends_with("-from-v2") {
            continue;
        }
        for (rule, of) in role["rules"].as_array().unwrap().iter().enumerate() {
            for verb in of["verbs"].as_array().unwrap() {
                let mut without = all.clone();
                without[index]["rules"][rule]["verbs"].as_array_mut().unwrap().retain(|other| other != verb);
                let mut missed = refused(&without, &[ADDRESSES, EGRESS]);
                // Without addresses coild's own roles lack more.
                without.retain(|object| object["metadata"]["name"] != "coild-ipam");
                missed.append(&mut refused(&without, &[EGRESS]));
                assert!(!missed.is_empty(), "{name}: nobody asks for {verb} of {}", of["resources"]);
                looked_at += 1;
            }
        }
    }
    assert!(looked_at > 30, "{looked_at}");
}
