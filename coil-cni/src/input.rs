//! The network configuration on standard input, to a request for coild.

use std::{collections::HashMap, os::unix::fs::MetadataExt as _, path::Path};

use coil_api::{
    cni::{CniResult, ErrorDocument, NetConf, SUPPORTED_VERSIONS, code},
    names::{ARG_IS_CHAINED, DEFAULT_SOCKET},
    rpc::CniArgs,
};
use nix::sys::statfs::{FsType, statfs};
use serde::Deserialize as _;
use serde_json::{Map, Value};

use crate::{
    environment::{Command, Environment, is_plain},
    error, is_supported, output,
};

/// NSFS_MAGIC of linux/magic.h: the file system of namespaces.
const NSFS: FsType = FsType(0x6e73_6673);
/// Values of capabilities that would change what Coil gives a pod, so cannot be passed over.
const UNSUPPORTED_CAPABILITIES: [&str; 2] = ["ips", "mac"];

/// A request for coild, and what its answer needs.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) socket: String,
    pub(crate) version: String,
    /// Result of the plugins before this one.
    pub(crate) previous: Option<Value>,
    pub(crate) args: CniArgs,
}

/// The request that configuration and environment make.
///
/// # Errors
/// The first thing that is wrong, with the specification's code.
pub(crate) fn request(
    command: Command,
    environment: &Environment,
    stdin: &[u8],
) -> Result<Request, ErrorDocument> {
    // A list would be taken for the fields in order.
    let config = serde_json::from_slice::<Map<String, Value>>(stdin)
        .and_then(|object| NetConf::deserialize(Value::Object(object)))
        .map_err(|e| error(code::DECODING_FAILURE, format!("cannot read the network configuration: {e}")))?;
    check_version(command, &config.cni_version)?;
    if !is_plain(&config.name) {
        return Err(invalid(format!("\"name\" {:?} is no name of a network", config.name)));
    }
    let socket = config.socket.clone().unwrap_or_else(|| DEFAULT_SOCKET.to_owned());
    if !Path::new(&socket).is_absolute() {
        return Err(invalid(format!("\"socket\" {socket:?} is not an absolute path")));
    }
    if command == Command::Add {
        check_capabilities(&config)?;
        check_namespace(&environment.netns)?;
    }
    let (previous, ips, interfaces) = match previous(&config) {
        Ok(None) if command == Command::Check => {
            return Err(invalid("CHECK needs the result of ADD as \"prevResult\""));
        }
        Ok(None) => (None, Vec::new(), HashMap::new()),
        Ok(Some((value, result))) => {
            let ips = result.ips.iter().map(|ip| ip.address.addr().to_string()).collect();
            let inside = |sandbox: Option<String>| sandbox.is_some_and(|s| !s.is_empty());
            let interfaces = result.interfaces.into_iter().map(|i| (i.name, inside(i.sandbox))).collect();
            (Some(value), ips, interfaces)
        }
        // What is to be removed is known without it.
        Err(_) if command == Command::Del => (None, Vec::new(), HashMap::new()),
        Err(e) => return Err(e),
    };
    let mut args = environment.pairs(command)?;
    args.insert(ARG_IS_CHAINED.to_owned(), previous.is_some().to_string());
    let args = CniArgs {
        container_id: environment.container_id.clone(),
        netns: environment.netns.clone(),
        ifname: environment.ifname.clone(),
        args,
        path: environment.path.clone(),
        stdin_data: stdin.to_vec(),
        ips,
        interfaces,
    };
    Ok(Request { socket, version: config.cni_version, previous, args })
}

fn invalid(msg: impl Into<String>) -> ErrorDocument {
    error(code::INVALID_NETWORK_CONFIG, format!("network configuration: {}", msg.into()))
}

/// CHECK came with 0.4.0, GC and STATUS with 1.1.0.
fn check_version(command: Command, version: &str) -> Result<(), ErrorDocument> {
    let first = match command {
        Command::Check => "0.4.0",
        Command::Gc | Command::Status => "1.1.0",
        _ => SUPPORTED_VERSIONS[0],
    };
    // The list is in order.
    let allowed: Vec<&str> = SUPPORTED_VERSIONS.into_iter().skip_while(|v| *v != first).collect();
    if allowed.contains(&version) {
        return Ok(());
    }
    let msg =
        format!("cniVersion {version:?} is not one that has {}: {}", command.name(), allowed.join(", "));
    Err(error(code::INCOMPATIBLE_VERSION, msg))
}

fn check_capabilities(config: &NetConf) -> Result<(), ErrorDocument> {
    for name in UNSUPPORTED_CAPABILITIES {
        let value = config.runtime_config.as_ref().and_then(|all| all.get(name)).filter(|v| !v.is_null());
        if let Some(value) = value {
            let msg = format!("coil does not support \"runtimeConfig\": {{{name:?}: {value}}}");
            return Err(error(code::UNSUPPORTED_FIELD, msg));
        }
    }
    Ok(())
}

/// A pod's namespace exists, and is not the one that the plugin itself runs in.
fn check_namespace(path: &str) -> Result<(), ErrorDocument> {
    let wrong = |why: String| error(code::INVALID_ENVIRONMENT, format!("CNI_NETNS {path:?} {why}"));
    let given = std::fs::metadata(path).map_err(|e| wrong(format!("cannot be used: {e}")))?;
    if statfs(path).is_ok_and(|fs| fs.filesystem_type() != NSFS) {
        return Err(wrong("is no namespace: it may be gone".to_owned()));
    }
    let own = std::fs::metadata("/proc/self/ns/net");
    if own.is_ok_and(|own| (own.dev(), own.ino()) == (given.dev(), given.ino())) {
        return Err(wrong("is the node's own network namespace, not a pod's".to_owned()));
    }
    Ok(())
}

/// The result of the plugins before this one, as it is and as it is understood.
fn previous(config: &NetConf) -> Result<Option<(Value, CniResult)>, ErrorDocument> {
    let Some(value) = config.prev_result.clone().filter(|value| !value.is_null()) else { return Ok(None) };
    let refuse = |e: String| error(code::DECODING_FAILURE, format!("cannot read \"prevResult\": {e}"));
    if !value.is_object() {
        return Err(refuse("it is not an object".to_owned()));
    }
    let version = match value.get("cniVersion") {
        // Results had no version of their own before 1.0.0.
        None | Some(Value::Null) => config.cni_version.as_str(),
        Some(version) => version.as_str().unwrap_or_default(),
    };
    if !is_supported(version) {
        let msg = format!(
            "\"prevResult\" has cniVersion {version:?}, which is not one of {}",
            SUPPORTED_VERSIONS.join(", ")
        );
        return Err(error(code::INCOMPATIBLE_VERSION, msg));
    }
    let result = CniResult::deserialize(&value).map_err(|e| refuse(e.to_string()))?;
    Ok(Some((output::in_version(value, &config.cni_version), result)))
}

#[cfg(test)]
mod tests;
