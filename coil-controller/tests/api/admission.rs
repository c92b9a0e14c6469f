//! Pools and Egresses through an API server that has the definitions and asks the webhooks: what is wrong is refused
//! with the field and the way out.
//!
//! ```text
//!  test ──create, update──▶ API server ──rules of the definition
//!                               └──TLS──▶ replica
//! ```

use coil_api::crd::{AddressPool, Egress};
use coil_controller::webhook::{
    Egresses, Judge, Pools,
    cert::Source,
    names::{EGRESS, IPAM, Webhook},
};
use k8s_openapi::ByteString;
use kube::{
    Api, Resource as _,
    api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
    core::GroupVersionKind,
};
use serde::Deserialize as _;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    support::{Cluster, eventually},
    webhook::Replica,
};

/// A replica that the API server asks. A real one takes no loopback address for an endpoint of the Service, so it
/// is asked by URL; the lab asks through the Service.
async fn judged(cluster: &Cluster, judge: impl Judge) -> (Replica, TempDir) {
    let of = judge.webhook();
    let files = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate =
        rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap().pem();
    std::fs::write(files.path().join("tls.key"), key.serialize_pem()).unwrap();
    std::fs::write(files.path().join("tls.crt"), &certificate).unwrap();
    let replica = Replica::start(cluster, judge, Source::Files(files.path().to_owned()), false);

    let path = format!("{}/../deploy/{}/webhook.yaml", env!("CARGO_MANIFEST_DIR"), of.part);
    let text = std::fs::read_to_string(path).unwrap();
    for document in serde_yaml_ng::Deserializer::from_str(&text).take(2) {
        let mut configuration = DynamicObject::deserialize(document).unwrap();
        for webhook in configuration.data["webhooks"].as_array_mut().unwrap() {
            let path = webhook["clientConfig"]["service"]["path"].as_str().unwrap();
            let url = format!("https://{}{path}", replica.address);
            let authority = ByteString(certificate.clone().into_bytes());
            webhook["clientConfig"] = json!({"url": url, "caBundle": authority});
        }
        let kind = GroupVersionKind::try_from(configuration.types.as_ref().unwrap()).unwrap();
        let api = Api::<DynamicObject>::all_with(cluster.client.clone(), &ApiResource::from_gvk(&kind));
        api.create(&PostParams::default(), &configuration).await.unwrap();
    }
    replica.is_ready().await;
    (replica, files)
}

fn objects(cluster: &Cluster, of: &Webhook) -> Api<DynamicObject> {
    if of == &IPAM {
        Api::all_with(cluster.client.clone(), &ApiResource::erase::<AddressPool>(&()))
    } else {
        Api::namespaced_with(cluster.client.clone(), "default", &ApiResource::erase::<Egress>(&()))
    }
}

fn object(of: &Webhook, name: &str, spec: &Value) -> DynamicObject {
    let version = AddressPool::api_version(&());
    let document = json!({"apiVersion": version, "kind": of.kind, "metadata": {"name": name}, "spec": spec});
    serde_json::from_value(document).unwrap()
}

/// The error of a write that must be refused: it names the field and has all parts.
#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, kube::Error>, field: &str, says: &str) {
    match result {
        Err(kube::Error::Api(status)) => {
            let message = &status.message;
            assert!(message.contains(field) && message.contains(says), "{field}, {says:?}: {message}");
        }
        other => panic!("{field} must be refused: {other:?}"),
    }
}

fn v4(texts: &[&str]) -> Value {
    texts.iter().map(|text| json!({"ipv4": text})).collect()
}

/// What is wrong with a new pool: its specification, the field, and a part of the way out that rules and webhook
/// both tell.
fn bad_pools() -> Vec<(Value, &'static str, &'static str)> {
    let of = |subnets: Value| json!({"subnets": subnets});
    vec![
        (of(v4(&["10.0.0.0/30"])), "spec.subnets", "smaller than one block"),
        (of(v4(&["fd00::/112"])), "spec.subnets[0].ipv4", "field ipv6"),
        (of(json!([{"ipv6": "10.0.0.0/16"}])), "spec.subnets[0].ipv6", "field ipv4"),
        (of(v4(&["10.0.0/24"])), "spec.subnets[0].ipv4", "CIDR format"),
        (of(v4(&["10.0.0.1"])), "spec.subnets[0].ipv4", ""),
        (of(v4(&["10.0.0.0/24", "10.0.01.0/24"])), "spec.subnets[1].ipv4", "CIDR format"),
        (of(json!([{"ipv4": "10.0.0.0/24"}, {}])), "spec.subnets[1]", "set ipv4, ipv6, or both"),
        (of(json!([{"ipv4": "10.0.0.0/16", "ipv6": "fd00::/64"}])), "spec.subnets[0]", "as many addresses"),
        (of(json!([{"ipv4": "10.0.0.0/16"}, {"ipv6": "fd00::/112"}])), "spec.subnets", "make another pool"),
        (of(v4(&["10.0.0.0/16", "10.0.3.0/24"])), "spec.subnets", "addresses would be given twice"),
        (of(v4(&["10.0.3.0/24", "10.0.0.0/16"])), "spec.subnets", "addresses would be given twice"),
        (of(v4(&["10.0.3.0/24", "10.0.3.0/24"])), "spec.subnets", "addresses would be given twice"),
        (of(json!([])), "spec.subnets", ""),
        (json!({"subnets": v4(&["10.0.0.0/24"]), "blockSizeBits": -1}), "spec.blockSizeBits", ""),
        (Value::Null, "spec", ""),
    ]
}

/// What is wrong with an Egress.
fn bad_egresses() -> Vec<(Value, &'static str, &'static str)> {
    let of = |fields: Value| {
        let mut spec = json!({"destinations": ["10.0.0.0/8"]});
        spec.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        spec
    };
    let pdb = |fields: Value| of(json!({"podDisruptionBudget": fields}));
    vec![
        (of(json!({"destinations": ["10.0.0.1"]})), "spec.destinations[0]", "/32"),
        (of(json!({"destinations": ["::/0", "what"]})), "spec.destinations[1]", "CIDR format"),
        (of(json!({"destinations": []})), "spec.destinations", ""),
        (of(json!({"replicas": 0})), "spec.replicas", "1"),
        (of(json!({"strategy": {"type": "Fast"}})), "spec.strategy.type", "Recreate"),
        (of(json!({"strategy": {}})), "spec.strategy.type", "Recreate"),
        (of(json!({"sessionAffinity": "Any"})), "spec.sessionAffinity", "ClientIP"),
        (pdb(json!({"minAvailable": 1, "maxUnavailable": 1})), "spec.podDisruptionBudget", "remove one"),
        (pdb(json!({"minAvailable": -1})), "spec.podDisruptionBudget.minAvailable", "number of pods"),
        (pdb(json!({"maxUnavailable": "101%"})), "spec.podDisruptionBudget.maxUnavailable", "100%"),
        (pdb(json!({"maxUnavailable": "1"})), "spec.podDisruptionBudget.maxUnavailable", "50%"),
    ]
}

#[tokio::test]
async fn wrong_pools_are_refused_and_right_ones_get_the_finalizer() {
    let cluster = Cluster::start().await;
    let _replica = judged(&cluster, Pools::new(cluster.client.clone())).await;
    let pools = objects(&cluster, &IPAM);
    let create = async |name: &str, spec: &Value| {
        pools.create(&PostParams::default(), &object(&IPAM, name, spec)).await
    };
    let made = create("default", &json!({"subnets": v4(&["10.1.0.0/16"])})).await.unwrap();
    assert_eq!(made.metadata.finalizers.as_deref(), Some(&["coil.cybozu.com".to_owned()][..]));
    assert_eq!(made.data["spec"]["blockSizeBits"], 5);
    for (spec, field, says) in bad_pools() {
        refused(create("bad", &spec).await, field, says);
    }
    refused(
        create("bad", &json!({"subnets": v4(&["10.1.2.0/24"])})).await,
        "spec.subnets[0].ipv4",
        "of AddressPool \"default\"",
    );

    let patch = async |spec: Value| {
        let patch = Patch::Merge(json!({"spec": spec}));
        pools.patch("default", &PatchParams::default(), &patch).await
    };
    refused(patch(json!({"blockSizeBits": 4})).await, "spec.blockSizeBits", "make another pool");
    refused(patch(json!({"subnets": v4(&["10.2.0.0/16"])})).await, "spec.subnets", "append");
    refused(patch(Value::Null).await, "spec", "subnets");
    patch(json!({"subnets": v4(&["10.1.0.0/16", "10.2.0.0/16"])})).await.unwrap();
    refused(patch(json!({"subnets": v4(&["10.1.0.0/16"])})).await, "spec.subnets", "append");
    refused(patch(json!({"subnets": v4(&["10.2.0.0/16", "10.1.0.0/16"])})).await, "spec.subnets", "append");
    refused(
        patch(json!({"subnets": v4(&["10.1.0.0/16", "10.2.0.0/16", "10.2.0.0/24"])})).await,
        "spec.subnets",
        "given twice",
    );
    create("other", &json!({"subnets": v4(&["10.3.0.0/16"])})).await.unwrap();
    refused(
        patch(json!({"subnets": v4(&["10.1.0.0/16", "10.2.0.0/16", "10.3.4.0/24"])})).await,
        "spec.subnets[2].ipv4",
        "of AddressPool \"other\"",
    );
}

#[tokio::test]
async fn wrong_egresses_are_refused_and_right_ones_get_their_container() {
    let cluster = Cluster::start().await;
    let _replica = judged(&cluster, Egresses).await;
    let egresses = objects(&cluster, &EGRESS);
    let create = async |name: &str, spec: &Value| {
        egresses.create(&PostParams::default(), &object(&EGRESS, name, spec)).await
    };
    let made = create("internet", &json!({"destinations": ["0.0.0.0/0"], "template": {}})).await.unwrap();
    assert_eq!(made.data["spec"]["template"]["spec"]["containers"], json!([{"name": "egress"}]));
    for (spec, field, says) in bad_egresses() {
        refused(create("bad", &spec).await, field, says);
        let patch = Patch::Merge(json!({"spec": spec}));
        refused(egresses.patch("internet", &PatchParams::default(), &patch).await, field, says);
    }
    // These the webhook alone knows.
    for (metadata, field) in [
        (json!({"labels": {"a b": "c"}}), "spec.template.metadata.labels"),
        (json!({"labels": {"a": "b c"}}), "spec.template.metadata.labels"),
        (json!({"annotations": {"a b": "c"}}), "spec.template.metadata.annotations"),
    ] {
        let spec = json!({"destinations": ["0.0.0.0/0"], "template": {"metadata": metadata}});
        refused(create("bad", &spec).await, field, "begin");
    }
    for name in ["9lives", "a.b"] {
        refused(create(name, &json!({"destinations": ["0.0.0.0/0"]})).await, "metadata.name", "Service");
    }
    refused(create("bad", &Value::Null).await, "spec", "destination");
}

/// Where the definitions have no rules (an older version, or somebody took them out), the webhooks say the same.
#[tokio::test]
async fn webhooks_alone_refuse_as_much() {
    let cluster = Cluster::without_rules().await;
    let _pools = judged(&cluster, Pools::new(cluster.client.clone())).await;
    let _egresses = judged(&cluster, Egresses).await;
    for (of, all) in [(IPAM, bad_pools()), (EGRESS, bad_egresses())] {
        let api = objects(&cluster, &of);
        for (spec, field, says) in all {
            refused(api.create(&PostParams::default(), &object(&of, "bad", &spec)).await, field, says);
        }
    }
}

/// While no webhook answers because none is configured, the definitions refuse by themselves; and what they did not
/// judge when it was made can still be changed and deleted.
#[tokio::test]
async fn rules_alone_refuse_what_needs_no_other_object() {
    let cluster = Cluster::start().await;
    for (of, all) in [(IPAM, bad_pools()), (EGRESS, bad_egresses())] {
        let api = objects(&cluster, &of);
        for (spec, field, says) in all {
            refused(api.create(&PostParams::default(), &object(&of, "bad", &spec)).await, field, says);
        }
    }
}

#[tokio::test]
async fn what_an_older_definition_took_can_be_changed_and_deleted() {
    let cluster = Cluster::without_rules().await;
    let pools = objects(&cluster, &IPAM);
    let bad: Vec<Value> = bad_pools().into_iter().map(|(spec, ..)| spec).collect();
    let mut names = Vec::new();
    for (n, spec) in bad.iter().enumerate() {
        // What the schema itself refuses cannot be there.
        let name = format!("bad-{n}");
        if pools.create(&PostParams::default(), &object(&IPAM, &name, spec)).await.is_ok() {
            names.push(name);
        }
    }
    assert!(names.len() > 10, "{names:?}");
    cluster.define(true).await.unwrap();
    eventually("the rules are in force", async || {
        let result = pools.create(&PostParams::default(), &object(&IPAM, "probe", &bad[0])).await;
        if result.is_ok() {
            pools.delete("probe", &DeleteParams::default()).await.unwrap();
        }
        result.is_err()
    })
    .await;
    for name in &names {
        let label = Patch::Merge(json!({"metadata": {"labels": {"a": "b"}}}));
        pools.patch(name, &PatchParams::default(), &label).await.unwrap();
        pools.delete(name, &DeleteParams::default()).await.unwrap();
    }
}
