//! `cargo xtask test`

use std::{path::Path, process::Command};

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::{build_ebpf, built, plugin, run, setup};

/// Run the tests: host, kernel and lab. Needs root.
///
/// Installs what is missing and builds everything first, so this is the only command to know.
/// Nothing is skipped: what cannot run here fails and says why. Model tests print their seed; --seed N
/// (or COIL_TEST_SEED=N in the environment) replays it.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only one tier
    #[arg(long, value_enum)]
    only: Option<Tier>,
    /// Replay the model tests of this seed, which they print; without it every run has a new one
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Passed on to the test runner, such as a part of a test's name
    #[arg(last = true)]
    rest: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Tier {
    /// Decisions, allocators, planners, parsers, controllers against the embedded API server
    Host,
    /// Every packet case through the programs in this kernel
    Kernel,
    /// Clusters in network namespaces with real traffic
    Lab,
}

impl Tier {
    const ALL: [Self; 3] = [Self::Host, Self::Kernel, Self::Lab];

    /// The tier of a test program, by its package's folder.
    fn of(folder: &Path) -> Self {
        match folder.strip_prefix(run::root()).unwrap_or(folder).to_str() {
            Some("tests/kernel") => Self::Kernel,
            Some("tests/lab") => Self::Lab,
            _ => Self::Host,
        }
    }
}

/// Variable that tells the model tests their seed.
const SEED: &str = "COIL_TEST_SEED";

pub(crate) fn run(args: &Args) -> Result<()> {
    run::need_root("test");
    setup::ensure()?;
    build_ebpf::build()?;
    build_ebpf::build_logging_all()?;
    plugin::build()?;
    let built = built::workspace()?;
    let (mut ran, mut failed) = (0, Vec::new());
    for tier in Tier::ALL.into_iter().filter(|tier| args.only.is_none_or(|only| only == *tier)) {
        for program in built.iter().filter(|built| built.test && Tier::of(&built.folder) == tier) {
            if !args.chooses(&program.names()?) {
                continue;
            }
            ran += 1;
            let mut command = program.command();
            command.envs(args.seed.map(|seed| (SEED, seed.to_string())));
            if run::run(command.args(&args.rest)).is_err() {
                failed.push(run::shown(&Command::new(&program.path)));
            }
        }
        if tier == Tier::Host && args.rest.is_empty() {
            run::run(run::cargo().arg("test").args(built::WORKSPACE).arg("--doc"))?;
        }
    }
    if ran == 0 {
        bail!("no test was chosen: {:?} is in the name of none", args.rest);
    }
    if !failed.is_empty() {
        bail!("{} of {ran} test programs failed: {}", failed.len(), failed.join(", "));
    }
    Ok(())
}

impl Args {
    /// Whether a program has any of the chosen tests. Options are the test runner's own.
    fn chooses(&self, names: &[String]) -> bool {
        let mut parts = self.rest.iter().take_while(|word| !word.starts_with('-')).peekable();
        !names.is_empty()
            && (parts.peek().is_none() || parts.any(|part| names.iter().any(|name| name.contains(part))))
    }
}
