//! Which webhooks want to hear of a write.

use serde_json::Value;

use super::hook::{Hook, Rule};
use super::{GROUP, Write};
use crate::backend::Backend;
use crate::selector;
use crate::status::Result;

/// A write with its object as it is now.
pub(super) struct Matcher<'a> {
    write: Write<'a>,
    object: Option<&'a Value>,
}

impl<'a> Matcher<'a> {
    pub(super) fn new(write: Write<'a>, object: Option<&'a Value>) -> Self {
        Self { write, object }
    }

    /// Whether the hook is to be asked.
    pub(super) fn wants(&self, hook: &Hook) -> Result<bool> {
        if self.write.place.resource.group == GROUP || !hook.rules.iter().any(|rule| self.rule(hook, rule)) {
            return Ok(false);
        }
        Ok(self.object_selected(&hook.object_selector)
            && self.namespace_selected(&hook.namespace_selector)?)
    }

    fn rule(&self, hook: &Hook, rule: &Rule) -> bool {
        let Write { place, operation, subresource, .. } = self.write;
        let resource = place.resource;
        let any = |list: &[String], value: &str| list.iter().any(|have| have == "*" || have == value);
        let scope = match rule.scope.as_str() {
            "Cluster" => !resource.namespaced,
            "Namespaced" => resource.namespaced,
            _ => true,
        };
        if !scope
            || !any(&rule.operations, operation.name())
            || !resources(&rule.resources, &resource.plural, subresource)
        {
            return false;
        }
        let matches = |group: &str, version: &str| any(&rule.groups, group) && any(&rule.versions, version);
        if matches(&resource.group, &resource.version) {
            return true;
        }
        let snapshot = place.backend.registry.snapshot();
        let mut faces = snapshot.resources().iter().filter(|other| other.table == resource.table);
        hook.equivalent && faces.any(|face| matches(&face.group, &face.version))
    }

    fn object_selected(&self, selector: &Value) -> bool {
        if is_everything(selector) {
            return true;
        }
        let objects = self.object.into_iter().chain(self.write.old);
        objects.into_iter().any(|object| selector::label_selector_matches(selector, object))
    }

    /// Cluster-wide objects other than namespaces belong to no namespace: they always match.
    fn namespace_selected(&self, selector: &Value) -> Result<bool> {
        let Write { place, .. } = self.write;
        if is_everything(selector) {
            return Ok(true);
        }
        if place.resource.table.as_str() == "namespaces" {
            let namespace = self.object.or(self.write.old).unwrap_or(&Value::Null);
            return Ok(selector::label_selector_matches(selector, namespace));
        }
        if !place.resource.namespaced {
            return Ok(true);
        }
        let namespace = namespace_of(place.backend, place.namespace)?;
        Ok(selector::label_selector_matches(selector, &namespace))
    }
}

fn namespace_of(backend: &Backend, name: &str) -> Result<Value> {
    let namespaces = backend.registry.builtin("", "namespaces");
    Ok(backend.get(&namespaces, "", name)?.value().clone())
}

fn is_everything(selector: &Value) -> bool {
    let empty = |key: &str| match selector.get(key) {
        None | Some(Value::Null) => true,
        Some(Value::Object(map)) => map.is_empty(),
        Some(Value::Array(list)) => list.is_empty(),
        Some(_) => false,
    };
    empty("matchLabels") && empty("matchExpressions")
}

/// `pods`, `pods/status`, `pods/*`, `*/status`, `*` and `*/*`.
fn resources(wanted: &[String], plural: &str, subresource: &str) -> bool {
    wanted.iter().any(|wanted| {
        let (resource, sub) = wanted.split_once('/').unwrap_or((wanted, ""));
        (resource == "*" || resource == plural) && (sub == "*" || sub == subresource)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_with_wildcards() {
        let matches = |wanted: &str, plural: &str, sub: &str| resources(&[wanted.to_owned()], plural, sub);
        assert!(matches("pods", "pods", "") && !matches("pods", "pods", "status"));
        assert!(matches("pods/*", "pods", "status") && matches("pods/*", "pods", ""));
        assert!(matches("*", "pods", "") && !matches("*", "pods", "status"));
        assert!(matches("*/*", "pods", "status") && matches("*/scale", "deployments", "scale"));
        assert!(!matches("pods", "nodes", ""));
    }

    #[test]
    fn an_empty_selector_is_everything() {
        assert!(is_everything(&Value::Null));
        assert!(is_everything(&serde_json::json!({"matchLabels": {}})));
        assert!(!is_everything(&serde_json::json!({"matchLabels": {"a": "b"}})));
    }
}
