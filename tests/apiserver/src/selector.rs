//! Label and field selectors.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::meta;
use crate::status::{ApiError, Result};

/// One clause of a selector.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Clause {
    In(String, BTreeSet<String>),
    NotIn(String, BTreeSet<String>),
    Exists(String),
    Absent(String),
}

/// What a list or watch asks for. The default matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Selector {
    labels: Vec<Clause>,
    /// Field path, value, and whether they must be equal.
    fields: Vec<(String, String, bool)>,
}

impl Selector {
    /// Parses the query parameters `labelSelector` and `fieldSelector`.
    pub(crate) fn parse(labels: Option<&str>, fields: Option<&str>) -> Result<Self> {
        let labels = split_outside_parentheses(labels.unwrap_or_default())
            .map(parse_label)
            .collect::<Result<Vec<Clause>>>()?;
        let fields = fields
            .unwrap_or_default()
            .split(',')
            .filter(|clause| !clause.is_empty())
            .map(parse_field)
            .collect::<Result<Vec<_>>>()?;
        Ok(Self { labels, fields })
    }

    pub(crate) fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub(crate) fn matches(&self, object: &Value) -> bool {
        self.labels.iter().all(|clause| clause.matches(object))
            && self.fields.iter().all(|(path, value, equal)| (field_value(object, path) == *value) == *equal)
    }
}

impl Clause {
    fn matches(&self, object: &Value) -> bool {
        let label = |key: &str| meta::at(object, &["metadata", "labels", key]).and_then(Value::as_str);
        match self {
            Self::In(key, values) => label(key).is_some_and(|value| values.contains(value)),
            Self::NotIn(key, values) => label(key).is_none_or(|value| !values.contains(value)),
            Self::Exists(key) => label(key).is_some(),
            Self::Absent(key) => label(key).is_none(),
        }
    }
}

/// A `LabelSelector` object as a query parameter would say it.
pub(crate) fn label_selector_text(selector: &Value) -> String {
    let labels = selector.get("matchLabels").unwrap_or(selector).as_object();
    let mut clauses: Vec<String> = labels
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some(format!("{key}={}", value.as_str()?)))
        .collect();
    for rule in selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
        let key = rule["key"].as_str().unwrap_or_default();
        let values: Vec<&str> =
            rule["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        clauses.push(match rule["operator"].as_str().unwrap_or_default() {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    clauses.join(",")
}

/// Whether a `LabelSelector` object matches; null matches nothing, empty everything.
pub(crate) fn label_selector_matches(selector: &Value, object: &Value) -> bool {
    let parsed = Selector::parse(Some(&label_selector_text(selector)), None);
    !selector.is_null() && parsed.is_ok_and(|parsed| parsed.matches(object))
}

/// A field as selectors see it: absent and empty are the same.
fn field_value(object: &Value, path: &str) -> String {
    match path.split('.').try_fold(object, |value, key| value.get(key)) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

fn split_outside_parentheses(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0;
    text.split(move |c| {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0
    })
    .map(str::trim)
    .filter(|clause| !clause.is_empty())
}

fn parse_label(clause: &str) -> Result<Clause> {
    let bad =
        || ApiError::bad_request(format!("unable to parse requirement: {clause:?} is not a label clause"));
    let key = |key: &str| {
        let key = key.trim();
        if key.is_empty() || key.contains([' ', '(', ')', '=', '!']) {
            Err(bad())
        } else {
            Ok(key.to_owned())
        }
    };
    let one = |value: &str| BTreeSet::from([value.trim().to_owned()]);
    if let Some((name, value)) = clause.split_once("!=") {
        return Ok(Clause::NotIn(key(name)?, one(value)));
    }
    if let Some((name, value)) = clause.split_once("==").or_else(|| clause.split_once('=')) {
        return Ok(Clause::In(key(name)?, one(value)));
    }
    if let Some((head, list)) = clause.split_once('(') {
        let values: BTreeSet<String> = list
            .trim_end()
            .strip_suffix(')')
            .ok_or_else(bad)?
            .split(',')
            .map(|v| v.trim().to_owned())
            .collect();
        let mut words = head.split_whitespace();
        return match (words.next(), words.next(), words.next()) {
            (Some(name), Some("in"), None) => Ok(Clause::In(key(name)?, values)),
            (Some(name), Some("notin"), None) => Ok(Clause::NotIn(key(name)?, values)),
            _ => Err(bad()),
        };
    }
    match clause.strip_prefix('!') {
        Some(name) => Ok(Clause::Absent(key(name)?)),
        None => Ok(Clause::Exists(key(clause)?)),
    }
}

fn parse_field(clause: &str) -> Result<(String, String, bool)> {
    let (path, value, equal) = if let Some((path, value)) = clause.split_once("!=") {
        (path, value, false)
    } else if let Some((path, value)) = clause.split_once("==").or_else(|| clause.split_once('=')) {
        (path, value, true)
    } else {
        return Err(ApiError::bad_request(format!("invalid field selector: {clause:?}")));
    };
    Ok((path.trim().to_owned(), value.trim().to_owned(), equal))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn labels(selector: &str) -> bool {
        let object = json!({"metadata": {"labels": {"app": "web", "example.com/tier": "front"}}});
        Selector::parse(Some(selector), None).unwrap().matches(&object)
    }

    #[test]
    fn label_clauses() {
        for yes in
            ["app=web", "app==web", "app in (db, web),example.com/tier", "!x", "x!=1", "app notin (a,b)", ""]
        {
            assert!(labels(yes), "{yes}");
        }
        for no in ["app=db", "!app", "x", "app notin (web)", "app=web,x=1"] {
            assert!(!labels(no), "{no}");
        }
        assert!(Selector::parse(Some("app near (x)"), None).is_err());
    }

    #[test]
    fn label_selectors_of_objects() {
        let pod = json!({"metadata": {"labels": {"app": "web"}}});
        let selector = json!({"matchLabels": {"app": "web"},
            "matchExpressions": [{"key": "x", "operator": "DoesNotExist"}]});
        assert_eq!(label_selector_text(&selector), "app=web,!x");
        assert!(label_selector_matches(&selector, &pod));
        assert!(label_selector_matches(&json!({}), &pod));
        assert!(!label_selector_matches(&Value::Null, &pod));
    }

    #[test]
    fn field_clauses() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"hostNetwork": true}});
        let is = |text: &str| Selector::parse(None, Some(text)).unwrap().matches(&pod);
        assert!(is("metadata.name=p,spec.nodeName="));
        assert!(is("spec.hostNetwork=true"));
        assert!(is("spec.nodeName!=n1"));
        assert!(!is("spec.nodeName=n1"));
        assert!(Selector::parse(None, Some("x")).is_err());
    }
}
