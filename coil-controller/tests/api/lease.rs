//! Leader election against an API server.

use crate::support::{Cluster, LIMIT, eventually};
use coil_controller::lease::{Candidate, NAMESPACE};
use k8s_openapi::{
    api::{coordination::v1::Lease, core::v1::Namespace},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;

fn namespace(name: &str) -> Namespace {
    Namespace {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        ..Namespace::default()
    }
}

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
    let leader = first.fenced(&cluster.client);
    Api::<Namespace>::all(leader.clone())
        .create(&PostParams::default(), &namespace("while-leading"))
        .await
        .unwrap();
    first.release().await;
    let mut second = tokio::time::timeout(LIMIT, taken).await.unwrap().unwrap();
    // What still runs of the first one's work can read, and cannot write.
    let late = Api::<Namespace>::all(leader.clone()).create(&PostParams::default(), &namespace("late")).await;
    assert!(late.unwrap_err().to_string().contains("coil-test-leader is not held any more"));
    assert!(Api::<Namespace>::all(leader).get_opt("late").await.unwrap().is_none());
    assert_eq!(holder().await.as_deref(), Some("second"));

    // Somebody takes it by force: the holder must notice and stop.
    let usurped = Patch::Merge(json!({"spec": {"holderIdentity": "third"}}));
    leases.patch("coil-test-leader", &PatchParams::default(), &usurped).await.unwrap();
    let lost = tokio::time::timeout(LIMIT, second.hold()).await.unwrap();
    assert!(lost.to_string().contains("third"), "{lost}");
    second.release().await;
    assert_eq!(holder().await.as_deref(), Some("third"), "only one's own lease is released");
}
