//! `coil-bench ipam`

mod coild;
mod requests;
mod start;

use std::path::PathBuf;

use anyhow::Result;

use crate::{cluster::Cluster, process::Program};

/// Addresses: blocks per second, start-up, memory.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder of the release-built programs
    #[arg(long)]
    programs: PathBuf,
    /// Only these scenarios
    #[arg(long, value_parser = ["requests", "start", "coild"])]
    only: Vec<String>,
}

/// Port of the controller's /readyz.
const CONTROLLER_HEALTH: u16 = 9387;

pub(crate) async fn run(args: Args) -> Result<()> {
    let wanted = |name: &str| args.only.is_empty() || args.only.iter().any(|n| n == name);
    if wanted("requests") {
        requests::run(&args.programs).await?;
    }
    if wanted("start") {
        start::run(&args.programs).await?;
    }
    if wanted("coild") {
        coild::run(&args.programs).await?;
    }
    Ok(())
}

fn controller(cluster: &Cluster) -> Result<Program> {
    cluster.program("coil-ipam-controller", &[])
}
