//! Types of the CNI specification, 0.3.1 to 1.1.0, as far as Coil reads or writes them.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The versions that the plugin speaks, oldest first.
pub const SUPPORTED_VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// Error codes of the specification that Coil uses.
pub mod code {
    /// The network configuration's version is not supported.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// The network configuration asks for something that Coil does not do.
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// The container does not exist.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// A needed environment variable is missing or wrong.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// Reading or writing failed.
    pub const IO_FAILURE: u32 = 5;
    /// The input is not the JSON it should be.
    pub const DECODING_FAILURE: u32 = 6;
    /// The network configuration says something impossible.
    pub const INVALID_NETWORK_CONFIG: u32 = 7;
    /// A passing condition: the runtime should try again.
    pub const TRY_AGAIN_LATER: u32 = 11;
    /// STATUS: the plugin cannot serve ADD.
    pub const NOT_AVAILABLE: u32 = 50;
    /// STATUS: the plugin cannot serve ADD, and pods that are connected may be impaired.
    pub const LIMITED_CONNECTIVITY: u32 = 51;
    /// Anything else.
    pub const INTERNAL: u32 = 999;
}

/// The network configuration on the plugin's standard input.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetConf {
    /// Version that the result must have.
    #[serde(default)]
    pub cni_version: String,
    /// The network's name.
    #[serde(default)]
    pub name: String,
    /// The plugin's name: `coil`.
    #[serde(rename = "type", default)]
    pub plugin: String,
    /// coild's socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
    /// Result of the plugins before this one in the chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prev_result: Option<serde_json::Value>,
    /// Values of the capabilities that the configuration declares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_config: Option<serde_json::Value>,
    /// GC: the network's live attachments.
    #[serde(rename = "cni.dev/valid-attachments", default, skip_serializing_if = "Option::is_none")]
    pub valid_attachments: Option<Vec<AttachmentRef>>,
    /// The same under the name that runtimes used first.
    #[serde(rename = "cni.dev/attachments", default, skip_serializing_if = "Option::is_none")]
    pub attachments: Option<Vec<AttachmentRef>>,
}

impl NetConf {
    /// The live attachments that GC was given under either name; none when it was given no list.
    #[must_use]
    pub fn live_attachments(&self) -> Option<BTreeSet<&AttachmentRef>> {
        if self.valid_attachments.is_none() && self.attachments.is_none() {
            return None;
        }
        Some(self.valid_attachments.iter().chain(&self.attachments).flatten().collect())
    }
}

/// An attachment as GC names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AttachmentRef {
    /// `CNI_CONTAINERID` of its ADD.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// `CNI_IFNAME` of its ADD.
    pub ifname: String,
}

/// A result of version 1.0.0 or 1.1.0.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CniResult {
    /// Version of this document.
    #[serde(default)]
    pub cni_version: String,
    /// The links, host side first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// The pod's addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpConfig>,
    /// Routes inside the pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// Name servers; Coil passes on what it was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<serde_json::Value>,
}

/// A link in a [`CniResult`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// Name of the link.
    pub name: String,
    /// Hardware address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// MTU, 1.1.0 and later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Path of the namespace; none for links of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
}

/// An address in a [`CniResult`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IpConfig {
    /// Address with its prefix length.
    pub address: IpNet,
    /// Default gateway of its family.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Index in `interfaces`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
}

/// A route in a [`CniResult`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Route {
    /// Destination.
    pub dst: IpNet,
    /// Next hop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// MTU, 1.1.0 and later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// TCP MSS to advertise, 1.1.0 and later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
}

/// The error document that a plugin prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ErrorDocument {
    /// Version of the configuration that was given.
    #[serde(default)]
    pub cni_version: String,
    /// One of [`code`].
    pub code: u32,
    /// What happened to which object, and what to do.
    pub msg: String,
    /// Anything longer.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_attachments_have_two_names_and_may_be_absent() {
        let live = |rest: &str| {
            let conf: NetConf = serde_json::from_str(&format!(r#"{{"name":"n"{rest}}}"#)).unwrap();
            conf.live_attachments()
                .map(|all| all.into_iter().map(|a| a.container_id.clone()).collect::<Vec<_>>())
        };
        let one = |key: &str, id: &str| format!(r#","{key}":[{{"containerID":"{id}","ifname":"eth0"}}]"#);
        let (new, old) = (one("cni.dev/valid-attachments", "a"), one("cni.dev/attachments", "b"));
        assert_eq!(live(&new).unwrap(), ["a"]);
        assert_eq!(live(&old).unwrap(), ["b"]);
        assert_eq!(live(&(new + &old)).unwrap(), ["a", "b"]);
        assert_eq!(live(r#","cni.dev/attachments":[]"#).unwrap(), Vec::<String>::new());
        assert_eq!(live(""), None);
        assert_eq!(live(r#","cni.dev/valid-attachments":null"#), None, "null is no list");
        let incomplete = r#"{"cni.dev/attachments":[{"ifname":"eth0"}]}"#;
        assert!(serde_json::from_str::<NetConf>(incomplete).is_err());
    }
}
