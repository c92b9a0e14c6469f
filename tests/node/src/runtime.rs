//! Pods as a container runtime makes them: a namespace, and the plugin's verbs.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::{Context as _, Result, bail};
use coil_netns::NetNs;
use serde_json::Value;

use crate::place::NETNS_DIR;

static NEXT: AtomicU64 = AtomicU64::new(0);

/// A plugin, and its configuration.
#[derive(Debug, Clone)]
pub struct Plugin {
    /// The program.
    pub path: PathBuf,
    /// What it is told on standard input.
    pub config: Value,
}

/// A pod's namespace.
#[derive(Debug)]
pub struct Sandbox {
    /// Namespace of the Pod.
    pub namespace: String,
    /// Name of the Pod.
    pub name: String,
    /// UID of the Pod.
    pub uid: String,
    container_id: String,
    netns: PathBuf,
}

impl Sandbox {
    /// Makes a pod's network namespace.
    ///
    /// # Errors
    /// When the kernel has no more.
    pub fn new(namespace: &str, name: &str, uid: &str) -> Result<Self> {
        let container_id = format!("{:064x}", NEXT.fetch_add(1, Ordering::Relaxed));
        let netns = Path::new(NETNS_DIR).join(format!("cni-{namespace}-{name}-{}", &container_id[56..]));
        NetNs::create(&netns)?;
        let [namespace, name, uid] = [namespace, name, uid].map(str::to_owned);
        Ok(Self { namespace, name, uid, container_id, netns })
    }

    /// The id that the runtime gave its container.
    #[must_use]
    pub fn container_id(&self) -> &str {
        &self.container_id
    }

    /// The name by which `ip -n` knows its network namespace.
    #[must_use]
    pub fn netns_name(&self) -> String {
        self.netns.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Calls a plugin with a verb; what it printed.
    ///
    /// # Errors
    /// When it fails, with the message of its error.
    pub fn call(&self, plugin: &Plugin, verb: &str) -> Result<Value> {
        let Self { namespace, name, uid, container_id, netns } = self;
        let mut child = Command::new(&plugin.path)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", container_id)
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", plugin.path.parent().unwrap_or(Path::new("/")))
            .env(
                "CNI_ARGS",
                format!(
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};\
                     K8S_POD_INFRA_CONTAINER_ID={container_id};K8S_POD_UID={uid}"
                ),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", plugin.path.display()))?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(plugin.config.to_string().as_bytes()).context("cannot write to the plugin")?;
        }
        let output = child.wait_with_output().context("cannot wait for the plugin")?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            bail!(
                "{verb} of {namespace}/{name}: {}{}",
                text.trim(),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        if text.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).with_context(|| format!("{verb} of {namespace}/{name}: no JSON: {text}"))
    }

    /// Path of its network namespace.
    #[must_use]
    pub fn netns(&self) -> &Path {
        &self.netns
    }

    /// Runs a command in the pod's network namespace; true when it succeeds.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&self, command: &str) -> Result<bool> {
        let name = self.netns.file_name().context("a namespace has a name")?;
        let output = Command::new("ip").args(["netns", "exec"]).arg(name).args(command.split(' ')).output();
        Ok(output.with_context(|| format!("cannot run {command}"))?.status.success())
    }

    /// Removes the namespace.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(self) -> Result<()> {
        Ok(NetNs::remove(&self.netns)?)
    }
}

/// The addresses in a result of ADD.
#[must_use]
pub fn addresses(result: &Value) -> Vec<String> {
    let ips = result["ips"].as_array().map(Vec::as_slice).unwrap_or_default();
    ips.iter().filter_map(|ip| ip["address"].as_str().map(str::to_owned)).collect()
}
