//! coild, the node agent of Coil.

use anyhow::Result;
use clap::Parser as _;
use coil_agent::{coild, program};

// Two threads: one may wait for the kernel while the other serves.
#[tokio::main(worker_threads = 2)]
async fn main() -> Result<()> {
    let (arguments, ignored) = program::arguments();
    let options = coild::options::Options::parse_from(arguments);
    program::start_logging(&ignored);
    coild::run(options).await
}
