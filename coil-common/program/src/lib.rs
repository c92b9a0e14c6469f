//! What Coil's long-running programs share: command line, logging, signals, health, metrics and words of Events.

pub mod event;
pub mod memory;
pub mod serve;

use std::{io::IsTerminal as _, net::TcpListener, process::ExitCode, sync::Arc};

use anyhow::{Context, Result};
use clap::Parser;
use coil_api::flags::{ListenAddr, strip_zap};
use prometheus::Registry;
use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
};
use tracing::{error, warn};
use tracing_subscriber::EnvFilter;

use serve::Readiness;

/// Parses the command line, and starts logging to standard error; `RUST_LOG` chooses what, else info.
/// Logging flags of Coil v2's framework are accepted with a warning.
#[must_use]
pub fn start<A: Parser>() -> A {
    let (args, ignored) = strip_zap(std::env::args_os());
    let args = A::parse_from(args);
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .with_target(false)
        .init();
    if !ignored.is_empty() {
        let flags = ignored.join(" ");
        warn!(flags, "logging flags of Coil v2 have no effect; RUST_LOG chooses what is logged");
    }
    args
}

/// The program itself, on this many threads. An error is one line, with its causes.
#[must_use]
pub fn main(threads: usize, program: impl Future<Output = Result<()>>) -> ExitCode {
    memory::keep_small();
    let mut builder = match threads {
        0 | 1 => runtime::Builder::new_current_thread(),
        _ => runtime::Builder::new_multi_thread(),
    };
    let runtime = builder.worker_threads(threads.max(1)).enable_all().build().context("cannot start threads");
    match runtime.and_then(|runtime| runtime.block_on(program)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Waits for SIGTERM or SIGINT; catches them from the call on.
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

/// Opens a listening socket; `flag` names the flag that gave the address.
///
/// # Errors
/// When the address cannot be listened on.
pub fn listen(flag: &str, address: ListenAddr) -> Result<TcpListener> {
    address.bind().with_context(|| format!("cannot listen on {address}; choose another {flag}"))
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
    let health = listen("--health-addr", health)?;
    let metrics = listen("--metrics-addr", metrics)?;
    tokio::spawn(async move {
        if let Err(e) = serve::health(health, ready).await {
            error!(error = %e, "health is not served any more");
        }
    });
    tokio::spawn(async move {
        if let Err(e) = serve::metrics(metrics, registry).await {
            error!(error = %e, "metrics are not served any more");
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
