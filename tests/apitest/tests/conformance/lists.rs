//! Lists, watches and tables.

use coil_apitest::{Cluster, LIMIT};
use futures::{AsyncBufReadExt as _, StreamExt as _};
use serde_json::{Value, json};

use crate::raw;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const BLOCKS: &str = "/apis/coil.cybozu.com/v2/addressblocks";

fn map(name: &str, label: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"l": label}}})
}

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn selectors() {
    let cluster = Cluster::start().await;
    for (name, label) in [("a", "x"), ("b", "x"), ("c", "y")] {
        raw::post(&cluster, MAPS, &map(name, label)).await.ok();
    }
    for (query, wanted) in [
        ("labelSelector=l%3Dx", vec!["a", "b"]),
        ("labelSelector=l%20in%20(y,z)", vec!["c"]),
        ("labelSelector=l,l!%3Dx", vec!["c"]),
        ("labelSelector=l&fieldSelector=metadata.name%3Da", vec!["a"]),
        ("labelSelector=l&fieldSelector=metadata.name!%3Da", vec!["b", "c"]),
    ] {
        let list = raw::get(&cluster, &format!("{MAPS}?{query}")).await.ok();
        assert_eq!((&list["kind"], names(&list)), (&json!("ConfigMapList"), wanted), "{query}");
    }
    assert_eq!(raw::get(&cluster, &format!("{MAPS}?labelSelector=%3D%3D")).await.code, 400);
    let everywhere = raw::get(&cluster, "/api/v1/configmaps?labelSelector=l").await.ok();
    assert_eq!(names(&everywhere), ["a", "b", "c"]);
}

#[tokio::test]
async fn pages_show_one_state() {
    let cluster = Cluster::start().await;
    for name in ["a", "b", "c", "d", "e"] {
        raw::post(&cluster, MAPS, &map(name, "x")).await.ok();
    }
    let path = format!("{MAPS}?labelSelector=l&limit=2");
    let first = raw::get(&cluster, &path).await.ok();
    assert_eq!(names(&first), ["a", "b"]);
    raw::delete(&cluster, &format!("{MAPS}/d"), &Value::Null).await.ok();
    raw::post(&cluster, MAPS, &map("f", "x")).await.ok();
    let mut seen = Vec::new();
    let mut page = first.clone();
    while let Some(token) = page["metadata"]["continue"].as_str().filter(|token| !token.is_empty()) {
        page = raw::get(&cluster, &format!("{path}&continue={token}")).await.ok();
        assert_eq!(page["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
        seen.extend(names(&page).into_iter().map(str::to_owned));
    }
    assert_eq!(seen, ["c", "d", "e"]);
    assert_eq!(raw::get(&cluster, &format!("{MAPS}?continue=nonsense")).await.code, 400);
}

/// The events of a watch, until `done` says that it was enough.
async fn watch(cluster: &Cluster, path: &str, done: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let request = http::Request::get(path).body(Vec::new()).unwrap();
    let stream = cluster.client.request_stream(request).await.unwrap();
    let mut lines = std::pin::pin!(stream.lines());
    let mut events = Vec::new();
    while !done(&events) {
        let line =
            tokio::time::timeout(LIMIT, lines.next()).await.unwrap_or_else(|_| panic!("only {events:?}"));
        let Some(line) = line else { break };
        events.push(serde_json::from_str(&line.unwrap()).unwrap());
    }
    events
}

fn seen(events: &[Value]) -> Vec<(&str, &str)> {
    let name = |event: &'_ Value| event["object"]["metadata"]["name"].as_str().is_some();
    let pair = |event| -> (&str, &str) {
        let event: &Value = event;
        (event["type"].as_str().unwrap(), event["object"]["metadata"]["name"].as_str().unwrap())
    };
    events.iter().filter(|event| name(event)).map(pair).collect()
}

#[tokio::test]
async fn watches_go_on_from_a_version() {
    let cluster = Cluster::start().await;
    let a = raw::post(&cluster, MAPS, &map("a", "x")).await.ok();
    let start = a["metadata"]["resourceVersion"].as_str().unwrap();
    raw::post(&cluster, MAPS, &map("b", "y")).await.ok();
    let label =
        |name: &str, label: &str| (format!("{MAPS}/{name}"), json!({"metadata": {"labels": {"l": label}}}));
    // b starts to match, a stops.
    for (name, to) in [("b", "x"), ("a", "y")] {
        let (path, patch) = label(name, to);
        raw::patch(&cluster, &path, raw::MERGE, &patch).await.ok();
    }
    raw::delete(&cluster, &format!("{MAPS}/b"), &Value::Null).await.ok();
    let path = format!("{MAPS}?watch=true&labelSelector=l%3Dx&resourceVersion={start}");
    let events = watch(&cluster, &path, |events| events.len() == 3).await;
    assert_eq!(seen(&events), [("ADDED", "b"), ("DELETED", "a"), ("DELETED", "b")]);
    let after = events[0]["object"]["metadata"]["resourceVersion"].as_str().unwrap();
    let path = format!("{MAPS}?watch=true&labelSelector=l%3Dx&resourceVersion={after}");
    let rest = watch(&cluster, &path, |events| events.len() == 2).await;
    assert_eq!(seen(&rest), [("DELETED", "a"), ("DELETED", "b")]);
    let named = format!("{MAPS}?watch=true&fieldSelector=metadata.name%3Da&resourceVersion={start}");
    assert_eq!(seen(&watch(&cluster, &named, |events| events.len() == 1).await), [("MODIFIED", "a")]);
}

#[tokio::test]
async fn bookmarks_end_a_streamed_list() {
    let cluster = Cluster::start().await;
    for name in ["a", "b"] {
        raw::post(&cluster, MAPS, &map(name, "x")).await.ok();
    }
    let path = format!(
        "{MAPS}?watch=true&labelSelector=l&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
    );
    let events =
        watch(&cluster, &path, |events| events.last().is_some_and(|e| e["type"] == "BOOKMARK")).await;
    assert_eq!(seen(&events)[..2], [("ADDED", "a"), ("ADDED", "b")]);
    let bookmark = &events[2]["object"]["metadata"];
    assert_eq!(bookmark["annotations"]["k8s.io/initial-events-end"], "true");
    assert!(bookmark["resourceVersion"].is_string());
    let from_start = format!("{MAPS}?watch=true&labelSelector=l&timeoutSeconds=1");
    let events = watch(&cluster, &from_start, |_| false).await;
    assert_eq!(seen(&events), [("ADDED", "a"), ("ADDED", "b")], "and then the timeout");
}

#[tokio::test]
async fn tables_have_the_columns_of_the_definition() {
    let cluster = Cluster::start().await;
    let labels = json!({"coil.cybozu.com/pool": "p", "coil.cybozu.com/node": "n"});
    let block = json!({"apiVersion": "coil.cybozu.com/v2", "kind": "AddressBlock", "index": 0,
        "metadata": {"name": "p-0", "labels": labels}, "ipv4": "10.0.0.0/30"});
    raw::post(&cluster, BLOCKS, &block).await.ok();
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let answer = raw::get_as(&cluster, BLOCKS, table).await.ok();
    assert_eq!((&answer["kind"], &answer["apiVersion"]), (&json!("Table"), &json!("meta.k8s.io/v1")));
    let columns: Vec<&str> =
        answer["columnDefinitions"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(columns, ["Name", "Node", "Pool", "IPv4", "IPv6"]);
    assert_eq!(answer["rows"][0]["cells"], json!(["p-0", "n", "p", "10.0.0.0/30", null]));
    assert_eq!(answer["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let metadata = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
    let answer = raw::get_as(&cluster, BLOCKS, metadata).await.ok();
    assert_eq!(answer["kind"], "PartialObjectMetadataList");
    assert!(answer["items"][0].get("ipv4").is_none());
    let nodes = raw::get_as(&cluster, "/api/v1/nodes", table).await.ok();
    let columns: Vec<&str> =
        nodes["columnDefinitions"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(columns[..5], ["Name", "Status", "Roles", "Age", "Version"]);
}
