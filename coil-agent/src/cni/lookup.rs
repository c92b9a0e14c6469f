//! The pod of a request, and what its objects ask for.

use std::time::Duration;

use coil_api::{annotation::EgressRef, cni::code, crd::Egress, names::ANN_EGRESS_PREFIX};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::Api;

use super::{Failure, request::Request};
use crate::{
    node::Node,
    watch::{
        index::{ObjectKey, PodInfo},
        objects,
    },
};

/// How long a request waits for the first lists, after a start.
const SYNC_LIMIT: Duration = Duration::from_secs(10);

/// What a pod needs.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) pod: PodInfo,
    pub(super) pool: String,
}

/// The pod, and the pool of its namespace.
pub(super) async fn wanted(node: &Node, request: &Request) -> Result<Wanted, Failure> {
    let pod = pod_with_egresses(node, request).await?;
    let pool = pool(node, &pod.key.namespace).await?;
    Ok(Wanted { pod, pool })
}

/// The pod, when all that it asks for can be done.
pub(super) async fn pod_with_egresses(node: &Node, request: &Request) -> Result<PodInfo, Failure> {
    if tokio::time::timeout(SYNC_LIMIT, node.feed.synced()).await.is_err() {
        let msg = format!("coild still waits for the API server to list: {}", node.feed.missing().join(", "));
        return Err(Failure::new(code::TRY_AGAIN_LATER, msg));
    }
    let pod = pod(node, request).await?;
    let egresses = pod.egresses.clone().map_err(|e| Failure::new(code::INTERNAL, e.to_string()))?;
    for egress in &egresses {
        must_exist(node, egress).await?;
    }
    if !egresses.is_empty() && !node.serves_egress() {
        return Err(Failure::new(code::INTERNAL, no_egress(node, &egresses)));
    }
    Ok(pod)
}

fn no_egress(node: &Node, egresses: &[EgressRef]) -> String {
    let names: Vec<String> = egresses.iter().map(ToString::to_string).collect();
    format!(
        "it is a client of {}, and this node's datapath is the kernel alone ({}), and {}. Remove the annotation \
         {ANN_EGRESS_PREFIX}…, or run the pod on a node where coild uses --datapath ebpf",
        names.join(", "),
        node.plane.reason(),
        node.settings.kernel_egress_missing.as_deref().unwrap_or("--enable-egress is off")
    )
}

/// The watch may be late, and may still show an earlier pod of the same name. So the index is enough only
/// when the runtime gave the UID; or when the API does not answer.
async fn pod(node: &Node, request: &Request) -> Result<PodInfo, Failure> {
    let known = node.feed.read(|index| index.pods.get(&request.pod).cloned());
    if let (Some(known), Some(uid)) = (&known, &request.uid)
        && known.uid == *uid
    {
        return Ok(known.clone());
    }
    let api: Api<Pod> = Api::namespaced(node.client.clone(), &request.pod.namespace);
    match api.get_opt(&request.pod.name).await {
        Ok(Some(found)) => {
            let read = if node.settings.egress { objects::pod } else { objects::pod_without_egress };
            let Some(info) = read(&found) else {
                return Err(Failure::new(
                    code::INTERNAL,
                    "it uses the host's network, and has none of its own",
                ));
            };
            remember(node, &info);
            Ok(info)
        }
        Ok(None) => Err(Failure::new(
            code::UNKNOWN_CONTAINER,
            "it does not exist in the API: it was deleted, or the runtime asks the wrong cluster",
        )),
        // With a UID, what is known is another pod of that name, which may ask for less.
        Err(e) => known.filter(|_| request.uid.is_none()).ok_or_else(|| unanswered("read the Pod", &e)),
    }
}

/// Until the watch has it. A pod that the index has under another UID was replaced.
fn remember(node: &Node, pod: &PodInfo) {
    node.feed.update(|index| {
        let new = index.pods.get(&pod.key).is_none_or(|known| known.uid != pod.uid);
        if new {
            index.pods.insert(pod.key.clone(), pod.clone());
        }
        new
    });
}

async fn pool(node: &Node, namespace: &str) -> Result<String, Failure> {
    let key = ObjectKey::new("", namespace);
    if let Some(pool) = node.feed.read(|index| index.namespaces.get(&key).cloned()) {
        return Ok(pool);
    }
    let api: Api<Namespace> = Api::all(node.client.clone());
    match api.get_opt(namespace).await {
        Ok(Some(found)) => Ok(objects::namespace(&found).unwrap_or_default()),
        Ok(None) => Err(Failure::new(code::INTERNAL, format!("Namespace {namespace:?} does not exist"))),
        Err(e) => Err(unanswered(&format!("read Namespace {namespace:?}"), &e)),
    }
}

async fn must_exist(node: &Node, egress: &EgressRef) -> Result<(), Failure> {
    let key = ObjectKey::new(&egress.namespace, &egress.name);
    // What is not understood is asked for again, so that the answer says why.
    if node.feed.read(|index| index.egresses.get(&key).is_some_and(|info| !info.unknown)) {
        return Ok(());
    }
    let api: Api<Egress> = Api::namespaced(node.client.clone(), &egress.namespace);
    match api.get_opt(&egress.name).await {
        Ok(Some(found)) => {
            node.feed.update(|index| {
                let info = objects::egress(&found);
                info.is_some_and(|info| index.egresses.insert(key, info).is_none_or(|before| before.unknown))
            });
            Ok(())
        }
        Ok(None) => Err(Failure::new(
            code::INTERNAL,
            format!(
                "Egress {egress} does not exist: create it, or change the annotation {ANN_EGRESS_PREFIX}{}",
                egress.namespace
            ),
        )),
        Err(e) => Err(unanswered(&format!("read Egress {egress}"), &e)),
    }
}

fn unanswered(doing: &str, error: &kube::Error) -> Failure {
    Failure::new(code::TRY_AGAIN_LATER, format!("cannot {doing}: {}", super::failure::with_causes(error)))
}
