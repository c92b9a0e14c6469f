//! Roles and bindings as one list of grants. Pure.

use serde_json::Value;

use super::request::Attributes;
use crate::meta;
use crate::selector::label_selector_matches;

/// All roles and bindings.
#[derive(Debug, Default)]
pub struct Policy {
    grants: Vec<Grant>,
}

/// A rule, to whom it is given, and where.
#[derive(Debug)]
struct Grant {
    subjects: Vec<Value>,
    /// None for everywhere.
    namespace: Option<String>,
    rules: Vec<Value>,
}

impl Policy {
    /// Reads roles and bindings; other objects are passed over.
    pub fn new<'a>(objects: impl IntoIterator<Item = &'a Value>) -> Self {
        let objects: Vec<&Value> = objects.into_iter().collect();
        let rules = |binding: &Value, namespace: &str| -> Vec<Value> {
            let (wanted, name) = (text(binding, &["roleRef", "kind"]), text(binding, &["roleRef", "name"]));
            let of = if wanted == "Role" { namespace } else { "" };
            let role = objects.iter().find(|role| {
                text(role, &["kind"]) == wanted && meta::name(role) == name && meta::namespace(role) == of
            });
            role.map(|role| rules_of(role, objects.iter().copied())).unwrap_or_default()
        };
        let grants = objects.iter().filter_map(|object| {
            let namespace = match text(object, &["kind"]) {
                "ClusterRoleBinding" => None,
                "RoleBinding" => Some(meta::namespace(object).to_owned()),
                _ => return None,
            };
            Some(Grant {
                subjects: object["subjects"].as_array().cloned().unwrap_or_default(),
                rules: rules(object, namespace.as_deref().unwrap_or_default()),
                namespace,
            })
        });
        Self { grants: grants.collect() }
    }

    /// Whether some rule allows it.
    #[must_use]
    pub fn allows(&self, asked: &Attributes) -> bool {
        self.grants.iter().any(|grant| {
            grant.namespace.as_ref().is_none_or(|namespace| *namespace == asked.namespace)
                && grant.subjects.iter().any(|subject| is(subject, asked))
                && grant.rules.iter().any(|rule| covers(rule, asked))
        })
    }
}

/// The rules of a role. Those of one that is made of others are theirs: kube-controller-manager writes them into it.
pub(super) fn rules_of<'a>(role: &Value, all: impl IntoIterator<Item = &'a Value>) -> Vec<Value> {
    let own = |role: &Value| role["rules"].as_array().cloned().unwrap_or_default();
    let Some(selectors) = meta::at(role, &["aggregationRule", "clusterRoleSelectors"]) else {
        return own(role);
    };
    let selectors: Vec<&Value> = selectors.as_array().into_iter().flatten().collect();
    let chosen = all.into_iter().filter(|other| {
        text(other, &["kind"]) == "ClusterRole"
            && meta::name(other) != meta::name(role)
            && selectors.iter().any(|selector| label_selector_matches(selector, other))
    });
    chosen.flat_map(own).collect()
}

/// Everything that rules give, as questions of the one who asked `like`.
pub(super) fn granted(rules: &[Value], like: &Attributes) -> impl Iterator<Item = Attributes> {
    rules.iter().flat_map(move |rule| {
        let names = match words(rule, "resourceNames").collect::<Vec<_>>() {
            names if names.is_empty() => vec![""],
            names => names,
        };
        let mut all = Vec::new();
        for group in words(rule, "apiGroups") {
            for resource in words(rule, "resources") {
                for verb in words(rule, "verbs") {
                    all.extend(names.iter().map(|name| Attributes {
                        verb: verb.to_owned(),
                        group: group.to_owned(),
                        resource: resource.to_owned(),
                        name: (*name).to_owned(),
                        ..like.clone()
                    }));
                }
            }
        }
        all
    })
}

fn is(subject: &Value, asked: &Attributes) -> bool {
    let name = text(subject, &["name"]);
    match text(subject, &["kind"]) {
        "User" => name == asked.user,
        "Group" => name == "system:authenticated" || asked.groups.iter().any(|group| group == name),
        "ServiceAccount" => {
            let namespace = text(subject, &["namespace"]);
            asked.user == format!("system:serviceaccount:{namespace}:{name}")
        }
        _ => false,
    }
}

fn covers(rule: &Value, asked: &Attributes) -> bool {
    let has = |field: &str, wanted: &str| words(rule, field).any(|word| word == "*" || word == wanted);
    let subresource = asked.resource.split_once('/').map(|(_, sub)| format!("*/{sub}"));
    let any_object = || words(rule, "resourceNames").next().is_none();
    has("verbs", &asked.verb)
        && has("apiGroups", &asked.group)
        && (has("resources", &asked.resource) || subresource.is_some_and(|any| has("resources", &any)))
        && (any_object() || words(rule, "resourceNames").any(|name| !name.is_empty() && name == asked.name))
}

fn words<'a>(rule: &'a Value, field: &str) -> impl Iterator<Item = &'a str> {
    rule[field].as_array().into_iter().flatten().filter_map(Value::as_str)
}

fn text<'a>(object: &'a Value, path: &[&str]) -> &'a str {
    meta::at(object, path).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn asked(user: &str, what: &str, namespace: &str, name: &str) -> Attributes {
        let mut words = what.split_whitespace();
        let mut word = || words.next().unwrap_or_default().trim_matches('-').to_owned();
        let (verb, group, resource) = (word(), word(), word());
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        Attributes { user: user.into(), groups: vec!["staff".into()], verb, group, resource, namespace, name }
    }

    #[test]
    fn a_role_of_others_has_their_rules() {
        let role = |name: &str, label: &str, resource: &str| {
            json!({"kind": "ClusterRole", "metadata": {"name": name, "labels": {"part": label}},
                "rules": [{"apiGroups": [""], "resources": [resource], "verbs": ["get"]}]})
        };
        let mut all = role("all", "mine", "secrets");
        all["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {"part": "mine"}}]});
        let binding = json!({"kind": "ClusterRoleBinding", "metadata": {"name": "b"},
            "roleRef": {"kind": "ClusterRole", "name": "all"}, "subjects": [{"kind": "User", "name": "u"}]});
        let objects = [all, role("a", "mine", "pods"), role("b", "yours", "nodes"), binding];
        let policy = Policy::new(&objects);
        for (resource, allowed) in [("pods", true), ("nodes", false), ("secrets", false)] {
            let asked = asked("u", &format!("get - {resource}"), "", "x");
            assert_eq!(policy.allows(&asked), allowed, "{resource}");
        }
    }

    #[test]
    fn rules_bindings_and_namespaces() {
        let rule = |group: &str, resource: &str, verb: &str| json!({"apiGroups": [group], "resources": [resource], "verbs": [verb]});
        let named =
            json!({"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"], "resourceNames": ["s"]});
        let subject = json!([{"kind": "ServiceAccount", "name": "a", "namespace": "n"}]);
        let bound = |kind: &str, namespace: Option<&str>, role: (&str, &str), subjects: &Value| {
            json!({"kind": kind, "metadata": {"name": "b", "namespace": namespace},
                "roleRef": {"kind": role.0, "name": role.1}, "subjects": subjects})
        };
        let objects = [
            json!({"kind": "ClusterRole", "metadata": {"name": "all"}, "rules": [rule("", "pods", "list"), named]}),
            json!({"kind": "Role", "metadata": {"name": "here", "namespace": "n"}, "rules": [rule("", "pods/status", "*")]}),
            bound("ClusterRoleBinding", None, ("ClusterRole", "all"), &subject),
            bound("RoleBinding", Some("n"), ("Role", "here"), &json!([{"kind": "Group", "name": "staff"}])),
            bound("RoleBinding", Some("m"), ("ClusterRole", "all"), &json!([{"kind": "User", "name": "u"}])),
        ];
        let policy = Policy::new(&objects);
        let account = "system:serviceaccount:n:a";
        for (user, what, namespace, name, allowed) in [
            (account, "list - pods", "", "", true),
            (account, "list - pods", "x", "", true),
            (account, "list apps pods", "x", "", false),
            (account, "watch - pods", "", "", false),
            (account, "get - secrets", "x", "s", true),
            (account, "get - secrets", "x", "t", false),
            (account, "list - secrets", "x", "", false),
            ("system:serviceaccount:m:a", "list - pods", "", "", false),
            ("u", "patch - pods/status", "n", "p", true),
            ("u", "patch - pods/status", "m", "p", false),
            ("u", "patch - pods", "n", "p", false),
            ("u", "list - pods", "m", "", true),
            ("u", "list - pods", "", "", false),
        ] {
            assert_eq!(
                policy.allows(&asked(user, what, namespace, name)),
                allowed,
                "{user}: {what} {namespace}/{name}"
            );
        }
    }
}
