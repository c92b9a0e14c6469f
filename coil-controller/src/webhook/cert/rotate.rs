//! Certificates that the program makes itself.
//!
//! ```text
//!  Secret ──judge──▶ in order? ──no──▶ repair ──replace (resource version)──▶ Secret
//!                       │ yes
//!                       ▼
//!              caBundle of both configurations ──▶ trusted for a while ──▶ served
//! ```
//!
//! Every replica does this. Of two that repair at the same time one gets a conflict and looks again. No
//! request is lost when the authority changes: API servers are told to trust both authorities first, and a
//! replica shows the new certificate only after they had time to hear of it. That holds too when somebody else
//! wrote a Secret that does not know the old authority: [`bundle`](super::bundle) keeps that one in the
//! configurations until every replica has changed.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};

use futures::{Stream, StreamExt as _, stream};
use k8s_openapi::{
    api::core::v1::Secret,
    jiff::{SignedDuration, Timestamp},
};
use kube::{
    Api, Client, Resource,
    api::PostParams,
    runtime::{WatchStreamExt as _, watcher},
};
use serde::de::DeserializeOwned;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tracing::{debug, info, warn};

use super::{
    Failed, Served, State,
    bundle::Keeper,
    inject::{Configuration, configurations},
    pair,
    secret::{self, Data, Lifetimes, Material, Subject},
};
use crate::webhook::names::Webhook;

/// What time it is; a test has its own.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Attempts against other replicas before it is left for the next round.
const ATTEMPTS: usize = 5;
/// First and longest wait after a failure.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// How certificates are rotated.
#[derive(Clone)]
pub struct Rotation {
    /// Namespace of the Secret and of the Service.
    pub namespace: String,
    /// How long certificates last.
    pub lifetimes: Lifetimes,
    /// Time that API servers get to hear of a new authority.
    pub propagation: SignedDuration,
    /// Time between two looks when nothing is heard of changes.
    pub interval: Duration,
    /// What time it is.
    pub clock: Clock,
}

impl Rotation {
    /// The usual.
    #[must_use]
    pub fn new(namespace: String) -> Self {
        Self {
            namespace,
            lifetimes: Lifetimes::default(),
            propagation: SignedDuration::from_secs(10),
            interval: Duration::from_secs(300),
            clock: Arc::new(Timestamp::now),
        }
    }
}

/// Keeps Secret, configurations and the served certificate in order.
pub(super) async fn follow(
    client: Client,
    webhook: Webhook,
    rotation: Rotation,
    served: Arc<Served>,
    state: State,
) -> Infallible {
    let mut rotator = Rotator::new(&client, &webhook, rotation, served, state.clone());
    let mut changes = std::pin::pin!(rotator.changes());
    let mut retry = RETRY.0;
    loop {
        let wait = match rotator.round().await {
            Ok(wait) => {
                state.ready();
                retry = RETRY.0;
                wait
            }
            Err(error) => {
                let text = super::chain(&error);
                warn!(error = text, "the webhook certificate is not in order; trying again");
                // What was in order before serves on.
                if rotator.served.current().is_none() || !state.is_ready() {
                    state.waiting(&text);
                }
                let wait = retry;
                retry = (retry * 2).min(RETRY.1);
                wait
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            Some(()) = changes.next() => {}
        }
    }
}

struct Rotator {
    secrets: Api<Secret>,
    secret: String,
    configurations: [Configuration; 2],
    subject: Subject,
    rotation: Rotation,
    served: Arc<Served>,
    state: State,
    /// Authorities of the last Secret that was in order.
    known: Vec<CertificateDer<'static>>,
    /// Since when API servers are told to trust which authorities.
    trusted: BTreeMap<Vec<u8>, Timestamp>,
    /// What API servers are to trust beside the Secret's authorities.
    keeper: Keeper,
    /// Configurations that were missing, to tell of each once.
    missing: Vec<String>,
    /// The certificate that was told to be waiting, to tell of each once.
    waiting: Option<CertificateDer<'static>>,
}

impl Rotator {
    fn new(
        client: &Client,
        webhook: &Webhook,
        rotation: Rotation,
        served: Arc<Served>,
        state: State,
    ) -> Self {
        // A replica that heard nothing of the Secret changes a round later, and then waits for API servers.
        let interval = SignedDuration::try_from(rotation.interval).unwrap_or(SignedDuration::MAX);
        let all_changed = interval.saturating_add(rotation.propagation * 2);
        Self {
            keeper: Keeper::new(webhook.authority(), all_changed),
            secrets: Api::namespaced(client.clone(), &rotation.namespace),
            secret: webhook.secret(),
            configurations: configurations(client, webhook),
            subject: Subject {
                authority: webhook.authority(),
                names: webhook.dns_names(&rotation.namespace),
            },
            rotation,
            served,
            state,
            known: Vec::new(),
            trusted: BTreeMap::new(),
            missing: Vec::new(),
            waiting: None,
        }
    }

    /// Something happened to one of the objects.
    fn changes(&self) -> impl Stream<Item = ()> + use<> {
        let [a, b] = &self.configurations;
        stream::select(
            events(self.secrets.clone(), &self.secret),
            stream::select(events(a.api.clone(), &a.name), events(b.api.clone(), &b.name)),
        )
    }

    /// Tells when to look again.
    async fn round(&mut self) -> Result<Duration, Failed> {
        let material = self.material().await?;
        self.known.clone_from(&material.authorities);
        let now = (self.rotation.clock)();
        for configuration in &self.configurations {
            let wanted = |current: &[CertificateDer<'static>]| self.keeper.bundle(&material, current, now);
            let exists = configuration.inject(wanted).await?;
            let told = self.missing.contains(&configuration.name);
            if !exists && !told {
                warn!(
                    configuration = configuration.name,
                    "does not exist: apply webhook.yaml of deploy/ipam or deploy/egress to have objects judged"
                );
                self.missing.push(configuration.name.clone());
            } else if exists && told {
                self.missing.retain(|name| *name != configuration.name);
            }
        }
        self.keeper.told(now);
        let now = (self.rotation.clock)();
        self.trusted.retain(|der, _| material.authorities.iter().any(|a| a.as_ref() == der.as_slice()));
        for authority in &material.authorities {
            self.trusted.entry(authority.to_vec()).or_insert(now);
        }
        Ok(self.serve(&material, now))
    }

    /// Serves the certificate when API servers trust it, or when what is served is of no use.
    fn serve(&mut self, material: &Material, now: Timestamp) -> Duration {
        let wait = self.rotation.interval;
        if self.served.is(&material.key) {
            return wait;
        }
        let since = material.authorities.first().and_then(|a| self.trusted.get(a.as_ref()));
        let left = since
            .map_or(SignedDuration::ZERO, |since| self.rotation.propagation - now.duration_since(*since));
        if left.is_positive() && self.serves_well(now) {
            let leaf = material.key.cert.first().cloned();
            if self.waiting != leaf {
                let seconds = left.as_secs();
                info!(seconds, "the new webhook certificate is served when API servers trust it");
                self.waiting = leaf;
            }
            return Duration::try_from(left).unwrap_or(wait).min(wait);
        }
        self.keeper.serves(material.authorities.first());
        let replaced = self.served.replace(material.key.clone());
        self.state.serving(&material.key);
        let until = material.key.cert.first().and_then(pair::facts).map(|f| f.until.to_string());
        info!(secret = self.secret, until, replaced, "serving the webhook certificate");
        wait
    }

    /// Whether somebody is served with a certificate that is good now, as is its authority.
    fn serves_well(&self, now: Timestamp) -> bool {
        let current = self.served.current();
        let leaf = current.and_then(|key| pair::facts(key.cert.first()?));
        let authority = self.keeper.serving().and_then(pair::facts);
        [leaf, authority].iter().all(|facts| facts.as_ref().is_some_and(|facts| facts.is_good(now)))
    }

    /// The Secret in order, made so when it is not.
    async fn material(&self) -> Result<Material, Failed> {
        let failed = |doing, source| {
            let object = format!("Secret {}/{}", self.rotation.namespace, self.secret);
            Failed::Api { doing, object, source: Box::new(source) }
        };
        for _ in 0..ATTEMPTS {
            let found = self.secrets.get_opt(&self.secret).await.map_err(|e| failed("read", e))?;
            let data = found.as_ref().and_then(|s| s.data.clone()).unwrap_or_default();
            let now = (self.rotation.clock)();
            let lack = match secret::judge(&data, &self.subject, now, &self.rotation.lifetimes) {
                Ok(material) => return Ok(material),
                Err(lack) => lack,
            };
            info!(secret = self.secret, %lack, "renewing the webhook certificate");
            let trusted = self.trusted_authorities().await?;
            let lifetimes = &self.rotation.lifetimes;
            let data = secret::repair(&data, &lack, &trusted, &self.subject, now, lifetimes)?;
            match self.write(found, data).await {
                // Read again: another replica may have been faster.
                Ok(()) => {}
                Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => {
                    debug!(secret = self.secret, "another replica was faster");
                }
                Err(source) => return Err(failed("write", source)),
            }
        }
        Err(Failed::Contended(format!("Secret {}/{}", self.rotation.namespace, self.secret)))
    }

    async fn write(&self, found: Option<Secret>, data: Data) -> Result<(), kube::Error> {
        let params = PostParams::default();
        if let Some(mut secret) = found {
            secret.data = Some(data);
            return self.secrets.replace(&self.secret, &params, &secret).await.map(drop);
        }
        let mut secret = Secret { data: Some(data), ..Secret::default() };
        secret.metadata.name = Some(self.secret.clone());
        self.secrets.create(&params, &secret).await.map(drop)
    }

    /// The authorities that API servers may trust now, which the Secret may have lost.
    async fn trusted_authorities(&self) -> Result<Vec<CertificateDer<'static>>, Failed> {
        let mut all = self.known.clone();
        for configuration in &self.configurations {
            for bundle in configuration.bundles().await? {
                all.extend(pair::certificates(&bundle));
            }
        }
        Ok(all)
    }
}

/// A sign for each event of the object with this name.
fn events<K>(api: Api<K>, name: &str) -> impl Stream<Item = ()> + Send + use<K>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let only = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let name = name.to_owned();
    watcher(api, only)
        .default_backoff()
        .map(move |event| {
            if let Err(error) = event {
                debug!(object = name, %error, "watching was interrupted");
            }
        })
        .boxed()
}
