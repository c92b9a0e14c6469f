//! Which datapath the node gets, and taking it off the node.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result, bail};
use ipnet::IpNet;
use tracing::{info, warn};

use super::options::Mode;
use crate::{
    datapath::{self, Datapath, DatapathConfig, DatapathError, Leftover, LogLevel, Removed, obstacle},
    plane::{self, Plane},
};

/// How often, and how far apart, programs are tried again where `auto` may do without.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);

/// Opens the datapath that was asked for, or the best there is. Without programs, those of an earlier run forward
/// nothing any more: nobody would tell them what changes.
///
/// `pools`: whose addresses pods have.
pub(super) fn choose(mode: Mode, pools: &[IpNet], log: Option<LogLevel>) -> Result<Plane> {
    let config = DatapathConfig::default();
    if mode == Mode::Kernel {
        return leave(&config, plane::CHOSEN.to_owned());
    }
    match open(&config) {
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
            leave(&config, reason)
        }
    }
}

/// A shortage of a moment is no reason to do without.
fn open(config: &DatapathConfig) -> Result<Datapath, DatapathError> {
    for _ in 1..ATTEMPTS {
        match Datapath::open(config) {
            Err(e) if !matches!(e, DatapathError::Owned { .. } | DatapathError::OldKernel(_)) => {
                warn!(error = %e, "the eBPF programs cannot be loaded; will try again");
                thread::sleep(PAUSE);
            }
            done => return done,
        }
    }
    Datapath::open(config)
}

fn leave(config: &DatapathConfig, reason: String) -> Result<Plane> {
    let (leftover, removed) =
        Leftover::find(config).context("cannot take the eBPF programs of an earlier run off the node")?;
    if removed != Removed::default() {
        info!(?removed, "took what an earlier run left of eBPF off the node");
    }
    if leftover.is_some() {
        info!(
            "eBPF programs of an earlier run stay until the kernel does the egress of clients and gateways"
        );
    }
    Ok(Plane::kernel(reason).beside(leftover))
}

/// `coild --cleanup`.
pub(super) fn cleanup() -> Result<()> {
    let removed = datapath::cleanup(&DatapathConfig::default()).context("cannot clean up this node")?;
    let Removed { links, filters, qdiscs, maps } = removed;
    println!("removed from this node: {links} TCX links, {filters} filters, {qdiscs} qdiscs, {maps} maps");
    Ok(())
}
