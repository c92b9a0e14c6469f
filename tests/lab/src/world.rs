//! The world's server: echo on TCP and UDP port 7, HTTP on port 80, and a memory of every peer.
//!
//! `GET /` answers the address that the server saw: `{"peer":"203.0.113.1"}`. `GET /peers`
//! answers all of them, `[{"service":"tcp/7","peer":"203.0.113.1"},…]`: what stands there not,
//! never came.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use coil_traffic::serve::{self, Seen};

use crate::config::Family;

const ECHO_PORT: u16 = 7;
const HTTP_PORT: u16 = 80;
/// A request's head is not longer.
const HEAD_MAX: usize = 4096;

type Peers = Arc<Mutex<BTreeSet<(String, IpAddr)>>>;

/// The server's main function; it ends only by an error.
pub(crate) fn main(family: Family) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(family))
}

async fn run(family: Family) -> Result<()> {
    let peers = Peers::default();
    let memory = peers.clone();
    let seen: Seen = Arc::new(move |service, peer| {
        println!("{service} {peer}");
        let mut peers = memory.lock().unwrap_or_else(PoisonError::into_inner);
        peers.insert((service.to_owned(), peer.ip()));
    });
    let mut servers = JoinSet::new();
    for ip in family.each() {
        // Bound to the one address: an answer to a datagram then comes from it.
        let echo = SocketAddr::new(ip.world(), ECHO_PORT);
        servers.spawn(serve::tcp_echo(echo, seen.clone()));
        servers.spawn(serve::udp_echo(echo, seen.clone()));
        let http = SocketAddr::new(ip.world(), HTTP_PORT);
        let listener = TcpListener::bind(http).await.with_context(|| format!("cannot listen on {http}"))?;
        let (seen, peers) = (seen.clone(), peers.clone());
        servers.spawn(async move {
            serve::serve(listener, "http/80", seen, move |stream, peer| answer(stream, peer, peers.clone()))
                .await
        });
    }
    match servers.join_next().await {
        Some(ended) => ended.context("a server panicked")?,
        None => Ok(()),
    }
}

async fn answer(mut stream: TcpStream, peer: SocketAddr, peers: Peers) -> io::Result<()> {
    let mut head = Vec::new();
    let mut buffer = [0; 512];
    while !head.windows(4).any(|w| w == b"\r\n\r\n") && head.len() < HEAD_MAX {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            break;
        }
        head.extend_from_slice(&buffer[..count]);
    }
    let path = head.split(|b| *b == b' ').nth(1).unwrap_or_default();
    let (status, body) = match path {
        b"/" => ("200 OK", json!({"peer": peer.ip()})),
        b"/peers" => {
            let peers = peers.lock().unwrap_or_else(PoisonError::into_inner);
            (
                "200 OK",
                peers.iter().map(|(service, peer)| json!({"service": service, "peer": peer})).collect(),
            )
        }
        _ => ("404 Not Found", json!({"error": "there is / and /peers"})),
    };
    let body = format!("{body}\n");
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}
