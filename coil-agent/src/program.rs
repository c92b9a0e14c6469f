//! What the long-running programs share: logging, signals, listeners.

use std::{ffi::OsString, io::IsTerminal as _, sync::Arc};

use anyhow::{Context, Result};
use coil_api::flags::{ListenAddr, strip_zap};
use prometheus::Registry;
use tokio::signal::unix::{SignalKind, signal};
use tracing::warn;
use tracing_subscriber::EnvFilter;

use crate::serve::{self, Readiness};

/// The command line without the logging flags of Coil v2's framework; those are returned apart, for
/// [`start_logging`].
#[must_use]
pub fn arguments() -> (Vec<OsString>, Vec<String>) {
    strip_zap(std::env::args_os())
}

/// Starts logging to standard error; `RUST_LOG` chooses what.
pub fn start_logging(ignored: &[String]) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .with_target(false)
        .init();
    if !ignored.is_empty() {
        warn!(
            flags = ignored.join(" "),
            "logging flags of Coil v2 have no effect; RUST_LOG chooses what is logged"
        );
    }
}

/// Waits for SIGTERM or SIGINT.
///
/// # Errors
/// When signals cannot be had.
pub fn stopped() -> Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Serves health and metrics in tasks of their own.
///
/// # Errors
/// When an address cannot be listened on.
pub fn serve_http(
    health: ListenAddr,
    ready: Readiness,
    metrics: ListenAddr,
    registry: Registry,
) -> Result<()> {
    let listen = |flag: &str, address: ListenAddr| {
        address.bind().with_context(|| format!("cannot listen on {flag} {address}"))
    };
    let (health, metrics) = (listen("--health-addr", health)?, listen("--metrics-addr", metrics)?);
    tokio::spawn(async move {
        if let Err(e) = serve::health(health, ready).await {
            tracing::error!(error = %e, "health is not served any more");
        }
    });
    tokio::spawn(async move {
        if let Err(e) = serve::metrics(metrics, registry).await {
            tracing::error!(error = %e, "metrics are not served any more");
        }
    });
    Ok(())
}

/// Ready when nothing is missing.
#[must_use]
pub fn ready_when(missing: impl Fn() -> Vec<String> + Send + Sync + 'static) -> Readiness {
    Arc::new(move || match missing() {
        missing if missing.is_empty() => Ok(()),
        missing => Err(format!("waiting for: {}", missing.join(", "))),
    })
}
