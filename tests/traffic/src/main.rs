//! `coil-traffic`: what pods of `cargo xtask e2e` run.
//!
//! What a tool has to say goes to standard output and into the file [`coil_traffic::RESULT`], which the pods name as
//! their termination message: the kubelet puts it into the pod's status, and no log or exec is needed to read it.

use std::process::ExitCode;

use clap::Parser;
use coil_traffic::{RESULT, Tool, run};

/// Traffic tools of Coil's end-to-end tests.
#[derive(Parser)]
#[command(name = "coil-traffic", version)]
struct Args {
    #[command(subcommand)]
    tool: Tool,
}

fn main() -> ExitCode {
    let done = run(Args::parse().tool);
    let said = match &done {
        Ok(said) => said.clone(),
        Err(error) => format!("{error:#}"),
    };
    // Outside of a pod there is no such file, and nobody who would read it.
    let _ = std::fs::write(RESULT, &said);
    match done {
        Ok(_) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(_) => {
            eprintln!("error: {said}");
            ExitCode::FAILURE
        }
    }
}
