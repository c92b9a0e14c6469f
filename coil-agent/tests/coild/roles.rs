//! The rights of coild in these tests: those that the overlay for its flags ships, and no more.

use std::{path::Path, process::Command};

use coil_apitest::Kind;
use kube::{
    Api, Client, ResourceExt,
    api::{DynamicObject, PostParams},
    core::{ApiResource, GroupVersionKind},
};
use serde::Deserialize;
use serde_json::Value;

use crate::cluster::Setup;

/// The account of coild.
pub(crate) const NAMESPACE: &str = "kube-system";
pub(crate) const ACCOUNT: &str = "coild";

const OVERLAYS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/overlays");

/// Creates the roles of the whole cluster, and who has them.
pub(crate) async fn ship(client: &Client, setup: Setup) {
    let overlay = match (setup.ipam, setup.egress) {
        (true, true) => "full",
        (true, false) => "ipam-only",
        (false, _) => "egress-only",
    };
    let built =
        Command::new("kubectl").arg("kustomize").arg(Path::new(OVERLAYS).join(overlay)).output().unwrap();
    assert!(built.status.success(), "{overlay}: {}", String::from_utf8_lossy(&built.stderr));
    let text = String::from_utf8(built.stdout).unwrap();
    let mut created = 0;
    for document in serde_yaml_ng::Deserializer::from_str(&text) {
        let object = DynamicObject::deserialize(document).unwrap();
        let types = object.types.as_ref().unwrap();
        if matches!(types.kind.as_str(), "ClusterRole" | "ClusterRoleBinding") {
            let resource = ApiResource::from_gvk(&GroupVersionKind::try_from(types).unwrap());
            let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
            let done = api.create(&PostParams::default(), &object).await;
            done.unwrap_or_else(|e| panic!("{overlay}: {}: {e}", object.name_any()));
            created += 1;
        }
    }
    assert!(created > 5, "{overlay} has {created} roles and bindings");
}

/// The embedded server writes down what coild asks for. A real one does not: there coild only has to do with what it got.
pub(crate) fn nothing_was_denied(asked: &Path) {
    let text = std::fs::read_to_string(asked).unwrap();
    assert!(Kind::chosen().unwrap() != Kind::Embedded || text.lines().count() > 5, "nothing was asked for");
    let denied: Vec<&str> =
        text.lines().filter(|line| serde_json::from_str::<Value>(line).unwrap()["allowed"] != true).collect();
    assert!(denied.is_empty(), "{}", denied.join("\n"));
}
