//! Which datapath the node gets, and taking it off the node.

use anyhow::{Context as _, Result, bail};
use ipnet::IpNet;
use tracing::{info, warn};

use super::options::Mode;
use crate::{
    datapath::{self, Datapath, DatapathConfig, DatapathError, LogLevel, Removed, obstacle},
    plane::{self, Plane},
};

/// Opens the datapath that was asked for, or the best there is. Without programs, those of an earlier run are
/// detached: nobody would tell them what changes.
///
/// `pools`: whose addresses pods have.
pub(super) fn choose(mode: Mode, pools: &[IpNet], log: Option<LogLevel>) -> Result<Plane> {
    let config = DatapathConfig::default();
    if mode == Mode::Kernel {
        leave(&config)?;
        return Ok(Plane::kernel(plane::CHOSEN));
    }
    match Datapath::open(&config) {
        Ok(mut datapath) => {
            if let (Mode::Ebpf, Some(obstacle)) = (mode, obstacle::find(pools)) {
                // Programs of an earlier run would go on passing by whatever it is.
                datapath.stop_forwarding().context("cannot leave pods' packets to the kernel")?;
                bail!(
                    "--datapath ebpf is not possible here: {obstacle}; with --datapath auto the kernel forwards \
                     from pod to pod as long as that is so"
                );
            }
            info!(
                uplinks = datapath.uplinks_by(),
                pods = "clsact filters",
                "the kernel takes the eBPF programs"
            );
            if let Some(level) = log
                && !datapath.set_log(level).context("cannot start")?
            {
                warn!("--ebpf-log has no effect: the eBPF programs of this coild are no debug build");
            }
            Ok(Plane::ebpf(Box::new(datapath)))
        }
        Err(e @ DatapathError::Owned { .. }) => Err(e).context("cannot start"),
        Err(e) if mode == Mode::Ebpf => {
            let e = anyhow::Error::new(e);
            bail!("--datapath ebpf is not possible here: {e:#}; --datapath auto would use the kernel alone")
        }
        Err(e) => {
            let reason = format!("{:#}", anyhow::Error::new(e));
            warn!(reason, "eBPF is not possible here: the kernel alone forwards");
            leave(&config)?;
            Ok(Plane::kernel(reason))
        }
    }
}

fn leave(config: &DatapathConfig) -> Result<()> {
    let removed =
        datapath::cleanup(config).context("cannot take the eBPF programs of an earlier run off the node")?;
    if removed != Removed::default() {
        info!(?removed, "took the eBPF programs of an earlier run off the node");
    }
    Ok(())
}

/// `coild --cleanup`.
pub(super) fn cleanup() -> Result<()> {
    let removed = datapath::cleanup(&DatapathConfig::default()).context("cannot clean up this node")?;
    let Removed { links, filters, qdiscs, maps } = removed;
    println!("removed from this node: {links} TCX links, {filters} filters, {qdiscs} qdiscs, {maps} maps");
    Ok(())
}
