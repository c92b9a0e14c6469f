//! What is shipped is accepted: every object of every overlay and every sample, in a dry run of the server's.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use coil_apitest::Cluster;
use kube::ResourceExt as _;
use kube::api::{Api, DynamicObject, Patch, PatchParams, ValidationDirective};
use kube::core::{ApiResource, GroupVersionKind};
use serde::Deserialize as _;
use serde_json::Value;

const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy");

fn entries(dir: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    entries
}

/// Built by kubectl, without any network.
fn kustomize(overlay: &Path) -> String {
    let done = Command::new("kubectl").arg("kustomize").arg(overlay).output().unwrap();
    assert!(done.status.success(), "{}: {}", overlay.display(), String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

fn objects(text: &str) -> Vec<DynamicObject> {
    let documents = serde_yaml_ng::Deserializer::from_str(text);
    documents.map(|document| DynamicObject::deserialize(document).unwrap()).collect()
}

/// Asks the server to apply an object, and not to.
async fn dry_run(cluster: &Cluster, object: &DynamicObject) -> Result<(), kube::Error> {
    let types = object.types.as_ref().unwrap();
    let resource = ApiResource::from_gvk(&GroupVersionKind::try_from(types).unwrap());
    let api: Api<DynamicObject> = match object.namespace() {
        Some(namespace) => Api::namespaced_with(cluster.client.clone(), &namespace, &resource),
        None => Api::all_with(cluster.client.clone(), &resource),
    };
    let mut params = PatchParams::apply("test").force().dry_run();
    params.field_validation = Some(ValidationDirective::Strict);
    api.patch(&object.name_any(), &params, &Patch::Apply(object)).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_overlay_is_accepted() {
    let cluster = Cluster::start().await;
    let overlays = entries(&Path::new(DEPLOY).join("overlays"));
    let names: BTreeSet<_> =
        overlays.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    for wanted in [
        "full",
        "ipam-only",
        "egress-only",
        "with-router",
        "cert-rotation",
        "own-certificates",
        "compat-calico",
        "kernel-datapath",
        "dual-stack",
    ] {
        assert!(names.contains(wanted), "there is no overlay {wanted}");
    }
    for overlay in &overlays {
        let objects = objects(&kustomize(overlay));
        assert!(objects.len() > 20, "{} has {} objects", overlay.display(), objects.len());
        for object in &objects {
            let kind = &object.types.as_ref().unwrap().kind;
            if let Err(error) = dry_run(&cluster, object).await {
                panic!("{}: {kind} {}: {error}", overlay.display(), object.name_any());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_applied_beside_an_overlay_is_accepted() {
    let cluster = Cluster::start().await;
    for (folder, count) in [("cleanup", 1), ("from-v2", 9)] {
        let objects = objects(&kustomize(&Path::new(DEPLOY).join(folder)));
        assert_eq!(objects.len(), count, "{folder}");
        for object in &objects {
            dry_run(&cluster, object).await.unwrap_or_else(|error| panic!("{}: {error}", object.name_any()));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_sample_is_accepted() {
    let cluster = Cluster::start().await;
    cluster.namespace("internet").await;
    for sample in entries(&Path::new(DEPLOY).join("samples")) {
        for object in objects(&std::fs::read_to_string(&sample).unwrap()) {
            if let Err(error) = dry_run(&cluster, &object).await {
                panic!("{}: {}: {error}", sample.display(), object.name_any());
            }
        }
    }
}

/// What the server would refuse is refused here, too: the dry run looks.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_object_is_not_accepted() {
    let cluster = Cluster::start().await;
    let text = kustomize(&Path::new(DEPLOY).join("overlays/full"));
    let mut object =
        objects(&text).into_iter().find(|o| o.types.as_ref().unwrap().kind == "DaemonSet").unwrap();
    object.data["spec"]["template"]["spec"]["hostNetwrok"] = true.into();
    let error = dry_run(&cluster, &object).await.unwrap_err().to_string();
    assert!(error.contains("hostNetwrok"), "{error}");
}

/// The image is named in one place: another name there is another name everywhere.
#[test]
fn the_image_and_the_network_are_one_edit_each() {
    let copy = tempfile::tempdir().unwrap();
    let done = Command::new("cp").arg("-r").arg(DEPLOY).arg(copy.path()).status().unwrap();
    assert!(done.success());
    let deploy = copy.path().join("deploy");
    let edit = |path: &str, from: &str, to: &str| {
        let path = deploy.join(path);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.matches(from).count(), 1, "{from:?} in {}", path.display());
        std::fs::write(&path, text.replace(from, to)).unwrap();
    };
    edit("image/kustomization.yaml", "newName: coil", "newName: registry.example/me/coil");
    edit("image/kustomization.yaml", "newTag: dev", "newTag: v9");
    edit("netconf/netconf.json", "k8s-pod-network", "my-network");
    for overlay in entries(&deploy.join("overlays")) {
        let built = objects(&kustomize(&overlay));
        let mut images = Vec::new();
        built.iter().for_each(|object| collect_images(&object.data, &mut images));
        assert!(
            images.len() >= 3 && images.iter().all(|image| image == "registry.example/me/coil:v9"),
            "{images:?}"
        );
        let netconf = built.iter().find(|object| object.name_any().starts_with("coil-config"));
        if let Some(netconf) = netconf {
            let text = netconf.data["data"]["cni_netconf"].as_str().unwrap();
            assert_eq!(serde_json::from_str::<Value>(text).unwrap()["name"], "my-network");
        } else {
            assert!(overlay.ends_with("egress-only"), "{} has no network", overlay.display());
        }
    }
}

fn collect_images(value: &Value, images: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            images.extend(map.get("image").and_then(Value::as_str).map(str::to_owned));
            map.values().for_each(|value| collect_images(value, images));
        }
        Value::Array(list) => list.iter().for_each(|value| collect_images(value, images)),
        _ => {}
    }
}
