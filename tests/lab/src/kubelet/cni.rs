//! The runtime's side of CNI: calls the plugins of the node's configuration.

use std::{path::PathBuf, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, bail};
use coil_api::{
    cni::{CniResult, ErrorDocument},
    names::{ARG_POD_NAME, ARG_POD_NAMESPACE},
};
use coil_traffic::machine::patience;
use serde_json::Value;
use tokio::{io::AsyncWriteExt as _, process::Command, time};

use crate::{
    config::CONFLIST,
    programs::{self, Build},
};

/// A plugin that takes longer has failed. coild's own limit for an ADD is a minute.
const TIMEOUT: Duration = Duration::from_secs(90);
/// The pod's interface.
const IFNAME: &str = "eth0";

/// What a plugin is told about a pod.
#[derive(Debug, Clone)]
pub(super) struct Attachment {
    pub(super) container_id: String,
    pub(super) netns: PathBuf,
    pub(super) namespace: String,
    pub(super) pod: String,
    pub(super) uid: String,
    pub(super) build: Build,
}

/// Attaches the pod: each plugin of the list in turn, each told the result of the one before.
pub(super) async fn add(attachment: &Attachment) -> Result<CniResult> {
    let mut result = Value::Null;
    for plugin in plugins()? {
        let output = call("ADD", attachment, &plugin, &result).await?;
        result = serde_json::from_slice(&output).context("the plugin's result is no JSON")?;
    }
    serde_json::from_value(result).context("the plugin's result cannot be understood")
}

/// Detaches the pod: the plugins in reverse order.
pub(super) async fn del(attachment: &Attachment) -> Result<()> {
    for plugin in plugins()?.iter().rev() {
        call("DEL", attachment, plugin, &Value::Null).await?;
    }
    Ok(())
}

/// The plugins' configurations, with what the list says for all of them.
fn plugins() -> Result<Vec<Value>> {
    let list: Value = serde_json::from_str(CONFLIST)?;
    let mut plugins = list["plugins"].as_array().cloned().unwrap_or_default();
    for plugin in &mut plugins {
        plugin["cniVersion"] = list["cniVersion"].clone();
        plugin["name"] = list["name"].clone();
    }
    Ok(plugins)
}

async fn call(verb: &str, attachment: &Attachment, plugin: &Value, previous: &Value) -> Result<Vec<u8>> {
    let kind = plugin["type"].as_str().context("a plugin without a type")?;
    let mut config = plugin.clone();
    if !previous.is_null() {
        config["prevResult"] = previous.clone();
    }
    let Attachment { container_id, netns, namespace, pod, uid, build } = attachment;
    let mut child = Command::new(build.file(&programs::find_plugin(kind)?)?)
        .env_clear()
        .env("PATH", build.search_path()?)
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", container_id)
        .env("CNI_NETNS", netns)
        .env("CNI_IFNAME", IFNAME)
        .env("CNI_PATH", programs::dir()?)
        .env(
            "CNI_ARGS",
            format!(
                "IgnoreUnknown=1;{ARG_POD_NAMESPACE}={namespace};{ARG_POD_NAME}={pod};\
                 K8S_POD_INFRA_CONTAINER_ID={container_id};K8S_POD_UID={uid}"
            ),
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("plugin type={kind:?} cannot be started"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(config.to_string().as_bytes()).await.context("cannot write to the plugin")?;
    }
    let limit = patience(TIMEOUT);
    let output = time::timeout(limit, child.wait_with_output())
        .await
        .with_context(|| format!("plugin type={kind:?} did not end ({verb}) within {limit:?}"))??;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let why = match serde_json::from_slice::<ErrorDocument>(&output.stdout) {
        Ok(error) if error.details.is_empty() => error.msg,
        Ok(error) => format!("{}; {}", error.msg, error.details),
        Err(_) => format!(
            "{}: {}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout).trim(),
            String::from_utf8_lossy(&output.stderr).trim()
        ),
    };
    bail!("plugin type={kind:?} failed ({}): {why}", verb.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_gets_the_lists_name_and_version() {
        let plugins = plugins().unwrap();
        assert_eq!(plugins[0]["type"], "coil");
        assert_eq!(plugins[0]["cniVersion"], "1.0.0");
        assert_eq!(plugins[0]["name"], "k8s-pod-network");
    }
}
