//! Admission webhooks.
//!
//! ```text
//!   test ──▶ API server ──TLS──▶ Hook: a server of this process that answers by a function
//! ```

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use coil_apitest::{Cluster, LIMIT, eventually};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::raw::{self, APPLY, MERGE};

const POOLS: &str = "/apis/coil.cybozu.com/v2/addresspools";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const VALIDATING: &str = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
const MUTATING: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";

type Respond = dyn Fn(&Value) -> Value + Send + Sync;

/// A webhook's server, and what it was asked.
struct Hook {
    address: SocketAddr,
    ca: String,
    asked: Arc<Mutex<Vec<Value>>>,
    task: JoinHandle<()>,
}

impl Drop for Hook {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Hook {
    /// Answers with what `respond` makes of the request; the uid is added.
    async fn start(respond: impl Fn(&Value) -> Value + Send + Sync + 'static) -> Self {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(vec!["127.0.0.1".into(), "hook.default.svc".into()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config =
            ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_no_client_auth().with_single_cert(vec![cert.der().clone()], key).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let task = tokio::spawn(serve(
            listener,
            TlsAcceptor::from(Arc::new(config)),
            asked.clone(),
            Arc::new(respond),
        ));
        Self { address, ca: cert.pem(), asked, task }
    }

    /// One webhook that points here; `more` is laid over it.
    fn webhook(&self, name: &str, resources: &[&str], more: &Value) -> Value {
        use base64::Engine as _;
        let bundle = base64::engine::general_purpose::STANDARD.encode(&self.ca);
        let rule =
            json!({"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"], "resources": resources});
        let mut hook = json!({"name": name, "admissionReviewVersions": ["v1"], "sideEffects": "None", "rules": [rule],
            "clientConfig": {"url": format!("https://{}/hook", self.address), "caBundle": bundle}});
        for (key, value) in more.as_object().unwrap() {
            hook[key] = value.clone();
        }
        hook
    }

    fn asked(&self) -> Vec<Value> {
        self.asked.lock().unwrap().clone()
    }
}

async fn serve(
    listener: TcpListener,
    tls: TlsAcceptor,
    asked: Arc<Mutex<Vec<Value>>>,
    respond: Arc<Respond>,
) {
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, asked, respond) = (tls.clone(), asked.clone(), respond.clone());
        tokio::spawn(async move {
            let Ok(stream) = tls.accept(stream).await else { return };
            let service = service_fn(move |request| answer(request, asked.clone(), respond.clone()));
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    asked: Arc<Mutex<Vec<Value>>>,
    respond: Arc<Respond>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let body = request.into_body().collect().await?.to_bytes();
    let review: Value = serde_json::from_slice(&body).unwrap();
    if review["request"]["name"] == SLOW {
        tokio::time::sleep(LIMIT).await;
    }
    let mut response = respond(&review["request"]);
    // Probes of the test itself are not part of what it asks about.
    if review["request"]["name"] != PROBE {
        asked.lock().unwrap().push(review["request"].clone());
    }
    response["uid"] = review["request"]["uid"].clone();
    let review =
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response});
    Ok(Response::new(Full::new(review.to_string().into())))
}

/// The name of the objects by which a test finds out whether a configuration is in force.
const PROBE: &str = "probe";

/// The name of an object that a webhook does not answer about in time.
const SLOW: &str = "slow";

/// Creates a configuration. Real servers learn of it a moment later: `in_force` tells when.
async fn configure(
    cluster: &Cluster,
    path: &str,
    name: &str,
    hooks: &[Value],
    in_force: impl AsyncFn() -> bool,
) {
    let configuration = json!({"apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": name},
        "kind": if path == MUTATING { "MutatingWebhookConfiguration" } else { "ValidatingWebhookConfiguration" },
        "webhooks": hooks});
    raw::post(cluster, path, &configuration).await.ok();
    eventually("the configuration is in force", async || in_force().await).await;
}

fn pool(name: &str) -> Value {
    json!({"apiVersion": "coil.cybozu.com/v2", "kind": "AddressPool", "metadata": {"name": name},
        "spec": {"blockSizeBits": 2, "subnets": [{"ipv4": "10.0.0.0/24"}]}})
}

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}})
}

fn patch_of(operations: &Value) -> Value {
    use base64::Engine as _;
    let patch = base64::engine::general_purpose::STANDARD.encode(operations.to_string());
    json!({"allowed": true, "patchType": "JSONPatch", "patch": patch})
}

/// A dry-run creation of a probe is refused by the hook under test.
async fn probe_is_refused(cluster: &Cluster, path: &str, object: Value) -> bool {
    raw::post(cluster, &format!("{path}?dryRun=All"), &object).await.message().contains("denied the request")
}

#[tokio::test]
async fn a_validating_webhook_refuses_with_its_own_words() {
    let cluster = Cluster::start().await;
    let hook = Hook::start(|request| {
        let name = request["name"].as_str().unwrap_or_default();
        match name {
            "good" => json!({"allowed": true, "warnings": ["look out"]}),
            "coded" => json!({"allowed": false, "warnings": ["told you"], "status": {"code": 422, "reason": "Invalid",
                "message": "spec.subnets: no", "details": {"causes": [{"field": "spec.subnets", "message": "no"}]}}}),
            "mute" => json!({"allowed": false}),
            _ => json!({"allowed": false, "status": {"message": "the pool is too small"}}),
        }
    })
    .await;
    let webhook = hook.webhook("vaddresspool.kb.io", &["addresspools"], &json!({}));
    configure(&cluster, VALIDATING, "pools", &[webhook], async || {
        probe_is_refused(&cluster, POOLS, pool(PROBE)).await
    })
    .await;

    let good = raw::post(&cluster, POOLS, &pool("good")).await;
    assert_eq!(good.code, 201, "{good:?}");
    assert_eq!(good.warnings, ["299 - \"look out\""]);
    let bad = raw::post(&cluster, POOLS, &pool("bad")).await;
    bad.refused(400, "", "");
    let denied = "admission webhook \"vaddresspool.kb.io\" denied the request";
    assert_eq!(bad.message(), format!("{denied}: the pool is too small"));
    let coded = raw::post(&cluster, POOLS, &pool("coded")).await;
    coded.refused(422, "Invalid", "spec.subnets: no");
    assert_eq!(coded.body["details"]["causes"][0]["field"], "spec.subnets");
    assert_eq!(coded.warnings, ["299 - \"told you\""]);
    let mute = raw::post(&cluster, POOLS, &pool("mute")).await;
    assert_eq!(mute.message(), format!("{denied} without explanation"));

    let path = format!("{POOLS}/good");
    raw::patch(&cluster, &path, MERGE, &json!({"metadata": {"labels": {"a": "b"}}})).await.ok();
    raw::patch(&cluster, &format!("{path}?fieldManager=t"), APPLY, &pool("good")).await.ok();
    raw::delete(&cluster, &path, &Value::Null).await.ok();
    let asked = hook.asked();
    let seen: Vec<(&str, &str)> =
        asked.iter().map(|r| (r["operation"].as_str().unwrap(), r["name"].as_str().unwrap())).collect();
    assert_eq!(seen.first(), Some(&("CREATE", "good")), "{seen:?}");
    assert_eq!(
        seen[seen.len() - 3..],
        [("UPDATE", "good"), ("UPDATE", "good"), ("DELETE", "good")],
        "{seen:?}"
    );
    let create = &asked[0];
    assert_eq!(create["kind"], json!({"group": "coil.cybozu.com", "version": "v2", "kind": "AddressPool"}));
    assert_eq!(
        create["resource"],
        json!({"group": "coil.cybozu.com", "version": "v2", "resource": "addresspools"})
    );
    assert_eq!(create["requestKind"], create["kind"]);
    assert_eq!(create["userInfo"]["username"], "admin");
    assert_eq!(create["object"]["spec"]["blockSizeBits"], 2);
    assert!(create["object"]["metadata"]["uid"].is_string(), "{create}");
    assert_eq!((&create["oldObject"], &create["dryRun"]), (&Value::Null, &json!(false)));
    assert_eq!(create["options"]["kind"], "CreateOptions");
    let update = &asked[asked.len() - 3];
    assert_eq!(update["object"]["metadata"]["labels"]["a"], "b");
    assert!(update["oldObject"]["metadata"]["labels"].is_null(), "{update}");
    let delete = &asked[asked.len() - 1];
    assert_eq!(delete["object"], Value::Null);
    assert_eq!(delete["oldObject"]["metadata"]["name"], "good");
}

#[tokio::test]
async fn mutating_comes_first_then_the_schema_then_validating() {
    let cluster = Cluster::start().await;
    let finalizer = Hook::start(|request| {
        let mut operations =
            vec![json!({"op": "add", "path": "/metadata/finalizers", "value": ["coil.cybozu.com"]})];
        if request["name"] == "broken" {
            operations.push(json!({"op": "replace", "path": "/spec/blockSizeBits", "value": "five"}));
        }
        if request["name"] == "unknown" {
            operations.push(json!({"op": "add", "path": "/spec/unknown", "value": 1}));
        }
        patch_of(&json!(operations))
    })
    .await;
    let judge = Hook::start(|request| {
        let seen = request["object"]["metadata"]["finalizers"] == json!(["coil.cybozu.com"]);
        json!({"allowed": seen && request["name"] != PROBE, "status": {"message": "no finalizer"}})
    })
    .await;
    let created = json!({"rules": [{"apiGroups": ["coil.cybozu.com"], "apiVersions": ["v2"], "operations": ["CREATE"],
        "resources": ["addresspools"], "scope": "Cluster"}]});
    let mutating = finalizer.webhook("maddresspool.kb.io", &[], &created);
    let validating = judge.webhook("vaddresspool.kb.io", &[], &created);
    configure(&cluster, VALIDATING, "pools", &[validating], async || {
        probe_is_refused(&cluster, POOLS, pool(PROBE)).await
    })
    .await;
    configure(&cluster, MUTATING, "pools", &[mutating], async || {
        let answer = raw::post(&cluster, &format!("{POOLS}?dryRun=All"), &pool("dry")).await;
        answer.body["metadata"]["finalizers"][0] == "coil.cybozu.com"
    })
    .await;
    let made = raw::post(&cluster, POOLS, &pool("made")).await.ok();
    assert_eq!(made["metadata"]["finalizers"], json!(["coil.cybozu.com"]));
    let before = judge.asked().len();
    let broken = raw::post(&cluster, POOLS, &pool("broken")).await;
    broken.refused(422, "Invalid", "spec.blockSizeBits: Invalid value");
    assert_eq!(judge.asked().len(), before, "what the schema refuses is not asked about");
    let unknown = raw::post(&cluster, POOLS, &pool("unknown")).await.ok();
    assert!(unknown["spec"].get("unknown").is_none(), "what a webhook adds is pruned: {unknown}");
}

#[tokio::test]
async fn failures_follow_the_policy() {
    let cluster = Cluster::start().await;
    let hook = Hook::start(|request| {
        if request["name"] == "odd" {
            return json!({"allowed": true, "patch": "e30=", "patchType": "JSONPatch"});
        }
        json!({"allowed": request["name"] != PROBE})
    })
    .await;
    let strict = hook.webhook(
        "strict.kb.io",
        &["configmaps"],
        &json!({"timeoutSeconds": 1,
        "objectSelector": {"matchLabels": {"hook": "strict"}}}),
    );
    let mut stranger = hook.webhook(
        "stranger.kb.io",
        &["configmaps"],
        &json!({
        "objectSelector": {"matchLabels": {"hook": "stranger"}}}),
    );
    stranger["clientConfig"]["caBundle"] = Hook::start(|_| json!({})).await.webhook("x.y.z", &[], &json!({}))
        ["clientConfig"]["caBundle"]
        .clone();
    let mut absent = hook.webhook(
        "absent.kb.io",
        &["configmaps"],
        &json!({
        "objectSelector": {"matchLabels": {"hook": "absent"}}}),
    );
    absent["clientConfig"] = json!({"service": {"namespace": "default", "name": "nothing", "path": "/x"}});
    let mut lenient = absent.clone();
    lenient["name"] = json!("lenient.kb.io");
    lenient["failurePolicy"] = json!("Ignore");
    lenient["objectSelector"] = json!({"matchLabels": {"hook": "lenient"}});
    let labelled = |name: &str, label: &str| {
        let mut map = map(name);
        map["metadata"]["labels"] = json!({"hook": label});
        map
    };
    configure(&cluster, VALIDATING, "maps", &[strict, stranger, absent, lenient], async || {
        probe_is_refused(&cluster, MAPS, labelled(PROBE, "strict")).await
    })
    .await;

    let slow = raw::post(&cluster, MAPS, &labelled(SLOW, "strict")).await;
    slow.refused(
        500,
        "InternalError",
        "failed calling webhook \"strict.kb.io\": failed to call webhook: Post ",
    );
    assert!(slow.message().contains("context deadline exceeded"), "{}", slow.message());
    let odd = raw::post(&cluster, MAPS, &labelled("odd", "strict")).await;
    odd.refused(
        500,
        "InternalError",
        "received invalid webhook response: validating webhook may not return response.patch",
    );
    let stranger = raw::post(&cluster, MAPS, &labelled("a", "stranger")).await;
    stranger.refused(500, "InternalError", "x509: certificate signed by unknown authority");
    let absent = raw::post(&cluster, MAPS, &labelled("a", "absent")).await;
    absent.refused(500, "InternalError", "service \"nothing\" not found");
    raw::post(&cluster, MAPS, &labelled("a", "lenient")).await.ok();
    raw::post(&cluster, MAPS, &map("unlabelled")).await.ok();
}

#[tokio::test]
async fn dry_run_asks_only_those_without_side_effects() {
    let cluster = Cluster::start().await;
    let hook = Hook::start(|request| json!({"allowed": request["name"] != PROBE})).await;
    let some = hook.webhook("some.kb.io", &["configmaps"], &json!({"sideEffects": "NoneOnDryRun"}));
    configure(&cluster, VALIDATING, "maps", &[some], async || {
        probe_is_refused(&cluster, MAPS, map(PROBE)).await
    })
    .await;
    raw::post(&cluster, &format!("{MAPS}?dryRun=All"), &map("dry")).await.ok();
    assert_eq!(hook.asked().last().map(|r| r["dryRun"].clone()), Some(json!(true)));
    raw::get(&cluster, &format!("{MAPS}/dry")).await.refused(404, "NotFound", "configmaps \"dry\" not found");
}

#[tokio::test]
async fn selectors_and_subresources() {
    let cluster = Cluster::start().await;
    cluster.namespace("watched").await;
    let hook = Hook::start(|_| json!({"allowed": false})).await;
    let here = hook.webhook(
        "here.kb.io",
        &["configmaps"],
        &json!({
        "namespaceSelector": {"matchExpressions": [
            {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["watched"]}]}}),
    );
    let status = hook.webhook("status.kb.io", &["nodes/status"], &json!({}));
    let watched = "/api/v1/namespaces/watched/configmaps";
    configure(&cluster, VALIDATING, "some", &[here, status], async || {
        probe_is_refused(&cluster, watched, map(PROBE)).await
    })
    .await;
    raw::post(&cluster, MAPS, &map("elsewhere")).await.ok();
    assert!(raw::post(&cluster, watched, &map("here")).await.message().contains("here.kb.io"));
    cluster.node("n1").await;
    let status = json!({"status": {"phase": "x"}});
    let refused = raw::patch(&cluster, "/api/v1/nodes/n1/status", MERGE, &status).await;
    assert!(refused.message().contains("status.kb.io"), "{refused:?}");
    let labels = json!({"metadata": {"labels": {"a": "b"}}});
    raw::patch(&cluster, "/api/v1/nodes/n1", MERGE, &labels).await.ok();
}

#[tokio::test]
async fn a_configuration_that_makes_no_sense_is_refused() {
    let cluster = Cluster::start().await;
    let hook = json!({"name": "a.b.c", "admissionReviewVersions": ["v1"], "sideEffects": "None", "rules": [],
        "clientConfig": {"url": "https://127.0.0.1/x"}});
    for (change, part) in [
        (
            json!({"name": "short"}),
            "webhooks[0].name: Invalid value: \"short\": should be a domain with at least three segments separated by dots",
        ),
        (json!({"sideEffects": "Some"}), "webhooks[0].sideEffects: Unsupported value: \"Some\""),
        (json!({"timeoutSeconds": 31}), "webhooks[0].timeoutSeconds: Invalid value: 31"),
        (json!({"clientConfig": {}}), "exactly one of url or service is required"),
        (json!({"clientConfig": {"url": "http://127.0.0.1/x"}}), "'https' is the only allowed URL scheme"),
        (json!({"failurePolicy": "Maybe"}), "webhooks[0].failurePolicy: Unsupported value: \"Maybe\""),
        (
            json!({"rules": [{"apiGroups": ["*"], "apiVersions": ["v1"], "operations": ["READ"], "resources": ["*"]}]}),
            "webhooks[0].rules[0].operations[0]: Unsupported value: \"READ\"",
        ),
    ] {
        let mut hook = hook.clone();
        for (key, value) in change.as_object().unwrap() {
            hook[key] = value.clone();
        }
        let configuration = json!({"apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": "x"},
            "kind": "ValidatingWebhookConfiguration", "webhooks": [hook]});
        raw::post(&cluster, VALIDATING, &configuration).await.refused(422, "Invalid", part);
    }
    let configuration = json!({"apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": "x"},
        "kind": "ValidatingWebhookConfiguration", "webhooks": [hook]});
    let made = raw::post(&cluster, VALIDATING, &configuration).await.ok();
    let hook = &made["webhooks"][0];
    assert_eq!(
        (&hook["failurePolicy"], &hook["matchPolicy"], &hook["timeoutSeconds"]),
        (&json!("Fail"), &json!("Equivalent"), &json!(10))
    );
}
