//! Names: their syntax, generated suffixes and unique ids.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;

use crate::status::FieldError;

/// What a resource's names must look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NameRule {
    /// RFC 1123 subdomain, at most 253 characters: the common case.
    Subdomain,
    /// RFC 1123 label, at most 63 characters: namespaces.
    Label,
    /// RFC 1035 label, at most 63 characters: services.
    Rfc1035,
    /// Anything that fits into one path segment: RBAC objects.
    PathSegment,
}

const SUBDOMAIN: &str = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const LABEL: &str = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const RFC1035: &str = r"[a-z]([-a-z0-9]*[a-z0-9])?";
const QUALIFIED: &str = r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";

fn anchored(pattern: &str) -> Regex {
    Regex::new(&format!("^(?:{pattern})$")).expect("a constant pattern")
}

static IS_SUBDOMAIN: LazyLock<Regex> = LazyLock::new(|| anchored(SUBDOMAIN));
static IS_LABEL: LazyLock<Regex> = LazyLock::new(|| anchored(LABEL));
static IS_RFC1035: LazyLock<Regex> = LazyLock::new(|| anchored(RFC1035));
static IS_QUALIFIED: LazyLock<Regex> = LazyLock::new(|| anchored(QUALIFIED));

impl NameRule {
    /// Checks `metadata.name`.
    pub(crate) fn check(self, name: &str) -> Option<FieldError> {
        let bad = |detail: String| Some(FieldError::invalid("metadata.name", &Value::from(name), detail));
        match self {
            Self::Subdomain if name.len() > 253 => bad("must be no more than 253 bytes".into()),
            Self::Subdomain if !IS_SUBDOMAIN.is_match(name) => bad(format!(
                "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
                 and must start and end with an alphanumeric character (e.g. 'example.com', regex used for \
                 validation is '{SUBDOMAIN}')"
            )),
            Self::Label | Self::Rfc1035 if name.len() > 63 => bad("must be no more than 63 bytes".into()),
            Self::Label if !IS_LABEL.is_match(name) => bad(format!(
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
                 start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for \
                 validation is '{LABEL}')"
            )),
            Self::Rfc1035 if !IS_RFC1035.is_match(name) => bad(format!(
                "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an \
                 alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', \
                 regex used for validation is '{RFC1035}')"
            )),
            Self::PathSegment if name == "." || name == ".." || name.contains(['/', '%']) => {
                bad("may not be '.' or '..', nor contain '/' or '%'".into())
            }
            _ => None,
        }
    }
}

/// Checks label keys and values, and annotation keys.
pub(crate) fn check_labels(object: &Value, errors: &mut Vec<FieldError>) {
    for (key, value) in crate::meta::pairs(object, "labels") {
        check_key("metadata.labels", key, errors);
        if !value.is_empty() && (value.len() > 63 || !IS_QUALIFIED.is_match(value)) {
            errors.push(FieldError::invalid(
                "metadata.labels",
                &value.into(),
                format!(
                    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', \
                     and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or \
                     '12345', regex used for validation is '(({QUALIFIED}))?')"
                ),
            ));
        }
    }
    for (key, _) in crate::meta::pairs(object, "annotations") {
        check_key("metadata.annotations", &key.to_lowercase(), errors);
    }
}

fn check_key(field: &str, key: &str, errors: &mut Vec<FieldError>) {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    let prefix_ok = prefix.is_none_or(|prefix| prefix.len() <= 253 && IS_SUBDOMAIN.is_match(prefix));
    if !prefix_ok || name.len() > 63 || !IS_QUALIFIED.is_match(name) {
        errors.push(FieldError::invalid(
            field,
            &key.into(),
            format!(
                "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
                 alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
                 '{QUALIFIED}')"
            ),
        ));
    }
}

/// Kubernetes' alphabet for generated names: no vowels, no look-alikes.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// A name for `generateName`: the prefix and five random characters.
pub(crate) fn generate(prefix: &str) -> String {
    let cut: String = prefix.chars().take(58).collect();
    let suffix = random::<5>().map(|byte| char::from(ALPHABET[usize::from(byte) % ALPHABET.len()]));
    cut + &String::from_iter(suffix)
}

/// A random (version 4) UUID.
pub(crate) fn uuid() -> String {
    let mut bytes = random::<16>();
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let hex = hex(&bytes);
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// An opaque bearer token.
pub(crate) fn token() -> String {
    hex(&random::<20>())
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the kernel's random source is always there");
    bytes
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules() {
        assert_eq!(NameRule::Subdomain.check("a.b-c"), None);
        assert!(NameRule::Subdomain.check("A").is_some());
        assert!(NameRule::Subdomain.check("").is_some());
        assert!(NameRule::Rfc1035.check("1a").is_some());
        assert_eq!(NameRule::Label.check("1a"), None);
        assert_eq!(NameRule::PathSegment.check("system:node"), None);
    }

    #[test]
    fn uuid_shape() {
        let id = uuid();
        assert_eq!(id.len(), 36);
        assert_eq!(&id[14..15], "4");
        assert_ne!(id, uuid());
    }
}
