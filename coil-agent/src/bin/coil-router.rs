//! coil-router: routes to the other nodes' address blocks.

use anyhow::Result;
use clap::Parser as _;
use coil_agent::{program, router};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let (arguments, ignored) = program::arguments();
    let options = router::Options::parse_from(arguments);
    program::start_logging(&ignored);
    router::run(options).await
}
