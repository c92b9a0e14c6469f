//! A TLS client that trusts what an API server is told to trust.

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use coil_controller::webhook::names::Webhook;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Secret;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore, SupportedProtocolVersion,
        crypto::ring,
        pki_types::{CertificateDer, ServerName, pem::PemObject as _},
        version::{TLS12, TLS13},
    },
};

use crate::support::{Cluster, eventually};

/// Authorities in PEM form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trust(pub(crate) Vec<u8>);

impl Trust {
    /// What stands in a program's Secret, once it is there.
    pub(crate) async fn secret(cluster: &Cluster, of: &Webhook) -> Self {
        let mut found = None;
        eventually("the Secret is there", async || {
            found = secret(cluster, of).await;
            found.is_some()
        })
        .await;
        Self(found.unwrap().data.unwrap()["ca.crt"].0.clone())
    }
}

pub(crate) async fn secret(cluster: &Cluster, of: &Webhook) -> Option<Secret> {
    cluster.of::<Secret>("kube-system").get_opt(&of.secret()).await.unwrap()
}

/// Asks one server.
pub(crate) struct Asker {
    address: SocketAddr,
    name: String,
    trust: Trust,
    versions: Vec<&'static SupportedProtocolVersion>,
}

impl Asker {
    pub(crate) fn new(address: SocketAddr, of: &Webhook, trust: Trust) -> Self {
        let name = of.dns_names("kube-system").remove(0);
        Self { address, name, trust, versions: vec![&TLS13, &TLS12] }
    }

    /// Speaks TLS 1.2 alone.
    pub(crate) fn tls12(self) -> Self {
        Self { versions: vec![&TLS12], ..self }
    }

    /// A connection of its own.
    pub(crate) async fn connect(&self) -> Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        for authority in CertificateDer::pem_slice_iter(&self.trust.0) {
            roots.add(authority?)?;
        }
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&self.versions)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(self.address).await.context("connect")?;
        let name = ServerName::try_from(self.name.clone())?;
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.context("TLS")
    }

    /// The leaf certificate that the server shows.
    pub(crate) async fn shown(&self) -> Result<CertificateDer<'static>> {
        let stream = self.connect().await?;
        let chain = stream.get_ref().1.peer_certificates().context("no certificate")?;
        Ok(chain.first().context("no certificate")?.clone().into_owned())
    }

    /// Status and body of the answer to one request.
    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        type_: &str,
        body: Vec<u8>,
    ) -> Result<(u16, String)> {
        let stream = self.connect().await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.context("handshake")?;
        let connection = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "webhook")
            .header("content-type", type_)
            .body(Full::new(Bytes::from(body)))?;
        let answer = sender.send_request(request).await.context("send")?;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.context("receive")?.to_bytes();
        connection.abort();
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }

    /// The `response` of the answer to a review.
    pub(crate) async fn try_ask(&self, path: &str, review: &Value) -> Result<Value> {
        let body = review.to_string().into_bytes();
        let (status, body) = self.send("POST", path, "application/json", body).await?;
        ensure!(status == 200, "{status}: {body}");
        let mut answer: Value = serde_json::from_str(&body)?;
        ensure!(answer["response"]["uid"] == review["request"]["uid"], "another answer: {body}");
        Ok(answer["response"].take())
    }

    pub(crate) async fn ask(&self, path: &str, review: &Value) -> Value {
        self.try_ask(path, review).await.unwrap()
    }

    /// Begins a request whose last byte is still to come.
    pub(crate) async fn begin(&self, path: &str, body: &[u8]) -> Begun {
        let mut stream = self.connect().await.unwrap();
        let (last, first) = body.split_last().unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: webhook\r\ncontent-type: application/json\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        // The server says so when it waits for the body.
        let mut go_on = [0; 25];
        stream.read_exact(&mut go_on).await.unwrap();
        assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
        stream.write_all(first).await.unwrap();
        stream.flush().await.unwrap();
        Begun { stream, last: *last }
    }
}

/// A request without its last byte.
pub(crate) struct Begun {
    stream: TlsStream<TcpStream>,
    last: u8,
}

impl Begun {
    /// Sends the last byte; status and body of the answer.
    pub(crate) async fn end(&mut self) -> (u16, String) {
        self.stream.write_all(&[self.last]).await.unwrap();
        let mut answer = Vec::new();
        // The server closes without a TLS goodbye at times.
        let _ = self.stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }
}
