//! Who may do what: roles and bindings, as kube-apiserver's RBAC reads them.
//!
//! Members of `system:masters` may do everything. Everybody who is known may read what the server says of itself,
//! and ask what they may. Rules say the rest.

mod policy;
mod record;
mod request;

use std::sync::{Arc, PoisonError, RwLock};

use serde_json::Value;

pub use policy::Policy;
pub use record::Question;
pub(crate) use record::Record;
pub use request::Attributes;

use crate::auth::User;
use crate::backend::Backend;
use crate::meta;
use crate::status::{ApiError, Result};
use crate::store::TableId;
use crate::verbs::Place;

/// The group of roles and bindings.
const GROUP: &str = "rbac.authorization.k8s.io";
/// Its resources.
const RESOURCES: [&str; 4] = ["clusterroles", "clusterrolebindings", "roles", "rolebindings"];

/// The rules in force.
#[derive(Default)]
pub(crate) struct Authorizer {
    policy: RwLock<Arc<Policy>>,
    record: Option<Record>,
}

impl Authorizer {
    pub(crate) fn new(record: Option<Record>) -> Self {
        Self { policy: RwLock::default(), record }
    }

    /// A role or binding may have changed.
    pub(crate) fn configured(&self, table: &TableId, backend: &Backend) {
        let tables = RESOURCES.map(|plural| TableId::new(GROUP, plural));
        if !tables.contains(table) {
            return;
        }
        let objects = tables.iter().flat_map(|table| backend.store.list(table, None).0);
        let objects: Vec<_> = objects.collect();
        let policy = Policy::new(objects.iter().map(|object| object.value()));
        *self.policy.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(policy);
    }

    /// Whether a user may, without a record: he did not ask.
    fn would_allow(&self, user: &User, asked: &Attributes) -> bool {
        let policy = self.policy.read().unwrap_or_else(PoisonError::into_inner).clone();
        user.is_master() || policy.allows(asked)
    }

    /// Whether a user may; every question that rules decide is recorded.
    pub(crate) fn allows(&self, user: &User, asked: &Attributes) -> bool {
        if user.is_master() {
            return true;
        }
        let allowed = self.would_allow(user, asked);
        if let Some(record) = &self.record {
            record.note(Question { allowed, asked: asked.clone() });
        }
        allowed
    }

    /// Refuses what a user may not.
    pub(crate) fn check(&self, user: &User, asked: &Attributes) -> Result<()> {
        if self.allows(user, asked) {
            return Ok(());
        }
        tracing::warn!(%asked, "denied");
        Err(ApiError::not_allowed(&asked.group, &asked.resource, &asked.name, asked))
    }
}

/// Refuses a binding to a role whose rules its writer neither has nor may give: nobody raises himself.
pub(crate) fn check_binding(place: Place<'_>, binding: &Value) -> Result<()> {
    let Place { backend, resource, namespace, caller } = place;
    if resource.group != GROUP || !matches!(resource.plural.as_str(), "clusterrolebindings" | "rolebindings")
    {
        return Ok(());
    }
    let text = |path: &[&str]| meta::at(binding, path).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (kind, name) = (text(&["roleRef", "kind"]), text(&["roleRef", "name"]));
    let plural = if kind == "ClusterRole" { "clusterroles" } else { "roles" };
    let asked = Attributes {
        user: caller.user.name.clone(),
        groups: caller.user.groups.clone(),
        verb: "bind".into(),
        group: GROUP.into(),
        resource: plural.into(),
        namespace: namespace.to_owned(),
        name: name.clone(),
    };
    let role_namespace = if plural == "roles" { namespace } else { "" };
    let others = backend.store.list(&TableId::new(GROUP, "clusterroles"), None).0;
    let role = backend.get(&backend.registry.builtin(GROUP, plural), role_namespace, &name);
    // What he has he may give: then he needs no permission to bind.
    let within = role.as_ref().is_ok_and(|role| {
        let rules = policy::rules_of(role.value(), others.iter().map(|other| other.value()));
        policy::granted(&rules, &asked).all(|each| backend.authorizer.would_allow(&caller.user, &each))
    });
    if within || backend.authorizer.allows(&caller.user, &asked) {
        return Ok(());
    }
    role?;
    let why = format!(
        "user {:?} (groups={:?}) is attempting to grant RBAC permissions not currently held",
        caller.user.name,
        caller.user.all_groups()
    );
    Err(ApiError::forbidden(GROUP, &resource.plural, meta::name(binding), why))
}
