//! What the agent does every few seconds for what the programs leave behind.

use std::net::IpAddr;

use coil_packet::abi::config_flag;

use super::{
    Datapath, DatapathError, conntrack,
    state::{Survey, Swept},
    usage::{Counting, GatewayNow, Usage},
};

/// Translations that one sweep looks at: a few tens of milliseconds.
pub const PART: usize = 200_000;

impl Datapath {
    /// Removes flows and translations that have run out at `now` in [`monotonic_seconds`], and makes good
    /// what the programs could not do by themselves. Of translations it looks at [`PART`] at a time: of more than
    /// that the next call goes on with the rest.
    ///
    /// # Errors
    /// When a map cannot be read or written.
    pub fn sweep(&mut self, now: u32) -> Result<Swept, DatapathError> {
        let limits = conntrack::limits();
        let flows = self.v4.sweep_flows(now, &limits)? + self.v6.sweep_flows(now, &limits)?;
        let translations = self.sweep_translations(now)?;
        let lost = self.lost.get(&0, 0).map_err(|source| DatapathError::Map {
            name: "coil_lost",
            action: "read it",
            source,
        })?;
        if lost.marks != 0 && self.read_config()?.flags & config_flag::FAST_UDP != 0 {
            self.mark_connections();
        }
        let clashes = self.v4.settle_clashes()? + self.v6.settle_clashes()?;
        Ok(Swept { flows, translations, clashes })
    }

    fn sweep_translations(&mut self, now: u32) -> Result<usize, DatapathError> {
        if self.v4.leases.was_cut() | self.v6.leases.was_cut() {
            // Leases were seen that would be counted again.
            self.survey = None;
            self.v4.restart();
            self.v6.restart();
        }
        let mut survey = match self.survey.take() {
            Some(survey) => survey,
            None => Survey { look: self.ports.look()?, counting: Counting::default(), v4_is_done: false },
        };
        let (mut seen, mut removed) = (0, 0);
        while seen < PART {
            let stepped = if survey.v4_is_done {
                self.v6.step(now, &mut survey)?
            } else {
                self.v4.step(now, &mut survey)?
            };
            seen += stepped.seen;
            removed += stepped.removed;
            if stepped.ended && survey.v4_is_done {
                self.ports.settle(&survey.look)?;
                self.usage = survey.counting.end();
                return Ok(removed);
            }
            survey.v4_is_done |= stepped.ended;
        }
        self.survey = Some(survey);
        Ok(removed)
    }

    /// What the gateways of this node had lent at the last [`Self::sweep`].
    #[must_use]
    pub const fn usage(&self) -> &Usage {
        &self.usage
    }

    /// A gateway's address as it is now.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn gateway(&self, address: IpAddr) -> Result<GatewayNow, DatapathError> {
        let tally = match address {
            IpAddr::V4(v4) => self.v4.leases.tally(v4.octets())?,
            IpAddr::V6(v6) => self.v6.leases.tally(v6.octets())?,
        };
        Ok(GatewayNow { used: self.usage.get(&address).cloned().unwrap_or_default(), tally })
    }
}
