//! Servers: echo over TCP and UDP, and a sink that answers with a checksum.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    time,
};

use super::data::Checksum;

/// Called with each peer of a server.
pub(crate) type Seen = Arc<dyn Fn(&str, SocketAddr) + Send + Sync>;

const DATAGRAM_MAX: usize = 65536;

pub(super) async fn sink_and_echo(port: u16) -> Result<()> {
    let next = port.checked_add(1).context("there is no port after the last")?;
    let seen: Seen = Arc::new(|_, _| ());
    let sink = listener(any(port)).await?;
    tokio::try_join!(
        serve(sink, "sink", seen.clone(), sink_connection),
        tcp_echo(any(next), seen.clone()),
        udp_echo(any(next), seen)
    )?;
    Ok(())
}

/// Every address of both families.
fn any(port: u16) -> SocketAddr {
    SocketAddr::from(([0_u16; 8], port))
}

/// Echoes what TCP connections bring.
pub(crate) async fn tcp_echo(at: SocketAddr, seen: Seen) -> Result<()> {
    serve(listener(at).await?, "tcp/7", seen, echo_connection).await
}

async fn listener(at: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(at).await.with_context(|| format!("cannot listen on {at}"))
}

/// Serves connections until the process ends.
pub(crate) async fn serve<F, R>(
    listener: TcpListener,
    service: &'static str,
    seen: Seen,
    handler: F,
) -> Result<()>
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
pub(crate) async fn udp_echo(at: SocketAddr, seen: Seen) -> Result<()> {
    let socket = UdpSocket::bind(at).await.with_context(|| format!("cannot listen on udp {at}"))?;
    let mut buffer = vec![0; DATAGRAM_MAX];
    loop {
        let Ok((count, peer)) = socket.recv_from(&mut buffer).await else { continue };
        seen("udp/7", SocketAddr::new(peer.ip().to_canonical(), peer.port()));
        let _ = socket.send_to(&buffer[..count], peer).await; // unreachable is the peer's affair
    }
}
