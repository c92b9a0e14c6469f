//! The types that the check of an expression reckons with.

use std::fmt;

use super::value::escape;
use crate::schema::{Schema, Type};

/// The type of an expression.
#[derive(Debug, Clone)]
pub(super) enum Ty<'a> {
    /// Known only when the expression runs.
    Dyn,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Time,
    Duration,
    Ip,
    Cidr,
    Type,
    List(Box<Self>),
    /// A map from strings.
    Map(Box<Self>),
    /// An object with declared fields; the root of a resource has metadata besides.
    Object(&'a Schema, bool),
    /// The metadata of a resource, of which expressions see two fields.
    Metadata,
    Optional(Box<Self>),
}

impl<'a> Ty<'a> {
    /// The type of the values of a schema.
    pub(super) fn of(schema: &'a Schema, root: bool) -> Self {
        if schema.is_int_or_string() {
            return Self::Dyn;
        }
        match schema.kind {
            None => Self::Dyn,
            Some(Type::Boolean) => Self::Bool,
            Some(Type::Integer) => Self::Int,
            Some(Type::Number) => Self::Double,
            Some(Type::String) if schema.is_time() => Self::Time,
            Some(Type::String) => Self::String,
            Some(Type::Array) => Self::List(Box::new(
                schema.items.as_deref().map_or(Self::Dyn, |items| Self::of(items, false)),
            )),
            Some(Type::Object) => match schema.additional.as_deref() {
                Some(values) => Self::Map(Box::new(Self::of(values, false))),
                None if schema.properties.is_empty() && !root => Self::Dyn,
                None => Self::Object(schema, root),
            },
        }
    }

    /// The type of a selected field; `Err` when there is no such field.
    pub(super) fn field(&self, name: &str) -> Result<Self, String> {
        match self {
            Self::Dyn => Ok(Self::Dyn),
            Self::Map(values) => Ok((**values).clone()),
            Self::Optional(inner) => inner.field(name).map(|found| Self::Optional(Box::new(found))),
            Self::Metadata if matches!(name, "name" | "generateName") => Ok(Self::String),
            Self::Object(_, true) if matches!(name, "apiVersion" | "kind") => Ok(Self::String),
            Self::Object(_, true) if name == "metadata" => Ok(Self::Metadata),
            Self::Object(schema, _) => {
                let mut fields = schema.properties.iter();
                let found = fields.find(|(field, _)| escape(field).as_deref() == Some(name));
                found
                    .map(|(_, schema)| Self::of(schema, false))
                    .ok_or_else(|| format!("undefined field '{name}'"))
            }
            Self::Metadata => Err(format!("undefined field '{name}'")),
            other => Err(format!("type '{other}' does not support field selection")),
        }
    }

    /// What an index or an iteration yields.
    pub(super) fn element(&self) -> Self {
        match self {
            Self::List(inner) | Self::Map(inner) | Self::Optional(inner) => (**inner).clone(),
            _ => Self::Dyn,
        }
    }

    /// What the variable of a comprehension stands for: elements of a list, keys of a map.
    pub(super) fn iterated(&self) -> Option<Self> {
        match self {
            Self::List(inner) => Some((**inner).clone()),
            Self::Map(_) => Some(Self::String),
            Self::Dyn => Some(Self::Dyn),
            _ => None,
        }
    }

    pub(super) fn is_number(&self) -> bool {
        matches!(self, Self::Int | Self::Uint | Self::Double)
    }

    /// Whether a value of the one type may be where the other is wanted.
    pub(super) fn fits(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Dyn, _) | (_, Self::Dyn) => true,
            (Self::List(a), Self::List(b))
            | (Self::Map(a), Self::Map(b))
            | (Self::Optional(a), Self::Optional(b)) => a.fits(b),
            (Self::Object(a, _), Self::Object(b, _)) => std::ptr::eq(*a, *b),
            // A map literal may stand for an object.
            (Self::Null, Self::Object(..) | Self::Metadata)
            | (Self::Object(..) | Self::Metadata, Self::Null) => true,
            (a, b) => std::mem::discriminant(a) == std::mem::discriminant(b),
        }
    }
}

impl fmt::Display for Ty<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dyn => "dyn",
            Self::Null => "null",
            Self::Bool => "bool",
            Self::Int => "int",
            Self::Uint => "uint",
            Self::Double => "double",
            Self::String => "string",
            Self::Bytes => "bytes",
            Self::Time => "timestamp",
            Self::Duration => "duration",
            Self::Ip => "net.IP",
            Self::Cidr => "net.CIDR",
            Self::Type => "type",
            Self::List(inner) => return write!(f, "list({inner})"),
            Self::Map(inner) => return write!(f, "map(string, {inner})"),
            Self::Optional(inner) => return write!(f, "optional_type({inner})"),
            Self::Object(..) | Self::Metadata => "object",
        })
    }
}
