//! How long a pod's ADD and DEL take: coil against the reference plugin `ptp` with `host-local`.
//!
//! Both are called in turn, round by round, on one node in one run: what else the machine does meets
//! both. Measured is the plugin's process from its start to its end, with coild's work in it, as a
//! runtime waits for it. Addresses come from a block in hand, and Pods are known to coild, as they are on
//! a node that the kubelet runs.

mod measure;
mod report;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use coil_node_tests::{Cluster, Programs};

/// Compare the plugin with ptp + host-local; see `cargo xtask bench cni --help`.
#[derive(Parser)]
struct Args {
    /// Directory with the built coild and coil
    #[arg(long)]
    programs: PathBuf,
    /// Directory with the reference plugins
    #[arg(long, default_value = "/usr/lib/cni")]
    reference: PathBuf,
    /// Rounds of IPv4; of dual stack ptp has fewer, as each takes seconds
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(5..))]
    rounds: u32,
    /// Where the results go as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Further flags of coild
    #[arg(long, allow_hyphen_values = true)]
    coild: Vec<String>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let programs = Programs::of(&args.programs)?;
    ensure!(
        args.reference.join("ptp").exists() && args.reference.join("host-local").exists(),
        "{} has no ptp and host-local: `apt-get install containernetworking-plugins`",
        args.reference.display()
    );
    let flags: Vec<&str> = args.coild.iter().map(String::as_str).collect();
    let measured = Cluster::run(programs, &flags, async |cluster| {
        measure::all(&cluster, &args.reference, args.rounds).await
    })?;
    let results = report::results(&measured);
    print!("{}", report::table(&results, &measured));
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&serde_json::json!({"results": results}))?;
        std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
