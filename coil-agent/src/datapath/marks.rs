//! Marks for the flows that the kernel had before: none of them ever becomes fast.

use coil_packet::abi::Lost;
use tracing::warn;

use super::{Datapath, DatapathError, conntrack, state::monotonic_seconds};

impl Datapath {
    /// Marks the flows that the kernel tracks. False when not all of them could be marked: UDP must not be
    /// fast then.
    pub(super) fn mark_connections(&mut self) -> bool {
        match self.try_mark_connections() {
            Ok(all) => all,
            Err(error) => {
                warn!(%error, "cannot read the kernel's connections: UDP between pods stays with the kernel");
                // Not all marks are there: no datagram begins a fast flow, and the next sweep tries again.
                if let Err(error) = self.set_lost(1) {
                    warn!(%error, "cannot keep in mind that marks are missing");
                }
                false
            }
        }
    }

    fn try_mark_connections(&mut self) -> Result<bool, DatapathError> {
        // First, so that what is lost meanwhile counts for the next time.
        self.set_lost(0)?;
        let now = monotonic_seconds();
        let mut all = true;
        for connection in conntrack::dump().map_err(DatapathError::Conntrack)? {
            all &= self.v4.flows.mark(&connection, &self.pools, now)?;
            all &= self.v6.flows.mark(&connection, &self.pools, now)?;
        }
        if !all {
            self.set_lost(1)?;
        }
        Ok(all)
    }

    pub(super) fn set_lost(&mut self, marks: u32) -> Result<(), DatapathError> {
        self.lost.set(0, Lost { marks }, 0).map_err(|source| DatapathError::Map {
            name: "coil_lost",
            action: "write it",
            source,
        })
    }
}
