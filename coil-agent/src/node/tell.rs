//! Warnings on Egresses: Events, where `kubectl describe` shows them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use coil_api::{annotation::EgressRef, crd::Egress};
use coil_program::event::note;
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

/// How many clients a warning names.
const NAMED: usize = 5;

impl Node {
    /// Tells of Egresses that are not understood, of each once until it was understood in between.
    pub(super) fn tell_of_unknown(self: &Arc<Self>) {
        let (unknown, with_clients) = self.feed.read(|index| {
            let pods = lock(&self.pods);
            let attached = pods.values().map(|entry| &entry.attached);
            (plan::not_understood(index), plan::unknown_egresses(index, attached))
        });
        for (egress, pods) in news(&mut lock(&self.shut_in), &unknown, with_clients) {
            let note = format!(
                "coild on {} cannot understand the Egress: until it is put right, its clients there reach nothing outside \
                 through it, except by tunnels of their own that they have: {}",
                self.settings.name,
                some(&pods)
            );
            warn!(%egress, "{note}");
            let node = self.clone();
            tokio::spawn(async move {
                if !publish(node.client.clone(), egress.clone(), NOT_UNDERSTOOD, note).await {
                    // The next time.
                    lock(&node.shut_in).remove(&egress);
                }
            });
        }
    }
}

/// What was not told of; `told` follows.
fn news(
    told: &mut BTreeSet<EgressRef>,
    unknown: &BTreeSet<EgressRef>,
    with_clients: BTreeMap<EgressRef, Vec<String>>,
) -> Vec<(EgressRef, Vec<String>)> {
    told.retain(|egress| unknown.contains(egress));
    with_clients.into_iter().filter(|(egress, _)| told.insert(egress.clone())).collect()
}

/// How many there are, and names of some.
fn some(pods: &[String]) -> String {
    let names = pods.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = if pods.len() > NAMED { ", …" } else { "" };
    format!("{} ({names}{more})", pods.len())
}

/// Writes an Event on an Egress, also on one that is not understood. False when it could not.
pub(super) async fn publish(
    client: Client,
    egress: EgressRef,
    (reason, action): Warning,
    text: String,
) -> bool {
    let api: Api<Egress> = Api::namespaced(client.clone(), &egress.namespace);
    let published = async {
        // With its UID: `kubectl describe` looks for that.
        let mut object = api.get_metadata(&egress.name).await?.object_ref(&());
        object.api_version = Some(Egress::api_version(&()).into_owned());
        object.kind = Some(Egress::kind(&()).into_owned());
        let event = Event {
            type_: EventType::Warning,
            reason: reason.to_owned(),
            note: Some(note(text)),
            action: action.to_owned(),
            secondary: None,
        };
        Recorder::new(client, Reporter::from(REPORTER)).publish(&event, &object).await
    };
    match published.await {
        Ok(()) => true,
        // There is nobody left to tell.
        Err(kube::Error::Api(status)) if status.is_not_found() => true,
        Err(e) => {
            warn!(error = %e, %egress, reason, "cannot write an Event about an Egress");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_egress_is_told_of_once_until_it_was_understood() {
        let nat = EgressRef { namespace: "internet".into(), name: "nat".into() };
        let all: BTreeSet<EgressRef> = [nat.clone()].into();
        let pods = |names: &[&str]| -> BTreeMap<EgressRef, Vec<String>> {
            [(nat.clone(), names.iter().map(|name| (*name).to_owned()).collect())].into()
        };
        let mut told = BTreeSet::new();
        assert_eq!(news(&mut told, &all, BTreeMap::new()), [], "it has no clients here");
        assert_eq!(news(&mut told, &all, pods(&["a/p", "a/q"])).len(), 1);
        assert_eq!(news(&mut told, &all, pods(&["a/q"])), [], "one that has ended is no news");
        assert_eq!(news(&mut told, &all, BTreeMap::new()), [], "nor is the last");
        assert_eq!(news(&mut told, &all, pods(&["a/r"])), []);
        assert_eq!(news(&mut told, &BTreeSet::new(), BTreeMap::new()), [], "it is understood");
        assert_eq!(news(&mut told, &all, pods(&["a/r"])).len(), 1);
    }

    #[test]
    fn of_many_clients_some_are_named() {
        let pods = |count: usize| (0..count).map(|n| format!("a/p{n}")).collect::<Vec<_>>();
        assert_eq!(some(&pods(2)), "2 (a/p0, a/p1)");
        assert_eq!(some(&pods(500)), "500 (a/p0, a/p1, a/p2, a/p3, a/p4, …)");
    }
}
