use std::{
    net::TcpListener,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use coil_api::gateway::GatewayStatus;
use coil_program::serve::{self, NotedReadiness};
use prometheus::Registry;
use tokio::task::{JoinError, JoinHandle};
use tracing::info;

use super::{ask::ask, metrics::Metrics, settings::Settings, state::State};

/// How often coild is asked.
const PERIOD: Duration = Duration::from_millis(500);
/// How long after the question coild passes for silent.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long coild may take for an answer.
pub const LIMIT: Duration = Duration::from_secs(2);

/// Where the program listens and asks.
#[derive(Debug)]
pub struct Endpoints {
    /// For /metrics.
    pub metrics: TcpListener,
    /// For /healthz and /readyz.
    pub health: TcpListener,
    /// Name of coild's abstract socket.
    pub socket: String,
    /// How long coild may take for an answer there: [`LIMIT`].
    pub limit: Duration,
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
    let mut metrics = Metrics::new(&settings, &registry).context("cannot register metrics")?;
    let state = Arc::new(Mutex::new(State::new(settings)));
    let readiness: NotedReadiness = {
        let state = state.clone();
        Arc::new(move || {
            let state = lock(&state);
            state.ready(Instant::now()).map(|()| state.note())
        })
    };
    let health = serve::noted_health(endpoints.health, readiness);
    let exporter = serve::metrics(endpoints.metrics, registry);
    tokio::pin!(health, exporter, stop);

    let mut stopping = false;
    let mut said = None;
    // The question that is under way, and since when.
    let mut question: Option<(JoinHandle<Answer>, Instant)> = None;
    let mut tick = tokio::time::interval(PERIOD);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            ended = &mut health => return Err(ended_early("health", ended)),
            ended = &mut exporter => return Err(ended_early("metrics", ended)),
            () = &mut stop, if !stopping => {
                stopping = true;
                info!(seconds = drain_timeout.as_secs(), "terminating: waiting for flows to end");
                lock(&state).drain(Instant::now());
                continue;
            }
            (answer, asked) = answered(&mut question) => lock(&state).observe(answer.context("asking coild")?, asked),
            _ = tick.tick() => match &question {
                // What is found out is not older than the question.
                None => {
                    let (socket, limit) = (endpoints.socket.clone(), endpoints.limit);
                    let ask = tokio::task::spawn_blocking(move || ask(&socket, limit).map_err(|e| e.to_string()));
                    question = Some((ask, Instant::now()));
                    continue;
                }
                // A coild that hangs is silent; nobody else waits for it.
                Some((_, asked)) if asked.elapsed() > PATIENCE => {
                    // The same words each time: the Egress's status says them, and who writes it asks again at each change.
                    lock(&state).observe(Err("coild does not answer".to_owned()), *asked);
                }
                Some(_) => {}
            },
        }
        let state = lock(&state);
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

/// What coild said, or why nothing.
type Answer = Result<GatewayStatus, String>;

/// The answer to the question that is under way, which then is none any more; for ever when there is none.
async fn answered(
    question: &mut Option<(JoinHandle<Answer>, Instant)>,
) -> (Result<Answer, JoinError>, Instant) {
    let Some((handle, asked)) = question else { return std::future::pending().await };
    let answer = (handle.await, *asked);
    *question = None;
    answer
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // The data is whole after each statement, so a panic elsewhere does not spoil it.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ended_early(what: &str, result: std::io::Result<()>) -> anyhow::Error {
    match result {
        Ok(()) => anyhow!("the {what} endpoint ended"),
        Err(e) => anyhow::Error::new(e).context(format!("the {what} endpoint failed")),
    }
}
