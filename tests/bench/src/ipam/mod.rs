//! `coil-bench ipam`

mod coild;
mod requests;
mod start;

use std::path::PathBuf;

use anyhow::Result;
use coil_api::{
    crd::{BlockRequest, BlockRequestSpec},
    names::block_request_name,
};
use k8s_openapi::api::core::v1::Node;
use kube::api::PostParams;
use serde_json::json;

use crate::{
    cluster::{Cluster, wait},
    process::Program,
};

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

/// A controller that has answered a request. Its /readyz also waits for a webhook certificate, which there
/// is none of here.
async fn serving_controller(cluster: &Cluster) -> Result<Program> {
    let program = controller(cluster)?;
    cluster.pool("warm-up", 0, "192.168.0.0/31", "fd99::/127").await?;
    cluster.create_all::<Node>([json!({"metadata": {"name": "warm-up"}})]).await?;
    answered(cluster, "warm-up", "warm-up").await?;
    Ok(program)
}

/// Asks for a block, and waits for it.
async fn answered(cluster: &Cluster, pool: &str, node: &str) -> Result<()> {
    let name = block_request_name(pool, node);
    let spec = BlockRequestSpec { node_name: node.to_owned(), pool_name: pool.to_owned() };
    let requests = cluster.all::<BlockRequest>();
    requests.create(&PostParams::default(), &BlockRequest::new(&name, spec)).await?;
    wait("the controller's first answer", async || {
        let request = requests.get(&name).await;
        request.is_ok_and(|r| r.status.is_some_and(|s| s.address_block_name.is_some()))
    })
    .await
}
