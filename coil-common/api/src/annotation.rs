//! Annotations: parsed here and nowhere else.

use std::collections::BTreeMap;

use crate::names::{ANN_EGRESS_PREFIX, ANN_POOL, DEFAULT_POOL};

/// The Egresses that a pod is a client of, in the order that decides between equal destinations.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EgressRef {
    /// Namespace of the Egress.
    pub namespace: String,
    /// Name of the Egress.
    pub name: String,
}

impl std::fmt::Display for EgressRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// An annotation that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnnotationError {
    /// The part of the key behind the prefix is no namespace.
    #[error(
        "annotation {key:?}: {namespace:?} is not a namespace name; write {ANN_EGRESS_PREFIX}NAMESPACE: EGRESS[,EGRESS…]"
    )]
    Namespace {
        /// The whole key.
        key: String,
        /// What stands where the namespace belongs.
        namespace: String,
    },
    /// An item of the value is no name.
    #[error(
        "annotation {key:?}: {name:?} is not the name of an Egress; write EGRESS[,EGRESS…], without empty items"
    )]
    Name {
        /// The whole key.
        key: String,
        /// The item.
        name: String,
    },
}

/// The pool that a namespace's annotations pick.
#[must_use]
pub fn pool_of_namespace(annotations: Option<&BTreeMap<String, String>>) -> &str {
    annotations.and_then(|a| a.get(ANN_POOL)).map_or(DEFAULT_POOL, String::as_str)
}

/// The Egresses that a pod's annotations name: by namespace in key order, then as written.
///
/// # Errors
/// When a key or an item is not a DNS label; the message names it.
pub fn egresses_of_pod(
    annotations: Option<&BTreeMap<String, String>>,
) -> Result<Vec<EgressRef>, AnnotationError> {
    let mut refs: Vec<EgressRef> = Vec::new();
    for (key, value) in annotations.into_iter().flatten() {
        let Some(namespace) = key.strip_prefix(ANN_EGRESS_PREFIX) else { continue };
        if !is_dns_label(namespace) {
            return Err(AnnotationError::Namespace { key: key.clone(), namespace: namespace.to_owned() });
        }
        for name in value.split(',').map(str::trim) {
            if !is_dns_label(name) {
                return Err(AnnotationError::Name { key: key.clone(), name: name.to_owned() });
            }
            let egress = EgressRef { namespace: namespace.to_owned(), name: name.to_owned() };
            if !refs.contains(&egress) {
                refs.push(egress);
            }
        }
    }
    Ok(refs)
}

/// RFC 1123 label: what Kubernetes takes as the name of a namespace or a Service.
#[must_use]
pub fn is_dns_label(s: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    !s.is_empty()
        && s.len() <= 63
        && s.bytes().all(|b| alnum(b) || b == b'-')
        && s.bytes().next().is_some_and(alnum)
        && s.bytes().last().is_some_and(alnum)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(items: &[(&str, &str)]) -> BTreeMap<String, String> {
        items.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn pool_defaults() {
        assert_eq!(pool_of_namespace(None), "default");
        assert_eq!(pool_of_namespace(Some(&map(&[("coil.cybozu.com/pool", "internet")]))), "internet");
    }

    #[test]
    fn egresses_in_order() {
        let a = map(&[
            ("egress.coil.cybozu.com/z", "one"),
            ("egress.coil.cybozu.com/internet", "nat, two,nat"),
            ("unrelated", "x"),
        ]);
        let names: Vec<String> = egresses_of_pod(Some(&a)).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(names, ["internet/nat", "internet/two", "z/one"]);
    }

    #[test]
    fn bad_annotations_name_the_key() {
        for (key, value) in [
            ("egress.coil.cybozu.com/internet", "nat,"),
            ("egress.coil.cybozu.com/internet", ""),
            ("egress.coil.cybozu.com/internet", "Nat"),
            ("egress.coil.cybozu.com/", "nat"),
            ("egress.coil.cybozu.com/a.b", "nat"),
        ] {
            let error = egresses_of_pod(Some(&map(&[(key, value)]))).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
    }
}
