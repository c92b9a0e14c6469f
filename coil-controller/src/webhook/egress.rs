//! Egress.

use coil_api::{
    crd::EgressSpec,
    validate::{Findings, egress_defaults, egress_on_create, egress_on_update},
};
use serde_json::Value;

use super::{
    names::{EGRESS, Webhook},
    review::{Operation, Question, Refusal, spec},
    routes::Judge,
};

/// Judges Egresses, each by itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Egresses;

impl Judge for Egresses {
    fn webhook(&self) -> Webhook {
        EGRESS
    }

    fn defaults(&self, object: &Value) -> Vec<Value> {
        egress_defaults(object)
    }

    async fn judge(&self, question: &Question) -> Result<Findings, Refusal> {
        let updated = *question.operation() == Operation::Update;
        if updated && question.object["spec"] == question.old["spec"] {
            return Ok(Findings::default());
        }
        let spec: EgressSpec = serde_json::from_value(spec(&question.object, "destinations"))
            .map_err(|e| Refusal::Unreadable(format!("spec cannot be read as that of an Egress: {e}")))?;
        Ok(if updated { egress_on_update(&spec) } else { egress_on_create(question.name(), &spec) })
    }
}
