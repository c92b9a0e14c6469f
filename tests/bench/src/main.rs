//! What `cargo xtask bench` runs: the real programs as processes of their own, in namespaces that go
//! with this process. Measurements go to standard output, one JSON object a line.

mod cluster;
mod ipam;
mod place;
mod process;

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use serde_json::json;

#[derive(Parser)]
#[command(name = "coil-bench")]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    Ipam(ipam::Args),
}

fn main() -> ExitCode {
    match run(Args::parse().what) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(what: What) -> Result<()> {
    // Before there are threads: they would stay outside.
    place::enter()?;
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    match what {
        What::Ipam(args) => runtime.block_on(ipam::run(args)),
    }
}

/// Prints one measurement.
fn report(scenario: &str, metric: &str, value: f64, unit: &str) {
    println!("{}", json!({"scenario": scenario, "metric": metric, "value": value, "unit": unit}));
}
