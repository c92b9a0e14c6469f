//! Watches of an API server of a few fixed answers.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use coil_api::crd::Egress;
use http::{Request, Response};
use kube::{Client, Resource as _, client::Body};
use serde_json::{Value, json};

use super::*;

const LIMIT: Duration = Duration::from_secs(20);

/// What lists of a kind are answered with, by its plural: a status and a body. All others are empty.
type Answers = Arc<Mutex<BTreeMap<&'static str, (u16, Value)>>>;

fn client(answers: &Answers) -> Client {
    let answers = answers.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let answers = answers.clone();
        async move {
            if request.uri().query().is_some_and(|query| query.contains("watch=true")) {
                // Nothing changes.
                std::future::pending::<()>().await;
            }
            let plural = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
            let empty = json!({"metadata": {"resourceVersion": "1"}, "items": []});
            let found = answers.lock().unwrap().get(plural.as_str()).cloned();
            let (status, body) = found.unwrap_or((200, empty));
            let body = Body::from(serde_json::to_vec(&body)?);
            Ok::<_, tower::BoxError>(Response::builder().status(status).body(body)?)
        }
    });
    Client::new(service, "default")
}

fn refusal(code: u16) -> (u16, Value) {
    let status =
        json!({"kind": "Status", "status": "Failure", "code": code, "message": "no", "reason": "no"});
    (code, status)
}

const ALL: Scope = Scope { ipam: true, egress: true, kernel_egress: true };

async fn until(what: &str, holds: impl Fn() -> bool) {
    let waited = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, waited).await.unwrap_or_else(|_| panic!("waited {LIMIT:?} for {what}"));
}

#[tokio::test]
async fn service_ranges_are_waited_for_only_where_they_can_be_had() {
    for code in [403, 404] {
        let answers: Answers = Arc::new(Mutex::new([("servicecidrs", refusal(code))].into()));
        let feed = Feed::default();
        feed.start(&client(&answers), "n", ALL);
        until(&format!("all lists but the refused one ({code})"), || feed.missing().is_empty()).await;
    }
    // An API server that is busy at first is asked again, and may turn out not to have them.
    let answers: Answers = Arc::new(Mutex::new([("servicecidrs", refusal(503))].into()));
    let feed = Feed::default();
    feed.start(&client(&answers), "n", ALL);
    until("all other lists", || feed.missing() == [SERVICE_RANGES]).await;
    answers.lock().unwrap().insert("servicecidrs", refusal(404));
    until("the last list", || feed.missing().is_empty()).await;
    let range = json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["203.0.113.0/24"]}});
    let list = json!({"metadata": {"resourceVersion": "1"}, "items": [range]});
    let answers: Answers = Arc::new(Mutex::new([("servicecidrs", (200, list))].into()));
    let feed = Feed::default();
    feed.start(&client(&answers), "n", ALL);
    until("the ranges", || feed.missing().is_empty()).await;
    assert_eq!(feed.read(|index| index.service_ranges.len()), 1);
}

#[tokio::test]
async fn service_ranges_that_are_forbidden_at_first_are_waited_for() {
    let answers: Answers = Arc::new(Mutex::new([("servicecidrs", refusal(403))].into()));
    let feed = Feed::default();
    feed.start(&client(&answers), "n", ALL);
    until("all other lists", || feed.missing() == [SERVICE_RANGES]).await;
    let range = json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["203.0.113.0/24"]}});
    let list = json!({"metadata": {"resourceVersion": "1"}, "items": [range]});
    answers.lock().unwrap().insert("servicecidrs", (200, list));
    until("the ranges", || feed.missing().is_empty()).await;
    assert_eq!(feed.read(|index| index.service_ranges.len()), 1, "nobody went without");
}

#[tokio::test]
async fn an_egress_that_is_not_understood_is_known_to_be_there() {
    let egress = |name: &str, destinations: Value| {
        json!({"apiVersion": Egress::api_version(&()), "kind": Egress::kind(&()),
            "metadata": {"namespace": "internet", "name": name}, "spec": {"destinations": destinations}})
    };
    let items = [egress("good", json!(["198.51.100.0/24"])), egress("bad", json!(7))];
    let list = json!({"metadata": {"resourceVersion": "1"}, "items": items});
    let answers: Answers = Arc::new(Mutex::new([("egresses", (200, list))].into()));
    let feed = Feed::default();
    feed.start(&client(&answers), "n", ALL);
    until("the lists", || feed.missing().is_empty()).await;
    let found = feed.read(|index| index.egresses.clone());
    let of = |name: &str| found[&ObjectKey::new("internet", name)].clone();
    assert_eq!((found.len(), of("good").unknown, of("good").destinations.len()), (2, false, 1));
    assert_eq!(of("bad"), EgressInfo::unknown());
}
