//! The scheduler and the workload controllers of a lab, in one process; on a real API server also
//! what else of kube-controller-manager a cluster cannot do without: owners, the end of namespaces,
//! service accounts.
//!
//! ```text
//! any change ──▶ read everything ──▶ Deployments ──▶ ReplicaSets ──▶ scheduler ──▶ EndpointSlices
//! ```
//!
//! Level-triggered in the plainest way: a change of any watched object is only a kick; each pass
//! lists what it needs, so it can never act on an old picture. A lab has tens of
//! pods, not thousands.

mod deployment;
mod endpoints;
mod replicaset;
mod rollout;
mod scheduler;

pub(crate) use endpoints::SERVICE_LABEL;

use std::{fmt::Debug, path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, ReplicaSet},
        core::v1::{Node, Pod, Service},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api, Client, Resource,
    api::ListParams,
    core::PartialObjectMeta,
    runtime::{WatchStreamExt as _, watcher},
};
use serde::de::DeserializeOwned;
use tokio::{sync::Notify, time};

use crate::access::Access;

/// Changes that come together are looked at together.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// A pass that failed is repeated after this long.
const RETRY: Duration = Duration::from_millis(500);

/// The main function; it ends only by an error.
pub(crate) fn main(kubeconfig: &Path, collect: bool) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let access = Access::read(kubeconfig)?;
        let client = access.client().await?;
        if collect {
            tokio::spawn(coil_apitest::standin::run(client.clone(), access.ca.clone()));
        }
        run(&client).await
    })
}

async fn run(client: &Client) -> Result<()> {
    let kick = Arc::new(Notify::new());
    watch::<Pod>(client, &kick);
    watch::<Node>(client, &kick);
    watch::<Service>(client, &kick);
    watch::<Deployment>(client, &kick);
    watch::<ReplicaSet>(client, &kick);
    loop {
        kick.notified().await;
        time::sleep(DEBOUNCE).await;
        if let Err(error) = pass(client).await {
            // A conflict says that somebody else was first: the next pass sees what they did.
            tracing::warn!(error = format!("{error:#}"), "a pass failed and is repeated");
            time::sleep(RETRY).await;
            kick.notify_one();
        }
    }
}

/// Kicks at each change of a kind.
pub(crate) fn watch<K>(client: &Client, kick: &Arc<Notify>)
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    // Only the kick matters: the objects themselves stay where they are.
    let (api, kick) = (Api::<PartialObjectMeta<K>>::all(client.clone()), kick.clone());
    tokio::spawn(async move {
        let mut changes = watcher(api, watcher::Config::default()).default_backoff().boxed();
        loop {
            match changes.try_next().await {
                Ok(Some(_)) => kick.notify_one(),
                Ok(None) => return,
                Err(error) => tracing::warn!(kind = %K::kind(&()), %error, "watch"),
            }
        }
    });
}

async fn pass(client: &Client) -> Result<()> {
    let pods = list::<Pod>(client).await?;
    deployment::reconcile(client, &list(client).await?, &list(client).await?).await?;
    replicaset::reconcile(client, &list(client).await?, &pods).await?;
    scheduler::reconcile(client, &list(client).await?, &list(client).await?).await?;
    let slices = list::<EndpointSlice>(client).await?;
    endpoints::reconcile(client, &list(client).await?, &pods, &slices).await
}

/// All of a kind.
pub(crate) async fn list<K>(client: &Client) -> Result<Vec<K>>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let list = Api::<K>::all(client.clone()).list(&ListParams::default()).await;
    Ok(list.with_context(|| format!("cannot list {}", K::plural(&())))?.items)
}

/// Whether the object's controller has this UID.
fn is_controlled_by(object: &impl Resource, uid: Option<&str>) -> bool {
    let owners = object.meta().owner_references.iter().flatten();
    uid.is_some() && owners.into_iter().any(|o| o.controller == Some(true) && Some(&*o.uid) == uid)
}

/// The reference that makes `owner` the controller of an object.
fn controller_ref(owner: &impl Resource<DynamicType = ()>) -> Vec<OwnerReference> {
    owner.controller_owner_ref(&()).into_iter().collect()
}

/// Whether the pod's condition of this type is True.
fn pod_is(pod: &Pod, condition: &str) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|c| c.type_ == condition && c.status == "True")
}

/// Whether the pod has run to its end.
fn is_finished(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"))
}

/// Whether labels satisfy a map of wanted ones.
fn matches_labels(
    wanted: &std::collections::BTreeMap<String, String>,
    labels: &std::collections::BTreeMap<String, String>,
) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// An error of the API that only says that somebody else was faster.
fn is_race(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(e) if e.code == 404 || e.code == 409)
}
