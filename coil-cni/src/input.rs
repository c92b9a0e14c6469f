//! What the runtime gives: environment and network configuration, to a request for coild.

use std::collections::HashMap;

use coil_api::{
    cni::{ErrorDocument, NetConf, SUPPORTED_VERSIONS, code},
    names::DEFAULT_SOCKET,
    rpc::CniArgs,
};
use serde_json::Value;

use crate::{error, is_supported};

/// A verb of the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    Add,
    Del,
    Check,
    Version,
}

/// The `CNI_*` variables.
#[derive(Debug, Default)]
pub(crate) struct Environment {
    command: Option<String>,
    container_id: Option<String>,
    netns: Option<String>,
    ifname: Option<String>,
    args: Option<String>,
    path: Option<String>,
}

/// A request for coild, and what its answer needs.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) socket: String,
    pub(crate) version: String,
    pub(crate) args: CniArgs,
}

impl Environment {
    /// Reads the variables; an empty one counts as missing.
    pub(crate) fn read(variable: impl Fn(&str) -> Option<String>) -> Self {
        let read = |name| variable(name).filter(|value| !value.is_empty());
        Self {
            command: read("CNI_COMMAND"),
            container_id: read("CNI_CONTAINERID"),
            netns: read("CNI_NETNS"),
            ifname: read("CNI_IFNAME"),
            args: read("CNI_ARGS"),
            path: read("CNI_PATH"),
        }
    }

    pub(crate) fn command(&self) -> Result<Command, ErrorDocument> {
        match self.command.as_deref() {
            Some("ADD") => Ok(Command::Add),
            Some("DEL") => Ok(Command::Del),
            Some("CHECK") => Ok(Command::Check),
            Some("VERSION") => Ok(Command::Version),
            Some(other) => Err(error(
                code::INVALID_ENVIRONMENT,
                format!("CNI_COMMAND {other:?} is not one of ADD, DEL, CHECK, VERSION"),
            )),
            None => Err(missing("CNI_COMMAND")),
        }
    }
}

fn missing(name: &str) -> ErrorDocument {
    error(code::INVALID_ENVIRONMENT, format!("environment variable {name} is missing"))
}

pub(crate) fn request(
    command: Command,
    environment: &Environment,
    stdin: &[u8],
) -> Result<Request, ErrorDocument> {
    let config: NetConf = serde_json::from_slice(stdin)
        .map_err(|e| error(code::DECODING_FAILURE, format!("the network configuration is not JSON: {e}")))?;
    let version = config.cni_version;
    if !is_supported(&version) || (command == Command::Check && version == "0.3.1") {
        return Err(error(
            code::INCOMPATIBLE_VERSION,
            format!(
                "cniVersion {version:?} is not one of {} (CHECK: from 0.4.0)",
                SUPPORTED_VERSIONS.join(", ")
            ),
        ));
    }
    let needed = |value: &Option<String>, name| value.clone().ok_or_else(|| missing(name));
    let netns = match command {
        // The namespace may be gone, and then the runtime does not name it.
        Command::Del => environment.netns.clone().unwrap_or_default(),
        _ => needed(&environment.netns, "CNI_NETNS")?,
    };
    let (ips, interfaces) = previous(config.prev_result.as_ref());
    let args = CniArgs {
        container_id: needed(&environment.container_id, "CNI_CONTAINERID")?,
        netns,
        ifname: needed(&environment.ifname, "CNI_IFNAME")?,
        args: cni_args(environment.args.as_deref().unwrap_or_default())?,
        path: environment.path.clone().unwrap_or_default(),
        stdin_data: stdin.to_vec(),
        ips,
        interfaces,
    };
    Ok(Request { socket: config.socket.unwrap_or_else(|| DEFAULT_SOCKET.to_owned()), version, args })
}

/// `KEY=VALUE;KEY=VALUE`.
fn cni_args(text: &str) -> Result<HashMap<String, String>, ErrorDocument> {
    text.split(';')
        .filter(|pair| !pair.is_empty())
        .map(|pair| match pair.split_once('=') {
            Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
            None => Err(error(code::INVALID_ENVIRONMENT, format!("CNI_ARGS: {pair:?} is not KEY=VALUE"))),
        })
        .collect()
}

/// Addresses and interfaces of the plugins before this one.
fn previous(result: Option<&Value>) -> (Vec<String>, HashMap<String, bool>) {
    let list = |key: &str| result.and_then(|r| r.get(key)).and_then(Value::as_array).into_iter().flatten();
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let ips = list("ips").filter_map(|ip| text(ip, "address")).collect();
    let interfaces = list("interfaces")
        .filter_map(|i| Some((text(i, "name")?, text(i, "sandbox").is_some_and(|s| !s.is_empty()))))
        .collect();
    (ips, interfaces)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONF: &str = r#"{"cniVersion":"1.0.0","name":"net","type":"coil","socket":"/tmp/s"}"#;

    fn environment() -> Environment {
        Environment::read(|name| {
            Some(match name {
                "CNI_COMMAND" => "ADD".to_owned(),
                "CNI_ARGS" => "IgnoreUnknown=1;K8S_POD_NAME=p;K8S_POD_NAMESPACE=n".to_owned(),
                _ => name.to_lowercase(),
            })
        })
    }

    #[test]
    fn everything_is_passed_on() {
        let request = request(Command::Add, &environment(), CONF.as_bytes()).unwrap();
        assert_eq!((request.socket.as_str(), request.version.as_str()), ("/tmp/s", "1.0.0"));
        assert_eq!(request.args.container_id, "cni_containerid");
        assert_eq!(request.args.netns, "cni_netns");
        assert_eq!(request.args.args["K8S_POD_NAME"], "p");
        assert_eq!(request.args.stdin_data, CONF.as_bytes());
    }

    #[test]
    fn the_previous_result_is_read() {
        let conf = r#"{"cniVersion":"0.4.0","prevResult":{"ips":[{"version":"4","address":"10.1.0.2/24"}],
            "interfaces":[{"name":"veth0"},{"name":"eth0","sandbox":"/run/netns/x"}]}}"#;
        let request = request(Command::Add, &environment(), conf.as_bytes()).unwrap();
        assert_eq!(request.socket, DEFAULT_SOCKET);
        assert_eq!(request.args.ips, ["10.1.0.2/24"]);
        assert_eq!(request.args.interfaces, [("veth0".into(), false), ("eth0".into(), true)].into());
    }

    #[test]
    fn what_is_wrong_has_its_code() {
        let code_of = |command, environment: &Environment, conf: &str| {
            request(command, environment, conf.as_bytes()).unwrap_err().code
        };
        assert_eq!(code_of(Command::Add, &environment(), "{"), code::DECODING_FAILURE);
        assert_eq!(code_of(Command::Add, &environment(), "{}"), code::INCOMPATIBLE_VERSION);
        assert_eq!(
            code_of(Command::Add, &environment(), r#"{"cniVersion":"0.2.0"}"#),
            code::INCOMPATIBLE_VERSION
        );
        assert_eq!(
            code_of(Command::Check, &environment(), r#"{"cniVersion":"0.3.1"}"#),
            code::INCOMPATIBLE_VERSION
        );
        let mut no_netns = environment();
        no_netns.netns = None;
        assert_eq!(code_of(Command::Add, &no_netns, CONF), code::INVALID_ENVIRONMENT);
        assert!(request(Command::Del, &no_netns, CONF.as_bytes()).is_ok());
        let mut bad_args = environment();
        bad_args.args = Some("A".into());
        assert_eq!(code_of(Command::Add, &bad_args, CONF), code::INVALID_ENVIRONMENT);
        assert_eq!(Environment::default().command().unwrap_err().code, code::INVALID_ENVIRONMENT);
    }
}
