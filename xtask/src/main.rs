//! Coil's developer commands: `cargo xtask VERB`. One file per verb.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod build;
mod build_ebpf;
mod built;
mod chart;
mod crdgen;
mod e2e;
mod generated;
mod image;
mod lab;
mod lint;
mod plugin;
mod run;
mod setup;
mod static_build;
mod test;
mod upgrade;
mod vm;

/// Everything a developer of Coil runs, from the root of the repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Setup(setup::Args),
    BuildEbpf(build_ebpf::Args),
    Crdgen(crdgen::Args),
    Chart(chart::Args),
    Lint(lint::Args),
    Test(test::Args),
    Bench(bench::Args),
    Lab(lab::Args),
    Image(image::Args),
    E2e(e2e::Args),
    Upgrade(upgrade::Args),
    Vm(vm::Args),
}

fn main() -> ExitCode {
    let done = match Args::parse().verb {
        Verb::Setup(args) => setup::run(&args),
        Verb::BuildEbpf(args) => build_ebpf::run(&args),
        Verb::Crdgen(args) => crdgen::run(&args),
        Verb::Chart(args) => chart::run(&args),
        Verb::Lint(args) => lint::run(&args),
        Verb::Test(args) => test::run(&args),
        Verb::Bench(args) => bench::run(&args),
        Verb::Lab(args) => lab::run(&args),
        Verb::E2e(args) => e2e::run(&args),
        Verb::Image(args) => image::run(&args),
        Verb::Upgrade(args) => upgrade::run(&args),
        Verb::Vm(args) => vm::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // A failed command is no bug of xtask's: a sentence, not a backtrace.
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
