//! What the runtime reads: results in the version that it asked for, errors, versions.

use coil_api::cni::{ErrorDocument, SUPPORTED_VERSIONS, code};
use serde_json::{Value, json};

use crate::{error, is_supported};

/// The version that errors are written in when the configuration does not give a usable one.
const ERROR_VERSION: &str = "1.0.0";

/// coild's result, in the asked version.
pub(crate) fn result(result: &[u8], version: &str) -> Result<String, ErrorDocument> {
    let bad = |e: serde_json::Error| {
        error(
            code::DECODING_FAILURE,
            format!("coild's result is not JSON: {e}; are plugin and coild of one release?"),
        )
    };
    let mut document: Value = serde_json::from_slice(result).map_err(bad)?;
    document["cniVersion"] = json!(version);
    let items = |document: &mut Value, key: &str, change: &dyn Fn(&mut Value)| {
        document.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten().for_each(change);
    };
    if version != "1.1.0" {
        // MTUs came with 1.1.0.
        items(&mut document, "interfaces", &|i| remove(i, &["mtu", "socketPath", "pciID"]));
        items(&mut document, "routes", &|r| remove(r, &["mtu", "advmss", "priority", "table", "scope"]));
    }
    if version.starts_with("0.") {
        // The family went with 1.0.0.
        items(&mut document, "ips", &|ip| {
            let v6 = ip["address"].as_str().is_some_and(|a| a.contains(':'));
            ip["version"] = json!(if v6 { "6" } else { "4" });
        });
    }
    serde_json::to_string(&document).map_err(bad)
}

fn remove(object: &mut Value, keys: &[&str]) {
    if let Some(object) = object.as_object_mut() {
        keys.iter().for_each(|key| drop(object.remove(*key)));
    }
}

/// Answer to VERSION.
pub(crate) fn versions(stdin: &[u8]) -> Result<String, ErrorDocument> {
    let asked: Value = serde_json::from_slice(stdin)
        .map_err(|e| error(code::DECODING_FAILURE, format!("the input is not JSON: {e}")))?;
    let version = asked["cniVersion"].as_str().filter(|v| is_supported(v)).unwrap_or(ERROR_VERSION);
    Ok(json!({"cniVersion": version, "supportedVersions": SUPPORTED_VERSIONS}).to_string())
}

/// The version for an error about this configuration.
pub(crate) fn error_version(stdin: &[u8]) -> String {
    let config: Value = serde_json::from_slice(stdin).unwrap_or_default();
    config["cniVersion"].as_str().filter(|v| is_supported(v)).unwrap_or(ERROR_VERSION).to_owned()
}

/// An error as the runtime reads it.
pub(crate) fn pretty(error: &ErrorDocument) -> String {
    // Strings and numbers are always JSON.
    serde_json::to_string(error).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESULT: &str = r#"{"cniVersion":"1.1.0",
        "interfaces":[{"name":"veth1","mac":"02:00:00:00:00:01","mtu":1500},{"name":"eth0","sandbox":"/run/netns/p"}],
        "ips":[{"address":"10.64.0.1/32","interface":1},{"address":"fd64::1/128","interface":1}],
        "routes":[{"dst":"0.0.0.0/0","gw":"172.18.0.1","mtu":1472,"advmss":1432}]}"#;

    fn converted(version: &str) -> Value {
        serde_json::from_str(&result(RESULT.as_bytes(), version).unwrap()).unwrap()
    }

    #[test]
    fn results_of_each_version() {
        for version in SUPPORTED_VERSIONS {
            let got = converted(version);
            assert_eq!(got["cniVersion"], version);
            assert_eq!(got["ips"][1]["address"], "fd64::1/128");
            assert_eq!(got["ips"][1].get("version").is_some(), version.starts_with("0."), "{version}");
            assert_eq!(got["interfaces"][0].get("mtu").is_some(), version == "1.1.0");
            assert_eq!(got["routes"][0].get("advmss").is_some(), version == "1.1.0");
            assert_eq!(got["routes"][0]["gw"], "172.18.0.1");
        }
        assert_eq!(converted("0.4.0")["ips"][0]["version"], "4");
        assert_eq!(converted("0.3.1")["ips"][1]["version"], "6");
        assert_eq!(result(b"{", "1.0.0").unwrap_err().code, code::DECODING_FAILURE);
    }

    #[test]
    fn versions_and_errors() {
        let answer: Value = serde_json::from_str(&versions(br#"{"cniVersion":"0.4.0"}"#).unwrap()).unwrap();
        assert_eq!(answer["cniVersion"], "0.4.0");
        assert_eq!(answer["supportedVersions"].as_array().unwrap().len(), 3);
        assert_eq!(error_version(b"nothing"), "1.0.0");
        assert_eq!(error_version(br#"{"cniVersion":"0.4.0"}"#), "0.4.0");
        let text = pretty(&error(7, "no"));
        assert_eq!(text, r#"{"cniVersion":"","code":7,"msg":"no"}"#);
    }
}
