//! Faults that a test asks for, at paths that no real server has.
//!
//! `POST /faults/held-watches` with `{"user": NAME, "resources": ["pods", "egresses.coil.cybozu.com"]}` holds back what
//! a user's watches of these tell, as those of a server that is late; lists and reads are answered. `DELETE` lets all of them
//! go on, with all that happened meanwhile. Both are for members of `system:masters`.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::status::{ApiError, Result};

/// Where watches are held back and let go: `POST` and `DELETE`.
pub const HELD_WATCHES: &str = "/faults/held-watches";

/// The faults in force.
pub(crate) struct Faults {
    held: watch::Sender<BTreeSet<Held>>,
}

/// A user, and the name of a table.
type Held = (String, String);

/// Whose watches are held back, and of what.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Hold {
    user: String,
    resources: Vec<String>,
}

impl Default for Faults {
    fn default() -> Self {
        Self { held: watch::Sender::new(BTreeSet::new()) }
    }
}

impl Faults {
    /// Holds more watches back: when this returns, nothing that happens from now on is told by them.
    pub(crate) fn hold(&self, body: Value) -> Result<Value> {
        let Hold { user, resources } = serde_json::from_value(body)
            .map_err(|error| ApiError::bad_request(format!("held watches: {error}")))?;
        self.held.send_modify(|held| held.extend(resources.into_iter().map(|of| (user.clone(), of))));
        Ok(self.held())
    }

    /// Lets all watches go on.
    pub(crate) fn let_go(&self) -> Value {
        self.held.send_modify(BTreeSet::clear);
        self.held()
    }

    fn held(&self) -> Value {
        let held = self.held.borrow();
        held.iter().map(|(user, resource)| json!({"user": user, "resource": resource})).collect()
    }

    /// Waits until a user's watches of a table are not held back.
    pub(crate) async fn until_let_go(&self, user: &str, table: &str) {
        let is_held = |held: &BTreeSet<Held>| held.iter().any(|(who, of)| who == user && of == table);
        // The sender lives in `self`.
        let _ = self.held.subscribe().wait_for(|held| !is_held(held)).await;
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn one_users_watches_of_one_kind_wait() {
        let faults = Faults::default();
        let waits = |user: &str, table: &str| faults.until_let_go(user, table).now_or_never().is_none();
        assert!(!waits("u", "pods"));
        let held = faults.hold(json!({"user": "u", "resources": ["pods", "nodes"]})).unwrap();
        assert_eq!(held, json!([{"user": "u", "resource": "nodes"}, {"user": "u", "resource": "pods"}]));
        assert!(waits("u", "pods") && waits("u", "nodes"));
        assert!(!waits("u", "services") && !waits("v", "pods"));
        assert_eq!(faults.let_go(), json!([]));
        assert!(!waits("u", "pods"));
    }

    #[test]
    fn what_is_no_hold_is_refused() {
        let faults = Faults::default();
        for body in [Value::Null, json!({"user": "u"}), json!({"user": "u", "resources": [], "for": 1})] {
            assert!(faults.hold(body.clone()).is_err(), "{body}");
        }
    }
}
