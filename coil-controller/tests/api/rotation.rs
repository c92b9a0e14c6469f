//! Certificates: from files, and made by the program itself with several replicas.
//!
//! ```text
//!  replica 1 ──┐                     ┌── Secret
//!              ├── API server here ──┤
//!  replica 2 ──┘                     └── both webhook configurations ──caBundle──▶ "API server" of the test
//!      ▲                                                                                  │
//!      └───────────────────────── a new TLS connection per request ◀──────────────────────┘
//! ```

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use coil_controller::webhook::{
    Egresses,
    cert::{Rotation, Source},
    names::EGRESS,
};
use futures::FutureExt as _;
use k8s_openapi::{
    ByteString,
    api::{
        admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration},
        core::v1::Secret,
    },
    jiff::{SignedDuration, Timestamp},
};
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::{
    support::{Cluster, LIMIT, eventually},
    tls::{Asker, Trust, secret},
    webhook::{Replica, install, quick, review},
};

fn good() -> Value {
    let object = json!({
        "apiVersion": "coil.cybozu.com/v2",
        "kind": "Egress",
        "metadata": {"name": "internet", "namespace": "default"},
        "spec": {"destinations": ["0.0.0.0/0"], "replicas": 1},
    });
    review(&EGRESS, "CREATE", &object, &Value::Null)
}

async fn started(cluster: &Cluster, rotation: &Rotation) -> Replica {
    let replica = Replica::start(cluster, Egresses, Source::Rotation(rotation.clone()), false);
    replica.is_ready().await;
    replica
}

/// What API servers trust: the bundles of both configurations.
async fn bundles(cluster: &Cluster) -> [Vec<u8>; 2] {
    let mutating = cluster.all::<MutatingWebhookConfiguration>().get(&EGRESS.mutating()).await.unwrap();
    let validating = cluster.all::<ValidatingWebhookConfiguration>().get(&EGRESS.validating()).await.unwrap();
    let one = |bundle: Option<ByteString>| bundle.unwrap_or_default().0;
    [
        one(mutating.webhooks.unwrap().remove(0).client_config.ca_bundle),
        one(validating.webhooks.unwrap().remove(0).client_config.ca_bundle),
    ]
}

async fn authorities(cluster: &Cluster) -> Vec<u8> {
    Trust::secret(cluster, &EGRESS).await.0
}

fn certificates(pem: &[u8]) -> usize {
    pem.windows(27).filter(|w| *w == b"-----BEGIN CERTIFICATE-----").count()
}

/// Waits until the replicas show a certificate by the authority in use, and both configurations trust it.
async fn settled(cluster: &Cluster, replicas: &[&Replica]) {
    eventually("all show the same certificate, and it is trusted", async || {
        let wanted = authorities(cluster).await;
        let mut shown = Vec::new();
        for replica in replicas {
            let Ok(leaf) = Asker::new(replica.address, &EGRESS, Trust(wanted.clone())).shown().await else {
                return false;
            };
            shown.push(leaf);
        }
        let stored = secret(cluster, &EGRESS).await.unwrap().data.unwrap()["tls.crt"].0.clone();
        let stored = pem::parse(stored).unwrap();
        shown.iter().all(|leaf| leaf.as_ref() == stored.contents())
            && bundles(cluster).await == [wanted.clone(), wanted]
    })
    .await;
}

#[tokio::test]
async fn two_replicas_make_one_authority_and_mend_what_others_break() {
    let cluster = Cluster::start().await;
    install(&cluster, &EGRESS).await;
    let start = async || Replica::start(&cluster, Egresses, Source::Rotation(quick()), false);
    let (first, second) = tokio::join!(start(), start());
    settled(&cluster, &[&first, &second]).await;
    first.is_ready().await;
    second.is_ready().await;
    let authority = authorities(&cluster).await;
    assert_eq!(certificates(&authority), 1, "of two that began at once one won");
    let asker = Asker::new(first.address, &EGRESS, Trust(authority.clone()));
    assert_eq!(asker.ask(EGRESS.validate_path, &good()).await["allowed"], true);
    let asker = Asker::new(second.address, &EGRESS, Trust(authority.clone())).tls12();
    assert_eq!(asker.ask(EGRESS.validate_path, &good()).await["allowed"], true);

    // Somebody applies the manifest again, or writes another authority.
    let patch = json!([{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}]);
    let patch = Patch::<Value>::Json(serde_json::from_value(patch).unwrap());
    let validating = cluster.all::<ValidatingWebhookConfiguration>();
    validating.patch(&EGRESS.validating(), &PatchParams::default(), &patch).await.unwrap();
    settled(&cluster, &[&first, &second]).await;
    let mutating = cluster.all::<MutatingWebhookConfiguration>();
    mutating.delete(&EGRESS.mutating(), &DeleteParams::default()).await.unwrap();
    validating.delete(&EGRESS.validating(), &DeleteParams::default()).await.unwrap();
    install(&cluster, &EGRESS).await;
    settled(&cluster, &[&first, &second]).await;
    assert_eq!(authorities(&cluster).await, authority, "nothing new was made for that");
}

#[tokio::test]
async fn a_damaged_secret_is_mended_and_a_deleted_one_made_anew() {
    let cluster = Cluster::start().await;
    install(&cluster, &EGRESS).await;
    let (first, second) = (started(&cluster, &quick()).await, started(&cluster, &quick()).await);
    settled(&cluster, &[&first, &second]).await;
    let old = authorities(&cluster).await;
    let secrets = cluster.of::<Secret>("kube-system");
    let data = |fields: Value| Patch::Merge(json!({"data": fields}));
    let damage = data(json!({"tls.crt": ByteString(b"rubbish".to_vec()), "tls.key": null}));
    secrets.patch(&EGRESS.secret(), &PatchParams::default(), &damage).await.unwrap();
    eventually("the certificate is made anew", async || {
        let data = secret(&cluster, &EGRESS).await.unwrap().data.unwrap();
        data.contains_key("tls.key") && data["tls.crt"].0.starts_with(b"-----BEGIN")
    })
    .await;
    settled(&cluster, &[&first, &second]).await;
    assert_eq!(authorities(&cluster).await, old, "by the same authority");

    secrets.delete(&EGRESS.secret(), &DeleteParams::default()).await.unwrap();
    settled(&cluster, &[&first, &second]).await;
    let new = authorities(&cluster).await;
    assert_eq!(certificates(&new), 2, "the old authority is trusted for a while");
    assert!(new.ends_with(&old) && !new.starts_with(&old));
}

#[tokio::test]
async fn certificates_are_renewed_before_their_end_and_an_old_authority_is_forgotten() {
    let cluster = Cluster::start().await;
    install(&cluster, &EGRESS).await;
    let days = Arc::new(AtomicI64::new(0));
    let clock = days.clone();
    let clock = Arc::new(move || Timestamp::now() + SignedDuration::from_hours(24 * clock.load(SeqCst)));
    let rotation = Rotation { clock, ..quick() };
    let replica = started(&cluster, &rotation).await;
    let field = async |name: &str| secret(&cluster, &EGRESS).await.unwrap().data.unwrap()[name].0.clone();
    let (authority, certificate) = (field("ca.crt").await, field("tls.crt").await);
    let end = || replica.registry.gather()[0].get_metric()[0].get_gauge().get_value();
    let year = f64::from(365 * 86_400);
    let since_1970 = |days: i64| Timestamp::now().as_second() + days * 86_400;
    #[expect(clippy::cast_precision_loss, reason = "seconds since 1970 are exact")]
    let about = |end: f64, days: i64| (end - year - since_1970(days) as f64).abs() < 3600.0;
    assert!(about(end(), 0), "{}", end());
    days.store(250, SeqCst);
    eventually("the certificate is renewed", async || field("tls.crt").await != certificate).await;
    eventually("the new one is served", async || about(end(), 250)).await;
    assert_eq!(field("ca.crt").await, authority);
    days.store(2500, SeqCst);
    eventually("the authority is renewed", async || certificates(&field("ca.crt").await) == 2).await;
    let both = field("ca.crt").await;
    assert!(both.ends_with(&authority));
    eventually("API servers are told of both", async || {
        bundles(&cluster).await == [both.clone(), both.clone()]
    })
    .await;
    days.store(2502, SeqCst);
    eventually("the old authority is forgotten", async || certificates(&field("ca.crt").await) == 1).await;
    let one = field("ca.crt").await;
    assert!(both.starts_with(&one));
    eventually("everywhere", async || bundles(&cluster).await == [one.clone(), one.clone()]).await;
    assert_eq!(replica.state.missing(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_rotation_under_load_loses_no_request() {
    let cluster = Arc::new(Cluster::start().await);
    install(&cluster, &EGRESS).await;
    let rotation = Rotation { propagation: PROPAGATION, ..quick() };
    let (first, second) = (started(&cluster, &rotation).await, started(&cluster, &rotation).await);
    settled(&cluster, &[&first, &second]).await;
    let load = Load::on(&cluster, &[first.address, second.address]);
    for round in 0..3 {
        cluster.of::<Secret>("kube-system").delete(&EGRESS.secret(), &DeleteParams::default()).await.unwrap();
        settled(&cluster, &[&first, &second]).await;
        load.goes_on().await;
        assert_eq!(certificates(&authorities(&cluster).await), round + 2);
    }
    load.end().await;
}

#[tokio::test]
async fn a_replaced_certificate_ends_the_program_when_it_is_told_so() {
    let cluster = Cluster::start().await;
    let mut replica = Replica::start(&cluster, Egresses, Source::Rotation(quick()), true);
    replica.is_ready().await;
    // The first certificate is no reason to end.
    let early = tokio::time::timeout(Duration::from_millis(500), replica.running.refreshed()).await;
    assert!(early.is_err());
    cluster.of::<Secret>("kube-system").delete(&EGRESS.secret(), &DeleteParams::default()).await.unwrap();
    tokio::time::timeout(LIMIT, replica.running.refreshed()).await.unwrap().unwrap();
    replica.running.drain(std::future::ready(())).await;
}

#[tokio::test]
async fn until_its_time_to_end_comes_a_replica_serves_on_with_the_new_certificate() {
    let cluster = Cluster::start().await;
    install(&cluster, &EGRESS).await;
    let hour = Some(Duration::from_secs(3600));
    let mut replica = Replica::ending(&cluster, Egresses, Source::Rotation(quick()), hour);
    replica.is_ready().await;
    for _ in 0..2 {
        cluster.of::<Secret>("kube-system").delete(&EGRESS.secret(), &DeleteParams::default()).await.unwrap();
        settled(&cluster, &[&replica]).await;
        assert!(replica.running.refreshed().now_or_never().is_none());
    }
}

/// How long API servers may take to hear of a new authority where requests are counted.
const PROPAGATION: SignedDuration = SignedDuration::from_secs(5);

/// Asks a replica all the time, each time over a new connection, with what an API server knew a moment ago.
struct Load {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn on(cluster: &Arc<Cluster>, addresses: &[std::net::SocketAddr]) -> Self {
        let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let start = |address: &std::net::SocketAddr| {
            let (cluster, stop, asked, address) = (cluster.clone(), stop.clone(), asked.clone(), *address);
            tokio::spawn(async move {
                let question = good();
                while !stop.load(SeqCst) {
                    let read = Instant::now();
                    let [_, trust] = bundles(&cluster).await;
                    // Much less than it has to hear of a new authority.
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    for _ in 0..3 {
                        let asker = Asker::new(address, &EGRESS, Trust(trust.clone()));
                        let answer = asker.try_ask(EGRESS.validate_path, &question).await;
                        // A machine that stood still meanwhile proves nothing.
                        if let Err(e) = answer {
                            assert!(read.elapsed() >= PROPAGATION.unsigned_abs(), "{e:#}");
                            break;
                        }
                        asked.fetch_add(1, SeqCst);
                    }
                }
            })
        };
        let tasks = addresses.iter().map(start).collect();
        Self { stop, asked, tasks }
    }

    /// Waits for more answers, or for the first that was none.
    async fn goes_on(&self) {
        let before = self.asked.load(SeqCst);
        eventually("requests go on", async || {
            self.asked.load(SeqCst) > before + 4
                || self.tasks.iter().any(tokio::task::JoinHandle::is_finished)
        })
        .await;
    }

    /// None was lost.
    async fn end(self) {
        self.stop.store(true, SeqCst);
        for task in self.tasks {
            task.await.unwrap();
        }
    }
}

/// A backup, Coil v2 or a person writes a Secret that is in order and knows nothing of the authority in use.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_secret_that_somebody_else_writes_loses_no_request() {
    let elsewhere = Cluster::start().await;
    let maker = started(&elsewhere, &quick()).await;
    maker.is_ready().await;
    let foreign = secret(&elsewhere, &EGRESS).await.unwrap().data.unwrap();

    let cluster = Arc::new(Cluster::start().await);
    install(&cluster, &EGRESS).await;
    let rotation = Rotation { propagation: PROPAGATION, ..quick() };
    let (first, second) = (started(&cluster, &rotation).await, started(&cluster, &rotation).await);
    settled(&cluster, &[&first, &second]).await;
    let old = authorities(&cluster).await;
    let load = Load::on(&cluster, &[first.address, second.address]);
    let patch = Patch::Merge(json!({"data": foreign}));
    let secrets = cluster.of::<Secret>("kube-system");
    secrets.patch(&EGRESS.secret(), &PatchParams::default(), &patch).await.unwrap();
    eventually("API servers are told of both authorities", async || {
        let both = bundles(&cluster).await;
        both.iter().all(|bundle| bundle.starts_with(&foreign["ca.crt"].0) && bundle.ends_with(&old))
    })
    .await;
    settled(&cluster, &[&first, &second]).await;
    assert_eq!(authorities(&cluster).await, foreign["ca.crt"].0, "it was left as it was");
    load.goes_on().await;
    load.end().await;
}

#[tokio::test]
async fn mounted_files_are_served_and_read_again_when_they_change() {
    let cluster = Cluster::start().await;
    install(&cluster, &EGRESS).await;
    let maker = started(&cluster, &quick()).await;
    let dir = tempfile::tempdir().unwrap();
    let mut replica = Replica::start(&cluster, Egresses, Source::Files(dir.path().to_owned()), true);
    eventually("it says what is missing", async || {
        replica.state.missing().is_some_and(|why| why.contains("tls.crt") && why.contains("--cert-dir"))
    })
    .await;
    let put = async |trust: &Trust| {
        let data = secret(&cluster, &EGRESS).await.unwrap().data.unwrap();
        assert_eq!(data["ca.crt"].0, trust.0);
        std::fs::write(dir.path().join("tls.key"), &data["tls.key"].0).unwrap();
        std::fs::write(dir.path().join("tls.crt"), &data["tls.crt"].0).unwrap();
    };
    let old = Trust::secret(&cluster, &EGRESS).await;
    let asker = Asker::new(replica.address, &EGRESS, old.clone());
    assert!(asker.connect().await.is_err(), "no certificate, no connection");
    put(&old).await;
    replica.is_ready().await;
    assert_eq!(asker.ask(EGRESS.validate_path, &good()).await["allowed"], true);

    let shown = asker.shown().await.unwrap();
    std::fs::write(dir.path().join("tls.key"), "half of").unwrap();
    cluster.of::<Secret>("kube-system").delete(&EGRESS.secret(), &DeleteParams::default()).await.unwrap();
    settled(&cluster, &[&maker]).await;
    assert_eq!(asker.shown().await.unwrap(), shown, "half a pair changes nothing");
    let new = Trust::secret(&cluster, &EGRESS).await;
    assert_ne!(new, old);
    put(&new).await;
    tokio::time::timeout(LIMIT, replica.running.refreshed()).await.unwrap().unwrap();
    assert_ne!(Asker::new(replica.address, &EGRESS, new).shown().await.unwrap(), shown);
}
