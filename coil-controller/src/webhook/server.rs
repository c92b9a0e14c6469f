//! TLS and HTTP/1.1 for the webhooks.

use std::{net::TcpListener, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use axum::Router;
use hyper::{
    server::conn::http1,
    service::{Service as _, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{net::TcpStream, sync::watch, task::JoinSet};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, crypto::ring, server::ResolvesServerCert},
};
use tracing::{debug, warn};

use super::peers::{Connected, Peers};

/// How long a client may take for its TLS handshake, and then for its first request.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// How long a connection may stay between two requests; API servers keep theirs 90 s.
const IDLE_LIMIT: Duration = Duration::from_secs(120);
/// Most connections at a time. An API server opens few. With the last place taken, idle ones have to go.
const CONNECTIONS: usize = 256;
/// How long requests in work may go on when the program ends: as long as one may take.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// How long a connection without a request in work may take to close.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// A TLS server that takes its certificate anew for each connection. TLS 1.2 and 1.3. HTTP/1.1 alone: API
/// servers speak nothing else to webhooks.
///
/// # Errors
/// When the TLS library refuses its own defaults.
pub(super) fn acceptor(certificates: Arc<dyn ResolvesServerCert>) -> Result<TlsAcceptor> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .context("cannot set up TLS for the webhooks")?
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Serves until `stop` is true, then until the requests in work are answered.
///
/// # Errors
/// When the listener cannot be used.
pub(super) async fn serve(
    listener: TcpListener,
    tls: TlsAcceptor,
    routes: Router,
    mut stop: watch::Receiver<bool>,
) -> Result<()> {
    listener.set_nonblocking(true).context("cannot use the listener of the webhooks")?;
    let listener =
        tokio::net::TcpListener::from_std(listener).context("cannot use the listener of the webhooks")?;
    let peers = Peers::new(CONNECTIONS);
    let mut connections = JoinSet::new();
    loop {
        let accepted = async {
            let place = peers.free().await;
            (listener.accept().await, place)
        };
        tokio::select! {
            () = stopped(&mut stop) => break,
            Some(_) = connections.join_next() => {}
            (accepted, place) = accepted => match accepted {
                Ok((stream, _)) => {
                    let peer = Arc::new(peers.enter(place));
                    connections.spawn(connection(stream, tls.clone(), routes.clone(), stop.clone(), peer));
                }
                Err(error) => {
                    // Out of descriptors, most likely; accepting at once would spin.
                    warn!(%error, "cannot accept a connection for the webhooks");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN_LIMIT, drained).await.is_err() {
        warn!("webhook requests were still in work at the end");
    }
    Ok(())
}

async fn connection(
    stream: TcpStream,
    tls: TlsAcceptor,
    routes: Router,
    mut stop: watch::Receiver<bool>,
    place: Arc<Connected>,
) {
    let peer = stream.peer_addr().map(|a| a.to_string()).unwrap_or_default();
    let stream = tokio::select! {
        stream = tokio::time::timeout(HANDSHAKE_LIMIT, tls.accept(stream)) => stream,
        () = place.must_go() => return debug!(peer, "others need its place"),
    };
    let stream = match stream {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return debug!(peer, %error, "TLS handshake failed"),
        Err(_) => return debug!(peer, "TLS handshake timed out"),
    };
    let (routes, working) = (TowerToHyperService::new(routes), place.clone());
    let service = service_fn(move |request| {
        let (answer, working) = (routes.call(request), working.clone());
        async move {
            working.works(true);
            let answer = answer.await;
            working.works(false);
            answer
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_LIMIT)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let silent = async {
        tokio::time::sleep(HANDSHAKE_LIMIT).await;
        if place.has_asked() {
            std::future::pending::<()>().await;
        }
    };
    let result = tokio::select! {
        result = connection.as_mut() => Some(result),
        () = stopped(&mut stop) => None,
        () = place.must_go() => None,
        () = silent => return debug!(peer, "asked nothing"),
    };
    let result = match result {
        Some(result) => result,
        None => {
            // A request in work is answered; half a head of one is not waited for.
            connection.as_mut().graceful_shutdown();
            let limit = if place.is_idle() { CLOSE_LIMIT } else { DRAIN_LIMIT };
            match tokio::time::timeout(limit, connection).await {
                Ok(result) => result,
                Err(_) => return debug!(peer, "closed in the middle of a request"),
            }
        }
    };
    if let Err(error) = result {
        debug!(peer, %error, "webhook connection ended");
    }
}

/// Waits until the program ends. When nobody can say so any more, that is the end as well.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}
