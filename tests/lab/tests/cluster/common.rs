//! What the tests share.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use coil_lab::{Lab, config::Options};
use coil_traffic::machine::patience;
use serde_json::Value;

/// How long something may take that takes a second or two on an idle machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(40);

/// The lab's program.
pub(crate) fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_coil-lab"))
}

/// A command of the lab's program.
pub(crate) fn coil_lab(words: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The name of a test's lab: another for each run of the tests.
pub(crate) fn name(test: &str) -> String {
    format!("{test}-{}", std::process::id())
}

/// Starts a dual-stack lab of three nodes.
pub(crate) fn start(test: &str) -> Result<Lab> {
    Lab::start(program(), Options::named(&name(test)))
}

/// Ends a lab whose test went well, and forgets its logs.
pub(crate) fn end(lab: Lab) -> Result<()> {
    let name = lab.options().name.clone();
    // The roles that are shipped are enough, whatever the test did.
    let denials = lab.denials()?;
    check(denials.is_empty(), || denials.join("\n"))?;
    lab.down()?;
    forget_logs(&name)
}

/// The directory of a lab's logs, which its pods see, too.
pub(crate) fn logs(name: &str) -> Result<PathBuf> {
    let build = program().parent().and_then(Path::parent).context("the program is in no build directory")?;
    Ok(build.join("lab").join(name))
}

/// Removes the logs of a lab: they are for tests that failed.
pub(crate) fn forget_logs(name: &str) -> Result<()> {
    let dir = logs(name)?;
    std::fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))
}

/// A pod that does nothing.
pub(crate) fn idle_pod(namespace: &str, name: &str, node: &str, annotations: &str) -> String {
    pod(namespace, name, node, annotations, "")
}

/// A pod that serves the lab's traffic tools: a sink on port 5001, echo on 5002.
pub(crate) fn server_pod(namespace: &str, name: &str, node: &str) -> String {
    pod(namespace, name, node, "", ", command: [coil-lab, tool, serve, '5001']")
}

fn pod(namespace: &str, name: &str, node: &str, annotations: &str, command: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}, annotations: {{{annotations}}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 1
  containers: [{{name: main, image: none{command}}}]
"
    )
}

/// A namespace whose pods get their addresses from a pool.
pub(crate) fn namespace(name: &str, pool: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Namespace
metadata: {{name: {name}, annotations: {{coil.cybozu.com/pool: {pool}}}}}
"
    )
}

/// An object as JSON.
pub(crate) fn get(lab: &Lab, what: &str) -> Result<Value> {
    let text = lab.kubectl(&format!("get {what} -o json"))?.success()?;
    serde_json::from_str(&text).context("kubectl's output is no JSON")
}

/// The items of a list.
pub(crate) fn items(lab: &Lab, what: &str) -> Result<Vec<Value>> {
    Ok(get(lab, what)?["items"].as_array().cloned().unwrap_or_default())
}

/// A pod's addresses.
pub(crate) fn addresses(pod: &Value) -> Vec<String> {
    let ips = pod["status"]["podIPs"].as_array().cloned().unwrap_or_default();
    ips.iter().filter_map(|ip| ip["ip"].as_str().map(str::to_owned)).collect()
}

/// Waits until pods are ready.
pub(crate) fn wait_ready(lab: &Lab, namespace: &str, pods: &[&str]) -> Result<()> {
    let pods: Vec<String> = pods.iter().map(|pod| format!("pod/{pod}")).collect();
    let seconds = patience(LIMIT).as_secs();
    let wait = format!("wait -n {namespace} --for=condition=Ready {} --timeout={seconds}s", pods.join(" "));
    lab.kubectl(&wait)?.success().map(drop)
}

/// Waits until the Event about a pod's failed sandbox holds all these words.
pub(crate) fn wait_refused(lab: &Lab, namespace: &str, pod: &str, words: &[&str]) -> Result<String> {
    let events = format!(
        "get events -n {namespace} --field-selector involvedObject.name={pod},reason=FailedCreatePodSandBox \
         -o jsonpath={{.items[*].message}}"
    );
    lab.wait_for(&format!("an Event about pod {namespace}/{pod}"), LIMIT, |lab| {
        let message = lab.kubectl(&events)?.success()?;
        let missing: Vec<&&str> = words.iter().filter(|word| !message.contains(**word)).collect();
        Ok(if missing.is_empty() { Ok(message) } else { Err(format!("{missing:?} is not in {message:?}")) })
    })
}

/// Waits until a node holds nothing of any pod: no sandbox, no veth, no route.
pub(crate) fn wait_clean(lab: &Lab, node: &str) -> Result<()> {
    lab.wait_for(&format!("{node} to hold nothing of a pod"), LIMIT, |lab| {
        let sandboxes = lab.node(node, "ls -A /run/netns")?.success()?;
        let links = lab.node(node, "ip -o link show type veth")?.success()?;
        // A table without a route is one that does not exist: an error without output.
        let routes = ["-4", "-6"].map(|family| lab.node(node, &format!("ip {family} route show table 116")));
        let mut left = vec![sandboxes.trim().to_owned()];
        left.extend(links.lines().filter(|line| !line.contains(" eth0@")).map(str::to_owned));
        for routes in routes {
            left.push(routes?.stdout.trim().to_owned());
        }
        left.retain(|text| !text.is_empty());
        Ok(if left.is_empty() { Ok(()) } else { Err(left.join("; ")) })
    })
}

/// Kills coild on nodes, and waits until others serve the plugin.
pub(crate) fn kill_coilds(lab: &Lab, nodes: &[&str]) -> Result<()> {
    let pid = |node: &str| lab.program_pid(node, "coild");
    let before = nodes.iter().map(|node| pid(node)).collect::<Result<Vec<_>>>()?;
    for (node, pid) in nodes.iter().zip(&before) {
        lab.node(node, &format!("kill -9 {pid}"))?.success()?;
    }
    for (node, before) in nodes.iter().zip(before) {
        lab.wait_for(&format!("coild to come back on {node}"), LIMIT, |lab| {
            let now = lab.program_pid(node, "coild")?;
            let ready = lab.node(node, "coil-lab tool http-get --timeout 1 http://127.0.0.1:9385/readyz")?;
            Ok(if now != before && ready.ok { Ok(()) } else { Err(ready.stderr) })
        })?;
    }
    Ok(())
}

/// A condition of a test, with a sentence when it does not hold.
pub(crate) fn check(holds: bool, otherwise: impl FnOnce() -> String) -> Result<()> {
    ensure!(holds, otherwise());
    Ok(())
}
