//! Where the server's certificate comes from: [`files`] that somebody mounts, or a Secret that the program
//! keeps in order by itself ([`rotate`]).

mod bundle;
mod files;
mod inject;
mod issue;
mod pair;
mod rotate;
mod secret;
mod served;

use std::{error::Error, path::PathBuf, sync::Arc, time::Duration};

use kube::Client;
use prometheus::{IntGauge, Registry};
use tokio::sync::watch;
use tokio_rustls::rustls::sign::CertifiedKey;
use tracing::info;

pub use pair::{PairError, certified};
pub use rotate::{Clock, Rotation};
pub use secret::{Lifetimes, Subject};
pub use served::Served;

use super::names::Webhook;

/// Where certificates come from.
#[derive(Clone)]
pub enum Source {
    /// `tls.crt` and `tls.key` in this directory.
    Files(PathBuf),
    /// The program itself.
    Rotation(Rotation),
}

/// A served certificate was replaced, and the program is to be started anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refreshed;

/// Why certificates are not in order.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failed {
    /// The API server.
    #[error("cannot {doing} {object}")]
    Api {
        /// What was tried.
        doing: &'static str,
        /// On what.
        object: String,
        /// What it says.
        source: Box<kube::Error>,
    },
    /// Others write the same object all the time.
    #[error("others write {0} at the same time")]
    Contended(String),
    /// A certificate could not be made.
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
}

/// An error with its causes, in one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Tells `/readyz` and `/metrics` how it stands.
#[derive(Debug, Clone)]
pub struct State {
    missing: Arc<watch::Sender<Option<String>>>,
    expiration: IntGauge,
}

impl State {
    /// Nothing is there yet. The certificate's end becomes a metric of the registry.
    ///
    /// # Errors
    /// When the registry has that metric already.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let expiration = IntGauge::new(
            "coil_webhook_certificate_expiration_timestamp_seconds",
            "The end of the certificate that webhooks are served with, in seconds since 1970.",
        )?;
        registry.register(Box::new(expiration.clone()))?;
        let missing = watch::Sender::new(Some("the webhook certificate is not there yet".to_owned()));
        Ok(Self { missing: Arc::new(missing), expiration })
    }

    /// Why not, while it is not in order.
    #[must_use]
    pub fn missing(&self) -> Option<String> {
        self.missing.borrow().clone()
    }

    fn is_ready(&self) -> bool {
        self.missing.borrow().is_none()
    }

    fn ready(&self) {
        self.missing.send_replace(None);
    }

    fn waiting(&self, why: &str) {
        self.missing.send_replace(Some(format!("webhook certificate: {why}")));
    }

    /// Tells until when the certificate is good that is served now.
    fn serving(&self, key: &CertifiedKey) {
        if let Some(facts) = key.cert.first().and_then(pair::facts) {
            self.expiration.set(facts.until.as_second());
        }
    }
}

/// Keeps the served certificate in order. Returns only with `restart`: so long after a served certificate was
/// replaced. Until then certificates are followed as ever.
pub async fn follow(
    client: Client,
    webhook: Webhook,
    source: Source,
    served: Arc<Served>,
    state: State,
    restart: Option<Duration>,
) -> Refreshed {
    let replaced = served.clone();
    let refreshed = async {
        let Some(delay) = restart else { return std::future::pending().await };
        replaced.replaced().await;
        info!(
            seconds = delay.as_secs(),
            "the webhook certificate was replaced; the program ends later for that"
        );
        tokio::time::sleep(delay).await;
        Refreshed
    };
    let followed = async {
        match source {
            Source::Files(dir) => files::follow(dir, served, state).await,
            Source::Rotation(rotation) => rotate::follow(client, webhook, rotation, served, state).await,
        }
    };
    tokio::select! {
        never = followed => match never {},
        refreshed = refreshed => refreshed,
    }
}
