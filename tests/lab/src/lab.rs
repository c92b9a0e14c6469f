//! A lab for tests: started, used through the real commands, and gone when dropped.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use coil_apiserver::{HELD_WATCHES, Question, User};
use coil_traffic::machine::patience;

use crate::{
    config::Options,
    keeper::{self, Owned},
    programs,
    remains::Remains,
    state::StateDir,
    supervisor::REQUESTS,
};

const POLL: Duration = Duration::from_millis(50);
/// Where Coil's accounts are.
const NAMESPACE: &str = "kube-system";

/// A running lab that this process owns. Dropped, or its process killed, it ends.
#[derive(Debug)]
pub struct Lab {
    options: Options,
    program: PathBuf,
    state: StateDir,
    owned: Option<Owned>,
}

/// A command that has ended.
#[derive(Debug, Clone)]
pub struct Done {
    /// The command, for messages.
    pub command: String,
    /// Whether it exited with 0.
    pub ok: bool,
    /// What it printed.
    pub stdout: String,
    /// What it complained.
    pub stderr: String,
}

impl Done {
    /// Standard output of a command that has to succeed.
    ///
    /// # Errors
    /// When it failed; the message has the command and all its output.
    pub fn success(self) -> Result<String> {
        if !self.ok {
            bail!("`{}` failed:\n{}{}", self.command, self.stdout, self.stderr);
        }
        Ok(self.stdout)
    }
}

impl Lab {
    /// Starts a lab with the `coil-lab` program given, beside which Coil's programs are.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start(program: &Path, options: Options) -> Result<Self> {
        Self::start_saying(program, options, |_| ())
    }

    /// As [`Lab::start`], telling how far it is.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start_saying(program: &Path, options: Options, say: impl FnMut(&str)) -> Result<Self> {
        let owned = keeper::start(program, &options, say)?;
        let state = StateDir::of(&options.name);
        Ok(Self { options, program: program.to_owned(), state, owned: Some(owned) })
    }

    /// The options it was started with.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The kubeconfig for the host.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.state.kubeconfig()
    }

    /// Process id of the lab's keeper on the host.
    #[must_use]
    pub fn keeper_pid(&self) -> u32 {
        self.owned.as_ref().map_or(0, Owned::keeper_pid)
    }

    /// Runs kubectl; words are separated by spaces.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn kubectl(&self, words: &str) -> Result<Done> {
        self.kubectl_with(&words.split_whitespace().collect::<Vec<_>>(), "")
    }

    /// Runs kubectl with words that may hold spaces, and text on its standard input.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn kubectl_with(&self, words: &[&str], input: &str) -> Result<Done> {
        let mut command = Command::new("kubectl");
        command.args(words).env("KUBECONFIG", self.kubeconfig());
        run(command, format!("kubectl {}", words.join(" ")), input)
    }

    /// Applies manifests.
    ///
    /// # Errors
    /// When kubectl refuses them.
    pub fn apply(&self, yaml: &str) -> Result<String> {
        self.kubectl_with(&["apply", "-f", "-"], yaml)?.success()
    }

    /// Runs a command in a pod (`NAMESPACE/POD`).
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn exec(&self, pod: &str, words: &str) -> Result<Done> {
        self.inside(&["exec", "--name", &self.options.name, pod], words)
    }

    /// Runs a command on a node or in control.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn node(&self, node: &str, words: &str) -> Result<Done> {
        self.inside(&["node", "--name", &self.options.name, node], words)
    }

    /// Runs a command in the world.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn world(&self, words: &str) -> Result<Done> {
        self.inside(&["world", "--name", &self.options.name], words)
    }

    /// As [`Lab::exec`], [`Lab::node`] and [`Lab::world`], without waiting: the caller has the child.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn_in_pod(&self, pod: &str, words: &str) -> Result<std::process::Child> {
        let mut command = Command::new(&self.program);
        command.args(["exec", "--name", &self.options.name, pod, "--"]).args(words.split_whitespace());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().with_context(|| format!("cannot run {words:?} in {pod}"))
    }

    /// As [`Lab::node`], without waiting: the caller has the child.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn_on_node(&self, node: &str, words: &str) -> Result<std::process::Child> {
        let mut command = Command::new(&self.program);
        command.args(["node", "--name", &self.options.name, node, "--"]).args(words.split_whitespace());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().with_context(|| format!("cannot run {words:?} on {node}"))
    }

    fn inside(&self, verb: &[&str], words: &str) -> Result<Done> {
        let mut command = Command::new(&self.program);
        command.args(verb).arg("--").args(words.split_whitespace());
        run(command, format!("lab {} -- {words}", verb.join(" ")), "")
    }

    /// What users asked the embedded API server for, and whether they might; nothing on a real one.
    ///
    /// # Errors
    /// When the record cannot be read.
    pub fn questions(&self) -> Result<Vec<Question>> {
        let path = self.logs().join(REQUESTS);
        match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            text => {
                let text = text.with_context(|| format!("cannot read {}", path.display()))?;
                text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
            }
        }
    }

    /// Makes the watches of one of Coil's accounts late: they tell nothing of these resources (`PLURAL.GROUP`) until they are let
    /// go. The embedded API server does it.
    ///
    /// # Errors
    /// When it is a real one, which does not.
    pub fn hold_watches(&self, account: &str, resources: &[&str]) -> Result<()> {
        let user = User::service_account(NAMESPACE, account).name;
        let body = serde_json::json!({"user": user, "resources": resources}).to_string();
        self.kubectl_with(&["create", "--raw", HELD_WATCHES, "-f", "-"], &body)?.success().map(drop)
    }

    /// Lets all watches go on that are held.
    ///
    /// # Errors
    /// As [`Lab::hold_watches`].
    pub fn let_watches_go(&self) -> Result<()> {
        self.kubectl_with(&["delete", "--raw", HELD_WATCHES], "")?.success().map(drop)
    }

    /// What was denied to Coil's programs: what the embedded API server says, and the programs' own logs.
    ///
    /// # Errors
    /// When logs cannot be read.
    pub fn denials(&self) -> Result<Vec<String>> {
        let asked = self.questions()?.into_iter().filter(|question| !question.allowed);
        let mut denials: Vec<String> = asked.map(|question| question.asked.to_string()).collect();
        let logs = self.logs();
        for entry in std::fs::read_dir(&logs).with_context(|| format!("cannot read {}", logs.display()))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "log") {
                let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
                let text = String::from_utf8_lossy(&text);
                denials.extend(
                    text.lines().filter(|line| line.contains(" is forbidden: User ")).map(str::to_owned),
                );
            }
        }
        Ok(denials)
    }

    fn logs(&self) -> PathBuf {
        programs::logs_beside(&self.program, &self.options.name)
    }

    /// Process id of a program inside the lab: `("node1", "coild")`.
    ///
    /// # Errors
    /// When it was never started.
    pub fn program_pid(&self, place: &str, program: &str) -> Result<i32> {
        let path = self.state.program_file(place, program);
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        text.trim().parse().with_context(|| format!("{} holds no number", path.display()))
    }

    /// Makes a place run this build's programs: the given ones are ended, and come back as this build's.
    ///
    /// # Errors
    /// When the lab was not started with another build's, or a program does not come back.
    pub fn roll(&self, place: &str, programs: &[&str], limit: Duration) -> Result<()> {
        self.state.set_other_build(place, None)?;
        for program in programs {
            let before = self.program_pid(place, program)?;
            self.node(place, &format!("kill {before}"))?.success()?;
            self.wait_for(&format!("{program} to come back in {place}"), limit, |lab| {
                let now = lab.program_pid(place, program)?;
                Ok(if now == before { Err("it has not ended yet".to_owned()) } else { Ok(()) })
            })?;
        }
        Ok(())
    }

    /// Waits for a condition. `check` says `Ok(Ok(x))` when it holds, `Ok(Err(why))` when not yet. The limit is that of a real
    /// machine.
    ///
    /// # Errors
    /// When it does not come true in time, with the last reason; or when `check` fails.
    pub fn wait_for<T>(
        &self,
        what: &str,
        limit: Duration,
        mut check: impl FnMut(&Self) -> Result<Result<T, String>>,
    ) -> Result<T> {
        let limit = patience(limit);
        let until = Instant::now() + limit;
        loop {
            match check(self)? {
                Ok(found) => return Ok(found),
                Err(why) if Instant::now() > until => bail!("waited {limit:?} for {what}: {why}"),
                Err(_) => std::thread::sleep(POLL),
            }
        }
    }

    /// Ends the lab and waits until nothing of it is left.
    ///
    /// # Errors
    /// When something is left; the message lists it.
    pub fn down(mut self) -> Result<()> {
        let remains = Remains::of_lab(&self.options.name)?;
        if let Some(owned) = self.owned.take() {
            owned.end()?;
        }
        remains.wait_until_gone().with_context(|| format!("lab {:?}", self.options.name))
    }
}

fn run(mut command: Command, words: String, input: &str) -> Result<Done> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot run `{words}`"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A command that does not read its input has ended the pipe: what it says matters more.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().with_context(|| format!("cannot wait for `{words}`"))?;
    Ok(Done {
        command: words,
        ok: output.status.success(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
