//! The HTTP side of every program here: `/healthz`, `/readyz` and `/metrics`.

use std::{net::TcpListener, sync::Arc};

use axum::{Router, extract::State, http::StatusCode, response::IntoResponse, routing::get};
use prometheus::{Encoder as _, Registry, TextEncoder};

/// Says whether the program is ready, or why it is not.
pub type Readiness = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;
/// The same, and what is to be said of one that is ready; nothing where that is empty.
pub type NotedReadiness = Arc<dyn Fn() -> Result<String, String> + Send + Sync>;

/// What stands before a note in the answer of a program that is ready.
pub const NOTED: &str = "ok; ";

/// Answers `/healthz` with 200 and `/readyz` with 200 or 503 and the reason, for ever.
///
/// # Errors
/// When the listener cannot be used.
pub async fn health(listener: TcpListener, ready: Readiness) -> std::io::Result<()> {
    noted_health(listener, Arc::new(move || ready().map(|()| String::new()))).await
}

/// The same of a program that has something to say when it is ready.
///
/// # Errors
/// When the listener cannot be used.
pub async fn noted_health(listener: TcpListener, ready: NotedReadiness) -> std::io::Result<()> {
    let readyz = get(|State(ready): State<NotedReadiness>| async move {
        match ready() {
            Ok(note) if note.is_empty() => (StatusCode::OK, "ok\n".to_owned()),
            Ok(note) => (StatusCode::OK, format!("{NOTED}{note}\n")),
            Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
        }
    });
    let routes = Router::new().route("/healthz", get(|| async { "ok\n" })).route("/readyz", readyz);
    run(listener, routes.with_state(ready)).await
}

/// Answers `/metrics` in Prometheus' text format, for ever.
///
/// # Errors
/// When the listener cannot be used.
pub async fn metrics(listener: TcpListener, registry: Registry) -> std::io::Result<()> {
    let metrics = get(|State(registry): State<Registry>| async move {
        let mut text = Vec::new();
        match TextEncoder::new().encode(&registry.gather(), &mut text) {
            Ok(()) => ([("content-type", prometheus::TEXT_FORMAT)], text).into_response(),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
        }
    });
    run(listener, Router::new().route("/metrics", metrics).with_state(registry)).await
}

async fn run(listener: TcpListener, routes: Router) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    axum::serve(tokio::net::TcpListener::from_std(listener)?, routes).await
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{SocketAddr, TcpStream},
        sync::atomic::{AtomicBool, Ordering},
    };

    use super::*;

    fn ask(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn health_follows_readiness() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let flag = Arc::new(AtomicBool::new(false));
        let seen = flag.clone();
        let ready: Readiness =
            Arc::new(
                move || {
                    if seen.load(Ordering::Relaxed) { Ok(()) } else { Err("waiting for blocks".into()) }
                },
            );
        tokio::spawn(health(listener, ready));
        assert!(ask(address, "/healthz").starts_with("HTTP/1.1 200"));
        let answer = ask(address, "/readyz");
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("waiting for blocks"), "{answer}");
        flag.store(true, Ordering::Relaxed);
        assert!(ask(address, "/readyz").starts_with("HTTP/1.1 200"));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn metrics_are_text() {
        let registry = Registry::new();
        let counter = prometheus::IntCounter::new("coil_test_total", "A counter.").unwrap();
        registry.register(Box::new(counter.clone())).unwrap();
        counter.inc();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(metrics(listener, registry));
        assert!(ask(address, "/metrics").contains("\ncoil_test_total 1\n"));
    }
}
