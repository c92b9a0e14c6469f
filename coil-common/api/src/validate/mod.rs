//! What makes an AddressPool or an Egress wrong. Pure: the webhooks answer with it.
//!
//! What needs no other object is said a second time in CEL, in the definitions themselves
//! (`crd::rules`), so that a cluster is safe while no webhook answers.

mod egress;
mod labels;
mod network;
mod pool;

use std::fmt;

use serde_json::Value;

pub use egress::{defaults as egress_defaults, on_create as egress_on_create, on_update as egress_on_update};
pub use network::Overlap;
pub use pool::{
    OtherPool, defaults as pool_defaults, on_create as pool_on_create, on_update as pool_on_update,
};

/// What is said about an object that is about to be stored.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Findings {
    /// Why it is refused; empty when it is not.
    pub violations: Vec<Violation>,
    /// What its author should know, although it is stored.
    pub warnings: Vec<String>,
}

/// How a field is wrong, in Kubernetes' terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The value cannot be what the field means.
    Invalid,
    /// The value may not be given here, or not be changed.
    Forbidden,
    /// The value is none of a fixed list.
    NotSupported,
    /// A value is missing.
    Required,
}

impl Reason {
    /// The `reason` of a Status' cause.
    #[must_use]
    pub fn cause(self) -> &'static str {
        match self {
            Self::Invalid => "FieldValueInvalid",
            Self::Forbidden => "FieldValueForbidden",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Required => "FieldValueRequired",
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq)]
pub struct Violation {
    /// Path of the field: `spec.subnets[1].ipv4`.
    pub field: String,
    /// How it is wrong.
    pub reason: Reason,
    /// What stands there; not shown when it is missing or forbidden.
    pub value: Value,
    /// What is wrong and what to do.
    pub detail: String,
}

impl Violation {
    fn new(
        field: impl Into<String>,
        reason: Reason,
        value: impl Into<Value>,
        detail: impl Into<String>,
    ) -> Self {
        Self { field: field.into(), reason, value: value.into(), detail: detail.into() }
    }

    /// The text without the field, as a Status' cause has it.
    #[must_use]
    pub fn message(&self) -> String {
        let Self { value, detail, .. } = self;
        match self.reason {
            Reason::Invalid => format!("Invalid value: {value}: {detail}"),
            Reason::NotSupported => format!("Unsupported value: {value}: {detail}"),
            Reason::Forbidden => format!("Forbidden: {detail}"),
            Reason::Required => format!("Required value: {detail}"),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message())
    }
}
