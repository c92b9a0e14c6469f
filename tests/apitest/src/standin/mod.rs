//! The part of kube-controller-manager that a kube-apiserver alone lacks and tests count on:
//! the garbage collector, the end of namespaces, and what every namespace has.
//!
//! ```text
//!   watches of metadata ──▶ Graph ──▶ pass: orphans, owners in deletion, namespaces ──▶ API
//! ```
//!
//! Level-triggered: a change of anything is a kick; each pass looks at the whole graph. Made
//! for the tens of objects of a test, not for clusters.

mod graph;
mod namespaces;
mod owners;

use std::time::Duration;

use k8s_openapi::api::core::v1::ServiceAccount;
use kube::core::Status;
use kube::{Api, Client};
use tokio::time;

use graph::Graph;

/// Changes that come together are looked at together.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// A pass that left something undone is repeated after this long.
const RETRY: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_millis(50);

/// Runs until it is dropped. `ca` is the PEM that pods find in `kube-root-ca.crt`.
pub async fn run(client: Client, ca: String) {
    while !answers(&client).await {
        time::sleep(POLL).await;
    }
    let graph = Graph::start(client.clone());
    loop {
        let done = async {
            namespaces::furnish(&client, &graph, &ca).await?;
            owners::collect(&client, &graph).await?;
            namespaces::finish(&client, &graph).await
        };
        match done.await {
            Ok(()) => graph.changed().await,
            Err(error) => {
                tracing::debug!(%error, "a pass failed and is repeated");
                time::sleep(RETRY).await;
            }
        }
        time::sleep(DEBOUNCE).await;
    }
}

/// Whether the server is ready, and this has furnished its first namespace.
pub async fn is_ready(client: &Client) -> bool {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
    answers(client).await && accounts.get_opt("default").await.is_ok_and(|account| account.is_some())
}

async fn answers(client: &Client) -> bool {
    match http::Request::get("/readyz").body(Vec::new()) {
        Ok(request) => client.request_text(request).await.is_ok(),
        Err(_) => false,
    }
}

/// Somebody else was faster, or the object has changed: the next pass sees it as it is.
fn unless_race<T>(done: kube::Result<T>) -> kube::Result<()> {
    match done {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if is_race(&status) => Ok(()),
        Err(error) => Err(error),
    }
}

fn is_race(status: &Status) -> bool {
    matches!(status.code, 404 | 409)
}
