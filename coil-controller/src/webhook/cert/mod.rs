//! Where the server's certificate comes from: [`files`] that somebody mounts, or a Secret that the program
//! keeps in order by itself ([`rotate`]).

mod files;
mod inject;
mod issue;
mod pair;
mod rotate;
mod secret;
mod served;

use std::{error::Error, path::PathBuf, sync::Arc};

use kube::Client;
use tokio::sync::watch;

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

/// Tells `/readyz` how it stands.
#[derive(Debug, Clone)]
pub struct State(Arc<watch::Sender<Option<String>>>);

impl State {
    /// Nothing is there yet.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Some("the webhook certificate is not there yet".to_owned()))))
    }

    /// Why not, while it is not in order.
    #[must_use]
    pub fn missing(&self) -> Option<String> {
        self.0.borrow().clone()
    }

    fn is_ready(&self) -> bool {
        self.0.borrow().is_none()
    }

    fn ready(&self) {
        self.0.send_replace(None);
    }

    fn waiting(&self, why: &str) {
        self.0.send_replace(Some(format!("webhook certificate: {why}")));
    }
}

impl Default for State {
    fn default() -> Self {
        Self::new()
    }
}

/// Keeps the served certificate in order. Returns only with `restart`, after a served certificate was replaced.
pub async fn follow(
    client: Client,
    webhook: Webhook,
    source: Source,
    served: Arc<Served>,
    state: State,
    restart: bool,
) -> Refreshed {
    match source {
        Source::Files(dir) => files::follow(dir, served, state, restart).await,
        Source::Rotation(rotation) => rotate::follow(client, webhook, rotation, served, state, restart).await,
    }
}
