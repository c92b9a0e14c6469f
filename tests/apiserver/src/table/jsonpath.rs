//! The JSONPath subset of printer columns: fields, quoted and escaped keys, indexes,
//! `[*]`, and filters such as `[?(@.type=="Ready")]`.

use serde_json::Value;

enum Step {
    Field(String),
    Index(i64),
    All,
    /// Field path below the element, and the value it must have.
    Filter(Vec<Step>, Value),
}

/// The values that a path leads to.
pub(super) fn find<'a>(object: &'a Value, path: &str) -> Vec<&'a Value> {
    let steps = parse(path.trim().trim_start_matches('{').trim_end_matches('}'));
    walk(object, &steps)
}

fn walk<'a>(object: &'a Value, steps: &[Step]) -> Vec<&'a Value> {
    let mut values = vec![object];
    for step in steps {
        values = values.into_iter().flat_map(|value| step.apply(value)).collect();
    }
    values.retain(|value| !value.is_null());
    values
}

impl Step {
    fn apply<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        let elements = || value.as_array().into_iter().flatten();
        match self {
            Self::Field(name) => value.get(name).into_iter().collect(),
            Self::Index(index) => {
                let count = value.as_array().map_or(0, Vec::len);
                let index = if *index < 0 { i64::try_from(count).unwrap_or(0) + index } else { *index };
                usize::try_from(index).ok().and_then(|index| value.get(index)).into_iter().collect()
            }
            Self::All => match value {
                Value::Object(map) => map.values().collect(),
                _ => elements().collect(),
            },
            Self::Filter(path, wanted) => {
                elements().filter(|element| walk(element, path).first() == Some(&wanted)).collect()
            }
        }
    }
}

fn parse(path: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut rest = path.trim_start_matches('$');
    while !rest.is_empty() {
        if let Some(inner) = rest.strip_prefix('[') {
            let (body, after) = bracket(inner);
            steps.push(subscript(body));
            rest = after;
        } else {
            let (name, after) = field(rest.strip_prefix('.').unwrap_or(rest));
            if !name.is_empty() {
                steps.push(if name == "*" { Step::All } else { Step::Field(name) });
            }
            rest = after;
        }
    }
    steps
}

/// A field name up to the next unescaped dot or bracket.
fn field(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => name.extend(chars.next().map(|(_, escaped)| escaped)),
            '.' | '[' => return (name, &text[at..]),
            c => name.push(c),
        }
    }
    (name, "")
}

/// What stands before the closing bracket, quotes respected, and what follows it.
fn bracket(text: &str) -> (&str, &str) {
    let mut quote = None;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), c) if c == open => quote = None,
            (None, ']') => return (&text[..at], &text[at + 1..]),
            _ => {}
        }
    }
    (text, "")
}

fn subscript(body: &str) -> Step {
    let body = body.trim();
    if body == "*" {
        return Step::All;
    }
    if let Some(filter) = body.strip_prefix("?(").and_then(|body| body.strip_suffix(')')) {
        let (path, value) = filter.split_once("==").unwrap_or((filter, "null"));
        let path = path.trim().trim_start_matches('@');
        let value = value.trim();
        let wanted = match unquote(value) {
            Some(text) => Value::from(text),
            None => serde_json::from_str(value).unwrap_or(Value::Null),
        };
        return Step::Filter(parse(path), wanted);
    }
    match (unquote(body), body.parse()) {
        (Some(name), _) => Step::Field(name.replace('\\', "")),
        (None, Ok(index)) => Step::Index(index),
        (None, Err(_)) => Step::Field(body.to_owned()),
    }
}

fn unquote(text: &str) -> Option<&str> {
    ['\'', '"'].into_iter().find_map(|quote| text.strip_prefix(quote)?.strip_suffix(quote))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn paths() {
        let object = json!({
            "metadata": {"labels": {"coil.cybozu.com/node": "n1"}},
            "spec": {"subnets": [{"ipv4": "a"}, {"ipv4": "b"}]},
            "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Failed", "status": "False"}]},
        });
        for (path, wanted) in [
            (r".metadata.labels['coil\.cybozu\.com/node']", json!("n1")),
            (r".metadata.labels.coil\.cybozu\.com/node", json!("n1")),
            (".spec.subnets[1].ipv4", json!("b")),
            (".spec.subnets[-1].ipv4", json!("b")),
            ("{.spec.subnets[*].ipv4}", json!("a")),
            (r#".status.conditions[?(@.type=="Failed")].status"#, json!("False")),
            (r".status.conditions[?(@.type=='Ready')].status", json!("True")),
        ] {
            assert_eq!(super::find(&object, path).first().copied(), Some(&wanted), "{path}");
        }
        assert!(super::find(&object, ".spec.none").is_empty());
    }
}
