//! Admission webhooks: new pools and Egresses are completed, and what is wrong is refused before it is stored.
//!
//! ```text
//!  API server ──TLS──▶ server ──▶ routes ──▶ review ──▶ pool / egress ──▶ coil_api::validate
//!                        ▲                                  │
//!              cert: files, or Secret + caBundle            └──▶ the other pools, from the API server
//! ```
//!
//! Every replica serves them, leading or not. `crd::rules` refuses a part of it in the API server itself, so
//! that little goes wrong while nobody answers here.

pub mod cert;
pub mod flags;
pub mod names;

mod egress;
mod peers;
mod pool;
mod review;
mod routes;
mod server;

use std::{net::TcpListener, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use axum::Router;
use kube::Client;
use tokio::{sync::watch, task::JoinHandle};
use tracing::{error, info};

pub use egress::Egresses;
pub use pool::Pools;
pub use review::{Malformed, Operation, Question, Refusal};
pub use routes::{Judge, routes};

use cert::{Refreshed, Served, Source, State};
use names::Webhook;

/// How long webhooks are served after SIGTERM: Services still lead to a pod for a while when it ends. A pod has
/// 30 s for its end by default.
pub const LINGER: Duration = Duration::from_secs(5);

/// The webhooks of a program at work.
pub struct Running {
    certificates: JoinHandle<Refreshed>,
    server: JoinHandle<()>,
    stop: watch::Sender<bool>,
}

impl Running {
    /// Serves `routes` on the listener with certificates from `source`; `state` tells how these stand. With
    /// `restart` the program is to be started anew so long after a certificate was replaced.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn start(
        listener: TcpListener,
        routes: Router,
        client: Client,
        webhook: Webhook,
        source: Source,
        state: State,
        restart: Option<Duration>,
    ) -> Result<Self> {
        let served = Arc::new(Served::default());
        let tls = server::acceptor(served.clone())?;
        let (stop, stopped) = watch::channel(false);
        let server = tokio::spawn(async move {
            if let Err(error) = server::serve(listener, tls, routes, stopped).await {
                error!(error = format!("{error:#}"), "webhooks are not served any more");
            }
        });
        let certificates = tokio::spawn(cert::follow(client, webhook, source, served, state, restart));
        Ok(Self { certificates, server, stop })
    }

    /// Waits until the program is to be started anew for a new certificate: for ever, unless that was asked for.
    /// To be awaited once.
    ///
    /// # Errors
    /// When certificates are not looked after any more.
    pub async fn refreshed(&mut self) -> Result<()> {
        (&mut self.certificates).await.context("the webhook certificate is not looked after any more")?;
        info!("ending, to be started again with the new webhook certificate");
        Ok(())
    }

    /// Serves on until `linger` is over, then takes no new connection, and answers what was asked already.
    pub async fn drain(mut self, linger: impl Future<Output = ()>) {
        linger.await;
        self.stop.send_replace(true);
        if (&mut self.server).await.is_err() {
            error!("the webhook server did not end well");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.certificates.abort();
    }
}
