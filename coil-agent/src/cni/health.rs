//! What STATUS answers: whether ADD can be served, and whether connected pods are impaired.
//!
//! Runtimes make a node not ready by this, so a moment's trouble is no news: what was well is called broken only
//! when trouble has lasted, and what was broken is called well at once. Nothing is asked of the API server here, and
//! that it does not answer is no trouble: pods start from what the node has. A pool without addresses is none
//! of the node's either: pods of other namespaces still get theirs, and ADD says what to do.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use coil_api::cni::code;
use tracing::{info, warn};

use super::Failure;

/// How long trouble lasts before it is told.
pub const HOLD: Duration = Duration::from_secs(10);
/// How often the node is looked at.
pub const PERIOD: Duration = Duration::from_secs(1);

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// ADD cannot be served.
    NotReady(String),
    /// ADD cannot be served well, and connected pods may be cut off too.
    Impaired(String),
}

/// What STATUS answers, over time.
#[derive(Debug)]
pub struct Health {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// What parts of coild say about themselves.
    reported: BTreeMap<&'static str, Trouble>,
    /// Since when there is trouble; none when all is well.
    since: Option<Instant>,
    /// What is told.
    told: Vec<Trouble>,
}

impl Health {
    /// `was_well`: an earlier coild served pods here, so that a short trouble at the start is no news either.
    #[must_use]
    pub fn new(was_well: bool) -> Self {
        let told =
            if was_well { Vec::new() } else { vec![Trouble::NotReady("coild is starting".to_owned())] };
        Self { state: Mutex::new(State { reported: BTreeMap::new(), since: None, told }) }
    }

    /// What a part of coild says about itself; none when it is well.
    pub fn report(&self, part: &'static str, trouble: Option<Trouble>) {
        let mut state = self.lock();
        match trouble {
            Some(trouble) => drop(state.reported.insert(part, trouble)),
            None => drop(state.reported.remove(part)),
        }
    }

    /// Takes note of what is found now, beside what was reported.
    pub fn observe(&self, now: Instant, found: Vec<Trouble>) {
        let mut state = self.lock();
        let mut all: Vec<Trouble> = state.reported.values().cloned().chain(found).collect();
        all.sort();
        if all.is_empty() {
            state.since = None;
            if !std::mem::take(&mut state.told).is_empty() {
                info!("STATUS: ready");
            }
            return;
        }
        let since = *state.since.get_or_insert(now);
        if (!state.told.is_empty() || now.duration_since(since) >= HOLD) && state.told != all {
            if state.told.is_empty() {
                warn!(trouble = ?all, "STATUS: not ready");
            }
            state.told = all;
        }
    }

    /// The answer to STATUS.
    ///
    /// # Errors
    /// What is wrong, with the specification's code.
    pub fn status(&self) -> Result<(), Failure> {
        let state = self.lock();
        if state.told.is_empty() {
            return Ok(());
        }
        let impaired = state.told.iter().any(|trouble| matches!(trouble, Trouble::Impaired(_)));
        let code = if impaired { code::LIMITED_CONNECTIVITY } else { code::NOT_AVAILABLE };
        let texts: Vec<&str> = state
            .told
            .iter()
            .map(|trouble| match trouble {
                Trouble::NotReady(text) | Trouble::Impaired(text) => text.as_str(),
            })
            .collect();
        Err(Failure::new(code, texts.join("; ")))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The data is whole after each statement, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code_of(health: &Health) -> Option<u32> {
        health.status().err().map(|failure| failure.code)
    }

    fn waits() -> Vec<Trouble> {
        vec![Trouble::NotReady("waits for nodes".into())]
    }

    #[test]
    fn a_first_start_is_not_ready_until_it_is() {
        let (health, start) = (Health::new(false), Instant::now());
        assert_eq!(code_of(&health), Some(code::NOT_AVAILABLE));
        health.observe(start, waits());
        assert!(health.status().unwrap_err().msg.contains("waits for nodes"), "at once: it was never well");
        health.observe(start, Vec::new());
        assert_eq!(code_of(&health), None);
    }

    #[test]
    fn trouble_is_told_when_it_lasts_and_forgotten_when_it_ends() {
        let (health, start) = (Health::new(true), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        for second in 0..10 {
            health.observe(at(second), waits());
            assert_eq!(code_of(&health), None, "{second}");
        }
        health.observe(at(10), waits());
        assert_eq!(code_of(&health), Some(code::NOT_AVAILABLE));
        health.observe(at(11), Vec::new());
        assert_eq!(code_of(&health), None);
        // Two short troubles are not one long one.
        for second in [12, 20] {
            health.observe(at(second), waits());
            health.observe(at(second + 1), Vec::new());
        }
        health.observe(at(23), waits());
        assert_eq!(code_of(&health), None);
    }

    #[test]
    fn what_pods_suffer_from_counts_more() {
        let (health, start) = (Health::new(false), Instant::now());
        health.report("export", Some(Trouble::Impaired("table 119".into())));
        health.observe(start, waits());
        let failure = health.status().unwrap_err();
        assert_eq!(failure.code, code::LIMITED_CONNECTIVITY);
        assert!(
            failure.msg.contains("table 119") && failure.msg.contains("waits for nodes"),
            "{}",
            failure.msg
        );
        health.report("export", None);
        health.observe(start, waits());
        assert_eq!(code_of(&health), Some(code::NOT_AVAILABLE));
    }
}
