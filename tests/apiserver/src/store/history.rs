//! The window of past events from which watches start and continue.

use std::collections::VecDeque;
use std::sync::Arc;

use super::Object;

/// What happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Added,
    Modified,
    Deleted,
}

/// One write.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) change: Change,
    /// The state after the write; for a removal the last state.
    pub(crate) object: Arc<Object>,
    /// The state before: a selector may have matched it and not the new one.
    pub(crate) previous: Option<Arc<Object>>,
}

impl Event {
    pub(crate) fn version(&self) -> u64 {
        self.object.version()
    }
}

/// The asked version is older than the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Expired;

/// A ring of the newest events of one table.
pub(crate) struct History {
    events: VecDeque<Arc<Event>>,
    window: usize,
    /// Version of the newest event that fell out of the ring.
    forgotten: u64,
}

impl History {
    pub(crate) fn new(window: usize) -> Self {
        Self { events: VecDeque::new(), window, forgotten: 0 }
    }

    pub(crate) fn push(&mut self, event: Event) {
        if self.events.len() >= self.window
            && let Some(oldest) = self.events.pop_front()
        {
            self.forgotten = oldest.version();
        }
        self.events.push_back(Arc::new(event));
    }

    /// The events after `version`, oldest first.
    pub(crate) fn after(&self, version: u64) -> Result<Vec<Arc<Event>>, Expired> {
        if version < self.forgotten {
            return Err(Expired);
        }
        let from = self.events.partition_point(|event| event.version() <= version);
        Ok(self.events.range(from..).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_version_out_of_the_window_is_expired() {
        let mut history = History::new(2);
        for version in [3, 5, 9] {
            let object = Object::new(json!({}), version);
            history.push(Event { change: Change::Added, object, previous: None });
        }
        assert_eq!(history.after(2).unwrap_err(), Expired);
        assert_eq!(history.after(3).unwrap().len(), 2);
        assert_eq!(history.after(5).unwrap().len(), 1);
        assert!(history.after(9).unwrap().is_empty());
    }
}
