//! Why gateways are not ready, and what those that are do without, in their own words.
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

use coil_program::serve::NOTED;

use super::status;

/// How long a gateway may take for its answer.
const LIMIT: Duration = Duration::from_secs(1);
/// How many gateways are asked, and told of: the reasons of an Egress's gateways seldom differ.
const MOST: usize = 4;
/// Bytes of an answer that are read, and letters of a reason that are told.
const LONGEST_ANSWER: u64 = 2048;
const LONGEST: usize = 400;

/// What gateways of the Egress say, each with its node; empty when nothing is known, or to be said. Those that are not ready
/// come first.
pub(super) async fn reasons(client: &Client, egress: &EgressRef) -> Vec<String> {
    let api = Api::<Pod>::namespaced(client.clone(), &egress.namespace);
    // Any state will do: what has changed since is seen the next time.
    let params = ListParams::default().labels(&status::selector(&egress.name)).match_any();
    match api.list(&params).await {
        Ok(pods) => {
            let (unready, ready): (Vec<&Pod>, Vec<&Pod>) =
                pods.items.iter().filter(|pod| is_meant(pod)).partition(|pod| is_unready(pod));
            let said = join_all(unready.into_iter().chain(ready).take(MOST).map(reason)).await;
            said.into_iter().flatten().collect()
        }
        Err(e) => {
            warn!(%egress, error = %e, "cannot list its gateways, which would say why they are not ready");
            Vec::new()
        }
    }
}

/// Not one that is going.
const fn is_meant(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none()
}

fn is_unready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    !conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

async fn reason(pod: &Pod) -> Option<String> {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    let address = pod.status.as_ref().and_then(|status| status.pod_ip.as_deref()?.parse::<IpAddr>().ok());
    let why = match (node, address) {
        (None, _) => "is on no node yet".to_owned(),
        (Some(node), None) => format!("on {node} has no address yet"),
        (Some(node), Some(address)) => {
            let answer = timeout(LIMIT, ask(SocketAddr::new(address, GATEWAY_HEALTH_PORT))).await;
            let said = match answer.map_err(io::Error::from).flatten() {
                Ok(Said::Ready) if is_unready(pod) => "ready by now".to_owned(),
                Ok(Said::Ready) => return None,
                Ok(Said::Words(words)) => words,
                // Another gateway's trouble is not worth a word, as long as Kubernetes takes it for ready.
                Err(_) if !is_unready(pod) => return None,
                Err(e) => format!("does not answer ({e})"),
            };
            format!("on {node}: {said}")
        }
    };
    Some(format!("{} {why}", pod.name_any()))
}

/// What a gateway answers.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    /// It is ready, and has nothing more to say.
    Ready,
    /// Why it is not, or what it does without.
    Words(String),
}

/// Asks for the answer to the readiness probe.
async fn ask(address: SocketAddr) -> io::Result<Said> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(format!("GET /readyz HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(LONGEST_ANSWER).read_to_end(&mut answer).await?;
    Ok(said(&String::from_utf8_lossy(&answer)))
}

/// What an answer of HTTP says.
fn said(answer: &str) -> Said {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let status = head.split_whitespace().nth(1).unwrap_or_default();
    let line = body.trim().lines().next().unwrap_or_default();
    let words = |text: &str| Said::Words(text.chars().filter(|c| !c.is_control()).take(LONGEST).collect());
    match (status, line.strip_prefix(NOTED)) {
        ("200", None) => Said::Ready,
        ("200", Some(note)) => words(note),
        ("503", _) => words(line),
        _ => words("does not answer as a gateway"),
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

    fn words(text: &str) -> Said {
        Said::Words(text.to_owned())
    }

    #[test]
    fn answers() {
        let lacks =
            "HTTP/1.0 503 Service Unavailable\r\ncontent-type: text/plain\r\n\r\nthis kernel lacks FOU\n";
        assert_eq!(said(lacks), words("this kernel lacks FOU"));
        assert_eq!(said("HTTP/1.1 200 OK\r\n\r\nok\n"), Said::Ready);
        assert_eq!(
            said("HTTP/1.1 200 OK\r\n\r\nok; no GRE: this kernel lacks FOU\n"),
            words("no GRE: this kernel lacks FOU")
        );
        for strange in ["", "SSH-2.0-OpenSSH_9", "HTTP/1.1 404 Not Found\r\n\r\nsecret"] {
            assert_eq!(said(strange), words("does not answer as a gateway"), "{strange}");
        }
        let long = format!("HTTP/1.1 503 x\r\n\r\n\u{7}{}\nmore", "ü".repeat(1000));
        assert_eq!(said(&long), words(&"ü".repeat(LONGEST)));
    }

    #[tokio::test]
    async fn gateways_are_asked() {
        let ready = pod(
            json!({"metadata": {"name": "nat-1"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}),
        );
        assert!(!is_unready(&ready) && is_meant(&ready));
        let starting = pod(json!({"metadata": {"name": "nat-1"}, "status": {"phase": "Pending"}}));
        assert!(is_unready(&starting));
        assert_eq!(reason(&starting).await.unwrap(), "nat-1 is on no node yet");
        let placed =
            pod(json!({"metadata": {"name": "nat-1"}, "spec": {"containers": [], "nodeName": "node2"}}));
        assert_eq!(reason(&placed).await.unwrap(), "nat-1 on node2 has no address yet");
        let going = json!({"metadata": {"name": "nat-1", "deletionTimestamp": "2026-01-01T00:00:00Z"}});
        assert!(!is_meant(&pod(going)));

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
        assert_eq!(ask(address).await.unwrap(), words("no FOU"));
        assert!(served.await.unwrap().starts_with(b"GET /readyz HTTP/1.0\r\n"));
    }
}
