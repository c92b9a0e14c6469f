//! `cargo xtask vm`

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

mod cargo;
mod groups;
mod guest;
mod kernels;
mod report;
mod results;
mod tools;

use groups::{Entry, Only};
use kernels::Known;
use report::Report;

/// Run tests on Debian's kernels, under emulation.
///
/// Boots each chosen kernel in qemu without hardware virtualization, with this machine's own files as
/// its (read-only) root, and runs the chosen tests in it as root. Kernels are fetched as Debian packages and
/// kept, unpacked, in ~/.cache/coil/vm ($XDG_CACHE_HOME/coil/vm); nothing of theirs is installed. Needs no
/// root itself once the programs it uses are installed, which it does as `cargo xtask setup`.
///
/// Examples:
///   cargo xtask vm --list                         what can be run
///   cargo xtask vm --timeout 14400                everything, on 6.1, for hours
///   cargo xtask vm --kernel all --only fou        one group, on every kernel
///   cargo xtask vm --only lab --timeout 7200      labs, which take long under emulation
///   cargo xtask vm --only netns/namespace         tests of a group by a part of their name
///   cargo xtask vm --kernel 5.10 -- uname -a      a command of yours
///
/// Each entry's output is kept in target/vm/KERNEL. A guest takes 20 to 40 seconds to boot.
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// 5.10, 6.1, 6.12, newest, or all; again for more, or divided by commas
    #[arg(long = "kernel", default_value = "6.1", value_delimiter = ',', value_parser = kernel_names())]
    kernels: Vec<String>,
    /// A group of tests, or GROUP/PART-OF-A-NAME; again for more
    #[arg(long, value_name = "GROUP[/PART]", conflicts_with = "command")]
    only: Vec<Only>,
    /// Print the groups and their tests, and run nothing
    #[arg(long)]
    list: bool,
    /// Seconds that each kernel may take, its boot included; no single command takes more than half
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(60..))]
    timeout: u64,
    /// Fetch the kernels anew: Debian updates them
    #[arg(long)]
    refresh: bool,
    /// More parameters for the kernels, as one word
    #[arg(long, value_name = "PARAMETERS")]
    append: Option<String>,
    /// Write the results to this file, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// A command to run instead of tests
    #[arg(last = true)]
    command: Vec<String>,
}

fn kernel_names() -> clap::builder::PossibleValuesParser {
    kernels::KNOWN.iter().map(|known| known.name).chain(["all"]).collect::<Vec<_>>().into()
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.list {
        return groups::list();
    }
    tools::ensure()?;
    let vng = tools::virtme_ng()?;
    let entries = match args.command.as_slice() {
        [] => groups::entries(&args.only)?,
        command => vec![Entry::command(command)],
    };
    let chosen = |known: &&'static Known| args.kernels.iter().any(|name| name == "all" || name == known.name);
    let mut report = Report::default();
    let _alone = alone()?;
    for known in kernels::KNOWN.iter().filter(chosen) {
        // A kernel that cannot be had is a failure of its own; the others still run.
        match known.get(args.refresh) {
            Ok(kernel) => {
                let folder = folder(known.name)?;
                let limit = Duration::from_secs(args.timeout);
                guest::Guest {
                    vng: &vng,
                    kernel: &kernel,
                    folder: &folder,
                    limit,
                    append: args.append.as_deref(),
                }
                .run(&entries, args.command.is_empty(), &mut report)?;
            }
            Err(error) => report.no_kernel(known.name, &error),
        }
    }
    if args.command.is_empty() {
        report.print();
    }
    if let Some(file) = &args.json {
        fs::write(file, report.json()).with_context(|| format!("cannot write {}", file.display()))?;
    }
    report.verdict()
}

/// Runs a command on one kernel; the answer is what of its output looks like JSON, a line each.
pub(crate) fn output(kernel: &str, words: &[String]) -> Result<String> {
    /// Emulation is slow, and a bench has many rounds.
    const LIMIT: u64 = 3000;
    let args = Args {
        kernels: vec![kernel.to_owned()],
        only: Vec::new(),
        list: false,
        timeout: LIMIT,
        refresh: false,
        append: None,
        json: None,
        command: words.to_vec(),
    };
    run(&args)?;
    let log = crate::run::target_dir().join("vm").join(kernel).join("0.log");
    let log = fs::read_to_string(&log).with_context(|| format!("cannot read {}", log.display()))?;
    let lines = results::lines(&log).into_iter().map(|(_, text)| text).filter(|text| text.starts_with('{'));
    Ok(lines.map(|line| format!("{line}\n")).collect())
}

/// Two runs in one tree would take each other's folders for their own: one waits for the other.
fn alone() -> Result<File> {
    let folder = crate::run::target_dir().join("vm");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let path = folder.join("lock");
    let lock = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    if lock.try_lock().is_err() {
        eprintln!("another `cargo xtask vm` runs in this tree: waiting until it ends");
        lock.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(lock)
}

/// An empty folder for one kernel's run, which the guest and the host share.
fn folder(kernel: &str) -> Result<PathBuf> {
    let folder = crate::run::target_dir().join("vm").join(kernel);
    // The path passes through a shell and the guest's kernel command line.
    if folder.to_string_lossy().contains(char::is_whitespace) {
        bail!(
            "{} has a space in it, which a guest's boot cannot take: set CARGO_TARGET_DIR",
            folder.display()
        );
    }
    clear(&folder)?;
    // The guest cannot make the other one, which it hides: its file system is read-only.
    for folder in [&folder, &crate::run::target_dir().join(guest::LABS)] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    Ok(folder)
}

fn clear(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    Ok(())
}
