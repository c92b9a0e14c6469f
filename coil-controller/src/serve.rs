//! `/metrics`, `/healthz` and `/readyz`.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    http::{StatusCode, header::CONTENT_TYPE},
    routing::get,
};
use coil_api::flags::ListenAddr;
use prometheus::{Registry, TEXT_FORMAT, TextEncoder};
use tokio::{sync::watch, task::JoinHandle};
use tracing::error;

/// An endpoint that could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} ({flag}): {source}")]
pub struct ListenError {
    flag: &'static str,
    address: ListenAddr,
    source: std::io::Error,
}

/// Why the program may not be called ready; none when it may.
pub type Readiness = watch::Receiver<Option<String>>;

/// Serves in the background until the runtime ends. Returns the address, for port 0.
///
/// # Errors
/// When the address cannot be listened on; `flag` names the flag that gave it.
pub fn spawn(
    flag: &'static str,
    address: ListenAddr,
    router: Router,
) -> Result<(SocketAddr, JoinHandle<()>), ListenError> {
    let failed = |source| ListenError { flag, address, source };
    let listener = address.bind().and_then(tokio::net::TcpListener::from_std).map_err(failed)?;
    let local = listener.local_addr().map_err(failed)?;
    let task = tokio::spawn(async move {
        if let Err(e) = axum::serve(listener, router).await {
            error!(%address, error = %e, "endpoint ended");
        }
    });
    Ok((local, task))
}

/// `/healthz` answers while the program lives; `/readyz` is 503 with the reason while it is not ready.
pub fn health(ready: Readiness) -> Router {
    let readyz = move || {
        let state = ready.borrow().clone();
        async move {
            match state {
                None => (StatusCode::OK, "ok\n".to_owned()),
                Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
            }
        }
    };
    Router::new().route("/healthz", get(|| async { "ok\n" })).route("/readyz", get(readyz))
}

/// `/metrics` in the text format of Prometheus.
pub fn metrics(registry: Registry) -> Router {
    let registry = Arc::new(registry);
    Router::new().route(
        "/metrics",
        get(move || {
            let text = TextEncoder::new().encode_to_string(&registry.gather());
            async move {
                text.map(|text| ([(CONTENT_TYPE, TEXT_FORMAT)], text))
                    .map_err(|e| (StatusCode::INTERNAL_SERVER_ERROR, format!("{e}\n")))
            }
        }),
    )
}
