//! One kernel's run: boot, follow, end.

use std::{
    fs::{self, File},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::{
    groups::Entry,
    kernels::Kernel,
    report::Report,
    results::{self, Outcome},
    tools,
};
use crate::run;

/// Where labs keep their logs, below the folder of what is built.
pub(super) const LABS: &str = "lab";

/// How often the guest's files are looked at.
const LOOK: Duration = Duration::from_millis(250);

/// A guest to be.
pub(super) struct Guest<'a> {
    pub(super) vng: &'a Path,
    pub(super) kernel: &'a Kernel,
    /// What the guest and the host both write.
    pub(super) folder: &'a Path,
    /// For everything, the boot included.
    pub(super) limit: Duration,
    /// More parameters for the kernel.
    pub(super) append: Option<&'a str>,
}

impl Guest<'_> {
    /// Runs entries, one after the other, and reports each test as it ends; `quiet` keeps their
    /// other output in the folder.
    pub(super) fn run(&self, entries: &[Entry], quiet: bool, report: &mut Report) -> Result<()> {
        let plan = self.folder.join("plan.sh");
        fs::write(&plan, self.plan(entries)).with_context(|| format!("cannot write {}", plan.display()))?;
        eprintln!("{}: booting {}", self.kernel.name, self.kernel.package);
        let mut child = self.boot()?;
        let mut booted = false;
        let mut seen: Vec<Seen> = entries.iter().map(|_| Seen::default()).collect();
        loop {
            // First whether it ended, then what it wrote: nothing is missed.
            let ended = child.try_wait().context("cannot wait for the virtual machine")?;
            if !booted && let Some(seconds) = self.read("booted") {
                booted = true;
                let seconds = seconds.trim().parse().unwrap_or_default();
                report.add(self.kernel, Outcome { test: "boot".into(), failure: None, seconds });
            }
            for (number, (entry, seen)) in entries.iter().zip(&mut seen).enumerate() {
                self.look(number, entry, seen, quiet, report);
            }
            if let Some(status) = ended {
                self.ended(entries, &seen, booted, status.code() == Some(124), report);
                return Ok(());
            }
            thread::sleep(LOOK);
        }
    }

    fn boot(&self) -> Result<Child> {
        let console = self.folder.join("console.log");
        let output = File::create(&console).with_context(|| format!("cannot write {}", console.display()))?;
        let errors = output.try_clone().context("cannot share the console's file")?;
        // However this process ends, the machine ends with it: the kernel tells `timeout`, and that
        // tells all it started.
        let mut command = Command::new("setpriv");
        command.env("PATH", tools::path(self.vng)?);
        command.args(["--pdeathsig", "TERM", "timeout", "--kill-after=10"]);
        command.arg(self.limit.as_secs().to_string()).arg(self.vng);
        command.arg("--run").arg(&self.kernel.image);
        // The 9p file system is the one that every kernel and every host has.
        command.args(["--disable-kvm", "--force-9p", "--cpus", "2", "--memory", "2G", "--user", "root"]);
        command.args(["--cwd", "/", "--rwdir"]).arg(self.folder);
        if let Some(parameters) = self.append {
            command.args(["--append", parameters]);
        }
        // Else the console says nothing, not even when the kernel panics.
        command.arg("--verbose");
        command.args(["--", "sh"]).arg(run::root().join("tests/vm/guest.sh")).arg(self.folder);
        command.arg(run::target_dir().join(LABS));
        eprintln!("+ {}", run::shown(&command));
        command
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .context("cannot start the virtual machine with setpriv")
    }

    fn plan(&self, entries: &[Entry]) -> String {
        let limit = self.limit.as_secs() / 2;
        let line = |(number, entry): (usize, &Entry)| {
            let words: Vec<String> = entry.command.iter().map(|word| quoted(word)).collect();
            let folder = quoted(&entry.folder.to_string_lossy());
            format!("entry {number} {limit} {folder} {}\n", words.join(" "))
        };
        entries.iter().enumerate().map(line).collect()
    }

    fn look(&self, number: usize, entry: &Entry, seen: &mut Seen, quiet: bool, report: &mut Report) {
        if seen.over {
            return;
        }
        // The status is there only after the whole log is.
        let status = self.read(&format!("{number}.status"));
        let Some(log) = self.read(&format!("{number}.log")) else { return };
        seen.over = status.is_some();
        let outcomes = results::outcomes(entry, &log, status.as_deref().map(str::trim));
        let news = &outcomes[seen.outcomes.min(outcomes.len())..];
        let lines = results::lines(&log);
        if !quiet {
            for (_, text) in lines.iter().skip(seen.lines.max(1)).filter(|line| line.1 != "ended") {
                println!("{text}");
            }
            seen.lines = lines.len();
        }
        if quiet && seen.over && outcomes.iter().any(|outcome| outcome.failure.is_some()) {
            report.show(self.kernel, entry, &self.folder.join(format!("{number}.log")), &lines);
        }
        for outcome in news {
            report.add(self.kernel, outcome.clone());
        }
        seen.outcomes = outcomes.len();
        for (_, text) in &lines {
            if seen.over
                && let Some(feature) = text.strip_prefix("feature\t")
            {
                report.feature(self.kernel, feature);
            }
        }
    }

    /// The machine is gone: what has no outcome has failed.
    fn ended(&self, entries: &[Entry], seen: &[Seen], booted: bool, late: bool, report: &mut Report) {
        let console = self.folder.join("console.log");
        let why = if late {
            format!("the {} seconds of --timeout were over", self.limit.as_secs())
        } else {
            format!("the guest stopped: see {}", console.display())
        };
        let mut missing = Vec::new();
        if !booted {
            missing.push("boot".to_owned());
            eprintln!("{}", self.read("console.log").unwrap_or_default().trim_end());
        }
        for (entry, seen) in entries.iter().zip(seen).filter(|(_, seen)| !seen.over) {
            missing.extend(entry.names().into_iter().filter(|name| !report.has(self.kernel, name)));
            // Every test had ended, but not their program.
            if seen.outcomes > 0 && !missing.iter().any(|name| name.starts_with(&entry.prefix)) {
                missing.push(format!("{}(exit)", entry.prefix));
            }
        }
        for test in missing {
            report.add(self.kernel, Outcome { test, failure: Some(why.clone()), seconds: 0.0 });
        }
    }

    fn read(&self, file: &str) -> Option<String> {
        let bytes = fs::read(self.folder.join(file)).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// How much of an entry was reported.
#[derive(Default)]
struct Seen {
    outcomes: usize,
    lines: usize,
    over: bool,
}

/// A word for a shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}
