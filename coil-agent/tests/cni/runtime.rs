//! A container runtime, as far as CNI goes.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use coil_api::cni::CniResult;
use serde::Deserialize as _;
use serde_json::{Value, json};

use crate::{cluster::Cluster, topology::TestNs};

/// Where Debian has the reference plugins.
pub(crate) const REFERENCE: &str = "/usr/lib/cni";
/// How long an ADD is tried again.
const LIMIT: Duration = Duration::from_secs(20);
/// The versions of the specification that are spoken.
pub(crate) const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The built plugin.
pub(crate) fn plugin() -> PathBuf {
    let target = Path::new(env!("CARGO_BIN_EXE_coild")).ancestors().nth(2).unwrap();
    let path = target.join("static").join("coil");
    assert!(path.exists(), "{} is not built: `cargo xtask test` builds it", path.display());
    path
}

/// The variables of a call.
#[derive(Debug, Clone)]
pub(crate) struct Env(Vec<(&'static str, String)>);

impl Env {
    pub(crate) fn set(mut self, name: &'static str, value: &str) -> Self {
        self.0.retain(|(key, _)| *key != name);
        self.0.push((name, value.to_owned()));
        self
    }

    pub(crate) fn without(mut self, name: &'static str) -> Self {
        self.0.retain(|(key, _)| *key != name);
        self
    }
}

/// One attachment of a pod.
#[derive(Clone)]
pub(crate) struct Attachment<'a> {
    pub(crate) id: String,
    pub(crate) pod: String,
    pub(crate) ns: &'a TestNs,
}

impl<'a> Attachment<'a> {
    pub(crate) fn new(pod: &str, ns: &'a TestNs) -> Self {
        // As long as those of containerd.
        Self { id: format!("{pod}-{:062x}", std::process::id()), pod: pod.to_owned(), ns }
    }

    pub(crate) fn env(&self) -> Env {
        Env(vec![
            ("CNI_CONTAINERID", self.id.clone()),
            ("CNI_NETNS", self.netns()),
            ("CNI_IFNAME", "eth0".to_owned()),
            ("CNI_PATH", REFERENCE.to_owned()),
            ("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={}", self.pod)),
        ])
    }

    pub(crate) fn netns(&self) -> String {
        self.ns.path().display().to_string()
    }

    /// As GC names it.
    pub(crate) fn name(&self) -> Value {
        json!({"containerID": self.id, "ifname": "eth0"})
    }
}

/// What a plugin answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) ok: bool,
    /// What it printed; null when nothing.
    pub(crate) document: Value,
}

impl Answer {
    /// The result of a success.
    pub(crate) fn result(self) -> Value {
        assert!(self.ok, "{}", self.document);
        self.document
    }

    /// A success without output.
    pub(crate) fn done(self) {
        assert!(self.ok && self.document.is_null(), "{}", self.document);
    }

    /// The message of an error, after a look at its form and its code.
    pub(crate) fn error(self, code: u64, parts: &[&str]) -> String {
        let document = &self.document;
        assert!(!self.ok, "it works, and should be refused with {code} {parts:?}: {document}");
        assert_eq!(document["code"], code, "{document}");
        assert!(VERSIONS.contains(&document["cniVersion"].as_str().unwrap()), "{document}");
        let msg = document["msg"].as_str().unwrap();
        assert!(parts.iter().all(|part| msg.contains(part)), "{parts:?} in {msg}");
        msg.to_owned()
    }
}

/// Calls a plugin.
pub(crate) fn call(program: &Path, verb: &str, config: &str, env: &Env) -> Answer {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("CNI_COMMAND", verb);
    command.envs(env.0.iter().map(|(k, v)| (*k, v)));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // A plugin that refuses its environment may end before it reads.
    let _ = child.stdin.take().unwrap().write_all(config.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let document = match text.trim() {
        "" => Value::Null,
        text => serde_json::from_str(text).unwrap_or_else(|e| panic!("{verb} printed no JSON: {e}: {text}")),
    };
    Answer { ok: output.status.success(), document }
}

/// The network of a cluster, for coil as its first plugin.
#[derive(Clone)]
pub(crate) struct Network {
    plugin: PathBuf,
    pub(crate) config: Value,
}

impl Network {
    pub(crate) fn of(cluster: &Cluster, version: &str) -> Self {
        let config = json!({"cniVersion": version, "name": "k8s-pod-network", "type": "coil",
            "socket": cluster.socket()});
        Self { plugin: plugin(), config }
    }

    /// The same with another value in its configuration.
    pub(crate) fn with(&self, key: &str, value: Value) -> Self {
        let mut config = self.config.clone();
        config[key] = value;
        Self { plugin: self.plugin.clone(), config }
    }

    pub(crate) fn call(&self, verb: &str, env: &Env) -> Answer {
        call(&self.plugin, verb, &self.config.to_string(), env)
    }

    /// Again, as the kubelet does, while the pool's only block is on its way back from the last pod.
    pub(crate) fn add(&self, attachment: &Attachment<'_>) -> Value {
        let start = Instant::now();
        loop {
            let answer = self.call("ADD", &attachment.env());
            let msg = answer.document["msg"].as_str().unwrap_or_default();
            if answer.ok || !msg.contains("out of blocks") || start.elapsed() > LIMIT {
                return answer.result();
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// With the result of ADD, as runtimes must.
    pub(crate) fn check(&self, attachment: &Attachment<'_>, added: &Value) -> Answer {
        self.with("prevResult", added.clone()).call("CHECK", &attachment.env())
    }

    pub(crate) fn del(&self, attachment: &Attachment<'_>, added: &Value) -> Answer {
        self.with("prevResult", added.clone()).call("DEL", &attachment.env())
    }

    /// With a list of live attachments under the specification's key.
    pub(crate) fn gc(&self, live: &[&Attachment<'_>]) -> Answer {
        let live: Vec<Value> = live.iter().map(|attachment| attachment.name()).collect();
        self.with("cni.dev/valid-attachments", live.into()).call("GC", &gc_env())
    }
}

/// GC and STATUS concern no attachment.
pub(crate) fn gc_env() -> Env {
    Env(vec![("CNI_PATH", REFERENCE.to_owned())])
}

/// A result, understood.
pub(crate) fn understood(result: &Value) -> CniResult {
    CniResult::deserialize(result).unwrap()
}

/// The addresses of a result, without lengths.
pub(crate) fn addresses(result: &Value) -> Vec<String> {
    understood(result).ips.iter().map(|ip| ip.address.addr().to_string()).collect()
}

/// The routes to pods, of both families. A table without routes does not exist, so all tables are asked.
pub(crate) fn pod_routes(cluster: &Cluster) -> String {
    let all = cluster.node().ip("route show table all") + &cluster.node().ip("-6 route show table all");
    let ours = all.lines().filter(|line| line.contains("table 116")).map(|line| format!("{line}\n"));
    ours.collect()
}
