//! The table of messages, read from `messages.txt` at first use.

use std::collections::HashMap;
use std::sync::LazyLock;

/// How a field occurs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Plain,
    /// A pointer in the Go types: sent only when set, and zero is a value.
    Optional,
    List,
    Map,
    /// An embedded struct: its fields are its parent's.
    Inline,
}

/// What a field holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    String,
    Bytes,
    Integer,
    Bool,
    Time { micros: bool },
    Quantity,
    IntOrString,
    Json,
    Message(String),
}

/// A field of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) number: u32,
    pub(super) name: String,
    pub(super) shape: Shape,
    pub(super) kind: Kind,
}

static MESSAGES: LazyLock<HashMap<&'static str, Vec<Field>>> =
    LazyLock::new(|| include_str!("messages.txt").lines().filter_map(parse_message).collect());

/// The fields of a message such as `core.Pod`.
pub(super) fn message(name: &str) -> Option<&'static [Field]> {
    MESSAGES.get(name).map(Vec::as_slice)
}

fn parse_message(line: &'static str) -> Option<(&'static str, Vec<Field>)> {
    let (name, fields) = line.split_once(':').filter(|_| !line.starts_with('#'))?;
    Some((name, fields.split_whitespace().filter_map(parse_field).collect()))
}

fn parse_field(text: &str) -> Option<Field> {
    let (number, rest) = text.split_once('=')?;
    let (name, kind) = rest.split_once(':')?;
    let (shape, kind) = match kind.split_at_checked(1)? {
        ("*", kind) => (Shape::Optional, kind),
        ("[", kind) => (Shape::List, kind),
        ("{", kind) => (Shape::Map, kind),
        ("^", kind) => (Shape::Inline, kind),
        _ => (Shape::Plain, kind),
    };
    let kind = match kind {
        "s" => Kind::String,
        "b" => Kind::Bytes,
        "i" => Kind::Integer,
        "B" => Kind::Bool,
        "T" => Kind::Time { micros: false },
        "U" => Kind::Time { micros: true },
        "Q" => Kind::Quantity,
        "I" => Kind::IntOrString,
        "F" => Kind::Json,
        message => Kind::Message(message.to_owned()),
    };
    Some(Field { number: number.parse().ok()?, name: name.to_owned(), shape, kind })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_parses_and_every_reference_resolves() {
        let lines = include_str!("messages.txt").lines().filter(|line| !line.starts_with('#'));
        for line in lines {
            let (name, fields) = parse_message(line).unwrap();
            let written = line.split_once(':').unwrap().1.split_whitespace().count();
            assert_eq!(fields.len(), written, "{name}");
            for field in fields {
                if let Kind::Message(target) = &field.kind {
                    assert!(message(target).is_some(), "{name}.{}: {target}", field.name);
                }
            }
        }
    }
}
