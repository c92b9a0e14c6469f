//! `demo`: a lab of its own in which everything that Coil does is shown and checked.
//!
//! Each step prints a command that a person could type, and what it printed. The checks look at
//! that same output.

mod counters;
mod egress;
mod manifests;
mod pods;
mod report;

use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::{
    Lab,
    config::{Api, Family, Options},
    keeper::own_program,
    signals,
};
use report::Report;

/// The demo's options.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Name of the demo's lab
    #[arg(long, default_value = "demo")]
    name: String,
    /// How the nodes move packets: auto, ebpf or kernel
    #[arg(long, default_value = "auto", value_parser = ["auto", "ebpf", "kernel"])]
    datapath: String,
    /// Address families of the cluster
    #[arg(long, value_enum, default_value_t = Family::Dual)]
    family: Family,
    /// The API server; see `up`
    #[arg(long, value_enum)]
    api: Option<Api>,
}

/// What the steps of the demo need.
struct Demo {
    lab: Lab,
    report: Report,
}

/// Runs the demo; the exit code says whether every check was ok.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    signals::end_lab_first(&args.name)?;
    let options = Options {
        datapath: args.datapath.clone(),
        family: args.family,
        api: args.api,
        ..Options::named(&args.name)
    };
    println!("== A cluster: {} nodes, {:?}, datapath {}", options.nodes, options.family, options.datapath);
    let lab = Lab::start_saying(&own_program()?, options, |line| println!("   {line}"))?;
    let mut demo = Demo { lab, report: Report::default() };
    let kernel = args.datapath == "kernel";
    // A step that cannot go on has failed; those before it still count.
    let steps = demo.steps(kernel);
    if let Err(error) = &steps {
        demo.report.check("the demo runs to its end", Err(format!("{error:#}")));
    }
    let Demo { lab, mut report } = demo;
    let down = lab.down().context("after the end");
    report.check("nothing is left after the end", down.map_err(|e| format!("{e:#}")));
    Ok(report.finish())
}

impl Demo {
    fn steps(&mut self, kernel: bool) -> Result<()> {
        pods::cluster(self)?;
        if kernel {
            pods::exported_blocks(self)?;
            pods::pod_to_pod(self)?;
            counters::no_ebpf(self)?;
            return egress::kernel(self);
        }
        egress::start(self)?;
        pods::exported_blocks(self)?;
        pods::pod_to_pod(self)?;
        egress::traffic(self)?;
        egress::not_let_out(self)?;
        counters::fast_path(self)?;
        counters::nat_map(self)
    }
}
