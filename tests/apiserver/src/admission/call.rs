//! The call itself: one POST over TLS.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{CertificateError, ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::hook::{Hook, Target};
use crate::backend::Backend;
use crate::meta;

/// What an answer may be long at most.
const MAX_ANSWER: usize = 4 * 1024 * 1024;

/// Finds the address behind a port of a Service.
pub(crate) trait Resolve: Send + Sync {
    /// # Errors
    ///
    /// Why there is none, as the error of the request says it.
    fn resolve(
        &self,
        backend: &Backend,
        namespace: &str,
        name: &str,
        port: u16,
    ) -> Result<SocketAddr, String>;
}

/// Resolves by the EndpointSlices that the server itself holds, as a kube-apiserver with
/// `--enable-aggregator-routing` does.
pub(crate) struct EndpointResolver;

impl Resolve for EndpointResolver {
    fn resolve(
        &self,
        backend: &Backend,
        namespace: &str,
        name: &str,
        port: u16,
    ) -> Result<SocketAddr, String> {
        let services = backend.registry.builtin("", "services");
        let service =
            backend.get(&services, namespace, name).map_err(|_| format!("service {name:?} not found"))?;
        let ports = service.value()["spec"]["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
        let wanted = ports.iter().find(|have| have["port"] == port);
        let wanted = wanted.ok_or_else(|| format!("no service port {port} found for service {name:?}"))?;
        let slices = backend.registry.builtin("discovery.k8s.io", "endpointslices");
        let (slices, _) = backend.store.list(&slices.table, Some(namespace));
        let own = slices.iter().map(|slice| slice.value()).filter(|slice| {
            meta::pairs(slice, "labels").any(|pair| pair == ("kubernetes.io/service-name", name))
        });
        for slice in own {
            let of_port = |have: &&Value| {
                have["name"].as_str().unwrap_or_default() == wanted["name"].as_str().unwrap_or_default()
            };
            let target = slice["ports"].as_array().into_iter().flatten().find(of_port);
            let target = target.and_then(|port| u16::try_from(port["port"].as_u64()?).ok());
            let ready = |endpoint: &&Value| endpoint["conditions"]["ready"] != false;
            let endpoint = slice["endpoints"].as_array().into_iter().flatten().find(ready);
            let ip = endpoint.and_then(|endpoint| endpoint["addresses"][0].as_str()?.parse::<IpAddr>().ok());
            if let (Some(ip), Some(port)) = (ip, target) {
                return Ok((ip, port).into());
            }
        }
        Err(format!("no endpoints available for service {name:?}"))
    }
}

/// Posts a review and returns the answer's body; the error is what follows "failed to call webhook".
pub(super) async fn post(
    resolver: &dyn Resolve,
    backend: &Backend,
    hook: &Hook,
    review: Value,
) -> Result<Bytes, String> {
    let separator = if hook.target.url().contains('?') { '&' } else { '?' };
    let url = format!("{}{separator}timeout={}s", hook.target.url(), hook.timeout.as_secs());
    let called = tokio::time::timeout(hook.timeout, exchange(resolver, backend, hook, &url, review)).await;
    let (status, body) = called
        .map_err(|_| "context deadline exceeded".to_owned())
        .and_then(|done| done)
        .map_err(|why| format!("Post {url:?}: {why}"))?;
    match status {
        StatusCode::OK => Ok(body),
        StatusCode::NOT_FOUND => Err("the server could not find the requested resource".into()),
        status => {
            let text = String::from_utf8_lossy(&body);
            Err(format!(
                "an error on the server ({:?}, {status}) has prevented the request from succeeding",
                text.trim()
            ))
        }
    }
}

async fn exchange(
    resolver: &dyn Resolve,
    backend: &Backend,
    hook: &Hook,
    url: &str,
    review: Value,
) -> Result<(StatusCode, Bytes), String> {
    let uri: Uri = url.parse().map_err(|error| format!("{error}"))?;
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let stream = match &hook.target {
        Target::Service { namespace, name, port, .. } => {
            let address = resolver.resolve(backend, namespace, name, *port)?;
            TcpStream::connect(address).await.map_err(|error| format!("dial tcp {address}: {error}"))?
        }
        Target::Url(_) => {
            let port = uri.port_u16().unwrap_or(443);
            let connected = TcpStream::connect((host.as_str(), port)).await;
            connected.map_err(|error| format!("dial tcp {host}:{port}: {error}"))?
        }
    };
    let tls = hook.tls.get_or_init(|| client_config(&hook.ca)).clone()?;
    let name = ServerName::try_from(host).map_err(|error| error.to_string())?;
    let stream = TlsConnector::from(tls).connect(name, stream).await.map_err(|error| tls_error(&error))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let connection = tokio::spawn(connection);
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::post(path)
        .header(HOST, uri.authority().map_or("", |authority| authority.as_str()))
        .header(CONTENT_TYPE, "application/json")
        .header(ACCEPT, "application/json")
        .body(Full::new(Bytes::from(review.to_string())))
        .map_err(|error| error.to_string())?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        Ok((status, body.map_err(|error| error.to_string())?.to_bytes()))
    };
    let answer = answer.await;
    connection.abort();
    answer
}

/// Trust in what the bundle holds; it may hold several certificates.
fn client_config(ca: &[u8]) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca) {
        let certificate = certificate.map_err(|error| format!("caBundle: {error}"))?;
        roots.add(certificate).map_err(|error| format!("caBundle: {error}"))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| error.to_string())?;
    Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
}

/// The words for the failure that people meet most.
fn tls_error(error: &std::io::Error) -> String {
    let inner = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    match inner {
        // A name that an authority of the bundle bears, and a signature that is not its own.
        Some(rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        )) => "tls: failed to verify certificate: x509: certificate signed by unknown authority".into(),
        Some(rustls::Error::InvalidCertificate(why)) => {
            format!("tls: failed to verify certificate: x509: {why}")
        }
        _ => format!("tls: {error}"),
    }
}
