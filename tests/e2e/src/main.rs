//! `coil-e2e`: end-to-end tests of a running cluster with Coil installed.
//!
//! ```text
//! what is there (nodes, families, Coil's pods) ─▶ scenarios, one after the other ─▶ report, JUnit
//!                                                  └─ pods that run coil-traffic; results from their status
//! ```
//!
//! Everything goes through the Kubernetes API, by objects alone: no exec, no logs, no node is logged into. What it makes
//! is in namespaces and pools whose names begin with `coil-e2e`, and is gone at the end, also after a failure or a signal.

mod cleanup;
mod cluster;
mod options;
mod pods;
mod report;
mod scenario;
mod wait;

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::Parser as _;
use tokio::signal::unix::{SignalKind, signal};

use cluster::Cluster;
use options::Options;
use report::Report;

fn main() -> ExitCode {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let done = runtime.context("cannot start").and_then(|runtime| runtime.block_on(run(&options)));
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every scenario passed.
async fn run(options: &Options) -> Result<bool> {
    let chosen: Vec<_> = scenario::ALL.iter().filter(|scenario| options.chooses(scenario.name)).collect();
    if options.list {
        scenario::ALL.iter().for_each(|scenario| println!("{:<20} {}", scenario.name, scenario.what));
        return Ok(true);
    }
    if let Some(name) = options.unknown(|name| scenario::ALL.iter().any(|scenario| scenario.name == name)) {
        bail!("no scenario is called {name:?}: --list shows them");
    }
    let (mut interrupted, mut terminated) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let cluster = Cluster::find(options).await?;
    println!("{cluster}");
    // An earlier run may have been killed.
    cleanup::all(&cluster.client).await?;
    let mut report = Report::default();
    let scenarios = async {
        cluster.prepare().await?;
        for scenario in chosen {
            report.run(scenario, &cluster, options.requires(scenario.name)).await;
        }
        Ok(())
    };
    let ended = tokio::select! {
        ended = scenarios => ended,
        _ = interrupted.recv() => Err(anyhow::anyhow!("interrupted")),
        _ = terminated.recv() => Err(anyhow::anyhow!("terminated")),
    };
    let cleaned = cleanup::all(&cluster.client).await;
    if let Some(path) = &options.junit {
        report.write_junit(path)?;
    }
    report.print();
    ended.and(cleaned)?;
    Ok(report.passed())
}
