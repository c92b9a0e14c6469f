//! The host's way to the API server: a TCP port on loopback, passed on inside the lab.

use std::net::{Ipv4Addr, SocketAddr, TcpStream as StdStream};

use anyhow::{Context as _, Result};
use tokio::{
    io,
    net::{TcpListener, TcpStream},
};

use crate::place::OpenPlace;

/// Starts to listen; connections go to `target`, which is dialled from inside `from`.
pub(super) async fn start(from: OpenPlace, target: SocketAddr) -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("cannot listen on 127.0.0.1")?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let from = from.clone();
            tokio::spawn(async move {
                if let Err(error) = pass_on(client, from, target).await {
                    tracing::debug!(error = format!("{error:#}"), "a connection to the API server");
                }
            });
        }
    });
    Ok(address)
}

async fn pass_on(mut client: TcpStream, from: OpenPlace, target: SocketAddr) -> Result<()> {
    // A socket stays in the namespace that it was made in.
    let dial = move || {
        from.run(|| StdStream::connect(target).with_context(|| format!("cannot connect to {target}")))
    };
    let server = tokio::task::spawn_blocking(dial).await??;
    server.set_nonblocking(true)?;
    let mut server = TcpStream::from_std(server)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    io::copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}
