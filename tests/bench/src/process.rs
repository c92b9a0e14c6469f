//! A program that is measured.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::{
        prctl,
        signal::{Signal, kill},
    },
    unistd::Pid,
};

/// A running program; it ends with this value, and with this process.
pub(crate) struct Program {
    name: String,
    child: Child,
    log: std::path::PathBuf,
}

/// What a process has of memory, in MiB.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// Resident now.
    pub(crate) now: f64,
    /// The most that ever was.
    pub(crate) peak: f64,
}

impl Program {
    /// Starts a command; its output goes to a file in `dir`.
    pub(crate) fn start(command: &mut Command, dir: &Path) -> Result<Self> {
        let name =
            Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let log = dir.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        // SAFETY: between fork and exec the closure makes one system call, and allocates nothing.
        unsafe { command.pre_exec(|| prctl::set_pdeathsig(Signal::SIGKILL).map_err(Into::into)) };
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name, child, log })
    }

    /// Waits until `/readyz` on this port says yes. Returns how long that took.
    pub(crate) async fn ready(&mut self, port: u16, limit: Duration) -> Result<Duration> {
        let start = Instant::now();
        loop {
            if answers_ok(port) {
                return Ok(start.elapsed());
            }
            let ended = self.child.try_wait()?;
            if ended.is_some() || start.elapsed() > limit {
                let log = std::fs::read_to_string(&self.log).unwrap_or_default();
                bail!("{} is not ready after {:.1?}; its output:\n{log}", self.name, start.elapsed());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// What it has of memory.
    pub(crate) fn memory(&self) -> Result<Memory> {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default();
            let kib: f64 = line.split_whitespace().next().unwrap_or_default().parse()?;
            Ok::<_, std::num::ParseFloatError>(kib / 1024.0)
        };
        let read =
            || Ok::<_, std::num::ParseFloatError>(Memory { now: field("VmRSS:")?, peak: field("VmHWM:")? });
        read().with_context(|| format!("cannot understand {path}"))
    }

    /// Stops it as the kubelet would.
    pub(crate) fn stop(mut self) -> Result<()> {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, Signal::SIGTERM).with_context(|| format!("cannot stop {}", self.name))?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Gone already is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn answers_ok(port: u16) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        write!(stream, "GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok::<_, std::io::Error>(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}
