//! What people should hear of an Egress, told by Kubernetes Events when its status changes.

use coil_api::crd::{Egress, EgressStatus};
use coil_program::event::note;
use k8s_openapi::{api::core::v1::ObjectReference, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{
    Client, Resource,
    core::DeserializeGuard,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tracing::warn;

use super::status::{CONDITION_AVAILABLE, CONDITION_DEGRADED};

/// The name that Events are reported by.
const REPORTER: &str = "coil-egress-controller";
/// Reason of the Event about an Egress that cannot be read.
const MALFORMED: &str = "Malformed";

/// Writes Events. Clones share what was told, so that the API server counts what is told again.
#[derive(Clone)]
pub struct Teller {
    recorder: Recorder,
}

impl Teller {
    /// Tells nothing yet.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { recorder: Recorder::new(client, Reporter::from(REPORTER)) }
    }

    /// Tells what became of an Egress. An Event that cannot be written is only logged: the status says the same.
    pub async fn tell(&self, egress: &Egress, new: &EgressStatus) {
        let object = egress.object_ref(&());
        for event in news(egress.status.as_ref(), new) {
            self.publish(&event, &object).await;
        }
    }

    /// Tells that an Egress cannot be read, and so is left as it is.
    pub async fn malformed(&self, egress: &DeserializeGuard<Egress>, why: &str) {
        let note = format!("left as it is, it cannot be understood: {why}");
        let event = event(EventType::Warning, MALFORMED, "Validate", note);
        let meta = egress.meta();
        let object = ObjectReference {
            api_version: Some(Egress::api_version(&()).into_owned()),
            kind: Some(Egress::kind(&()).into_owned()),
            name: meta.name.clone(),
            namespace: meta.namespace.clone(),
            uid: meta.uid.clone(),
            ..ObjectReference::default()
        };
        self.publish(&event, &object).await;
    }

    async fn publish(&self, event: &Event, object: &ObjectReference) {
        if let Err(e) = self.recorder.publish(event, object).await {
            let name = object.name.as_deref().unwrap_or_default();
            warn!(egress = name, reason = event.reason, error = %e, "cannot write an Event");
        }
    }
}

/// What has changed from one status to the next and is worth an Event.
fn news(old: Option<&EgressStatus>, new: &EgressStatus) -> Vec<Event> {
    let before = |type_: &str| old.and_then(|status| condition(status, type_));
    let mut events = Vec::new();
    if let Some(now) = condition(new, CONDITION_AVAILABLE) {
        let was = before(CONDITION_AVAILABLE).is_some_and(|c| c.status == "True");
        match now.status.as_str() {
            "True" if !was => events.push(of(now, EventType::Normal)),
            // An Egress that has never had a gateway is only beginning.
            "False" if was => events.push(of(now, EventType::Warning)),
            _ => {}
        }
    }
    if let Some(now) = condition(new, CONDITION_DEGRADED) {
        let was = before(CONDITION_DEGRADED).filter(|c| c.status == "True");
        match now.status.as_str() {
            "True" if was.is_none_or(|w| (&w.reason, &w.message) != (&now.reason, &now.message)) => {
                events.push(of(now, EventType::Warning));
            }
            "False" if was.is_some() => events.push(of(now, EventType::Normal)),
            _ => {}
        }
    }
    events
}

fn condition<'a>(status: &'a EgressStatus, type_: &str) -> Option<&'a Condition> {
    status.conditions.iter().flatten().find(|c| c.type_ == type_)
}

fn of(condition: &Condition, type_: EventType) -> Event {
    event(type_, &condition.reason, "Reconcile", condition.message.clone())
}

fn event(type_: EventType, reason: &str, action: &str, text: String) -> Event {
    let note = Some(note(text));
    Event { type_, reason: reason.to_owned(), note, action: action.to_owned(), secondary: None }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

    use super::*;

    fn status(available: bool, degraded: Option<&str>) -> EgressStatus {
        let condition = |type_: &str, on: bool, reason: &str, message: &str| Condition {
            type_: type_.into(),
            status: if on { "True" } else { "False" }.into(),
            reason: reason.into(),
            message: message.into(),
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
            observed_generation: None,
        };
        let conditions = vec![
            condition(
                "Available",
                available,
                if available { "GatewaysAvailable" } else { "NoGateway" },
                "n of m",
            ),
            condition(
                "Degraded",
                degraded.is_some(),
                if degraded.is_some() { "NameTaken" } else { "AsWanted" },
                degraded.unwrap_or("fine"),
            ),
        ];
        EgressStatus { conditions: Some(conditions), ..EgressStatus::default() }
    }

    fn reasons(old: Option<&EgressStatus>, new: &EgressStatus) -> Vec<(bool, String)> {
        news(old, new).into_iter().map(|e| (matches!(e.type_, EventType::Warning), e.reason)).collect()
    }

    #[test]
    fn only_changes_are_told() {
        let began = status(false, None);
        assert!(reasons(None, &began).is_empty(), "no gateway yet is no news");
        let up = status(true, None);
        assert_eq!(reasons(Some(&began), &up), [(false, "GatewaysAvailable".into())]);
        assert!(reasons(Some(&up), &up).is_empty());
        let down = status(false, Some("taken"));
        assert_eq!(reasons(Some(&up), &down), [(true, "NoGateway".into()), (true, "NameTaken".into())]);
        assert!(reasons(Some(&down), &down).is_empty());
        let other = status(false, Some("taken by another"));
        assert_eq!(reasons(Some(&down), &other), [(true, "NameTaken".into())]);
        assert_eq!(reasons(Some(&other), &began), [(false, "AsWanted".into())]);
    }
}
