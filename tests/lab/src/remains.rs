//! What the kernel holds for a lab, looked up before it ends and again after.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::{
    keeper::own_program,
    state::{LabFile, StateDir},
};

/// The kernel frees namespaces and BPF objects a moment after their last user.
const LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);
/// Kinds of BPF objects, as bpftool names them.
const BPF_KINDS: [&str; 3] = ["prog", "map", "link"];

/// The names that the kernel has for everything of one lab: looked up while it runs, they tell
/// later what is left.
#[derive(Debug, Default)]
pub struct Remains {
    /// Namespaces as `/proc` writes them: `net:[4026532000]`.
    namespaces: BTreeSet<String>,
    /// Pinned BPF objects: kind and id.
    bpf: BTreeSet<(&'static str, u64)>,
    state: PathBuf,
}

#[derive(Deserialize)]
struct BpfObject {
    id: u64,
    #[serde(default)]
    pinned: Vec<PathBuf>,
}

impl Remains {
    /// Looks at the running lab of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn of_lab(name: &str) -> Result<Self> {
        let state = StateDir::of(name);
        Self::of(&state.lab(name)?, &state)
    }

    /// Looks at a running lab.
    pub(crate) fn of(lab: &LabFile, state: &StateDir) -> Result<Self> {
        let init = lab.init.to_string();
        let pid_ns = link(&proc(&init).join("ns/pid")).context("the lab's init is gone")?;
        let own: BTreeSet<String> = namespaces("self").collect();
        let mut namespaces = BTreeSet::new();
        for process in processes().filter(|p| link(&proc(p).join("ns/pid")).as_ref() == Some(&pid_ns)) {
            namespaces.extend(self::namespaces(&process));
        }
        let mut bpf = BTreeSet::new();
        for node in lab.options.node_names() {
            for kind in BPF_KINDS {
                let output = Command::new(own_program()?)
                    .args([
                        "node",
                        "--name",
                        &lab.options.name,
                        &node,
                        "--",
                        "bpftool",
                        "-j",
                        "-f",
                        kind,
                        "show",
                    ])
                    .output()
                    .context("cannot look at BPF objects")?;
                let pinned = objects(&output.stdout)?.into_iter().filter(|object| !object.pinned.is_empty());
                bpf.extend(pinned.map(|object| (kind, object.id)));
            }
        }
        Ok(Self { namespaces: &namespaces - &own, bpf, state: state.path().to_owned() })
    }

    /// What of it is still there, one line each.
    ///
    /// # Errors
    /// When it cannot be found out.
    pub fn left(&self) -> Result<Vec<String>> {
        let mut left = Vec::new();
        for process in processes() {
            if let Some(ns) = namespaces(&process).find(|ns| self.namespaces.contains(ns)) {
                let name = fs::read_to_string(proc(&process).join("comm")).unwrap_or_default();
                left.push(format!("process {process} ({}) in {ns}", name.trim()));
            }
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;
        let state = self.state.display().to_string();
        left.extend(mounts.lines().filter(|l| l.contains(&state)).map(|l| format!("mount {l}")));
        for kind in BPF_KINDS {
            let output = Command::new("bpftool").args(["-j", kind, "show"]).output();
            let output = output.context("cannot run bpftool: what is left of BPF objects is not known")?;
            let objects = objects(&output.stdout)?;
            left.extend(
                objects
                    .iter()
                    .filter(|o| self.bpf.contains(&(kind, o.id)))
                    .map(|o| format!("BPF {kind} {}", o.id)),
            );
        }
        if self.state.exists() {
            left.push(format!("directory {state}"));
        }
        Ok(left)
    }

    /// Waits until nothing is there any more.
    ///
    /// # Errors
    /// When something stays; the message lists it.
    pub fn wait_until_gone(&self) -> Result<()> {
        let until = Instant::now() + LIMIT;
        loop {
            let left = self.left()?;
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() > until {
                bail!("still there after {LIMIT:?}:\n  {}", left.join("\n  "));
            }
            std::thread::sleep(POLL);
        }
    }

    /// For people: how much there was.
    pub(crate) fn summary(&self) -> String {
        format!("{} namespaces, {} pinned BPF objects", self.namespaces.len(), self.bpf.len())
    }
}

fn objects(json: &[u8]) -> Result<Vec<BpfObject>> {
    // Without any object bpftool prints nothing, or `null`.
    let json = if json.trim_ascii().is_empty() { b"null" } else { json };
    let objects: Option<Vec<BpfObject>> =
        serde_json::from_slice(json).context("bpftool's output cannot be understood")?;
    Ok(objects.unwrap_or_default())
}

fn proc(process: &str) -> PathBuf {
    Path::new("/proc").join(process)
}

fn processes() -> impl Iterator<Item = String> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.bytes().all(|b| b.is_ascii_digit()))
}

/// The namespaces that a process is in or holds open.
fn namespaces(process: &str) -> impl Iterator<Item = String> {
    let (ns, fd) = (proc(process).join("ns"), proc(process).join("fd"));
    let links = [ns, fd].into_iter().flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten());
    links
        .filter_map(|entry| link(&entry.path()))
        .filter(|target| ["net:[", "mnt:[", "pid:["].iter().any(|kind| target.starts_with(kind)))
}

fn link(path: &Path) -> Option<String> {
    fs::read_link(path).ok()?.into_os_string().into_string().ok()
}
