//! From a path to what it names.

use std::sync::Arc;

use hyper::{Method, Request};
use percent_encoding::percent_decode_str;

use super::query::Query;
use crate::auth::User;
use crate::rbac::Attributes;
use crate::registry::{Registry, Resource};
use crate::status::{ApiError, Result};

/// A resource, or one object of it, or a subresource of that.
pub(crate) struct Target {
    pub(crate) resource: Arc<Resource>,
    /// `None` for cluster-scoped resources and for all namespaces.
    pub(crate) namespace: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) subresource: Option<String>,
}

impl Target {
    /// What the request asks for, in the words of rules.
    pub(crate) fn attributes<B>(&self, user: &User, request: &Request<B>) -> Attributes {
        let query = Query::parse(request.uri().query());
        // A list of the one object with this name is a request for that object.
        let selected = || query.get("fieldSelector")?.strip_prefix("metadata.name=").map(str::to_owned);
        let name = self.name.clone().or_else(selected).filter(|name| !name.contains(','));
        let verb = match (request.method(), &self.name) {
            (&Method::GET | &Method::HEAD, _) if query.flag("watch") => "watch",
            (&Method::GET | &Method::HEAD, Some(_)) => "get",
            (&Method::GET | &Method::HEAD, None) => "list",
            (&Method::POST, _) => "create",
            (&Method::PUT, _) => "update",
            (&Method::PATCH, _) => "patch",
            (&Method::DELETE, Some(_)) => "delete",
            (&Method::DELETE, None) => "deletecollection",
            (other, _) => other.as_str(),
        };
        let below = self.subresource.as_ref().map(|sub| format!("/{sub}")).unwrap_or_default();
        // A namespace is in itself.
        let itself = || name.clone().filter(|_| self.resource.table.as_str() == "namespaces");
        Attributes {
            user: user.name.clone(),
            groups: user.groups.clone(),
            verb: verb.to_owned(),
            group: self.resource.group.clone(),
            resource: format!("{}{below}", self.resource.plural),
            namespace: self.namespace.clone().or_else(itself).unwrap_or_default(),
            name: name.unwrap_or_default(),
        }
    }
}

/// The segments of a path, decoded.
pub(crate) fn segments(path: &str) -> Vec<String> {
    let parts = path.split('/').filter(|part| !part.is_empty());
    parts.map(|part| percent_decode_str(part).decode_utf8_lossy().into_owned()).collect()
}

/// Finds the resource of a path below `/api/v1` or `/apis/GROUP/VERSION`.
pub(crate) fn target(registry: &Registry, segments: &[String]) -> Result<Target> {
    let parts: Vec<&str> = segments.iter().map(String::as_str).collect();
    let (group, version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return Err(ApiError::no_such_path()),
    };
    let (namespace, rest) = match rest {
        // `namespaces/NAME` and its subresources are the namespace itself.
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() && !is_namespace_subresource(rest) => {
            (Some(*namespace), rest)
        }
        rest => (None, rest),
    };
    let [plural, rest @ ..] = rest else { return Err(ApiError::no_such_path()) };
    let resource = registry.find(group, version, plural).ok_or_else(ApiError::no_such_path)?;
    let (name, subresource) = match rest {
        [] => (None, None),
        [name] => (Some(*name), None),
        [name, subresource] => (Some(*name), Some(*subresource)),
        _ => return Err(ApiError::no_such_path()),
    };
    if resource.namespaced != namespace.is_some() && (namespace.is_some() || name.is_some()) {
        return Err(ApiError::no_such_path());
    }
    let own = |part: Option<&str>| part.map(str::to_owned);
    Ok(Target { resource, namespace: own(namespace), name: own(name), subresource: own(subresource) })
}

fn is_namespace_subresource(rest: &[&str]) -> bool {
    matches!(rest, ["status" | "finalize"])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Resource, namespace, name, subresource.
    type Found = (String, Option<String>, Option<String>, Option<String>);

    fn find(path: &str) -> Option<Found> {
        let found = target(&Registry::new(), &segments(path)).ok()?;
        Some((found.resource.plural.clone(), found.namespace, found.name, found.subresource))
    }

    #[test]
    fn paths() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(find("/api/v1/pods"), Some(("pods".into(), None, None, None)));
        assert_eq!(
            find("/api/v1/namespaces/a/pods/p/status"),
            Some(("pods".into(), some("a"), some("p"), some("status")))
        );
        assert_eq!(find("/api/v1/namespaces/a"), Some(("namespaces".into(), None, some("a"), None)));
        assert_eq!(
            find("/api/v1/namespaces/a/finalize"),
            Some(("namespaces".into(), None, some("a"), some("finalize")))
        );
        assert_eq!(
            find("/apis/apps/v1/namespaces/a/deployments"),
            Some(("deployments".into(), some("a"), None, None))
        );
        assert_eq!(find("/api/v1/pods/p"), None, "a namespaced object needs its namespace");
        assert_eq!(find("/api/v1/namespaces/a/nodes"), None);
        assert_eq!(find("/apis/none/v1/x"), None);
    }
}
