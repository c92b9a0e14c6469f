//! `cargo xtask test`

use anyhow::Result;
use clap::ValueEnum;

use crate::{build, run, setup};

/// Run the tests: host, kernel and lab. Needs root.
///
/// Installs what is missing and builds everything first, so this is the only command to know.
/// Nothing is skipped: what cannot run here fails and says why.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only one tier
    #[arg(long, value_enum)]
    only: Option<Tier>,
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

    fn selection(self) -> &'static [&'static str] {
        match self {
            Self::Host => &[
                "--workspace",
                "--exclude",
                "coil-ebpf",
                "--exclude",
                "coil-kernel-tests",
                "--exclude",
                "coil-lab",
            ],
            Self::Kernel => &["--package", "coil-kernel-tests"],
            Self::Lab => &["--package", "coil-lab"],
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    run::need_root("test");
    setup::ensure()?;
    build::all()?;
    for tier in Tier::ALL.into_iter().filter(|tier| args.only.is_none_or(|only| only == *tier)) {
        let mut command = run::cargo();
        command.arg("test").args(tier.selection()).arg("--").args(&args.rest);
        run::run(&mut command)?;
    }
    Ok(())
}
