//! What both controllers do around their work: endpoints, webhooks, leadership.

use std::{future::Future, sync::Arc, time::Duration};

use anyhow::{Context, Result, anyhow};
use coil_api::flags::ListenAddr;
use coil_program::serve::Readiness;
use kube::Client;
use prometheus::{Registry, process_collector::ProcessCollector};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::{
    lease::Candidate,
    webhook::{self, Judge, Running, cert::State, flags::Flags, names::Webhook},
};

/// What a controller is, beside its work.
pub struct Program {
    /// Name of its Lease.
    pub lease: &'static str,
    /// Address of `/metrics`.
    pub metrics_addr: ListenAddr,
    /// Address of `/healthz` and `/readyz`.
    pub health_addr: ListenAddr,
    /// Its metrics.
    pub registry: Registry,
    /// Names of its webhooks.
    pub webhook: Webhook,
    /// How they are served.
    pub flags: Flags,
}

/// How a controller reports why it may not be called ready; none when it may.
pub type Ready = watch::Sender<Option<String>>;

/// Serves endpoints and webhooks, waits for the lease, and runs `work` as the leader. Ends on SIGTERM or SIGINT, or
/// after a new webhook certificate when that was asked for: the lease is released at once, webhooks are served for a
/// moment more, which a second signal ends.
///
/// # Errors
/// When an endpoint cannot be opened, the API cannot be configured, the lease is lost, or `work` ends.
pub async fn run<J, F, W>(program: Program, judge: impl FnOnce(&Client) -> J, work: F) -> Result<()>
where
    J: Judge,
    F: FnOnce(Client, Ready) -> W,
    W: Future<Output = Result<()>>,
{
    let Program { lease, metrics_addr, health_addr, registry, webhook, flags } = program;
    let stop = coil_program::stopped()?;
    tokio::pin!(stop);
    registry.register(Box::new(ProcessCollector::for_self())).context("cannot register process metrics")?;
    let (ready, readiness) = watch::channel(Some("the API server was not reached yet".to_owned()));
    let certificate = State::new(&registry).context("cannot register the metrics of the webhooks")?;
    let (state, listener) =
        (certificate.clone(), coil_program::listen("--webhook-addr", flags.address(&webhook))?);
    let readiness: Readiness = Arc::new(move || {
        let missing = readiness.borrow().clone().or_else(|| certificate.missing());
        missing.map_or(Ok(()), Err)
    });
    coil_program::serve_http(health_addr, readiness, metrics_addr, registry)?;

    // kube's errors repeat their causes themselves.
    let client = Client::try_default().await.map_err(|e| {
        anyhow!("no access to the API server: set KUBECONFIG, or run in a pod with a service account ({e})")
    })?;
    let routes = webhook::routes(judge(&client));
    let source = flags.source(|name| std::env::var(name).ok());
    let restart = flags.restart();
    let mut webhooks = Running::start(listener, routes, client.clone(), webhook, source, state, restart)?;

    let ended = async {
        tokio::select! {
            () = &mut stop => {
                info!("stopping");
                Ok(())
            }
            result = webhooks.refreshed() => result,
        }
    };
    let result = lead(client, lease, ready, ended, work).await;
    // Another replica may lead by now; this one is asked until Services have forgotten it.
    let again = coil_program::stopped()?;
    let linger = async {
        if result.is_ok() {
            tokio::select! {
                () = tokio::time::sleep(webhook::LINGER) => {}
                () = again => {}
            }
        }
    };
    webhooks.drain(linger).await;
    result
}

/// Runs `work` while the lease is held, until `ended`.
async fn lead<F, W>(
    client: Client,
    lease: &'static str,
    ready: Ready,
    ended: impl Future<Output = Result<()>>,
    work: F,
) -> Result<()>
where
    F: FnOnce(Client, Ready) -> W,
    W: Future<Output = Result<()>>,
{
    tokio::pin!(ended);
    let mut candidate = Candidate::new(client.clone(), lease, Candidate::unique_identity());
    let reachable = async {
        while let Err(e) = client.apiserver_version().await {
            warn!(error = %e, "the API server cannot be reached; trying again");
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        // A standby is ready: it takes over as soon as it can.
        ready.send_replace(None);
    };
    let standby = async {
        reachable.await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        result = &mut ended => return result,
        () = standby => {}
        // From here on it has to be renewed, whatever else the API server answers.
        () = candidate.acquire() => {}
    }

    let leader = candidate.fenced(&client);
    let result = tokio::select! {
        result = &mut ended => result,
        lost = candidate.hold() => return Err(lost.into()),
        worked = work(leader, ready) => match worked {
            Ok(()) => Err(anyhow!("the controller ended by itself")),
            Err(e) => Err(e),
        },
    };
    // The work is dropped by now: nothing is written after another one may lead.
    candidate.release().await;
    result
}
