use std::{
    net::TcpListener,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use coil_program::serve::{self, Readiness};
use prometheus::Registry;
use tracing::info;

use super::{ask::ask, metrics::Metrics, settings::Settings, state::State};

/// How often coild is asked.
const PERIOD: Duration = Duration::from_millis(500);

/// Where the program listens and asks.
#[derive(Debug)]
pub struct Endpoints {
    /// For /metrics.
    pub metrics: TcpListener,
    /// For /healthz and /readyz.
    pub health: TcpListener,
    /// Name of coild's abstract socket.
    pub socket: String,
}

/// Serves until `stop` resolves and then until the flows are gone, `drain_timeout` at most.
///
/// # Errors
/// When an endpoint fails.
pub async fn run(
    settings: Settings,
    endpoints: Endpoints,
    drain_timeout: Duration,
    stop: impl Future<Output = ()>,
) -> Result<()> {
    let registry = Registry::new();
    let metrics = Metrics::new(&settings, &registry).context("cannot register metrics")?;
    let state = Arc::new(Mutex::new(State::new(settings)));
    let readiness: Readiness = {
        let state = state.clone();
        Arc::new(move || state.lock().unwrap_or_else(PoisonError::into_inner).ready(Instant::now()))
    };
    let health = serve::health(endpoints.health, readiness);
    let exporter = serve::metrics(endpoints.metrics, registry);
    tokio::pin!(health, exporter, stop);

    let mut stopping = false;
    let mut said = None;
    let mut tick = tokio::time::interval(PERIOD);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            ended = &mut health => return Err(ended_early("health", ended)),
            ended = &mut exporter => return Err(ended_early("metrics", ended)),
            () = &mut stop, if !stopping => {
                stopping = true;
                info!(seconds = drain_timeout.as_secs(), "terminating: waiting for flows to end");
                state.lock().unwrap_or_else(PoisonError::into_inner).drain(Instant::now());
            }
            _ = tick.tick() => {
                let socket = endpoints.socket.clone();
                // What is found out is not older than the question.
                let asked = Instant::now();
                let answer = tokio::task::spawn_blocking(move || ask(&socket).map_err(|e| e.to_string()))
                    .await
                    .context("asking coild")?;
                let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                state.observe(answer, asked);
                let now = Instant::now();
                metrics.update(&state, now);
                let ready = state.ready(now);
                if said.as_ref() != Some(&ready) {
                    match &ready {
                        Ok(()) => info!("ready"),
                        Err(reason) => info!(reason, "not ready"),
                    }
                    said = Some(ready);
                }
                if state.drained(now, drain_timeout) {
                    info!(flows = state.flows(), "ending");
                    return Ok(());
                }
            }
        }
    }
}

fn ended_early(what: &str, result: std::io::Result<()>) -> anyhow::Error {
    match result {
        Ok(()) => anyhow!("the {what} endpoint ended"),
        Err(e) => anyhow::Error::new(e).context(format!("the {what} endpoint failed")),
    }
}
