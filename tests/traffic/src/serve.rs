//! Servers: echo over TCP and UDP, a sink that answers with a checksum, and one that tells who connects.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinSet,
    time,
};

use super::data::Checksum;

/// Called with each peer of a server.
pub type Seen = Arc<dyn Fn(&str, SocketAddr) + Send + Sync>;

const DATAGRAM_MAX: usize = 65536;

/// All servers, on each of the addresses.
pub(super) async fn all(addresses: &[IpAddr], port: u16) -> Result<()> {
    let seen: Seen = Arc::new(|_, _| ());
    let mut servers = JoinSet::new();
    for address in addresses {
        let at = |more: u16| {
            let port = port.checked_add(more).context("there is no port after the last")?;
            Ok::<_, anyhow::Error>(SocketAddr::new(*address, port))
        };
        let (sink, whoami) = (listener(at(0)?).await?, listener(at(2)?).await?);
        servers.spawn(serve(sink, "sink", seen.clone(), sink_connection));
        servers.spawn(serve(whoami, "whoami", seen.clone(), whoami_connection));
        servers.spawn(tcp_echo(at(1)?, seen.clone()));
        servers.spawn(udp_echo(at(1)?, seen.clone()));
    }
    match servers.join_next().await {
        Some(ended) => ended.context("a server panicked")?,
        None => Ok(()),
    }
}

async fn whoami_connection(mut stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
    stream.write_all(peer.ip().to_string().as_bytes()).await?;
    stream.shutdown().await
}

/// Echoes what TCP connections bring.
///
/// # Errors
/// When it cannot listen.
pub async fn tcp_echo(at: SocketAddr, seen: Seen) -> Result<()> {
    serve(listener(at).await?, "tcp/7", seen, echo_connection).await
}

async fn listener(at: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(at).await.with_context(|| format!("cannot listen on {at}"))
}

/// Serves connections until the process ends.
///
/// # Errors
/// Never.
pub async fn serve<F, R>(listener: TcpListener, service: &'static str, seen: Seen, handler: F) -> Result<()>
where
    F: Fn(TcpStream, SocketAddr) -> R,
    R: Future<Output = io::Result<()>> + Send + 'static,
{
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
                seen(service, peer);
                tokio::spawn(handler(stream, peer)); // a peer that goes away is its own affair
            }
            // Out of descriptors, or a connection that was aborted while it waited.
            Err(_) => time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn echo_connection(mut stream: TcpStream, _: SocketAddr) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return stream.shutdown().await;
        }
        stream.write_all(&buffer[..count]).await?;
    }
}

async fn sink_connection(mut stream: TcpStream, _: SocketAddr) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    let (mut total, mut sum) = (0, Checksum::default());
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            break;
        }
        total += count;
        sum.add(&buffer[..count]);
    }
    stream.write_all(format!("{total} {sum}").as_bytes()).await?;
    stream.shutdown().await
}

/// Echoes datagrams.
///
/// # Errors
/// When it cannot listen.
pub async fn udp_echo(at: SocketAddr, seen: Seen) -> Result<()> {
    let socket = UdpSocket::bind(at).await.with_context(|| format!("cannot listen on udp {at}"))?;
    let mut buffer = vec![0; DATAGRAM_MAX];
    loop {
        let Ok((count, peer)) = socket.recv_from(&mut buffer).await else { continue };
        seen("udp/7", SocketAddr::new(peer.ip().to_canonical(), peer.port()));
        let _ = socket.send_to(&buffer[..count], peer).await; // unreachable is the peer's affair
    }
}
