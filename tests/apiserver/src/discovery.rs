//! What the server tells clients about its resources.

use serde_json::{Value, json};

use crate::registry::{Resource, Snapshot};
use crate::verbs::REVIEWS;

const VERBS: [&str; 8] = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const PART_VERBS: [&str; 3] = ["get", "patch", "update"];

/// The version of Kubernetes whose API this server speaks.
pub(crate) fn version() -> Value {
    json!({"major": "1", "minor": "33", "gitVersion": "v1.33.0+coil-apiserver", "gitCommit": "",
        "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z", "goVersion": "none", "compiler": "rustc",
        "platform": "linux/amd64"})
}

/// Named groups with their versions; the ones that only answer reviews come last.
fn named_groups(snapshot: &Snapshot) -> Vec<(String, Vec<String>)> {
    let mut groups = snapshot.groups();
    groups.retain(|(name, _)| !name.is_empty());
    for (group, _, _) in REVIEWS {
        if !groups.iter().any(|(name, _)| name == group) {
            groups.push(((*group).to_owned(), vec!["v1".to_owned()]));
        }
    }
    groups
}

fn group_value(name: &str, versions: &[String]) -> Value {
    let entry = |version: &String| json!({"groupVersion": format!("{name}/{version}"), "version": version});
    let versions: Vec<Value> = versions.iter().map(entry).collect();
    json!({"kind": "APIGroup", "apiVersion": "v1", "name": name, "preferredVersion": versions[0],
        "versions": versions})
}

/// `/apis`.
pub(crate) fn groups(snapshot: &Snapshot) -> Value {
    let groups: Vec<Value> =
        named_groups(snapshot).iter().map(|(name, versions)| group_value(name, versions)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/GROUP`.
pub(crate) fn group(snapshot: &Snapshot, name: &str) -> Option<Value> {
    let groups = named_groups(snapshot);
    groups.iter().find(|(have, _)| have == name).map(|(name, versions)| group_value(name, versions))
}

fn of_version<'a>(snapshot: &'a Snapshot, group: &str, version: &str) -> Vec<&'a Resource> {
    let all = snapshot.resources().iter().map(AsRef::as_ref);
    all.filter(|resource: &&Resource| resource.group == group && resource.version == version).collect()
}

fn reviews(group: &str, version: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
    let wanted = if version == "v1" { group.to_owned() } else { String::new() };
    REVIEWS.iter().filter(move |(have, _, _)| *have == wanted).map(|(_, plural, kind)| (*plural, *kind))
}

/// Name, group, version, kind and verbs of each subresource.
fn subresources(resource: &Resource) -> Vec<(&str, &str, &str, &str, &[&'static str])> {
    let (group, version) = (resource.group.as_str(), resource.version.as_str());
    let mut all = Vec::new();
    if resource.has_status {
        all.push(("status", group, version, resource.kind.as_str(), PART_VERBS.as_slice()));
    }
    if resource.scale.is_some() {
        all.push(("scale", "autoscaling", "v1", "Scale", PART_VERBS.as_slice()));
    }
    for sub in resource.subresources {
        all.push((sub.name, sub.group, sub.version, sub.kind, ["create"].as_slice()));
    }
    all
}

/// `/api/v1` or `/apis/GROUP/VERSION`.
pub(crate) fn resources(snapshot: &Snapshot, group: &str, version: &str) -> Option<Value> {
    let mut list = Vec::new();
    for resource in of_version(snapshot, group, version) {
        list.push(json!({"name": resource.plural, "singularName": resource.singular, "namespaced": resource.namespaced,
            "kind": resource.kind, "verbs": VERBS, "shortNames": resource.short_names,
            "categories": resource.categories}));
        for (name, group, version, kind, verbs) in subresources(resource) {
            list.push(json!({"name": format!("{}/{name}", resource.plural), "singularName": "",
                "namespaced": resource.namespaced, "group": group, "version": version, "kind": kind, "verbs": verbs}));
        }
    }
    for (plural, kind) in reviews(group, version) {
        list.push(
            json!({"name": plural, "singularName": kind.to_lowercase(), "namespaced": false, "kind": kind,
            "verbs": ["create"]}),
        );
    }
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    (!list.is_empty()).then(|| {
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": list})
    })
}

/// Everything in one document: the core group, or all named groups.
pub(crate) fn aggregated(snapshot: &Snapshot, core: bool) -> Value {
    let groups = if core { vec![(String::new(), vec!["v1".to_owned()])] } else { named_groups(snapshot) };
    let items: Vec<Value> = groups
        .iter()
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|version| {
                    json!({"version": version, "freshness": "Current",
                    "resources": aggregated_resources(snapshot, group, version)})
                })
                .collect();
            json!({"metadata": {"name": group, "creationTimestamp": null}, "versions": versions})
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
}

fn aggregated_resources(snapshot: &Snapshot, group: &str, version: &str) -> Vec<Value> {
    let kind =
        |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let scope = |namespaced: bool| if namespaced { "Namespaced" } else { "Cluster" };
    let stored = of_version(snapshot, group, version).into_iter().map(|resource| {
        let subresources: Vec<Value> = subresources(resource)
            .into_iter()
            .map(|(name, group, version, k, verbs)| {
                json!({"subresource": name, "responseKind": kind(group, version, k), "verbs": verbs})
            })
            .collect();
        json!({"resource": resource.plural, "responseKind": kind(group, version, &resource.kind),
            "scope": scope(resource.namespaced), "singularResource": resource.singular, "verbs": VERBS,
            "shortNames": resource.short_names, "categories": resource.categories, "subresources": subresources})
    });
    let asked = reviews(group, version).map(|(plural, k)| {
        json!({"resource": plural, "responseKind": kind(group, version, k), "scope": scope(false),
            "singularResource": k.to_lowercase(), "verbs": ["create"]})
    });
    stored.chain(asked).collect()
}
