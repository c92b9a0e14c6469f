//! Asks the running kernel what it offers of what Coil uses or could use.
//!
//! Prints one line for each feature: the word `feature`, the answer (`yes`, `no` or `?`) and the name,
//! divided by tabs. Fails when something is missing that Coil cannot do without, or when a question
//! got no answer. `cargo xtask vm --only probe` runs it on every kernel. Loads modules, so it is for a
//! machine that is thrown away.

use std::process::ExitCode;

mod bpf;
mod features;

fn main() -> ExitCode {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("loading eBPF programs needs root: run this as root");
        return ExitCode::FAILURE;
    }
    let mut good = true;
    for feature in features::FEATURES {
        let answer = match (feature.ask)() {
            Ok(true) => "yes",
            Ok(false) if feature.required => {
                eprintln!("Coil needs this of a kernel: {}", feature.name);
                good = false;
                "no"
            }
            Ok(false) => "no",
            Err(error) => {
                eprintln!("cannot tell about {}: {error:#}", feature.name);
                good = false;
                "?"
            }
        };
        println!("feature\t{answer}\t{}", feature.name);
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
