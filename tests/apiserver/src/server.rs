//! Starting and stopping the server.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use ipnet::IpNet;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::admission::{Admission, EndpointResolver, Resolve};
use crate::auth::{Tokens, User};
use crate::backend::Backend;
use crate::faults::Faults;
use crate::kubeconfig::kubeconfig;
use crate::rbac::{Authorizer, Record};
use crate::registry::Registry;
use crate::services::ServiceIps;
use crate::store::Store;
use crate::tls::{Tls, TlsError};
use crate::verbs::Pages;
use crate::{bootstrap, gc, http};

/// How long a client may take for its TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// What a server needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Ranges of cluster IPs: at most one per family, the primary family first. With none,
    /// Services get no addresses.
    pub service_ranges: Vec<IpNet>,
    /// Names and addresses that the certificate carries besides the usual ones.
    pub extra_sans: Vec<String>,
    /// Users besides the administrator; each gets a token.
    pub users: Vec<User>,
    /// How many events per resource a watch can go back.
    pub watch_window: usize,
    /// File to which every question of a user about rights is appended, for tests of roles.
    pub requests: Option<PathBuf>,
    /// Where the Services of webhooks are. What it does not know is looked up in the
    /// server's own EndpointSlices.
    pub services: Option<ServiceResolver>,
}

/// Finds the address of a Service's port, given its namespace and name.
#[derive(Clone)]
pub struct ServiceResolver(Arc<Find>);

type Find = dyn Fn(&str, &str, u16) -> Option<SocketAddr> + Send + Sync;

impl ServiceResolver {
    /// A resolver that asks a function.
    pub fn new(find: impl Fn(&str, &str, u16) -> Option<SocketAddr> + Send + Sync + 'static) -> Self {
        Self(Arc::new(find))
    }
}

impl std::fmt::Debug for ServiceResolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServiceResolver")
    }
}

impl Resolve for Option<ServiceResolver> {
    fn resolve(
        &self,
        backend: &Backend,
        namespace: &str,
        name: &str,
        port: u16,
    ) -> Result<SocketAddr, String> {
        let known = self.as_ref().and_then(|resolver| (resolver.0)(namespace, name, port));
        known.map_or_else(|| EndpointResolver.resolve(backend, namespace, name, port), Ok)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            service_ranges: Vec::new(),
            extra_sans: Vec::new(),
            users: Vec::new(),
            watch_window: 16_384,
            requests: None,
            services: None,
        }
    }
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The certificate could not be made.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The listener is not usable.
    #[error("listening for API requests")]
    Listen(#[source] std::io::Error),
    /// The record of requests cannot be written.
    #[error("writing the record of requests")]
    Record(#[source] std::io::Error),
    /// Two service ranges of one family, or more than two.
    #[error("service ranges {0:?}: give one range, or one of each family")]
    ServiceRanges(Vec<IpNet>),
    /// The objects of a new cluster were refused.
    #[error("creating the initial objects: {0}")]
    Bootstrap(String),
}

/// A running server. Dropping it stops it and ends all connections.
pub struct ApiServer {
    address: SocketAddr,
    backend: Arc<Backend>,
    tokens: BTreeMap<String, String>,
    tasks: JoinSet<()>,
}

impl ApiServer {
    /// Serves on a listener; to be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// When the certificate cannot be made (a bad extra name), the listener cannot be used,
    /// or the service ranges make no sense.
    pub fn start(listener: TcpListener, config: Config) -> Result<Self, StartError> {
        let same_family = |a: &IpNet, b: &IpNet| a.addr().is_ipv4() == b.addr().is_ipv4();
        if config.service_ranges.len() > 2
            || matches!(config.service_ranges.as_slice(), [a, b] if same_family(a, b))
        {
            return Err(StartError::ServiceRanges(config.service_ranges));
        }
        listener.set_nonblocking(true).map_err(StartError::Listen)?;
        let address = listener.local_addr().map_err(StartError::Listen)?;
        let listener = tokio::net::TcpListener::from_std(listener).map_err(StartError::Listen)?;
        let mut names = config.extra_sans.clone();
        let services = Arc::new(ServiceIps::new(config.service_ranges));
        names.extend(services.first().map(|ip| ip.to_string()));
        if !address.ip().is_unspecified() {
            names.push(address.ip().to_string());
        }
        let tls = Tls::new(&names)?;
        let record = config.requests.as_deref().map(Record::open).transpose().map_err(StartError::Record)?;

        let (store, removed) = Store::new(config.watch_window);
        let (collector, work) = mpsc::unbounded_channel();
        let backend = Arc::new(Backend {
            store,
            registry: Registry::new(),
            services,
            tokens: Tokens::default(),
            authorizer: Authorizer::new(record),
            admission: Admission::new(Arc::new(config.services)),
            pages: Pages::default(),
            faults: Faults::default(),
            ca: tls.ca,
            collector,
        });
        bootstrap::populate(&backend).map_err(|error| StartError::Bootstrap(error.to_string()))?;
        let users = std::iter::once(User::admin()).chain(config.users);
        let tokens = users.map(|user| (user.name.clone(), backend.tokens.issue(user))).collect();

        let mut tasks = JoinSet::new();
        tasks.spawn(gc::run(backend.clone(), removed, work));
        tasks.spawn(accept(listener, TlsAcceptor::from(tls.config), backend.clone()));
        Ok(Self { address, backend, tokens, tasks })
    }

    /// Where the server listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of the listening address.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// The PEM of the CA that clients must trust.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.backend.ca
    }

    /// The token of a user of the configuration, or of `admin`.
    #[must_use]
    pub fn token(&self, user: &str) -> Option<&str> {
        self.tokens.get(user).map(String::as_str)
    }

    /// Issues a token for any user.
    #[must_use]
    pub fn issue_token(&self, user: User) -> String {
        self.backend.tokens.issue(user)
    }

    /// A kubeconfig for the administrator, reaching the server at `url`.
    #[must_use]
    pub fn admin_kubeconfig(&self, url: &str) -> String {
        kubeconfig(url, self.ca_pem(), "admin", self.token("admin").unwrap_or_default())
    }

    /// Stops the server and waits until its tasks have ended.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

/// Takes connections; they end with this task.
async fn accept(listener: tokio::net::TcpListener, tls: TlsAcceptor, backend: Arc<Backend>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let (tls, backend) = (tls.clone(), backend.clone());
                    connections.spawn(connection(stream, tls, backend));
                }
                Err(error) => {
                    // Out of descriptors, most likely; accepting at once would spin.
                    tracing::warn!(%error, "accepting a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(stream: tokio::net::TcpStream, tls: TlsAcceptor, backend: Arc<Backend>) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "setting TCP_NODELAY");
    }
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake"),
        Err(_) => return tracing::debug!("TLS handshake timed out"),
    };
    let service = service_fn(move |request| http::serve(backend.clone(), request));
    let server = auto::Builder::new(TokioExecutor::new());
    if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "connection");
    }
}
