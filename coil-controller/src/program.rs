//! What both controllers do around their work: flags, endpoints, leadership.

use std::{future::Future, sync::Arc, time::Duration};

use anyhow::{Context, Result, anyhow, bail};
use coil_api::flags::{ListenAddr, parse_bool};
use coil_program::serve::Readiness;
use kube::Client;
use prometheus::{Registry, process_collector::ProcessCollector};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::lease::Candidate;

/// A flag of Coil v2 that this version does not serve: only its default is accepted.
///
/// # Errors
/// When another value was given.
pub fn refuse(flag: &str, given: Option<&str>, default: &str, instead: &str) -> Result<()> {
    match given {
        Some(value) if value != default => {
            bail!(
                "--{flag}={value} is not supported by this version: {instead}; leave the flag out or set {default}"
            )
        }
        _ => Ok(()),
    }
}

/// Coil v2's flags of admission webhooks.
#[derive(Debug, Clone, clap::Args)]
pub struct WebhookFlags {
    /// Not supported by this version: webhooks are not served.
    #[arg(long)]
    webhook_addr: Option<ListenAddr>,
    /// Not supported by this version: webhooks are not served.
    #[arg(long)]
    cert_dir: Option<String>,
    /// Not supported by this version: webhooks are not served.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = parse_bool)]
    enable_cert_rotation: Option<bool>,
    /// Not supported by this version: webhooks are not served.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = parse_bool)]
    enable_restart_on_cert_refresh: Option<bool>,
}

impl WebhookFlags {
    /// Accepts their defaults alone.
    ///
    /// # Errors
    /// Names the first flag that has another value.
    pub fn refuse(&self, default_addr: &str) -> Result<()> {
        let why = "it serves no admission webhooks";
        let text = |b: Option<bool>| b.map(|b| b.to_string());
        let addr = self.webhook_addr.map(|a| a.to_string());
        refuse("webhook-addr", addr.as_deref(), default_addr, why)?;
        refuse("cert-dir", self.cert_dir.as_deref(), "/certs", why)?;
        refuse("enable-cert-rotation", text(self.enable_cert_rotation).as_deref(), "false", why)?;
        let restart = text(self.enable_restart_on_cert_refresh);
        refuse("enable-restart-on-cert-refresh", restart.as_deref(), "false", why)
    }
}

/// How a controller reports why it may not be called ready; none when it may.
pub type Ready = watch::Sender<Option<String>>;

/// Serves the endpoints, waits for the lease, and runs `work` as the leader.
/// Ends on SIGTERM or SIGINT, and releases the lease then.
///
/// # Errors
/// When an endpoint cannot be opened, the API cannot be configured, the lease is lost, or `work` ends.
pub async fn run<F, W>(
    lease: &'static str,
    metrics_addr: ListenAddr,
    health_addr: ListenAddr,
    registry: Registry,
    work: F,
) -> Result<()>
where
    F: FnOnce(Client, Ready) -> W,
    W: Future<Output = Result<()>>,
{
    let stop = coil_program::stopped()?;
    tokio::pin!(stop);
    registry.register(Box::new(ProcessCollector::for_self())).context("cannot register process metrics")?;
    let (ready, readiness) = watch::channel(Some("the API server was not reached yet".to_owned()));
    let readiness: Readiness = Arc::new(move || readiness.borrow().clone().map_or(Ok(()), Err));
    coil_program::serve_http(health_addr, readiness, metrics_addr, registry)?;

    // kube's errors repeat their causes themselves.
    let client = Client::try_default().await.map_err(|e| {
        anyhow!("no access to the API server: set KUBECONFIG, or run in a pod with a service account ({e})")
    })?;
    let mut candidate = Candidate::new(client.clone(), lease, Candidate::unique_identity());
    let reachable = async {
        while let Err(e) = client.apiserver_version().await {
            warn!(error = %e, "the API server cannot be reached; trying again");
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        // A standby is ready: it takes over as soon as it can.
        ready.send_replace(None);
    };
    let standby = async { tokio::join!(reachable, candidate.acquire()) };
    tokio::select! {
        () = &mut stop => {
            info!("stopping");
            return Ok(());
        }
        _ = standby => {}
    }

    let leader = candidate.fenced(&client);
    let result = tokio::select! {
        () = &mut stop => {
            info!("stopping");
            Ok(())
        }
        lost = candidate.hold() => return Err(lost.into()),
        ended = work(leader, ready) => match ended {
            Ok(()) => Err(anyhow!("the controller ended by itself")),
            Err(e) => Err(e),
        },
    };
    // The work is dropped by now: nothing is written after another one may lead.
    candidate.release().await;
    result
}
