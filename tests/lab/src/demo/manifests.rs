//! The objects of the demo.

use crate::config::{EGRESS_POOL, Family};

/// First port of the server pod: a sink; the next one echoes.
pub(super) const SERVER_PORT: u16 = 5001;
/// The namespace of the gateways.
pub(super) const EGRESS_NAMESPACE: &str = "internet";
/// The Egress, and so its Deployment.
pub(super) const EGRESS: &str = "nat";

/// The pods between which packets go: two on one node, one on another.
pub(super) fn pods() -> String {
    [
        pod("server", "node1", "", &format!(", command: [coil-lab, tool, serve, '{SERVER_PORT}']")),
        pod("near", "node1", "", ""),
        pod("far", "node2", "", ""),
    ]
    .concat()
}

/// A pod that may leave through the Egress.
pub(super) fn client() -> String {
    pod("client", "node2", &format!("egress.coil.cybozu.com/{EGRESS_NAMESPACE}: {EGRESS}"), "")
}

fn pod(name: &str, node: &str, annotation: &str, command: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, annotations: {{{annotation}}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 1
  containers: [{{name: main, image: none{command}}}]
"
    )
}

/// A namespace whose pods get routable addresses, and an Egress in it.
pub(super) fn egress(family: Family) -> String {
    let destinations: Vec<String> = family.each().iter().map(|ip| format!("'{}'", ip.world_net())).collect();
    format!(
        "---
apiVersion: v1
kind: Namespace
metadata:
  name: {EGRESS_NAMESPACE}
  annotations: {{coil.cybozu.com/pool: {EGRESS_POOL}}}
---
apiVersion: coil.cybozu.com/v2
kind: Egress
metadata: {{name: {EGRESS}, namespace: {EGRESS_NAMESPACE}}}
spec:
  replicas: 1
  destinations: [{}]
",
        destinations.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize as _;

    #[test]
    fn they_are_yaml_of_the_family() {
        for (family, count) in [(Family::V4, 1), (Family::V6, 1), (Family::Dual, 2)] {
            let text = [pods(), client(), egress(family)].concat();
            let documents: Vec<serde_json::Value> = serde_yaml_ng::Deserializer::from_str(&text)
                .map(|document| serde_json::Value::deserialize(document).unwrap())
                .collect();
            let egress = documents.iter().find(|d| d["kind"] == "Egress").unwrap();
            assert_eq!(egress["spec"]["destinations"].as_array().map(Vec::len), Some(count));
            let client = documents.iter().find(|d| d["metadata"]["name"] == "client").unwrap();
            assert_eq!(client["metadata"]["annotations"]["egress.coil.cybozu.com/internet"], "nat");
        }
    }
}
