//! Kubeconfig files for this server's users.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

/// A kubeconfig with one cluster, one user and one context.
///
/// `server` is the URL by which the server is reached, `ca` the PEM of its CA.
#[must_use]
pub fn kubeconfig(server: &str, ca: &str, user: &str, token: &str) -> String {
    const CLUSTER: &str = "coil-lab";
    let context = format!("{user}@{CLUSTER}");
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": context,
        "clusters": [{"name": CLUSTER, "cluster": {
            "server": server, "certificate-authority-data": STANDARD.encode(ca)}}],
        "users": [{"name": user, "user": {"token": token}}],
        "contexts": [{"name": context, "context": {"cluster": CLUSTER, "user": user}}],
    });
    // JSON is YAML; a YAML writer could only fail on input that this function never has.
    serde_yaml_ng::to_string(&config).unwrap_or_else(|_| config.to_string())
}
