//! Probes of a container: HTTP and TCP, from the node's own network as a kubelet does.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use coil_traffic::machine::patience;
use k8s_openapi::{
    api::core::v1::{Container, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time,
};

/// More of an answer than its first line is not read.
const ANSWER_MAX: u64 = 4096;

/// One attempt. The probe's time is that of a real machine.
pub(super) async fn attempt(probe: &Probe, container: &Container, ip: IpAddr) -> Result<()> {
    let timeout = patience(seconds(probe.timeout_seconds, 1));
    time::timeout(timeout, once(probe, container, ip))
        .await
        .with_context(|| format!("no answer in {timeout:?}"))?
}

async fn once(probe: &Probe, container: &Container, ip: IpAddr) -> Result<()> {
    if let Some(http) = &probe.http_get {
        let ip = http.host.as_deref().map_or(Ok(ip), str::parse).context("host is no address")?;
        return http_get(
            SocketAddr::new(ip, port(&http.port, container)?),
            http.path.as_deref().unwrap_or("/"),
        )
        .await;
    }
    if let Some(tcp) = &probe.tcp_socket {
        let ip = tcp.host.as_deref().map_or(Ok(ip), str::parse).context("host is no address")?;
        let to = SocketAddr::new(ip, port(&tcp.port, container)?);
        return TcpStream::connect(to).await.map(drop).with_context(|| format!("cannot connect to {to}"));
    }
    bail!("the lab knows only httpGet and tcpSocket probes")
}

async fn http_get(to: SocketAddr, path: &str) -> Result<()> {
    let mut stream = TcpStream::connect(to).await.with_context(|| format!("cannot connect to {to}"))?;
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: {to}\r\nUser-Agent: kube-probe\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.context("cannot send the request")?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer).await.context("cannot read the answer")?;
    let line = String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned();
    let status: u16 =
        line.split(' ').nth(1).and_then(|code| code.parse().ok()).context("the answer is not HTTP")?;
    ensure!((200..400).contains(&status), "HTTP probe failed with statuscode: {status}");
    Ok(())
}

fn port(port: &IntOrString, container: &Container) -> Result<u16> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => container
            .ports
            .iter()
            .flatten()
            .find(|p| p.name.as_deref() == Some(name))
            .map(|p| p.container_port)
            .with_context(|| format!("container {} has no port named {name:?}", container.name))?,
    };
    u16::try_from(number).with_context(|| format!("{number} is no port"))
}

/// A number of seconds of the API, or its default.
pub(super) fn seconds(value: Option<i32>, default: u32) -> Duration {
    Duration::from_secs(
        value.and_then(|v| u32::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default).into(),
    )
}

/// A threshold of a probe, or its default.
pub(super) fn threshold(value: Option<i32>, default: u32) -> u32 {
    value.and_then(|v| u32::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default)
}
