//! What is asked for: the attributes of a request that rules speak of.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One request for a resource.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Attributes {
    /// Who asks.
    pub user: String,
    /// The asker's groups.
    pub groups: Vec<String>,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, or a verb of its own.
    pub verb: String,
    /// API group; empty for the core.
    pub group: String,
    /// Plural, and `/SUBRESOURCE`.
    pub resource: String,
    /// Empty for cluster scope and for all namespaces.
    pub namespace: String,
    /// Empty when no object is named.
    pub name: String,
}

/// As kube-apiserver says it.
impl fmt::Display for Attributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { user, verb, group, resource, namespace, .. } = self;
        write!(f, "User {user:?} cannot {verb} resource {resource:?} in API group {group:?} ")?;
        match namespace.as_str() {
            "" => f.write_str("at the cluster scope"),
            namespace => write!(f, "in the namespace {namespace:?}"),
        }
    }
}
