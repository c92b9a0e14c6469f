//! What the `coil` plugin asks: ADD, DEL, CHECK, GC and STATUS over gRPC.
//!
//! ```text
//! server ──▶ add: pod ▶ pool, Egresses ▶ address ▶ network ▶ datapath ──▶ result
//!        ──▶ del: network ▶ datapath ▶ address
//! ```
//!
//! - [`server`]: the gRPC service, and one log line per request; [`socket`]: where it is found.
//! - `request`: what is read out of the plugin's request.
//! - `lookup`: the pod and what its objects ask for.
//! - `add`, `del`, `check`, `gc`: the verbs; [`health`] is the answer to STATUS.
//! - `chained`: ADD and DEL of a pod that another plugin connected.
//! - `failure`: errors as the runtime reads them.

mod add;
mod chained;
mod check;
mod del;
mod failure;
#[cfg(test)]
pub(crate) mod fixture;
mod gc;
pub mod health;
mod locks;
mod lookup;
mod metrics;
mod request;
mod result;
pub mod server;
pub mod socket;

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

    /// Milliseconds since the start, with one digit behind the point.
    #[must_use]
    pub fn total(&self) -> f64 {
        (self.started.elapsed().as_secs_f64() * 1e4).round() / 10.0
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
