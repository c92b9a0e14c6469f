//! The loop: any change of an Egress or of one of its objects brings that Egress back.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fmt::Debug,
    time::{Duration, Instant},
};

use anyhow::Result;
use coil_api::{
    annotation::EgressRef,
    crd::{Egress, EgressStatus},
    names::{
        APP_NAME, COMPONENT_EGRESS, EGRESS_SERVICE_ACCOUNT, LABEL_APP_COMPONENT, LABEL_APP_INSTANCE,
        LABEL_APP_NAME,
    },
};
use futures::{Stream, StreamExt, stream::select_all};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::Deployment,
        core::v1::{Service, ServiceAccount},
        policy::v1::PodDisruptionBudget,
        rbac::v1::ClusterRoleBinding,
    },
    jiff::Timestamp,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::PostParams,
    core::{DeserializeGuard, PartialObjectMeta},
    runtime::{WatchStreamExt, watcher},
};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use super::{
    Settings, binding,
    ensure::{EnsureError, Ensured, ensure, remove},
    notice::Teller,
    objects,
    status::{self, Trouble},
    unready,
};
use crate::{program::Ready, queue::Queue};

/// How many Egresses are worked on at once.
const WORKERS: usize = 8;
/// How often gateways that are not ready are asked why: nothing tells when their reason changes.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// The same for those that are ready, and have said that they do without something.
const ASK_READY_AGAIN: Duration = Duration::from_secs(180);

/// What became of the work on a key.
#[derive(Debug, Clone, Copy)]
struct Outcome {
    ok: bool,
    /// When it is looked at again though nothing changes.
    again: Option<Duration>,
}

impl From<bool> for Outcome {
    fn from(ok: bool) -> Self {
        Self { ok, again: None }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Key {
    Egress(EgressRef),
    Binding,
}

enum Event {
    Egress(Box<watcher::Event<DeserializeGuard<Egress>>>),
    /// An object with an Egress's labels changed.
    Owned(EgressRef),
    /// The ServiceAccount of a namespace's gateways changed.
    Account(String),
    Binding,
}

/// Runs until dropped; to be called by the leader alone.
///
/// # Errors
/// Only when a worker panicked.
pub async fn run(client: Client, settings: Settings, ready: Ready) -> Result<()> {
    ready.send_replace(Some("Egresses are not all read yet".to_owned()));
    info!(image = settings.image, port = settings.port, backend = %settings.backend, "gateways");
    let mut known = Known::default();
    let mut queue = Queue::<Key>::default();
    let mut running = JoinSet::<(Key, Outcome)>::new();
    let egresses = Api::<DeserializeGuard<Egress>>::all(client.clone());
    let bindings = Api::<PartialObjectMeta<ClusterRoleBinding>>::all(client.clone());
    let accounts = Api::<PartialObjectMeta<ServiceAccount>>::all(client.clone());
    let of_gateways = watcher::Config::default().fields(&format!("metadata.name={EGRESS_SERVICE_ACCOUNT}"));
    let of_binding = watcher::Config::default().fields(&format!("metadata.name={}", binding::NAME));
    let mut events = select_all([
        watched(watcher(egresses, watcher::Config::default()), "egresses")
            .map(|e| Event::Egress(Box::new(e)))
            .boxed(),
        owned::<Deployment>(&client).boxed(),
        owned::<Service>(&client).boxed(),
        owned::<PodDisruptionBudget>(&client).boxed(),
        watched(watcher(bindings, of_binding), "clusterrolebindings").map(|_| Event::Binding).boxed(),
        watched(watcher(accounts, of_gateways), "serviceaccounts").filter_map(account).boxed(),
    ]);
    let teller = Teller::new(client.clone());
    loop {
        while known.synced && running.len() < WORKERS {
            let Some(key) = queue.next(Instant::now()) else { break };
            let (client, settings, teller) = (client.clone(), settings.clone(), teller.clone());
            let namespaces = known.namespaces();
            running.spawn(async move {
                let outcome = match &key {
                    Key::Egress(egress) => reconcile(&client, &settings, &teller, egress).await,
                    Key::Binding => report(binding::reconcile(&client, &namespaces).await).into(),
                };
                (key, outcome)
            });
        }
        let due = queue.due();
        tokio::select! {
            Some(event) = events.next() => {
                let was_synced = known.synced;
                known.observe(event, &mut queue, &teller);
                if known.synced && !was_synced {
                    info!("serving Egresses");
                    ready.send_replace(None);
                }
            }
            Some(ended) = running.join_next() => {
                let (key, Outcome { ok, again }) = ended?;
                let now = Instant::now();
                queue.done(key.clone(), ok, now);
                if let Some(again) = again {
                    queue.later(key, now + again);
                }
            }
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {}
        }
    }
}

/// Which Egresses there are.
#[derive(Debug, Default)]
struct Known {
    egresses: BTreeSet<EgressRef>,
    listed: HashSet<EgressRef>,
    synced: bool,
}

impl Known {
    fn namespaces(&self) -> BTreeSet<String> {
        self.egresses.iter().map(|e| e.namespace.clone()).collect()
    }

    fn observe(&mut self, event: Event, queue: &mut Queue<Key>, teller: &Teller) {
        match event {
            Event::Owned(egress) => queue.touch(Key::Egress(egress)),
            Event::Binding => queue.touch(Key::Binding),
            Event::Account(namespace) => {
                for egress in self.egresses.iter().filter(|e| e.namespace == namespace) {
                    queue.touch(Key::Egress(egress.clone()));
                }
            }
            Event::Egress(event) => self.egress(*event, queue, teller),
        }
    }

    fn egress(
        &mut self,
        event: watcher::Event<DeserializeGuard<Egress>>,
        queue: &mut Queue<Key>,
        teller: &Teller,
    ) {
        match event {
            watcher::Event::Init => self.listed.clear(),
            watcher::Event::InitDone => {
                self.egresses.retain(|e| self.listed.contains(e));
                self.synced = true;
                queue.touch(Key::Binding);
            }
            watcher::Event::Delete(egress) => {
                self.egresses.remove(&reference(egress.meta().namespace.clone(), egress.name_any()));
                queue.touch(Key::Binding);
            }
            watcher::Event::InitApply(egress) | watcher::Event::Apply(egress) => {
                let key = reference(egress.namespace(), egress.name_any());
                self.listed.insert(key.clone());
                if self.egresses.insert(key.clone()) {
                    queue.touch(Key::Binding);
                }
                match &egress.0 {
                    Ok(_) => queue.touch(Key::Egress(key)),
                    Err(e) => {
                        error!(egress = %key, error = %e, "malformed Egress is left alone");
                        let (teller, why) = (teller.clone(), e.to_string());
                        tokio::spawn(async move { teller.malformed(&egress, &why).await });
                    }
                }
            }
        }
    }
}

/// The namespace whose ServiceAccount has changed.
async fn account(event: watcher::Event<PartialObjectMeta<ServiceAccount>>) -> Option<Event> {
    match event {
        watcher::Event::Apply(a) | watcher::Event::Delete(a) => a.namespace().map(Event::Account),
        _ => None,
    }
}

fn reference(namespace: Option<String>, name: String) -> EgressRef {
    EgressRef { namespace: namespace.unwrap_or_default(), name }
}

/// The events of a watch; errors are logged, and the watch starts again by itself.
fn watched<K: Send + 'static>(
    stream: impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send + 'static,
    what: &'static str,
) -> impl Stream<Item = watcher::Event<K>> {
    stream.default_backoff().filter_map(move |event| {
        let event = event.inspect_err(|e| warn!(error = %e, "watching {what}; trying again")).ok();
        async move { event }
    })
}

/// Changes of objects with our labels, as the Egress that they belong to.
fn owned<K>(client: &Client) -> impl Stream<Item = Event> + use<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + 'static,
{
    let selector = format!("{LABEL_APP_NAME}={APP_NAME},{LABEL_APP_COMPONENT}={COMPONENT_EGRESS}");
    let api = Api::<PartialObjectMeta<K>>::all(client.clone());
    let events = watcher(api, watcher::Config::default().labels(&selector));
    watched(events, "objects of Egresses").filter_map(|event| async move {
        match event {
            watcher::Event::Apply(o) | watcher::Event::InitApply(o) | watcher::Event::Delete(o) => {
                let egress = o.labels().get(LABEL_APP_INSTANCE).cloned()?;
                Some(Event::Owned(reference(o.namespace(), egress)))
            }
            watcher::Event::Init | watcher::Event::InitDone => None,
        }
    })
}

fn report(result: Result<(), EnsureError>) -> bool {
    result.inspect_err(|e| warn!(error = %e, "trying again")).is_ok()
}

/// Makes everything of one Egress as wanted. Each object is tried, whatever became of the others.
async fn reconcile(client: &Client, settings: &Settings, teller: &Teller, key: &EgressRef) -> Outcome {
    let api = Api::<Egress>::namespaced(client.clone(), &key.namespace);
    let egress = match api.get_opt(&key.name).await {
        Ok(Some(egress)) if egress.metadata.deletion_timestamp.is_none() => egress,
        // Its objects go with it.
        Ok(_) => return true.into(),
        Err(e) => {
            warn!(egress = %key, error = %e, "cannot read the Egress; trying again");
            return false.into();
        }
    };
    let mut errors: BTreeMap<&str, EnsureError> = BTreeMap::new();
    if let Err(e) = service_account(client, &key.namespace).await {
        errors.insert("account", e);
    }
    let deployments = Api::namespaced(client.clone(), &key.namespace);
    let deployment = ensure(&deployments, objects::deployment(&egress, settings))
        .await
        .map_err(|e| errors.insert("deployment", e))
        .ok();
    let services = Api::namespaced(client.clone(), &key.namespace);
    if let Err(e) = ensure(&services, objects::service(&egress, settings)).await {
        errors.insert("service", e);
    }
    let budgets = Api::<PodDisruptionBudget>::namespaced(client.clone(), &key.namespace);
    let budget = match objects::disruption_budget(&egress) {
        Some(wanted) => ensure(&budgets, wanted).await.map(drop),
        None => remove(&budgets, &key.name, &egress.uid().unwrap_or_default()).await,
    };
    if let Err(e) = budget {
        errors.insert("budget", e);
    }
    let mut trouble = Vec::new();
    for error in errors.values() {
        warn!(egress = %key, error = %error, "not as wanted; trying again");
        trouble.push(Trouble { reason: error.reason(), message: error.to_string() });
    }
    let seen = deployment.as_ref().map(Ensured::object);
    trouble.extend(seen.into_iter().flat_map(status::trouble_of));
    let is_short = status::is_short(&egress, seen);
    let said = unready::reasons(client, key).await;
    let wanted = status::status(&egress, seen, &trouble, &said, Timestamp::now());
    let ok = errors.is_empty() & write_status(&api, teller, egress, wanted).await;
    Outcome { ok, again: ask_again(is_short, &said) }
}

/// When gateways are asked again: what they said becomes untrue without a word.
fn ask_again(is_short: bool, said: &[String]) -> Option<Duration> {
    let is_said = !said.is_empty();
    if is_short { Some(ASK_AGAIN) } else { is_said.then_some(ASK_READY_AGAIN) }
}

async fn service_account(client: &Client, namespace: &str) -> Result<(), EnsureError> {
    let api = Api::<ServiceAccount>::namespaced(client.clone(), namespace);
    let failed = |verb: &str, source| EnsureError::Api {
        doing: format!("{verb} ServiceAccount {namespace}/{EGRESS_SERVICE_ACCOUNT}"),
        source,
    };
    if api.get_metadata_opt(EGRESS_SERVICE_ACCOUNT).await.map_err(|e| failed("read", e))?.is_some() {
        return Ok(());
    }
    let mut account = ServiceAccount::default();
    account.metadata.name = Some(EGRESS_SERVICE_ACCOUNT.to_owned());
    match api.create(&PostParams::default(), &account).await {
        Ok(_) => Ok(()),
        // Another Egress of this namespace was faster.
        Err(kube::Error::Api(s)) if s.code == 409 => Ok(()),
        Err(e) => Err(failed("create", e)),
    }
}

async fn write_status(api: &Api<Egress>, teller: &Teller, mut egress: Egress, wanted: EgressStatus) -> bool {
    if egress.status.as_ref() == Some(&wanted) {
        return true;
    }
    let name = egress.name_any();
    let before = egress.clone();
    egress.status = Some(wanted.clone());
    match api.replace_status(&name, &PostParams::default(), &egress).await {
        Ok(_) => {
            teller.tell(&before, &wanted).await;
            true
        }
        Err(kube::Error::Api(s)) if s.code == 404 => true,
        Err(e) => {
            warn!(egress = %name, error = %e, "cannot write its status; trying again");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateways_that_said_something_are_asked_again() {
        let lacks = ["nat-1 on node2: no FOU".to_owned()];
        assert_eq!(ask_again(false, &[]), None);
        assert_eq!(ask_again(false, &lacks), Some(ASK_READY_AGAIN));
        assert_eq!([ask_again(true, &[]), ask_again(true, &lacks)], [Some(ASK_AGAIN); 2]);
    }
}
