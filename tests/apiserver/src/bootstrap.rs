//! The objects that every cluster has from the start.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::auth::User;
use crate::backend::Backend;
use crate::status::Result;
use crate::verbs::{self, Caller, FieldValidation, Place, WriteOptions};

fn options() -> WriteOptions {
    WriteOptions {
        dry_run: false,
        manager: "coil-apiserver".into(),
        force: false,
        validation: FieldValidation::Ignore,
    }
}

/// Creates a built-in object.
fn create(backend: &Backend, group: &str, plural: &str, namespace: &str, object: Value) -> Result<()> {
    let resource = backend.registry.builtin(group, plural);
    let caller = Caller::new(Arc::new(User::admin()));
    let place = Place { backend, resource: &resource, namespace, caller: &caller };
    let created = verbs::create_unasked(place, object, &options());
    created.map(|_| ())
}

/// Fills a new server.
pub(crate) fn populate(backend: &Backend) -> Result<()> {
    for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        create(backend, "", "namespaces", "", json!({"metadata": {"name": name}}))?;
    }
    for (name, value) in [("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)]
    {
        let class = json!({"metadata": {"name": name}, "value": value,
            "description": "Used for system critical pods that must not be moved from their current node."});
        create(backend, "scheduling.k8s.io", "priorityclasses", "", class)?;
    }
    let cidrs: Vec<String> = backend.services.ranges().iter().map(ToString::to_string).collect();
    if !cidrs.is_empty() {
        let range = json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": cidrs}});
        create(backend, "networking.k8s.io", "servicecidrs", "", range)?;
    }
    if let Some(ip) = backend.services.first() {
        let service = json!({
            "metadata": {"name": "kubernetes", "labels": {"component": "apiserver", "provider": "kubernetes"}},
            "spec": {"clusterIP": ip.to_string(), "ports": [{"name": "https", "port": 443, "targetPort": 6443}]}});
        create(backend, "", "services", "default", service)?;
    }
    Ok(())
}

/// What controllers put into a new namespace: its service account and the CA.
pub(crate) fn populate_namespace(backend: &Backend, namespace: &str) {
    let account = json!({"metadata": {"name": "default"}});
    let ca = json!({"metadata": {"name": "kube-root-ca.crt"}, "data": {"ca.crt": backend.ca}});
    for (plural, object) in [("serviceaccounts", account), ("configmaps", ca)] {
        if let Err(error) = create(backend, "", plural, namespace, object) {
            tracing::warn!(namespace, plural, %error, "filling a new namespace");
        }
    }
}
