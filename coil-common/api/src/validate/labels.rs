//! Keys and values of labels, keys of annotations, and names, as Kubernetes has them.

/// Longest name part of a key, longest label value, longest DNS label.
const MAX_LABEL: usize = 63;
/// Longest prefix of a key.
const MAX_SUBDOMAIN: usize = 253;

/// What is wrong with the key of a label or an annotation.
pub(super) fn key_error(key: &str) -> Option<String> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    if prefix.is_some_and(|p| p.len() > MAX_SUBDOMAIN || !p.split('.').all(is_dns_1123_label)) {
        return Some(format!(
            "the part of the key {key:?} before the slash must be a DNS name of lower case letters, digits, '-' and '.'"
        ));
    }
    if name.is_empty() || !is_label_text(name) {
        return Some(format!(
            "the key {key:?} must be a name of at most {MAX_LABEL} letters, digits, '-', '_' and '.' that begins and ends with a letter or digit, with an optional DNS name and a slash before it"
        ));
    }
    None
}

/// What is wrong with the value of a label.
pub(super) fn value_error(value: &str) -> Option<String> {
    (!value.is_empty() && !is_label_text(value)).then(|| {
        format!(
            "a label value must be empty or at most {MAX_LABEL} letters, digits, '-', '_' and '.' that begin and end with a letter or digit"
        )
    })
}

/// Whether a Service can have this name (RFC 1035).
pub(super) fn is_service_name(name: &str) -> bool {
    is_dns_1123_label(name) && name.starts_with(|c: char| c.is_ascii_lowercase())
}

fn is_label_text(text: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= MAX_LABEL
        && edge(text.chars().next())
        && edge(text.chars().next_back())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

fn is_dns_1123_label(text: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    text.len() <= MAX_LABEL
        && edge(text.chars().next())
        && edge(text.chars().next_back())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        for good in ["a", "A_b.c-d", "example.com/Name", "a/b", "9/9"] {
            assert_eq!(key_error(good), None, "{good}");
        }
        let long = "x".repeat(64);
        for bad in ["", "bad bad", "-a", "a-", "/a", "a/", "Upper.com/a", "a/b/c", "ä", &long, "a..b/c"] {
            assert!(key_error(bad).is_some(), "{bad}");
        }
        assert_eq!(key_error(&format!("{}/a", ["x"; 126].join("."))), None);
        assert!(key_error(&format!("{}/a", ["x"; 128].join("."))).is_some());
    }

    #[test]
    fn values_and_names() {
        for good in ["", "good", "A.b_c-9"] {
            assert_eq!(value_error(good), None, "{good}");
        }
        for bad in ["bad value", "-a", "a/b", &"x".repeat(64)] {
            assert!(value_error(bad).is_some(), "{bad}");
        }
        assert!(is_service_name("internet") && is_service_name("a-9"));
        for bad in ["", "9a", "a.b", "A", "a-", &"x".repeat(64)] {
            assert!(!is_service_name(bad), "{bad}");
        }
    }
}
