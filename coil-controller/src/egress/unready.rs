//! Why gateways are not ready, in their own words.
//!
//! A gateway knows it from its node's coild, and answers its readiness probe with it. Kubernetes keeps no such answer, so
//! it is asked for here.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use coil_api::{annotation::EgressRef, names::GATEWAY_HEALTH_PORT};
use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, ResourceExt, api::ListParams};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tracing::warn;

use super::status;

/// How long a gateway may take for its answer.
const LIMIT: Duration = Duration::from_secs(1);
/// How many gateways are asked, and told of: the reasons of an Egress's gateways seldom differ.
const MOST: usize = 4;
/// Bytes of an answer that are read, and letters of a reason that are told.
const LONGEST_ANSWER: u64 = 2048;
const LONGEST: usize = 400;

/// What gateways of the Egress say that are not ready, each with its node; empty when nothing is known.
pub(super) async fn reasons(client: &Client, egress: &EgressRef) -> Vec<String> {
    let api = Api::<Pod>::namespaced(client.clone(), &egress.namespace);
    // Any state will do: what has changed since is seen the next time.
    let params = ListParams::default().labels(&status::selector(&egress.name)).match_any();
    match api.list(&params).await {
        Ok(pods) => join_all(pods.items.iter().filter(|pod| is_unready(pod)).take(MOST).map(reason)).await,
        Err(e) => {
            warn!(%egress, error = %e, "cannot list its gateways, which would say why they are not ready");
            Vec::new()
        }
    }
}

fn is_unready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    pod.metadata.deletion_timestamp.is_none()
        && !conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

async fn reason(pod: &Pod) -> String {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    let address = pod.status.as_ref().and_then(|status| status.pod_ip.as_deref()?.parse::<IpAddr>().ok());
    let why = match (node, address) {
        (None, _) => "is on no node yet".to_owned(),
        (Some(node), None) => format!("on {node} has no address yet"),
        (Some(node), Some(address)) => {
            let answer = timeout(LIMIT, ask(SocketAddr::new(address, GATEWAY_HEALTH_PORT))).await;
            let said = answer.map_err(io::Error::from).flatten();
            format!("on {node}: {}", said.unwrap_or_else(|e| format!("does not answer ({e})")))
        }
    };
    format!("{} {why}", pod.name_any())
}

/// Asks for the answer to the readiness probe.
async fn ask(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(format!("GET /readyz HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(LONGEST_ANSWER).read_to_end(&mut answer).await?;
    Ok(said(&String::from_utf8_lossy(&answer)))
}

/// The reason in an answer of HTTP.
fn said(answer: &str) -> String {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let status = head.split_whitespace().nth(1).unwrap_or_default();
    match status {
        "200" => "ready by now".to_owned(),
        "503" => {
            let line = body.trim().lines().next().unwrap_or_default();
            line.chars().filter(|c| !c.is_control()).take(LONGEST).collect()
        }
        _ => "does not answer as a gateway".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::net::TcpListener;

    use super::*;

    fn pod(value: serde_json::Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn answers() {
        let lacks =
            "HTTP/1.0 503 Service Unavailable\r\ncontent-type: text/plain\r\n\r\nthis kernel lacks FOU\n";
        assert_eq!(said(lacks), "this kernel lacks FOU");
        assert_eq!(said("HTTP/1.1 200 OK\r\n\r\nok\n"), "ready by now");
        for strange in ["", "SSH-2.0-OpenSSH_9", "HTTP/1.1 404 Not Found\r\n\r\nsecret"] {
            assert_eq!(said(strange), "does not answer as a gateway", "{strange}");
        }
        let long = format!("HTTP/1.1 503 x\r\n\r\n\u{7}{}\nmore", "ü".repeat(1000));
        assert_eq!(said(&long), "ü".repeat(LONGEST));
    }

    #[tokio::test]
    async fn whoever_is_not_ready_is_asked() {
        let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        assert!(!is_unready(&pod(ready)));
        let starting = pod(json!({"metadata": {"name": "nat-1"}, "status": {"phase": "Pending"}}));
        assert!(is_unready(&starting));
        assert_eq!(reason(&starting).await, "nat-1 is on no node yet");
        let placed =
            pod(json!({"metadata": {"name": "nat-1"}, "spec": {"containers": [], "nodeName": "node2"}}));
        assert_eq!(reason(&placed).await, "nat-1 on node2 has no address yet");
        let going = json!({"metadata": {"name": "nat-1", "deletionTimestamp": "2026-01-01T00:00:00Z"}});
        assert!(!is_unready(&pod(going)));

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                asked.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(b"HTTP/1.0 503 Service Unavailable\r\n\r\nno FOU\n").await.unwrap();
            asked
        });
        assert_eq!(ask(address).await.unwrap(), "no FOU");
        assert!(served.await.unwrap().starts_with(b"GET /readyz HTTP/1.0\r\n"));
    }
}
