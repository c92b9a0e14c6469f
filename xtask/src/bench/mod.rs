//! `cargo xtask bench`: measures the release-built programs.
//!
//! A bench is a program that prints one measurement a line on standard output, as JSON, and what is
//! for people on standard error. [`measure`] builds and runs it; this file prints and writes the results.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Subcommand;
use serde_json::{Value, json};

use crate::{build_ebpf, run, setup};

mod cni;
mod datapath;
mod egress;
mod ipam;
mod sheet;

/// Measure the release-built programs. Needs root.
///
/// Results are printed as a table and, with --json, written as {"results":[…]}; each bench says with what.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write the results to this file, too
    #[arg(long, value_name = "FILE", global = true)]
    json: Option<PathBuf>,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    Ipam(ipam::Args),
    Cni(cni::Args),
    Datapath(datapath::Args),
    Egress(egress::Args),
}

/// One result.
struct Measurement {
    scenario: String,
    metric: String,
    value: f64,
    unit: String,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    run::need_root("bench");
    setup::ensure()?;
    let results = match &args.what {
        What::Ipam(ipam) => ipam::run(ipam)?,
        What::Cni(cni) => return cni::run(cni, args.json.as_deref()),
        What::Datapath(datapath) => return datapath::run(datapath, args.json.as_deref()),
        What::Egress(egress) => return egress::run(egress, args.json.as_deref()),
    };
    ensure!(!results.is_empty(), "nothing was measured");
    for m in &results {
        println!("{:<44} {:<28} {:>12.2} {}", m.scenario, m.metric, m.value, m.unit);
    }
    if let Some(file) = &args.json {
        write(file, &results)?;
    }
    Ok(())
}

fn write(file: &Path, results: &[Measurement]) -> Result<()> {
    let one = |m: &Measurement| json!({"scenario": m.scenario, "metric": m.metric, "value": m.value, "unit": m.unit});
    let document = json!({"results": results.iter().map(one).collect::<Vec<_>>()});
    let text = serde_json::to_string_pretty(&document)? + "\n";
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

/// Builds the eBPF object and these programs for release, each given as PACKAGE/PROGRAM; returns their folder.
fn build(programs: &[&str]) -> Result<PathBuf> {
    build_ebpf::build()?;
    let mut cargo = run::cargo();
    cargo.args(["build", "--release"]);
    for program in programs {
        let (package, program) = program.split_once('/').context("write PACKAGE/PROGRAM")?;
        cargo.args(["--package", package, "--bin", program]);
    }
    run::run(&mut cargo)?;
    Ok(run::target_dir().join("release"))
}

/// Runs a bench program and reads what it measured.
fn measure(command: &mut Command) -> Result<Vec<Measurement>> {
    eprintln!("+ {}", run::shown(command));
    run::output(command)?.lines().map(measurement).collect()
}

fn measurement(line: &str) -> Result<Measurement> {
    let value: Value = serde_json::from_str(line).with_context(|| format!("{line:?} is no measurement"))?;
    let text = |key: &str| value[key].as_str().map(str::to_owned);
    match (text("scenario"), text("metric"), value["value"].as_f64(), text("unit")) {
        (Some(scenario), Some(metric), Some(value), Some(unit)) => {
            Ok(Measurement { scenario, metric, value, unit })
        }
        _ => bail!("{line:?} has not all of scenario, metric, value and unit"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_measurement_and_comes_out_as_it_went_in() {
        let line = r#"{"scenario":"1 node","metric":"p50","value":1.5,"unit":"ms"}"#;
        let m = measurement(line).unwrap();
        assert_eq!(
            (m.scenario.as_str(), m.metric.as_str(), m.value, m.unit.as_str()),
            ("1 node", "p50", 1.5, "ms")
        );
        assert!(measurement(r#"{"scenario":"1 node"}"#).is_err());
        let file = std::env::temp_dir().join(format!("coil-bench-{}.json", std::process::id()));
        write(&file, &[m]).unwrap();
        let written: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        fs::remove_file(file).unwrap();
        assert_eq!(written, json!({"results": [serde_json::from_str::<Value>(line).unwrap()]}));
    }
}
