//! Making an object what it should be, writing only when it is not.
//!
//! Whether it is: the API server fills in defaults, so the wanted fields are looked for in what is
//! there; and a hash of what was written last, kept as an annotation, tells when a field was
//! taken out of what is wanted.

use std::fmt::Debug;

use k8s_openapi::{
    NamespaceResourceScope,
    api::{apps::v1::Deployment, core::v1::Service, policy::v1::PodDisruptionBudget},
};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, PostParams, Preconditions},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tracing::info;

/// Annotation with the hash of the fields that the controller wrote last.
pub const ANN_HASH: &str = "coil.cybozu.com/written";

/// Annotation of a pod template by which `kubectl rollout restart` makes pods anew.
const ANN_RESTARTED: &str = "kubectl.kubernetes.io/restartedAt";

/// An object that is not as it should be, and why.
#[derive(Debug, thiserror::Error)]
pub enum EnsureError {
    /// The name is taken.
    #[error(
        "{kind} {name} exists and does not belong to this Egress: delete it, or give the Egress another name"
    )]
    Foreign {
        /// Kind of the object.
        kind: String,
        /// Its name.
        name: String,
    },
    /// The API server refused or did not answer.
    #[error("cannot {doing}: {source}")]
    Api {
        /// What was being done to which object.
        doing: String,
        /// The client's error.
        #[source]
        source: kube::Error,
    },
    /// An object that has no JSON form.
    #[error("cannot write {kind} {name} as JSON: {source}")]
    Json {
        /// Kind of the object.
        kind: String,
        /// Its name.
        name: String,
        /// Why not.
        source: serde_json::Error,
    },
}

impl EnsureError {
    /// The reason of a condition that tells of it.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Foreign { .. } => "NameTaken",
            Self::Api { .. } | Self::Json { .. } => "ReconcileFailed",
        }
    }
}

/// How what is there takes over what is wanted. Fields that belong to others stay.
pub trait Merge {
    /// Overwrites the controller's fields.
    fn merge(&mut self, wanted: Self);
}

impl Merge for Deployment {
    fn merge(&mut self, wanted: Self) {
        let (Some(spec), Some(mut wanted)) = (self.spec.as_mut(), wanted.spec) else { return };
        spec.replicas = wanted.replicas;
        spec.strategy = wanted.strategy;
        // All other annotations are the template's, also where it has them no more.
        let there = spec.template.metadata.take().and_then(|meta| meta.annotations).unwrap_or_default();
        if let Some(mark) = there.into_iter().find(|(key, _)| key == ANN_RESTARTED) {
            let meta = wanted.template.metadata.get_or_insert_default();
            meta.annotations.get_or_insert_default().entry(mark.0).or_insert(mark.1);
        }
        spec.template = wanted.template;
    }
}

impl Merge for Service {
    fn merge(&mut self, wanted: Self) {
        let (Some(spec), Some(wanted)) = (self.spec.as_mut(), wanted.spec) else { return };
        spec.type_ = wanted.type_;
        spec.selector = wanted.selector;
        spec.ports = wanted.ports;
        spec.session_affinity = wanted.session_affinity;
        spec.session_affinity_config = wanted.session_affinity_config;
        spec.ip_family_policy = wanted.ip_family_policy;
    }
}

impl Merge for PodDisruptionBudget {
    fn merge(&mut self, wanted: Self) {
        self.spec = wanted.spec;
    }
}

/// What [`ensure`] found.
#[derive(Debug)]
pub enum Ensured<K> {
    /// It was as it should be.
    Unchanged(K),
    /// It is now.
    Written(K),
}

impl<K> Ensured<K> {
    /// The object as it is now.
    pub fn object(&self) -> &K {
        match self {
            Self::Unchanged(object) | Self::Written(object) => object,
        }
    }
}

/// Creates or updates an object. `wanted` has the Egress as its controller.
///
/// # Errors
/// See [`EnsureError`].
pub async fn ensure<K>(api: &Api<K>, mut wanted: K) -> Result<Ensured<K>, EnsureError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Merge
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned,
{
    let (kind, name) = (K::kind(&()).into_owned(), wanted.name_any());
    let json = |object: &K| {
        serde_json::to_value(object).map_err(|source| EnsureError::Json {
            kind: kind.clone(),
            name: name.clone(),
            source,
        })
    };
    let failed = |verb: &str, source| EnsureError::Api { doing: format!("{verb} {kind} {name}"), source };
    let hash = format!("{:016x}", fnv1a(json(&wanted)?.to_string().as_bytes()));
    wanted.annotations_mut().insert(ANN_HASH.to_owned(), hash);

    let Some(existing) = api.get_opt(&name).await.map_err(|e| failed("read", e))? else {
        let created = api.create(&PostParams::default(), &wanted).await.map_err(|e| failed("create", e))?;
        info!(kind, name, namespace = created.namespace(), "created");
        return Ok(Ensured::Written(created));
    };
    if !belongs(&existing, &wanted) {
        return Err(EnsureError::Foreign { kind, name });
    }
    if existing.meta().deletion_timestamp.is_some() || is_within(&json(&wanted)?, &json(&existing)?) {
        return Ok(Ensured::Unchanged(existing));
    }
    let mut merged = existing;
    let meta = wanted.meta().clone();
    merged.labels_mut().extend(meta.labels.unwrap_or_default());
    merged.annotations_mut().extend(meta.annotations.unwrap_or_default());
    merged.meta_mut().owner_references = meta.owner_references;
    merged.merge(wanted);
    // The resource version goes along: a change in between is a conflict, and looked at again.
    let updated =
        api.replace(&name, &PostParams::default(), &merged).await.map_err(|e| failed("update", e))?;
    info!(kind, name, namespace = updated.namespace(), "updated");
    Ok(Ensured::Written(updated))
}

/// Deletes an object if it is there and the Egress's.
///
/// # Errors
/// When the API server refuses or does not answer.
pub async fn remove<K>(api: &Api<K>, name: &str, owner_uid: &str) -> Result<(), EnsureError>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let kind = K::kind(&());
    let failed = |verb: &str, source| EnsureError::Api { doing: format!("{verb} {kind} {name}"), source };
    let Some(existing) = api.get_metadata_opt(name).await.map_err(|e| failed("read", e))? else {
        return Ok(());
    };
    let owned = existing.metadata.owner_references.iter().flatten().any(|o| o.uid == owner_uid);
    if !owned || existing.metadata.deletion_timestamp.is_some() {
        return Ok(());
    }
    let preconditions = Some(Preconditions { uid: existing.metadata.uid, resource_version: None });
    match api.delete(name, &DeleteParams { preconditions, ..DeleteParams::default() }).await {
        Ok(_) => {
            info!(%kind, name, "deleted");
            Ok(())
        }
        Err(kube::Error::Api(s)) if s.code == 404 => Ok(()),
        Err(e) => Err(failed("delete", e)),
    }
}

/// Whether an object is this Egress's: by its controller; or, when it has none, by our labels (it
/// outlived an Egress that was deleted without its objects).
fn belongs<K: Resource>(existing: &K, wanted: &K) -> bool {
    let controller = |k: &K| {
        let owners = k.meta().owner_references.clone().unwrap_or_default();
        owners.into_iter().find(|o| o.controller == Some(true)).map(|o| o.uid)
    };
    match controller(existing) {
        Some(uid) => Some(uid) == controller(wanted),
        None => wanted.labels().iter().all(|(k, v)| existing.labels().get(k) == Some(v)),
    }
}

/// Whether all that is wanted is there. Lists count as a whole; null, empty and false are absent.
fn is_within(wanted: &Value, there: &Value) -> bool {
    match (wanted, there) {
        (Value::Object(wanted), Value::Object(there)) => {
            wanted.iter().all(|(k, w)| is_within(w, there.get(k).unwrap_or(&Value::Null)))
        }
        (Value::Array(wanted), Value::Array(there)) => {
            wanted.len() == there.len() && wanted.iter().zip(there).all(|(w, t)| is_within(w, t))
        }
        (Value::Object(wanted), Value::Null) => wanted.values().all(|w| is_within(w, &Value::Null)),
        (Value::Array(wanted), Value::Null) => wanted.is_empty(),
        (Value::Bool(false), Value::Null) => true,
        (Value::String(wanted), Value::Null) => wanted.is_empty(),
        _ => wanted == there,
    }
}

/// FNV-1a: stable over versions of the compiler, and enough to see a change.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn defaults_of_the_server_are_no_difference() {
        let wanted = json!({"spec": {"ports": [{"port": 1}], "empty": {}, "none": null, "off": false}});
        let there = json!({"spec": {"ports": [{"port": 1, "protocol": "TCP"}], "clusterIP": "10.0.0.1"}});
        assert!(is_within(&wanted, &there));
        for different in [
            json!({"spec": {"ports": [{"port": 2}]}}),
            json!({"spec": {"ports": [{"port": 1}, {"port": 2}]}}),
            json!({"spec": {}}),
            json!({}),
        ] {
            assert!(!is_within(&wanted, &different), "{different}");
        }
    }

    #[test]
    fn an_update_keeps_what_others_set() {
        let mut there: Service = serde_json::from_value(json!({
            "metadata": {"name": "nat"},
            "spec": {"clusterIP": "10.96.0.9", "sessionAffinity": "ClientIP",
                     "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}}},
        }))
        .unwrap();
        let wanted: Service = serde_json::from_value(json!({"spec": {"sessionAffinity": "None"}})).unwrap();
        there.merge(wanted);
        let spec = there.spec.unwrap();
        assert_eq!(spec.cluster_ip.as_deref(), Some("10.96.0.9"));
        assert_eq!((spec.session_affinity.as_deref(), spec.session_affinity_config), (Some("None"), None));
    }

    #[test]
    fn a_restart_of_the_rollout_survives() {
        let mut there: Deployment = serde_json::from_value(json!({"spec": {"selector": {}, "template":
            {"metadata": {"annotations": {ANN_RESTARTED: "now", "a": "1", "egress.coil.cybozu.com/internet": "out"}}}}}))
        .unwrap();
        let wanted: Deployment = serde_json::from_value(
            json!({"spec": {"selector": {}, "template": {"metadata": {"annotations": {"a": "2"}}}}}),
        )
        .unwrap();
        there.merge(wanted);
        let annotations = there.spec.unwrap().template.metadata.unwrap().annotations.unwrap();
        assert_eq!(
            annotations,
            [("a", "2"), (ANN_RESTARTED, "now")].map(|(k, v)| (k.into(), v.into())).into()
        );
    }

    #[test]
    fn a_foreign_object_is_not_ours() {
        let object = |v: Value| serde_json::from_value::<Service>(v).unwrap();
        let owned = |uid: &str| json!([{"apiVersion": "v2", "kind": "Egress", "name": "nat", "uid": uid, "controller": true}]);
        let wanted = object(json!({"metadata": {"labels": {"l": "nat"}, "ownerReferences": owned("1")}}));
        assert!(belongs(&object(json!({"metadata": {"ownerReferences": owned("1")}})), &wanted));
        assert!(!belongs(
            &object(json!({"metadata": {"ownerReferences": owned("2"), "labels": {"l": "nat"}}})),
            &wanted
        ));
        assert!(!belongs(&object(json!({"metadata": {}})), &wanted), "somebody's Service");
        assert!(
            belongs(&object(json!({"metadata": {"labels": {"l": "nat"}}})), &wanted),
            "an orphan of before"
        );
    }
}
