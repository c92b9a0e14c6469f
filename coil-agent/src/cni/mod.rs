//! What the `coil` plugin asks: ADD, DEL and CHECK over gRPC.
//!
//! ```text
//! server ──▶ add: pod ▶ pool, Egresses ▶ address ▶ network ▶ datapath ──▶ result
//!        ──▶ del: network ▶ datapath ▶ address
//! ```
//!
//! - [`server`]: the socket, the gRPC service, metrics and one log line per request.
//! - `request`: what is read out of the plugin's request.
//! - `lookup`: the pod and what its objects ask for.
//! - `add`, `del`: the verbs.
//! - `failure`: errors as the runtime reads them.

mod add;
mod del;
mod failure;
mod locks;
mod lookup;
mod request;
mod result;
pub mod server;

use std::time::{Duration, Instant};

pub use failure::Failure;

/// How long each phase of a request took.
#[derive(Debug)]
pub struct Phases {
    started: Instant,
    last: Instant,
    done: Vec<(&'static str, Duration)>,
}

impl Default for Phases {
    fn default() -> Self {
        let now = Instant::now();
        Self { started: now, last: now, done: Vec::new() }
    }
}

impl Phases {
    /// Notes that a phase has ended.
    fn end(&mut self, phase: &'static str) {
        let now = Instant::now();
        self.done.push((phase, now - self.last));
        self.last = now;
    }

    /// Milliseconds since the start.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.started.elapsed().as_secs_f64() * 1e3
    }
}

impl std::fmt::Display for Phases {
    /// `lookup=1.2 address=0.1 …`, in milliseconds.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, (phase, took)) in self.done.iter().enumerate() {
            let space = if i == 0 { "" } else { " " };
            write!(f, "{space}{phase}={:.1}", took.as_secs_f64() * 1e3)?;
        }
        Ok(())
    }
}
