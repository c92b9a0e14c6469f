//! Warnings on Egresses: Events, where `kubectl describe` shows them.

use coil_api::{annotation::EgressRef, crd::Egress};
use kube::{
    Api, Client, Resource as _,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tracing::warn;

use super::{Node, lock, resync::REPORTER};
use crate::egress::plan;

/// Reason and action of a warning.
pub(super) type Warning = (&'static str, &'static str);

pub(super) const PORTS_RUN_OUT: Warning = ("PortsRunOut", "Translate");
const NOT_UNDERSTOOD: Warning = ("NotUnderstood", "Read");

impl Node {
    /// Tells of Egresses that are not understood, when others than before.
    pub(super) fn tell_of_unknown(&self) {
        let unknown = self.feed.read(|index| {
            plan::unknown_egresses(index, lock(&self.pods).values().map(|entry| &entry.attached))
        });
        let before = std::mem::replace(&mut *lock(&self.shut_in), unknown.clone());
        for (egress, pods) in unknown.into_iter().filter(|(egress, pods)| before.get(egress) != Some(pods)) {
            let note = format!(
                "coild on {} cannot understand the Egress: its clients there reach nothing outside through it until it is put \
                 right: {}",
                self.settings.name,
                pods.join(", ")
            );
            warn!(%egress, "{note}");
            tokio::spawn(publish(self.client.clone(), egress, NOT_UNDERSTOOD, note));
        }
    }
}

/// Writes an Event on an Egress, also on one that is not understood.
pub(super) async fn publish(client: Client, egress: EgressRef, (reason, action): Warning, note: String) {
    let api: Api<Egress> = Api::namespaced(client.clone(), &egress.namespace);
    let published = async {
        // With its UID: `kubectl describe` looks for that.
        let mut object = api.get_metadata(&egress.name).await?.object_ref(&());
        object.api_version = Some(Egress::api_version(&()).into_owned());
        object.kind = Some(Egress::kind(&()).into_owned());
        let event = Event {
            type_: EventType::Warning,
            reason: reason.to_owned(),
            note: Some(note),
            action: action.to_owned(),
            secondary: None,
        };
        Recorder::new(client, Reporter::from(REPORTER)).publish(&event, &object).await
    };
    if let Err(e) = published.await {
        warn!(error = %e, %egress, reason, "cannot write an Event about an Egress");
    }
}
