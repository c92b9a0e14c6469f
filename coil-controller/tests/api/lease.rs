//! Leader election against an API server.

use crate::support::{Cluster, LIMIT, eventually};
use coil_controller::lease::{Candidate, NAMESPACE};
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Patch, PatchParams};
use serde_json::json;

#[tokio::test]
async fn one_leads_and_hands_over() {
    let cluster = Cluster::start().await;
    let candidate = |name: &str| Candidate::new(cluster.client.clone(), "coil-test-leader", name.to_owned());
    let leases = cluster.of::<Lease>(NAMESPACE);
    let holder = async || leases.get("coil-test-leader").await.unwrap().spec.unwrap().holder_identity;
    let mut first = candidate("first");
    first.acquire().await;
    assert_eq!(holder().await.as_deref(), Some("first"));

    let mut second = candidate("second");
    let taken = tokio::spawn(async move {
        second.acquire().await;
        second
    });
    let renewed = async || leases.get("coil-test-leader").await.unwrap().spec.unwrap().renew_time;
    let start = renewed().await;
    tokio::select! {
        lost = first.hold() => panic!("{lost}"),
        () = eventually("the holder renews", async || renewed().await != start) => {}
    }
    assert!(!taken.is_finished());
    first.release().await;
    let mut second = tokio::time::timeout(LIMIT, taken).await.unwrap().unwrap();
    assert_eq!(holder().await.as_deref(), Some("second"));

    // Somebody takes it by force: the holder must notice and stop.
    let usurped = Patch::Merge(json!({"spec": {"holderIdentity": "third"}}));
    leases.patch("coil-test-leader", &PatchParams::default(), &usurped).await.unwrap();
    let lost = tokio::time::timeout(LIMIT, second.hold()).await.unwrap();
    assert!(lost.to_string().contains("third"), "{lost}");
    second.release().await;
    assert_eq!(holder().await.as_deref(), Some("third"), "only one's own lease is released");
}
