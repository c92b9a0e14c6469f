//! What the kernel holds for a lab, looked up before it ends and again after.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use coil_traffic::machine::patience;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    keeper::own_program,
    state::{LabFile, StateDir},
};

/// The kernel frees namespaces and BPF objects a moment after their last user.
const LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);
/// How often an interrupted list of BPF objects is asked for again.
const LIST_ATTEMPTS: u32 = 100;
/// Kinds of BPF objects, as bpftool names them.
const BPF_KINDS: [&str; 3] = ["prog", "map", "link"];

/// The names that the kernel has for everything of one lab: looked up while it runs, they tell
/// later what is left.
#[derive(Debug, Default)]
pub struct Remains {
    /// Namespaces as `/proc` writes them: `net:[4026532000]`.
    namespaces: BTreeSet<String>,
    /// Which of them each process was in or held open, whoever's it is. The kernel gives numbers of namespaces
    /// again, at once: what another process has under one of them later may be another lab's.
    holders: BTreeMap<Process, BTreeSet<String>>,
    /// Pinned BPF objects: kind and id.
    bpf: BTreeSet<(&'static str, u64)>,
    state: PathBuf,
}

/// A process of the machine. Its number is given again, too, but not with the same start.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Process {
    id: String,
    /// In ticks since the machine did.
    started: u64,
}

#[derive(Debug, Deserialize)]
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
                let mut list = Command::new(own_program()?);
                list.args(["node", "--name", &lab.options.name, &node, "--"]);
                list.args(["bpftool", "-j", "-f", kind, "show"]);
                let pinned = objects(&mut list)?.into_iter().filter(|object| !object.pinned.is_empty());
                bpf.extend(pinned.map(|object| (kind, object.id)));
            }
        }
        let namespaces = &namespaces - &own;
        Ok(Self { holders: holders(&namespaces), namespaces, bpf, state: state.path().to_owned() })
    }

    /// What of it is still there, one line each.
    ///
    /// # Errors
    /// When it cannot be found out.
    pub fn left(&self) -> Result<Vec<String>> {
        let mut left = self.processes();
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;
        let state = self.state.display().to_string();
        left.extend(mounts.lines().filter(|l| l.contains(&state)).map(|l| format!("mount {l}")));
        for kind in BPF_KINDS {
            let objects = objects(Command::new("bpftool").args(["-j", kind, "show"]))?;
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

    /// The processes that still have what they had of the lab, one line each.
    fn processes(&self) -> Vec<String> {
        let mut left = Vec::new();
        for (Process { id, started }, held) in &self.holders {
            // In this order: the number cannot have become another process's before the start is read.
            let still = namespaces(id).find(|ns| held.contains(ns));
            if let Some(ns) = still
                && self::started(id) == Some(*started)
            {
                let name = fs::read_to_string(proc(id).join("comm")).unwrap_or_default();
                left.push(format!("process {id} ({}) in {ns}", name.trim()));
            }
        }
        left
    }

    /// Waits until nothing is there any more.
    ///
    /// # Errors
    /// When something stays; the message lists it.
    pub fn wait_until_gone(&self) -> Result<()> {
        let limit = patience(LIMIT);
        let until = Instant::now() + limit;
        loop {
            let left = self.left()?;
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() > until {
                bail!("still there after {limit:?}:\n  {}", left.join("\n  "));
            }
            std::thread::sleep(POLL);
        }
    }

    /// For people: how much there was.
    pub(crate) fn summary(&self) -> String {
        format!("{} namespaces, {} pinned BPF objects", self.namespaces.len(), self.bpf.len())
    }
}

/// Runs a command that lists BPF objects; again, when one went away while it was listed: bpftool ends
/// the list there, with an error for its last item.
fn objects(list: &mut Command) -> Result<Vec<BpfObject>> {
    let mut problem = String::new();
    for _ in 0..LIST_ATTEMPTS {
        let output = list.output().context("cannot run bpftool: what is left of BPF objects is not known")?;
        match parse(&output.stdout)? {
            Ok(objects) => return Ok(objects),
            Err(error) => problem = error,
        }
        std::thread::sleep(POLL);
    }
    bail!("bpftool could not list all BPF objects in {LIST_ATTEMPTS} attempts: {problem}")
}

/// The objects, or bpftool's own error.
fn parse(json: &[u8]) -> Result<Result<Vec<BpfObject>, String>> {
    // Without any object bpftool prints nothing, or `null`.
    let json = if json.trim_ascii().is_empty() { b"null" } else { json };
    let understood = |e| anyhow::Error::new(e).context("bpftool's output cannot be understood");
    let value: Value = serde_json::from_slice(json).map_err(understood)?;
    let items = match value {
        Value::Null => Vec::new(),
        Value::Array(items) => items,
        other => vec![other],
    };
    if let Some(error) = items.iter().find_map(|item| item["error"].as_str()) {
        return Ok(Err(error.to_owned()));
    }
    items.into_iter().map(serde_json::from_value).collect::<Result<_, _>>().map(Ok).map_err(understood)
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

/// The processes that are in one of these namespaces or hold it open, each with those.
fn holders(of: &BTreeSet<String>) -> BTreeMap<Process, BTreeSet<String>> {
    let held = |id: String| {
        let held: BTreeSet<String> = namespaces(&id).filter(|ns| of.contains(ns)).collect();
        let started = started(&id)?;
        (!held.is_empty()).then_some((Process { id, started }, held))
    };
    processes().filter_map(held).collect()
}

/// When a process started, in ticks since the machine did.
fn started(process: &str) -> Option<u64> {
    let stat = fs::read_to_string(proc(process).join("stat")).ok()?;
    // Behind the name, which may have spaces and parentheses of its own; proc_pid_stat(5) counts from 1.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
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

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use anyhow::Result;

    use super::{Duration, Instant, Remains, holders, link, parse, proc};

    fn start(words: &[&str]) -> Result<Child> {
        Ok(Command::new(words[0]).args(&words[1..]).stdin(Stdio::piped()).spawn()?)
    }

    fn net(process: &str) -> Option<String> {
        link(&proc(process).join("ns/net"))
    }

    fn until(what: &str, mut holds: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(30);
        while !holds() {
            assert!(Instant::now() < end, "waited 30s for {what}");
            std::thread::sleep(super::POLL);
        }
    }

    #[test]
    fn who_comes_to_a_number_later_is_another_labs() -> Result<()> {
        let mut lab = start(&["unshare", "--net", "cat"])?;
        let mut other = start(&["sh", "-c", "read place; exec nsenter --net=$place cat"])?;
        let (id, other_id) = (lab.id().to_string(), other.id().to_string());
        until("a namespace of its own", || net(&id) != net("self"));
        let namespaces = net(&id).into_iter().collect();
        let remains = Remains { holders: holders(&namespaces), namespaces, ..Remains::default() };
        let place = proc(&id).join("ns/net");
        let mut to_other = other.stdin.take().expect("a pipe");
        std::io::Write::write_all(&mut to_other, format!("{}\n", place.display()).as_bytes())?;
        until("the other to come", || net(&id) == net(&other_id));
        let left = remains.processes();
        assert!(left.len() == 1 && left[0].starts_with(&format!("process {id} (")), "{left:?}");
        lab.kill()?;
        lab.wait()?;
        assert_eq!(remains.processes(), Vec::<String>::new(), "the other is there, and not the lab's");
        other.kill()?;
        other.wait()?;
        Ok(())
    }

    #[test]
    fn an_object_that_goes_while_it_is_listed_is_no_list() {
        for nothing in ["", "\n", "null", "[]"] {
            assert_eq!(parse(nothing.as_bytes()).unwrap().unwrap().len(), 0);
        }
        let found = parse(br#"[{"id":7,"pinned":["/sys/fs/bpf/x"]},{"id":9}]"#).unwrap().unwrap();
        assert_eq!(found.iter().map(|o| o.id).collect::<Vec<_>>(), [7, 9]);
        let cut = parse(br#"[{"id":7},{"error":"can't get prog by id (9): No such file"}]"#).unwrap();
        assert!(cut.unwrap_err().contains("can't get prog"));
        assert!(parse(br#"{"error":"no"}"#).unwrap().is_err());
        assert!(parse(b"[").is_err() && parse(br#"[{"name":"x"}]"#).is_err());
    }
}
