//! How fast the machine is that the tests run on.

use std::time::Duration;

/// Set where the machine itself is emulated.
const EMULATED: &str = "COIL_EMULATED";
/// How much longer things take there.
const TIMES: u32 = 10;

/// Whether the machine is emulated, and cannot be held to a rate.
#[must_use]
pub fn is_emulated() -> bool {
    std::env::var_os(EMULATED).is_some()
}

/// How long something may take on this machine that may take `limit` on a real one.
#[must_use]
pub fn patience(limit: Duration) -> Duration {
    if is_emulated() { limit * TIMES } else { limit }
}
