//! The programs that a lab runs, and their logs.

use std::{
    fs::{File, OpenOptions},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use tokio::{process::Command, sync::mpsc, time};

use crate::{capabilities::Kept, keeper::own_program, place::OpenPlace, state::StateDir};

/// Wait before a program that ended is started again.
const RESTART_AFTER: Duration = Duration::from_millis(300);

/// The directory of the lab's programs: they are built together.
pub(crate) fn dir() -> Result<PathBuf> {
    let own = own_program()?;
    Ok(own.parent().map_or_else(|| PathBuf::from("/"), Path::to_owned))
}

/// The folder of the plugin as it is installed, beside that of the programs.
const PLUGIN_DIR: &str = "../static";

/// A plugin of a network configuration.
pub(crate) fn find_plugin(kind: &str) -> Result<PathBuf> {
    find(&format!("{PLUGIN_DIR}/{kind}"))
}

/// One of Coil's programs.
pub(crate) fn find(name: &str) -> Result<PathBuf> {
    let path = dir()?.join(name);
    if !path.exists() {
        bail!("{} is not built: `cargo xtask lab up` builds all that a lab needs", path.display());
    }
    Ok(path)
}

/// `PATH` of what runs in the lab: Coil's programs first.
pub(crate) fn search_path() -> Result<String> {
    let system = std::env::var("PATH").unwrap_or_else(|_| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    Ok(format!("{}:{system}", dir()?.display()))
}

/// Which build's programs a place runs: those beside the lab's own, or another build's until the place is rolled.
#[derive(Debug, Clone)]
pub(crate) struct Build {
    state: StateDir,
    place: String,
}

impl Build {
    pub(crate) fn of(state: &StateDir, place: &str) -> Self {
        Self { state: state.clone(), place: place.to_owned() }
    }

    /// The file to run for one of the programs beside the lab's own.
    pub(crate) fn file(&self, path: &Path) -> Result<PathBuf> {
        let other = self.state.other_build(&self.place);
        let other = other.zip(path.strip_prefix(dir()?).ok()).map(|(other, name)| other.join(name));
        Ok(other.filter(|path| path.exists()).unwrap_or_else(|| path.to_owned()))
    }

    /// `PATH` of what runs there.
    pub(crate) fn search_path(&self) -> Result<String> {
        let own = search_path()?;
        Ok(self.state.other_build(&self.place).map_or(own.clone(), |dir| format!("{}:{own}", dir.display())))
    }
}

/// Where a lab's logs are: below the build directory, so that they survive the lab.
pub(crate) fn logs_dir(name: &str) -> Result<PathBuf> {
    Ok(logs_beside(&own_program()?, name))
}

/// As [`logs_dir`], for a lab that another program of the build directory runs.
pub(crate) fn logs_beside(program: &Path, name: &str) -> PathBuf {
    let build = program.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
    build.join("lab").join(name).join("logs")
}

/// What happens when a program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnExit {
    /// It is started again, as a DaemonSet's pod would be.
    Restart,
    /// The lab cannot go on.
    Fatal,
}

/// How to run one program.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    /// Name in logs and in the state directory.
    pub(crate) name: String,
    /// Name of the place it runs in.
    pub(crate) place_name: String,
    pub(crate) place: OpenPlace,
    pub(crate) path: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    /// What it keeps of root's capabilities; none for all.
    pub(crate) capabilities: Option<Kept>,
    pub(crate) on_exit: OnExit,
}

impl Program {
    fn log(&self, logs: &Path) -> PathBuf {
        logs.join(format!("{}.{}.log", self.place_name, self.name))
    }
}

/// Runs a program until the lab ends. The first fatal end is sent to `fatal`.
pub(crate) fn run(program: Program, state: StateDir, logs: PathBuf, fatal: mpsc::Sender<String>) {
    tokio::spawn(async move {
        let log = program.log(&logs);
        loop {
            let ended = match once(&program, &state, &log).await {
                Ok(status) => status.to_string(),
                Err(e) => format!("{e:#}"),
            };
            let Program { name, place_name, .. } = &program;
            if program.on_exit == OnExit::Fatal {
                let _ =
                    fatal.send(format!("{name} in {place_name} ended: {ended}; see {}", log.display())).await;
                return;
            }
            tracing::warn!(program = name, place = place_name, ended, "starting it again");
            time::sleep(RESTART_AFTER).await;
        }
    });
}

async fn once(program: &Program, state: &StateDir, log: &Path) -> Result<std::process::ExitStatus> {
    let build = Build::of(state, &program.place_name);
    let path = build.file(&program.path)?;
    let mut command = program.place.command(&path);
    command
        .args(&program.args)
        .envs(program.env.iter().cloned())
        .env("PATH", build.search_path()?)
        .stdin(Stdio::null())
        .stdout(append(log)?)
        .stderr(append(log)?);
    if let Some(kept) = program.capabilities {
        // After the place was entered, which takes more than the program has.
        kept.apply(&mut command);
    }
    let mut child = Command::from(command)
        .spawn()
        .with_context(|| format!("cannot start {} in {}", path.display(), program.place_name))?;
    let pid = child.id().unwrap_or_default();
    crate::state::replace(&state.program_file(&program.place_name, &program.name), &format!("{pid}\n"))?;
    tracing::info!(program = program.name, place = program.place_name, pid, path = %path.display(), "started");
    child.wait().await.context("cannot wait for it")
}

pub(crate) fn append(log: &Path) -> Result<File> {
    if let Some(parent) = log.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    }
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(log)
        .with_context(|| format!("cannot write {}", log.display()))
}
