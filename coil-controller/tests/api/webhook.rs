//! Webhooks over TLS, asked as an API server asks them.
//!
//! ```text
//!  test ──TLS, AdmissionReview──▶ Running ──list pools──▶ API server in this process
//! ```

use std::{net::SocketAddr, time::Duration};

use coil_api::crd::AddressPool;
use coil_controller::webhook::{
    Egresses, Judge, Pools, Running,
    cert::{Rotation, Source, State},
    names::{EGRESS, IPAM, Webhook},
    routes,
};
use k8s_openapi::{ByteString, jiff::SignedDuration};
use kube::api::{DeleteParams, PostParams};
use prometheus::Registry;
use serde_json::{Value, json};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    support::{Cluster, eventually},
    tls::{Asker, Trust},
};

/// Rotation that does not make a test wait.
pub(crate) fn quick() -> Rotation {
    Rotation {
        propagation: SignedDuration::from_millis(300),
        interval: Duration::from_millis(200),
        ..Rotation::new("kube-system".to_owned())
    }
}

/// A replica at work.
pub(crate) struct Replica {
    pub(crate) address: SocketAddr,
    pub(crate) state: State,
    pub(crate) running: Running,
    pub(crate) registry: Registry,
}

impl Replica {
    /// With `restart` it ends as soon as a certificate was replaced.
    pub(crate) fn start(cluster: &Cluster, judge: impl Judge, source: Source, restart: bool) -> Self {
        Self::ending(cluster, judge, source, restart.then_some(Duration::ZERO))
    }

    /// It ends so long after a certificate was replaced.
    pub(crate) fn ending(
        cluster: &Cluster,
        judge: impl Judge,
        source: Source,
        restart: Option<Duration>,
    ) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let registry = Registry::new();
        let (webhook, state) = (judge.webhook(), State::new(&registry).unwrap());
        let client = cluster.client.clone();
        let running =
            Running::start(listener, routes(judge), client, webhook, source, state.clone(), restart).unwrap();
        Self { address, state, running, registry }
    }

    pub(crate) async fn is_ready(&self) {
        eventually("the replica is ready", async || self.state.missing().is_none()).await;
    }
}

/// A review about an object of a webhook's kind.
pub(crate) fn review(of: &Webhook, operation: &str, object: &Value, old: &Value) -> Value {
    let about = if object.is_null() { old } else { object };
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": {"group": "coil.cybozu.com", "version": "v2", "kind": of.kind},
            "resource": {"group": "coil.cybozu.com", "version": "v2", "resource": of.resource},
            "name": about["metadata"]["name"],
            "operation": operation,
            "userInfo": {"username": "somebody", "groups": ["system:authenticated"]},
            "object": object,
            "oldObject": old,
            "dryRun": false,
            "options": {"apiVersion": "meta.k8s.io/v1", "kind": "CreateOptions"},
        },
    })
}

fn pool(name: &str, bits: u32, subnets: &Value) -> Value {
    json!({
        "apiVersion": "coil.cybozu.com/v2",
        "kind": "AddressPool",
        "metadata": {"name": name},
        "spec": {"blockSizeBits": bits, "subnets": subnets},
    })
}

fn egress(fields: &Value) -> Value {
    let mut spec = json!({"destinations": ["10.0.0.0/8"], "replicas": 1});
    for (name, value) in fields.as_object().unwrap() {
        spec[name] = value.clone();
    }
    let metadata = json!({"name": "internet", "namespace": "default"});
    json!({"apiVersion": "coil.cybozu.com/v2", "kind": "Egress", "metadata": metadata, "spec": spec})
}

async fn asker(cluster: &Cluster, replica: &Replica, of: Webhook) -> Asker {
    replica.is_ready().await;
    Asker::new(replica.address, &of, Trust::secret(cluster, &of).await)
}

impl Asker {
    async fn validate(&self, of: &Webhook, operation: &str, object: &Value, old: &Value) -> Value {
        self.ask(of.validate_path, &review(of, operation, object, old)).await
    }
}

#[track_caller]
fn refused(response: &Value, field: &str, says: &str) {
    assert_eq!(response["allowed"], false, "{response}");
    let status = &response["status"];
    assert_eq!((&status["code"], &status["reason"]), (&json!(422), &json!("Invalid")), "{status}");
    let causes = status["details"]["causes"].as_array().unwrap();
    assert!(causes.iter().any(|cause| cause["field"] == field), "{field}: {status}");
    let message = status["message"].as_str().unwrap();
    assert!(message.contains(field) && message.contains(says), "{message}");
}

#[tokio::test]
async fn pools_are_completed_and_judged() {
    let cluster = Cluster::start().await;
    let replica =
        Replica::start(&cluster, Pools::new(cluster.client.clone()), Source::Rotation(quick()), false);
    let asker = asker(&cluster, &replica, IPAM).await;

    let good = pool("default", 5, &json!([{"ipv4": "10.0.0.0/24"}]));
    let answer = asker.ask(IPAM.mutate_path, &review(&IPAM, "CREATE", &good, &Value::Null)).await;
    assert_eq!((&answer["allowed"], &answer["patchType"]), (&json!(true), &json!("JSONPatch")));
    let patch: ByteString = serde_json::from_value(answer["patch"].clone()).unwrap();
    assert_eq!(
        serde_json::from_slice::<Value>(&patch.0).unwrap(),
        json!([{"op": "add", "path": "/metadata/finalizers", "value": ["coil.cybozu.com"]}])
    );
    let answer = asker.ask(IPAM.mutate_path, &review(&IPAM, "UPDATE", &good, &good)).await;
    assert_eq!(
        (&answer["allowed"], &answer["patch"]),
        (&json!(true), &Value::Null),
        "only new ones are completed"
    );

    let made = |object: &Value| review(&IPAM, "CREATE", object, &Value::Null);
    assert_eq!(asker.ask(IPAM.validate_path, &made(&good)).await["allowed"], true);
    for (object, field, says) in [
        (pool("p", 5, &json!([{"ipv4": "10.0.0.0/30"}])), "spec.subnets[0].ipv4", "/27 or shorter"),
        (pool("p", 5, &json!([{"ipv4": "fd00::/112"}])), "spec.subnets[0].ipv4", "field ipv6"),
        (pool("p", 5, &json!([{"ipv6": "what"}])), "spec.subnets[0].ipv6", "CIDR format"),
        (pool("p", 5, &json!([{}])), "spec.subnets[0]", "set ipv4, ipv6, or both"),
        (pool("p", 5, &json!([])), "spec.subnets", "add an entry"),
        (json!({"metadata": {"name": "p"}}), "spec.subnets", "add an entry"),
        (pool("p", 5, &json!([{"ipv4": "10.0.0.0/16", "ipv6": "fd00::/64"}])), "spec.subnets[0]", "/112"),
        (
            pool("p", 5, &json!([{"ipv4": "10.0.0.0/16"}, {"ipv6": "fd00::/112"}])),
            "spec.subnets[1]",
            "another pool",
        ),
        (
            pool("p", 5, &json!([{"ipv4": "10.0.0.0/16"}, {"ipv4": "10.0.1.0/24"}])),
            "spec.subnets[1].ipv4",
            "twice",
        ),
    ] {
        refused(&asker.ask(IPAM.validate_path, &made(&object)).await, field, says);
    }

    let old = pool("p", 5, &json!([{"ipv4": "10.0.0.0/24"}]));
    let longer = pool("p", 5, &json!([{"ipv4": "10.0.0.0/24"}, {"ipv4": "10.0.1.0/24"}]));
    assert_eq!(asker.validate(&IPAM, "UPDATE", &longer, &old).await["allowed"], true);
    refused(&asker.validate(&IPAM, "UPDATE", &old, &longer).await, "spec.subnets", "only be appended");
    let other_size = pool("p", 4, &json!([{"ipv4": "10.0.0.0/24"}]));
    refused(&asker.validate(&IPAM, "UPDATE", &other_size, &old).await, "spec.blockSizeBits", "is 5");
    assert_eq!(asker.validate(&IPAM, "DELETE", &Value::Null, &old).await["allowed"], true);

    let unreadable = pool("p", 5, &json!([{"ipv4": 3}]));
    let answer = asker.ask(IPAM.validate_path, &made(&unreadable)).await;
    assert_eq!((&answer["allowed"], &answer["status"]["code"]), (&json!(false), &json!(400)));
    assert!(answer["status"]["message"].as_str().unwrap().contains("spec"), "{answer}");
    let host_bits =
        asker.ask(IPAM.validate_path, &made(&pool("p", 5, &json!([{"ipv4": "10.9.0.9/24"}])))).await;
    assert!(host_bits["warnings"][0].as_str().unwrap().contains("10.9.0.0/24"), "{host_bits}");
}

#[tokio::test]
async fn overlaps_between_pools_are_judged_by_what_is_there_now() {
    let cluster = Cluster::start().await;
    let replica =
        Replica::start(&cluster, Pools::new(cluster.client.clone()), Source::Rotation(quick()), false);
    let asker = asker(&cluster, &replica, IPAM).await;
    let new = pool("new", 5, &json!([{"ipv4": "10.1.2.0/24", "ipv6": "fd00::/120"}]));
    let judge = async || asker.validate(&IPAM, "CREATE", &new, &Value::Null).await;
    assert_eq!(judge().await["allowed"], true);
    for (subnets, field) in [
        (json!([{"ipv4": "10.1.0.0/16"}]), "spec.subnets[0].ipv4"),
        (json!([{"ipv6": "fd00::/64"}]), "spec.subnets[0].ipv6"),
    ] {
        cluster.pool("big", 5, subnets).await;
        refused(&judge().await, field, "AddressPool \"big\"");
        cluster.all::<AddressPool>().delete("big", &DeleteParams::default()).await.unwrap();
        assert_eq!(judge().await["allowed"], true);
    }
    // The pool itself is no other pool, and one that is not changed is not judged again.
    cluster.pool("new", 5, json!([{"ipv4": "10.1.2.0/24", "ipv6": "fd00::/120"}])).await;
    let mut longer = new.clone();
    longer["spec"]["subnets"] = json!([
        {"ipv4": "10.1.2.0/24", "ipv6": "fd00::/120"},
        {"ipv4": "10.1.3.0/24", "ipv6": "fd00::100/120"},
    ]);
    assert_eq!(asker.validate(&IPAM, "UPDATE", &longer, &new).await["allowed"], true);
    let mut labelled = new.clone();
    labelled["metadata"]["labels"] = json!({"a": "b"});
    assert_eq!(asker.validate(&IPAM, "UPDATE", &labelled, &new).await["allowed"], true);
}

#[tokio::test]
async fn egresses_are_completed_and_judged() {
    let cluster = Cluster::start().await;
    let replica = Replica::start(&cluster, Egresses, Source::Rotation(quick()), false);
    let asker = asker(&cluster, &replica, EGRESS).await;
    let made = |object: &Value| review(&EGRESS, "CREATE", object, &Value::Null);
    let answer = asker.ask(EGRESS.mutate_path, &made(&egress(&json!({"template": {}})))).await;
    let patch: ByteString = serde_json::from_value(answer["patch"].clone()).unwrap();
    assert!(String::from_utf8(patch.0).unwrap().contains(r#""containers":[{"name":"egress"}]"#));
    let plain = egress(&json!({}));
    assert_eq!(asker.ask(EGRESS.mutate_path, &made(&plain)).await["patch"], Value::Null);
    assert_eq!(asker.ask(EGRESS.validate_path, &made(&plain)).await["allowed"], true);
    let mut status = made(&egress(&json!({"destinations": ["what"]})));
    status["request"]["subResource"] = json!("status");
    assert_eq!(asker.ask(EGRESS.validate_path, &status).await["allowed"], true);
    for (fields, field, says) in [
        (json!({"destinations": ["10.0.0.1"]}), "spec.destinations[0]", "10.0.0.1/32"),
        (json!({"destinations": []}), "spec.destinations", "at least one"),
        (json!({"replicas": 0}), "spec.replicas", "at least 1"),
        (json!({"strategy": {"type": "Fast"}}), "spec.strategy.type", "Recreate"),
        (json!({"template": {"metadata": {"labels": {"a b": "c"}}}}), "spec.template.metadata.labels", "a b"),
        (
            json!({"template": {"metadata": {"annotations": {"a b": "c"}}}}),
            "spec.template.metadata.annotations",
            "a b",
        ),
        (
            json!({"podDisruptionBudget": {"minAvailable": 1, "maxUnavailable": 1}}),
            "spec.podDisruptionBudget",
            "remove one",
        ),
        (
            json!({"podDisruptionBudget": {"minAvailable": -1}}),
            "spec.podDisruptionBudget.minAvailable",
            "0 or more",
        ),
        (
            json!({"podDisruptionBudget": {"maxUnavailable": "101%"}}),
            "spec.podDisruptionBudget.maxUnavailable",
            "100%",
        ),
    ] {
        let object = egress(&fields);
        refused(&asker.ask(EGRESS.validate_path, &made(&object)).await, field, says);
        refused(&asker.validate(&EGRESS, "UPDATE", &object, &plain).await, field, says);
        assert_eq!(asker.validate(&EGRESS, "UPDATE", &object, &object).await["allowed"], true, "unchanged");
    }
    let mut nameless = plain.clone();
    nameless["metadata"]["name"] = json!("9lives");
    refused(&asker.ask(EGRESS.validate_path, &made(&nameless)).await, "metadata.name", "Service");
}

#[tokio::test]
async fn what_is_no_review_gets_an_http_error() {
    let cluster = Cluster::start().await;
    let replica = Replica::start(&cluster, Egresses, Source::Rotation(quick()), false);
    let asker = asker(&cluster, &replica, EGRESS).await;
    let post =
        async |path: &str, type_: &str, body: Vec<u8>| asker.send("POST", path, type_, body).await.unwrap();
    let path = EGRESS.validate_path;
    let json = "application/json";
    let other = review(&IPAM, "CREATE", &egress(&json!({})), &Value::Null).to_string().into_bytes();
    for (answer, code, says) in [
        (asker.send("GET", path, json, Vec::new()).await.unwrap(), 405, ""),
        (post("/", json, b"{}".to_vec()).await, 404, ""),
        (post(path, "text/plain", b"{}".to_vec()).await, 415, "application/json"),
        (post(path, json, b"{".to_vec()).await, 400, "no AdmissionReview"),
        (post(path, json, vec![b'['; 100_000]).await, 400, "no AdmissionReview"),
        (post(path, json, other).await, 400, "egresses.coil.cybozu.com"),
        (post(path, json, vec![b' '; 9 << 20]).await, 413, ""),
    ] {
        assert_eq!(answer.0, code, "{answer:?}");
        assert!(answer.1.contains(says), "{answer:?}");
    }
    // It is still there.
    let good = review(&EGRESS, "CREATE", &egress(&json!({})), &Value::Null);
    assert_eq!(asker.ask(path, &good).await["allowed"], true);
}

/// After the program was told to end it answers what still comes for a while; then a request in work is answered,
/// and no new one is taken.
#[tokio::test]
async fn the_end_loses_no_request() {
    let cluster = Cluster::start().await;
    let replica = Replica::start(&cluster, Egresses, Source::Rotation(quick()), false);
    let asker = asker(&cluster, &replica, EGRESS).await;
    let good = review(&EGRESS, "CREATE", &egress(&json!({})), &Value::Null).to_string().into_bytes();
    let mut slow = asker.begin(EGRESS.validate_path, &good).await;
    let Replica { running, .. } = replica;
    let (over, linger) = tokio::sync::oneshot::channel::<()>();
    let drained = tokio::spawn(running.drain(async move { linger.await.unwrap() }));
    tokio::task::yield_now().await;
    let late = review(&EGRESS, "CREATE", &egress(&json!({})), &Value::Null);
    assert_eq!(asker.ask(EGRESS.validate_path, &late).await["allowed"], true);
    // Half a head of a request is not waited for.
    let mut half = asker.connect().await.unwrap();
    half.write_all(b"POST /").await.unwrap();
    half.flush().await.unwrap();
    over.send(()).unwrap();
    eventually("no new connection is taken", async || asker.connect().await.is_err()).await;
    assert!(!drained.is_finished(), "the request is still in work");
    let (status, body) = slow.end().await;
    assert_eq!(status, 200);
    assert!(body.contains(r#""allowed":true"#), "{body}");
    tokio::time::timeout(crate::support::LIMIT, drained).await.unwrap().unwrap();
}

/// More connections than there are places, each of which asks once and then stays.
#[tokio::test]
async fn idle_connections_keep_nobody_out() {
    let cluster = Cluster::start().await;
    let replica = Replica::start(&cluster, Egresses, Source::Rotation(quick()), false);
    let asker = asker(&cluster, &replica, EGRESS).await;
    let mut idle = Vec::new();
    for _ in 0..300 {
        let mut stream = asker.connect().await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: webhook\r\n\r\n").await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 404");
        idle.push(stream);
    }
    // Plain TCP connections that never begin TLS hold places as well.
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(tokio::net::TcpStream::connect(replica.address).await.unwrap());
    }
    let good = review(&EGRESS, "CREATE", &egress(&json!({})), &Value::Null);
    assert_eq!(asker.ask(EGRESS.validate_path, &good).await["allowed"], true);
    // The oldest had to go.
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(crate::support::LIMIT, idle[0].read_to_end(&mut rest)).await;
    assert!(closed.is_ok(), "it is still there");
}

/// The webhooks, and the API server's own rules, are asked in this test binary by the same documents; here the
/// configurations exist, so that they get the authority.
pub(crate) async fn install(cluster: &Cluster, of: &Webhook) {
    use k8s_openapi::api::admissionregistration::v1::{
        MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
    };
    let path = format!("{}/../deploy/{}/webhook.yaml", env!("CARGO_MANIFEST_DIR"), of.part);
    let text = std::fs::read_to_string(path).unwrap();
    let mut documents = serde_yaml_ng::Deserializer::from_str(&text);
    let mutating: MutatingWebhookConfiguration =
        serde::Deserialize::deserialize(documents.next().unwrap()).unwrap();
    let validating: ValidatingWebhookConfiguration =
        serde::Deserialize::deserialize(documents.next().unwrap()).unwrap();
    cluster.all().create(&PostParams::default(), &mutating).await.unwrap();
    cluster.all().create(&PostParams::default(), &validating).await.unwrap();
}
