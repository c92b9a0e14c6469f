//! One container: its process, its probes, its restarts.

use std::{
    net::IpAddr,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};
use coil_traffic::machine::patience;
use k8s_openapi::{
    api::core::v1::{Container, Probe},
    jiff::Timestamp,
};
use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use tokio::{
    process::{Child, Command},
    sync::{mpsc, watch},
    task::JoinSet,
    time,
};

use super::{
    env,
    probe::{self, seconds, threshold},
    status::{ContainerReport, State},
};
use crate::{
    keeper::own_program,
    place::OpenPlace,
    programs::{self, Build},
};

/// Until a container is first ready it is asked this often, whatever its probe's period: a
/// person waits for a lab.
const EAGER_PERIOD: Duration = Duration::from_millis(250);
/// Wait before a restart, doubled up to [`BACKOFF_MAX`]; shorter than a real kubelet's.
const BACKOFF: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// A run longer than this starts the backoff anew.
const BACKOFF_RESET: Duration = Duration::from_secs(30);

/// How long a container has to end that its liveness probe says is dead; shorter than a real kubelet's.
const DEAD_GRACE: Duration = Duration::from_secs(5);

/// How to run a container.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) container: Container,
    pub(super) env: Vec<(String, String)>,
    pub(super) place: OpenPlace,
    pub(super) ip: IpAddr,
    pub(super) restart_policy: String,
    pub(super) log: PathBuf,
    pub(super) build: Build,
}

/// What a container tells its pod's worker.
#[derive(Debug)]
pub(super) enum Update {
    /// The container with this position is like this now.
    Report(usize, ContainerReport),
    /// Something to say in an Event.
    Say { warning: bool, reason: &'static str, message: String },
}

/// Tells containers to stop, within this time.
pub(super) type Stop = watch::Receiver<Option<Duration>>;

/// Runs a container until it is stopped or has ended for good.
pub(super) async fn run(index: usize, plan: Plan, mut stop: Stop, updates: mpsc::UnboundedSender<Update>) {
    let mut report = ContainerReport::default();
    let mut backoff = BACKOFF;
    let tell = |report: &ContainerReport| {
        let _ = updates.send(Update::Report(index, report.clone()));
    };
    while stop.borrow().is_none() {
        let since = Timestamp::now();
        let began = time::Instant::now();
        let code = match spawn(&plan) {
            Ok(child) => {
                report.state = State::Running(since);
                report.ready = plan.container.readiness_probe.is_none();
                tell(&report);
                let mut run = Run { index, plan: &plan, report: &mut report, updates: &updates };
                run.until_ended(child, &mut stop).await
            }
            Err(error) => {
                let message = format!("container {}: {error:#}", plan.container.name);
                let _ = updates.send(Update::Say { warning: true, reason: "Failed", message });
                127
            }
        };
        report.ready = false;
        report.state = State::Terminated(code, since, Timestamp::now(), plan.message());
        tell(&report);
        if stop.borrow().is_some() || !restarts(&plan.restart_policy, code) {
            return;
        }
        if began.elapsed() > BACKOFF_RESET {
            backoff = BACKOFF;
        }
        let ended =
            State::Waiting("CrashLoopBackOff", format!("back-off {backoff:?} restarting the container"));
        report.last = Some(std::mem::replace(&mut report.state, ended));
        tell(&report);
        let _ = time::timeout(backoff, stop.wait_for(Option::is_some)).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
        report.restarts += 1;
    }
}

fn restarts(policy: &str, code: i32) -> bool {
    match policy {
        "Never" => false,
        "OnFailure" => code != 0,
        _ => true,
    }
}

fn spawn(plan: &Plan) -> Result<Child> {
    let expand = |words: &Option<Vec<String>>| -> Vec<String> {
        words.iter().flatten().map(|word| env::expand(word, &plan.env)).collect()
    };
    let mut words = expand(&plan.container.command);
    if words.is_empty() {
        // Only the image knows what to run; the lab has no image.
        words = vec![own_program()?.display().to_string(), "pause".to_owned()];
    } else {
        words.extend(expand(&plan.container.args));
    }
    let (program, args) = words.split_first().context("no command")?;
    let mut command = std::process::Command::new(program);
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command
        .args(args)
        .env_clear()
        .env("PATH", plan.build.search_path()?)
        .envs(plan.env.iter().map(|(k, v)| (k, v)))
        .stdin(Stdio::null())
        .stdout(programs::append(&plan.log)?)
        .stderr(programs::append(&plan.log)?);
    plan.place.prepare(&mut command);
    command.current_dir(plan.container.working_dir.as_deref().unwrap_or("/"));
    Command::from(command).spawn().with_context(|| format!("cannot start {program:?}"))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Readiness,
    Liveness,
}

struct Run<'a> {
    index: usize,
    plan: &'a Plan,
    report: &'a mut ContainerReport,
    updates: &'a mpsc::UnboundedSender<Update>,
}

/// More of a message is not kept.
const MESSAGE_MAX: u64 = 4096;

impl Plan {
    /// What the container left as its last words. Only below /run a pod of the lab has files of its own.
    fn message(&self) -> String {
        let path =
            self.container.termination_message_path.as_deref().filter(|path| path.starts_with("/run/"));
        let read = |path: &str| {
            self.place.run(|| {
                use std::io::Read as _;
                let mut message = Vec::new();
                std::fs::File::open(path)?.take(MESSAGE_MAX).read_to_end(&mut message)?;
                Ok(String::from_utf8_lossy(&message).into_owned())
            })
        };
        // Most leave none.
        path.and_then(|path| read(path).ok()).unwrap_or_default()
    }
}

impl Run<'_> {
    async fn until_ended(&mut self, mut child: Child, stop: &mut Stop) -> i32 {
        let Some(pid) = child.id().map(|id| Pid::from_raw(id.cast_signed())) else { return 127 };
        let (verdicts, mut results) = mpsc::unbounded_channel();
        let mut probes = JoinSet::new();
        let container = &self.plan.container;
        for (kind, wanted) in
            [(Kind::Readiness, &container.readiness_probe), (Kind::Liveness, &container.liveness_probe)]
        {
            if let Some(wanted) = wanted {
                probes.spawn(watch(kind, wanted.clone(), container.clone(), self.plan.ip, verdicts.clone()));
            }
        }
        let mut kill_at = None;
        let ended = loop {
            tokio::select! {
                ended = child.wait() => break ended,
                Some(verdict) = results.recv() => {
                    if self.judge(verdict) && kill_at.is_none() {
                        let _ = kill(pid, Signal::SIGTERM);
                        kill_at = Some(time::Instant::now() + patience(DEAD_GRACE));
                    }
                }
                Ok(grace) = stopped(stop), if kill_at.is_none() => {
                    probes.abort_all();
                    let _ = kill(pid, Signal::SIGTERM);
                    kill_at = Some(time::Instant::now() + grace);
                }
                () = time::sleep_until(kill_at.unwrap_or_else(time::Instant::now)), if kill_at.is_some() => {
                    let _ = killpg(pid, Signal::SIGKILL);
                    kill_at = Some(time::Instant::now() + Duration::from_secs(1));
                }
            }
        };
        // What the process left behind goes with it.
        let _ = killpg(pid, Signal::SIGKILL);
        ended.map_or(127, exit_code)
    }

    /// Takes a probe's verdict; true when the container has to be ended.
    fn judge(&mut self, (kind, outcome): Verdict) -> bool {
        let name = match kind {
            Kind::Readiness => "Readiness",
            Kind::Liveness => "Liveness",
        };
        if let Err(message) = &outcome {
            let message = format!("{name} probe failed: {message}");
            let _ = self.updates.send(Update::Say { warning: true, reason: "Unhealthy", message });
        }
        if kind == Kind::Readiness && self.report.ready != outcome.is_ok() {
            self.report.ready = outcome.is_ok();
            let _ = self.updates.send(Update::Report(self.index, self.report.clone()));
        }
        kind == Kind::Liveness && outcome.is_err()
    }
}

type Verdict = (Kind, Result<(), String>);

async fn stopped(stop: &mut Stop) -> Result<Duration, watch::error::RecvError> {
    stop.wait_for(Option::is_some).await.map(|grace| grace.unwrap_or_default())
}

/// Asks again and again; sends a verdict each time one changes.
async fn watch(
    kind: Kind,
    wanted: Probe,
    container: Container,
    ip: IpAddr,
    verdicts: mpsc::UnboundedSender<Verdict>,
) {
    if let Some(delay) = wanted.initial_delay_seconds.and_then(|s| u64::try_from(s).ok()) {
        time::sleep(Duration::from_secs(delay)).await;
    }
    let period = seconds(wanted.period_seconds, 10);
    // A program that is still starting on a slow machine is no dead one.
    let period = if kind == Kind::Liveness { patience(period) } else { period };
    let (mut good, mut bad, mut last) = (0, 0, None);
    loop {
        let outcome = probe::attempt(&wanted, &container, ip).await.map_err(|e| format!("{e:#}"));
        (good, bad) = if outcome.is_ok() { (good + 1, 0) } else { (0, bad + 1) };
        let limit = match &outcome {
            Ok(()) => good >= threshold(wanted.success_threshold, 1),
            Err(_) => bad >= threshold(wanted.failure_threshold, 3),
        };
        if limit && last != Some(outcome.is_ok()) {
            last = Some(outcome.is_ok());
            if verdicts.send((kind, outcome)).is_err() {
                return;
            }
        }
        let eager = kind == Kind::Readiness && last != Some(true);
        time::sleep(if eager { EAGER_PERIOD.min(period) } else { period }).await;
    }
}

fn exit_code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt as _;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}
