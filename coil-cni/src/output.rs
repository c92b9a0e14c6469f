//! What the runtime reads: results in the version that it asked for, errors, versions.

use coil_api::cni::{ErrorDocument, SUPPORTED_VERSIONS, code};
use serde_json::{Map, Value, json};

use crate::{error, is_supported};

/// What is used when the input does not give a usable version.
const NEWEST: &str = SUPPORTED_VERSIONS[SUPPORTED_VERSIONS.len() - 1];

/// coild's result, in the asked version.
pub(crate) fn result(result: &[u8], version: &str) -> Result<String, ErrorDocument> {
    let document: Value = serde_json::from_slice(result).map_err(|e| {
        error(
            code::DECODING_FAILURE,
            format!("coild's result is not JSON: {e}; are plugin and coild of one release?"),
        )
    })?;
    Ok(in_version(document, version).to_string())
}

/// A result of any supported version, in another one. What that one does not have is left out; what no
/// version has stays.
pub(crate) fn in_version(mut document: Value, version: &str) -> Value {
    if let Some(document) = document.as_object_mut() {
        document.insert("cniVersion".to_owned(), json!(version));
        if version != "1.1.0" {
            items(document, "interfaces", |i| remove(i, &["mtu", "socketPath", "pciID"]));
            items(document, "routes", |r| remove(r, &["mtu", "advmss", "priority", "table", "scope"]));
        }
        items(document, "ips", |ip| {
            // The family's number was there until 1.0.0.
            remove(ip, &["version"]);
            if version.starts_with("0.") {
                let v6 = ip.get("address").and_then(Value::as_str).is_some_and(|a| a.contains(':'));
                ip.insert("version".to_owned(), json!(if v6 { "6" } else { "4" }));
            }
        });
    }
    document
}

fn items(document: &mut Map<String, Value>, key: &str, change: impl Fn(&mut Map<String, Value>)) {
    let list = document.get_mut(key).and_then(Value::as_array_mut);
    list.into_iter().flatten().filter_map(Value::as_object_mut).for_each(change);
}

fn remove(object: &mut Map<String, Value>, keys: &[&str]) {
    keys.iter().for_each(|key| drop(object.remove(*key)));
}

/// Answer to VERSION: the version that was asked with, and ours. It asks what the plugin is, so bad input
/// does not make it fail.
pub(crate) fn versions(stdin: &[u8]) -> String {
    let asked: Value = serde_json::from_slice(stdin).unwrap_or_default();
    let version = asked["cniVersion"].as_str().filter(|version| !version.is_empty()).unwrap_or(NEWEST);
    json!({"cniVersion": version, "supportedVersions": SUPPORTED_VERSIONS}).to_string()
}

/// The version for an error about this configuration.
pub(crate) fn error_version(stdin: &[u8]) -> String {
    let config: Value = serde_json::from_slice(stdin).unwrap_or_default();
    config["cniVersion"].as_str().filter(|v| is_supported(v)).unwrap_or(NEWEST).to_owned()
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
        "interfaces":[{"name":"veth1","mac":"02:00:00:00:00:01","mtu":1500,"socketPath":"/s","pciID":"0"},
            {"name":"eth0","sandbox":"/run/netns/p"}],
        "ips":[{"address":"10.64.0.1/32","interface":1},{"address":"fd64::1/128","interface":1}],
        "routes":[{"dst":"0.0.0.0/0","gw":"172.18.0.1","mtu":1472,"advmss":1432,"priority":9,"table":7,"scope":0}],
        "dns":{"nameservers":["10.1.0.1"]},"other.example/key":1}"#;

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
            for key in ["mtu", "socketPath", "pciID"] {
                assert_eq!(got["interfaces"][0].get(key).is_some(), version == "1.1.0", "{version} {key}");
            }
            for key in ["mtu", "advmss", "priority", "table", "scope"] {
                assert_eq!(got["routes"][0].get(key).is_some(), version == "1.1.0", "{version} {key}");
            }
            assert_eq!(got["routes"][0]["gw"], "172.18.0.1");
            assert_eq!(
                (&got["dns"]["nameservers"][0], &got["other.example/key"]),
                (&json!("10.1.0.1"), &json!(1))
            );
        }
        assert_eq!(converted("0.4.0")["ips"][0]["version"], "4");
        assert_eq!(converted("0.3.1")["ips"][1]["version"], "6");
        assert_eq!(result(b"{", "1.0.0").unwrap_err().code, code::DECODING_FAILURE);
        let older = in_version(converted("0.4.0"), "1.0.0");
        assert_eq!(older, in_version(converted("1.1.0"), "1.0.0"));
    }

    #[test]
    fn versions_and_errors() {
        let answer = |stdin: &str| -> Value { serde_json::from_str(&versions(stdin.as_bytes())).unwrap() };
        for (stdin, version) in [
            (r#"{"cniVersion":"0.4.0"}"#, "0.4.0"),
            (r#"{"cniVersion":"7.0.0"}"#, "7.0.0"),
            ("", "1.1.0"),
            ("{", "1.1.0"),
            (r#"{"cniVersion":""}"#, "1.1.0"),
        ] {
            let answer = answer(stdin);
            assert_eq!(answer["cniVersion"], version, "{stdin}");
            assert_eq!(answer["supportedVersions"], json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
        }
        assert_eq!(error_version(b"nothing"), "1.1.0");
        assert_eq!(error_version(br#"{"cniVersion":"0.4.0"}"#), "0.4.0");
        let text = pretty(&error(7, "no"));
        assert_eq!(text, r#"{"cniVersion":"","code":7,"msg":"no"}"#);
    }
}
