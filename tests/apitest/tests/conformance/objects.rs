//! Objects: create, read, update, patch, delete, and what becomes of them.

use coil_apitest::{Cluster, eventually};
use serde_json::{Value, json};

use crate::raw::{self, APPLY, JSON, JSON_PATCH, MERGE, STRATEGIC};

const POOLS: &str = "/apis/coil.cybozu.com/v2/addresspools";
const BLOCKS: &str = "/apis/coil.cybozu.com/v2/addressblocks";
const EGRESSES: &str = "/apis/coil.cybozu.com/v2/namespaces/default/egresses";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";

fn pool(name: &str) -> Value {
    json!({"apiVersion": "coil.cybozu.com/v2", "kind": "AddressPool", "metadata": {"name": name},
        "spec": {"blockSizeBits": 2, "subnets": [{"ipv4": "10.0.0.0/24"}]}})
}

fn map(name: &str, data: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

fn egress(name: &str) -> Value {
    json!({"apiVersion": "coil.cybozu.com/v2", "kind": "Egress", "metadata": {"name": name},
        "spec": {"destinations": ["0.0.0.0/0"]}})
}

fn version(object: &Value) -> String {
    object["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn names_and_what_the_server_sets() {
    let cluster = Cluster::start().await;
    let made = raw::post(&cluster, MAPS, &map("a", &json!({"k": "v"}))).await;
    assert_eq!(made.code, 201);
    let metadata = &made.body["metadata"];
    for key in ["uid", "resourceVersion", "creationTimestamp"] {
        assert!(metadata[key].is_string(), "{key}: {metadata}");
    }
    assert_eq!(metadata["namespace"], "default");
    raw::post(&cluster, MAPS, &map("a", &json!({}))).await.refused(
        409,
        "AlreadyExists",
        "configmaps \"a\" already exists",
    );
    raw::get(&cluster, &format!("{MAPS}/b")).await.refused(404, "NotFound", "configmaps \"b\" not found");
    raw::post(&cluster, MAPS, &map("B", &json!({}))).await.refused(
        422,
        "Invalid",
        "a lowercase RFC 1123 subdomain must consist of",
    );
    let nameless = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {}});
    raw::post(&cluster, MAPS, &nameless).await.refused(
        422,
        "Invalid",
        "metadata.name: Required value: name or generateName is required",
    );
    let generated = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"generateName": "gen-"}});
    let first = raw::post(&cluster, MAPS, &generated).await.ok();
    let second = raw::post(&cluster, MAPS, &generated).await.ok();
    let name = |object: &Value| object["metadata"]["name"].as_str().unwrap().to_owned();
    assert!(name(&first).starts_with("gen-") && name(&first).len() == 9 && name(&first) != name(&second));
    let mut given = map("c", &json!({}));
    given["metadata"]["resourceVersion"] = json!("7");
    raw::post(&cluster, MAPS, &given).await.refused(
        500,
        "",
        "resourceVersion should not be set on objects to be created",
    );
    let wrong = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}});
    assert_eq!(raw::post(&cluster, MAPS, &wrong).await.code, 400);
    let none = "/api/v1/namespaces/none/configmaps";
    raw::post(&cluster, none, &map("a", &json!({}))).await.refused(
        404,
        "NotFound",
        "namespaces \"none\" not found",
    );
    assert_eq!(raw::get(&cluster, "/apis/none.example/v1/things").await.code, 404);
}

#[tokio::test]
async fn updates_meet_conflicts() {
    let cluster = Cluster::start().await;
    let path = format!("{MAPS}/a");
    let first = raw::post(&cluster, MAPS, &map("a", &json!({"k": "1"}))).await.ok();
    let mut next = first.clone();
    next["data"]["k"] = json!("2");
    let second = raw::put(&cluster, &path, &next).await.ok();
    assert_ne!(version(&first), version(&second));
    next["data"]["k"] = json!("3");
    raw::put(&cluster, &path, &next).await.refused(
        409,
        "Conflict",
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes \
         to the latest version and try again",
    );
    let same = raw::put(&cluster, &path, &second).await.ok();
    assert_eq!(version(&same), version(&second), "no change, no version");
    raw::put(&cluster, &path, &map("a", &json!({"k": "4"}))).await.ok();
    raw::put(&cluster, &path, &map("b", &json!({}))).await.refused(
        400,
        "BadRequest",
        "does not match the name on the URL",
    );
    raw::post(&cluster, POOLS, &pool("p")).await.ok();
    // The words for the version differ between Kubernetes' releases.
    raw::put(&cluster, &format!("{POOLS}/p"), &pool("p")).await.refused(
        422,
        "Invalid",
        "metadata.resourceVersion: Invalid value: ",
    );
    let stranger = json!({"metadata": {"uid": "00000000-0000-4000-8000-000000000000"}});
    let patched = raw::patch(&cluster, &path, MERGE, &stranger).await;
    patched.refused(
        422,
        "Invalid",
        "metadata.uid: Invalid value: \"00000000-0000-4000-8000-000000000000\": field is immutable",
    );
    let mut taken = map("a", &json!({}));
    taken["metadata"]["uid"] = stranger["metadata"]["uid"].clone();
    raw::put(&cluster, &path, &taken).await.refused(
        409,
        "Conflict",
        "Precondition failed: UID in precondition",
    );
}

#[tokio::test]
async fn patches_of_every_kind() {
    let cluster = Cluster::start().await;
    let path = format!("{MAPS}/a");
    raw::post(&cluster, MAPS, &map("a", &json!({"x": "1", "y": "2"}))).await.ok();
    let merged = raw::patch(&cluster, &path, MERGE, &json!({"data": {"x": null, "z": "3"}})).await.ok();
    assert_eq!(merged["data"], json!({"y": "2", "z": "3"}));
    let operations = json!([{"op": "test", "path": "/data/y", "value": "2"}, {"op": "replace", "path": "/data/y", "value": "4"}]);
    let patched = raw::patch(&cluster, &path, JSON_PATCH, &operations).await.ok();
    assert_eq!(patched["data"]["y"], "4");
    let failing = raw::patch(&cluster, &path, JSON_PATCH, &operations).await;
    failing.refused(422, "Invalid", "the server rejected our request due to an error in our request");
    let stale = json!({"metadata": {"resourceVersion": version(&merged)}, "data": {"w": "1"}});
    raw::patch(&cluster, &path, MERGE, &stale).await.refused(409, "Conflict", "the object has been modified");

    raw::post(&cluster, PODS, &pod("p")).await.ok();
    let images = json!({"spec": {"containers": [{"name": "c", "image": "j"}]}});
    let strategic = raw::patch(&cluster, &format!("{PODS}/p"), STRATEGIC, &images).await.ok();
    let containers = strategic["spec"]["containers"].as_array().unwrap();
    assert_eq!((containers.len(), &containers[0]["image"]), (1, &json!("j")));
    raw::post(&cluster, POOLS, &pool("p")).await.ok();
    let unsupported = raw::patch(&cluster, &format!("{POOLS}/p"), STRATEGIC, &json!({})).await;
    unsupported.refused(415, "UnsupportedMediaType", "application/merge-patch+json");
    assert_eq!(raw::patch(&cluster, &path, JSON, &json!({})).await.code, 415);
}

#[tokio::test]
async fn applying_owns_fields() {
    let cluster = Cluster::start().await;
    let path = |manager: &str| format!("{MAPS}/a?fieldManager={manager}");
    let created = raw::patch(&cluster, &path("one"), APPLY, &map("a", &json!({"x": "1", "y": "1"}))).await;
    assert_eq!(created.code, 201);
    let second = raw::patch(&cluster, &path("two"), APPLY, &map("a", &json!({"z": "2"}))).await.ok();
    assert_eq!(second["data"], json!({"x": "1", "y": "1", "z": "2"}));
    let owners = |object: &Value| -> Vec<(String, String)> {
        let entries = object["metadata"]["managedFields"].as_array().unwrap().iter();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let mut owners: Vec<_> = entries.map(|e| (text(&e["manager"]), text(&e["operation"]))).collect();
        owners.sort();
        owners
    };
    let pair = |manager: &str, operation: &str| (manager.to_owned(), operation.to_owned());
    assert_eq!(owners(&second), [pair("one", "Apply"), pair("two", "Apply")]);
    let entry = second["metadata"]["managedFields"]
        .as_array()
        .unwrap()
        .iter()
        .find(|e| e["manager"] == "two")
        .unwrap()
        .clone();
    assert_eq!(entry["fieldsV1"], json!({"f:data": {"f:z": {}}}));
    assert_eq!((&entry["fieldsType"], &entry["apiVersion"]), (&json!("FieldsV1"), &json!("v1")));

    let conflict = raw::patch(&cluster, &path("two"), APPLY, &map("a", &json!({"x": "2"}))).await;
    conflict.refused(409, "Conflict", "Apply failed with 1 conflict: conflict with \"one\": .data.x");
    let cause = &conflict.body["details"]["causes"][0];
    assert_eq!((&cause["reason"], &cause["field"]), (&json!("FieldManagerConflict"), &json!(".data.x")));
    let forced =
        raw::patch(&cluster, &format!("{}&force=true", path("two")), APPLY, &map("a", &json!({"x": "2"})))
            .await
            .ok();
    assert_eq!(forced["data"], json!({"x": "2", "y": "1"}), "z is no longer applied");
    let dropped = raw::patch(&cluster, &path("one"), APPLY, &map("a", &json!({}))).await.ok();
    assert_eq!(dropped["data"], json!({"x": "2"}));
    raw::patch(&cluster, &format!("{MAPS}/a"), APPLY, &map("a", &json!({}))).await.refused(
        422,
        "Invalid",
        "fieldManager: Required value: is required for apply patch",
    );

    // One who updates owns what it changes, and is in the way of one who applies.
    let update = raw::patch(&cluster, &path("three"), MERGE, &json!({"data": {"w": "3"}})).await.ok();
    assert!(owners(&update).contains(&pair("three", "Update")), "{:?}", owners(&update));
    let conflict = raw::patch(&cluster, &path("two"), APPLY, &map("a", &json!({"x": "2", "w": "4"}))).await;
    conflict.refused(409, "Conflict", "conflict with \"three\" using v1");
    let agreed =
        raw::patch(&cluster, &path("two"), APPLY, &map("a", &json!({"x": "2", "w": "3"}))).await.ok();
    assert_eq!(agreed["data"]["w"], "3");
    let unchanged =
        raw::patch(&cluster, &path("two"), APPLY, &map("a", &json!({"x": "2", "w": "3"}))).await.ok();
    assert_eq!(version(&unchanged), version(&agreed), "applying twice changes nothing");
}

#[tokio::test]
async fn the_status_is_apart() {
    let cluster = Cluster::start().await;
    let mut egress = egress("e");
    egress["status"] = json!({"replicas": 2});
    let made = raw::post(&cluster, EGRESSES, &egress).await.ok();
    assert!(made.get("status").is_none(), "a creation has no status: {made}");
    assert_eq!(made["metadata"]["generation"], 1);
    let path = format!("{EGRESSES}/e");
    egress["metadata"]["resourceVersion"] = json!(version(&made));
    egress["spec"]["replicas"] = json!(5);
    let status = raw::put(&cluster, &format!("{path}/status"), &egress).await.ok();
    assert_eq!((&status["spec"]["replicas"], &status["status"]["replicas"]), (&json!(1), &json!(2)));
    assert_eq!(status["metadata"]["generation"], 1);
    let spec = json!({"spec": {"replicas": 3}, "status": {"replicas": 9}});
    let changed = raw::patch(&cluster, &path, MERGE, &spec).await.ok();
    assert_eq!((&changed["spec"]["replicas"], &changed["status"]["replicas"]), (&json!(3), &json!(2)));
    assert_eq!(changed["metadata"]["generation"], 2);
    let none = raw::patch(&cluster, &format!("{POOLS}/x/status"), MERGE, &json!({})).await;
    none.refused(404, "NotFound", "");
}

#[tokio::test]
async fn scale_changes_replicas() {
    let cluster = Cluster::start().await;
    let made = raw::post(&cluster, EGRESSES, &egress("e")).await.ok();
    assert_eq!(made["spec"]["replicas"], 1, "the default");
    let path = format!("{EGRESSES}/e/scale");
    let scale = raw::get(&cluster, &path).await.ok();
    assert_eq!(
        (&scale["kind"], &scale["apiVersion"], &scale["spec"]["replicas"]),
        (&json!("Scale"), &json!("autoscaling/v1"), &json!(1))
    );
    let scaled = raw::patch(&cluster, &path, MERGE, &json!({"spec": {"replicas": 3}})).await.ok();
    assert_eq!(scaled["spec"]["replicas"], 3);
    assert_eq!(raw::get(&cluster, &format!("{EGRESSES}/e")).await.ok()["spec"]["replicas"], 3);
    raw::patch(&cluster, &path, MERGE, &json!({"spec": {"replicas": -1}})).await.refused(
        422,
        "Invalid",
        "spec.replicas: Invalid value: -1",
    );
}

#[tokio::test]
async fn deletion_waits_for_finalizers() {
    let cluster = Cluster::start().await;
    let mut object = map("a", &json!({}));
    object["metadata"]["finalizers"] = json!(["coil.cybozu.com/test"]);
    let made = raw::post(&cluster, MAPS, &object).await.ok();
    let path = format!("{MAPS}/a");
    let other = json!({"preconditions": {"uid": "00000000-0000-4000-8000-000000000000"}});
    raw::delete(&cluster, &path, &other).await.refused(
        409,
        "Conflict",
        "the UID in the precondition (00000000-0000-4000-8000-000000000000) does not match the UID in record",
    );
    let stale = json!({"preconditions": {"resourceVersion": "1"}});
    raw::delete(&cluster, &path, &stale).await.refused(
        409,
        "Conflict",
        "the ResourceVersion in the precondition (1) does not match",
    );
    raw::delete(&cluster, &path, &json!({"preconditions": {"uid": made["metadata"]["uid"]}})).await.ok();
    let waiting = raw::get(&cluster, &path).await.ok();
    assert!(waiting["metadata"]["deletionTimestamp"].is_string(), "{waiting}");
    let more = json!({"metadata": {"finalizers": ["coil.cybozu.com/test", "coil.cybozu.com/more"]}});
    raw::patch(&cluster, &path, MERGE, &more).await.refused(
        422,
        "Invalid",
        "no new finalizers can be added if the object is being deleted",
    );
    raw::patch(&cluster, &path, MERGE, &json!({"metadata": {"finalizers": null}})).await.ok();
    raw::get(&cluster, &path).await.refused(404, "NotFound", "");
    let gone = raw::delete(&cluster, &path, &Value::Null).await;
    gone.refused(404, "NotFound", "configmaps \"a\" not found");
    raw::post(&cluster, MAPS, &map("b", &json!({}))).await.ok();
    let done = raw::delete(&cluster, &format!("{MAPS}/b"), &Value::Null).await.ok();
    assert_eq!(
        (&done["kind"], &done["status"], &done["details"]["name"]),
        (&json!("Status"), &json!("Success"), &json!("b"))
    );
}

#[tokio::test]
async fn collections_go_by_selector() {
    let cluster = Cluster::start().await;
    for (name, label) in [("a", "x"), ("b", "x"), ("c", "y")] {
        let mut object = map(name, &json!({}));
        object["metadata"]["labels"] = json!({"l": label});
        raw::post(&cluster, MAPS, &object).await.ok();
    }
    raw::delete(&cluster, &format!("{MAPS}?labelSelector=l%3Dx"), &Value::Null).await.ok();
    let left = raw::get(&cluster, &format!("{MAPS}?labelSelector=l")).await.ok();
    assert_eq!(left["items"].as_array().unwrap().len(), 1);
    assert_eq!(left["items"][0]["metadata"]["name"], "c");
}

#[tokio::test]
async fn dependents_go_with_their_owner() {
    let cluster = Cluster::start().await;
    let owner = raw::post(&cluster, POOLS, &pool("p")).await.ok();
    let reference = json!({"apiVersion": "coil.cybozu.com/v2", "kind": "AddressPool", "name": "p",
        "uid": owner["metadata"]["uid"], "controller": true, "blockOwnerDeletion": true});
    let block = |name: &str| {
        json!({"apiVersion": "coil.cybozu.com/v2", "kind": "AddressBlock", "index": 0,
        "metadata": {"name": name, "ownerReferences": [reference]}, "ipv4": "10.0.0.0/30"})
    };
    raw::post(&cluster, BLOCKS, &block("p-0")).await.ok();
    let there = async |path: String| raw::get(&cluster, &path).await.code == 200;
    raw::delete(&cluster, &format!("{POOLS}/p"), &json!({"propagationPolicy": "Orphan"})).await.ok();
    eventually("the owner has gone", async || !there(format!("{POOLS}/p")).await).await;
    let orphan = raw::get(&cluster, &format!("{BLOCKS}/p-0")).await.ok();
    assert!(orphan["metadata"].get("ownerReferences").is_none(), "{orphan}");

    let owner = raw::post(&cluster, POOLS, &pool("q")).await.ok();
    let mut block = block("q-0");
    block["metadata"]["ownerReferences"][0]["uid"] = owner["metadata"]["uid"].clone();
    block["metadata"]["ownerReferences"][0]["name"] = json!("q");
    raw::post(&cluster, BLOCKS, &block).await.ok();
    raw::delete(&cluster, &format!("{POOLS}/q"), &json!({"propagationPolicy": "Foreground"})).await.ok();
    eventually("both have gone", async || {
        !there(format!("{POOLS}/q")).await && !there(format!("{BLOCKS}/q-0")).await
    })
    .await;
    let mut broken = block.clone();
    broken["metadata"]["ownerReferences"][0]["uid"] = json!("");
    raw::post(&cluster, BLOCKS, &broken).await.refused(
        422,
        "Invalid",
        "metadata.ownerReferences.uid: Invalid value: \"\": must not be empty",
    );
    let mut lost = block;
    lost["metadata"]["name"] = json!("q-1");
    raw::post(&cluster, BLOCKS, &lost).await.ok();
    eventually("a block of a pool that has gone goes", async || !there(format!("{BLOCKS}/q-1")).await).await;
}

#[tokio::test]
async fn a_namespace_ends_with_all_that_is_in_it() {
    let cluster = Cluster::start().await;
    cluster.namespace("short").await;
    let maps = "/api/v1/namespaces/short/configmaps";
    raw::post(&cluster, maps, &map("a", &json!({}))).await.ok();
    let namespace = raw::get(&cluster, "/api/v1/namespaces/short").await.ok();
    assert_eq!(
        (&namespace["status"]["phase"], &namespace["spec"]["finalizers"]),
        (&json!("Active"), &json!(["kubernetes"]))
    );
    assert_eq!(namespace["metadata"]["labels"]["kubernetes.io/metadata.name"], "short");
    raw::delete(&cluster, "/api/v1/namespaces/short", &Value::Null).await.ok();
    eventually("the namespace has gone", async || {
        raw::get(&cluster, "/api/v1/namespaces/short").await.code == 404
    })
    .await;
    assert_eq!(raw::get(&cluster, &format!("{maps}/a")).await.code, 404);
}

#[tokio::test]
async fn unknown_fields_and_defaults() {
    let cluster = Cluster::start().await;
    let mut object = pool("p");
    object["spec"]["unknown"] = json!(1);
    object["spec"].as_object_mut().unwrap().remove("blockSizeBits");
    let made = raw::post(&cluster, POOLS, &object).await;
    assert_eq!(made.warnings, ["299 - \"unknown field \\\"spec.unknown\\\"\""]);
    let made = made.ok();
    assert!(made["spec"].get("unknown").is_none(), "pruned: {made}");
    assert_eq!(made["spec"]["blockSizeBits"], 5, "the default");
    object["metadata"]["name"] = json!("q");
    raw::post(&cluster, &format!("{POOLS}?fieldValidation=Strict"), &object).await.refused(
        400,
        "BadRequest",
        "strict decoding error: unknown field \"spec.unknown\"",
    );
    for (spec, message) in [
        (json!({}), "spec.subnets: Required value"),
        (
            json!({"subnets": []}),
            "spec.subnets: Invalid value: 0: spec.subnets in body should have at least 1 items",
        ),
        (
            json!({"subnets": "x"}),
            "spec.subnets: Invalid value: \"string\": spec.subnets in body must be of type array: \"string\"",
        ),
        (
            json!({"blockSizeBits": -1, "subnets": [{"ipv4": "10.0.0.0/24"}]}),
            "spec.blockSizeBits: Invalid value: -1: spec.blockSizeBits in body should be greater than or equal to 0",
        ),
    ] {
        object["spec"] = spec;
        raw::post(&cluster, POOLS, &object).await.refused(422, "Invalid", message);
    }
    let finalized = json!({"metadata": {"finalizers": ["coil.cybozu.com"]}});
    let warned = raw::patch(&cluster, &format!("{POOLS}/p"), MERGE, &finalized).await;
    assert!(warned.warnings[0].contains("prefer a domain-qualified finalizer name"), "{warned:?}");
}

#[tokio::test]
async fn dry_runs_leave_nothing() {
    let cluster = Cluster::start().await;
    let dry = raw::post(&cluster, &format!("{MAPS}?dryRun=All"), &map("a", &json!({"k": "v"}))).await;
    assert_eq!((dry.code, &dry.body["data"]["k"]), (201, &json!("v")));
    assert_eq!(raw::get(&cluster, &format!("{MAPS}/a")).await.code, 404);
    raw::post(&cluster, MAPS, &map("a", &json!({"k": "v"}))).await.ok();
    let path = format!("{MAPS}/a");
    let patched =
        raw::patch(&cluster, &format!("{path}?dryRun=All"), MERGE, &json!({"data": {"k": "w"}})).await.ok();
    assert_eq!(patched["data"]["k"], "w");
    raw::delete(&cluster, &format!("{path}?dryRun=All"), &Value::Null).await.ok();
    assert_eq!(raw::get(&cluster, &path).await.ok()["data"]["k"], "v");
    let apply = format!("{MAPS}/b?dryRun=All&fieldManager=t");
    assert_eq!(raw::patch(&cluster, &apply, APPLY, &map("b", &json!({}))).await.code, 201);
    assert_eq!(raw::get(&cluster, &format!("{MAPS}/b")).await.code, 404);
}

#[tokio::test]
async fn leases_and_events() {
    let cluster = Cluster::start().await;
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases";
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"},
        "spec": {"holderIdentity": "me", "leaseDurationSeconds": 15, "renewTime": "2026-01-01T00:00:00.123456Z"}});
    let made = raw::post(&cluster, leases, &lease).await.ok();
    assert_eq!(made["spec"]["renewTime"], "2026-01-01T00:00:00.123456Z");
    let mut stale = made.clone();
    raw::patch(&cluster, &format!("{leases}/l"), MERGE, &json!({"spec": {"holderIdentity": "you"}}))
        .await
        .ok();
    stale["spec"]["holderIdentity"] = json!("me again");
    raw::put(&cluster, &format!("{leases}/l"), &stale).await.refused(
        409,
        "Conflict",
        "the object has been modified",
    );

    let events = "/apis/events.k8s.io/v1/namespaces/default/events";
    let event = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e", "namespace": "default"},
        "eventTime": "2026-01-01T00:00:00.000000Z", "reportingController": "coil.cybozu.com/test",
        "reportingInstance": "test", "action": "Test", "reason": "Tested", "type": "Normal", "note": "it was",
        "regarding": {"kind": "AddressPool", "apiVersion": "coil.cybozu.com/v2", "name": "p"}});
    let made = raw::post(&cluster, events, &event).await.ok();
    assert_eq!(made["note"], "it was");
    let old = raw::get(&cluster, "/api/v1/namespaces/default/events/e").await.ok();
    assert_eq!((&old["message"], &old["involvedObject"]["name"]), (&json!("it was"), &json!("p")));
    let selected = "/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3Dp";
    assert_eq!(raw::get(&cluster, selected).await.ok()["items"].as_array().unwrap().len(), 1);
}
