//! One door to both kinds of servers.

use std::io::Write as _;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Once;

use coil_apiserver::{ApiServer, Config, User, kubeconfig};
use ipnet::IpNet;
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};

use crate::real::Real;
use crate::{Assets, Error};

/// The variable that chooses the kind: `embedded` or `real`.
pub(crate) const VARIABLE: &str = "COIL_TEST_API";

/// A kind of server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// The one of `tests/apiserver`, in this process.
    Embedded,
    /// A kube-apiserver with its etcd.
    Real(Assets),
}

impl Kind {
    /// What the environment chooses; embedded without a choice.
    ///
    /// # Errors
    ///
    /// When a real server is chosen and not there.
    pub fn chosen() -> Result<Self, Error> {
        match std::env::var(VARIABLE).as_deref() {
            Ok("real") => Assets::find()?.map(Self::Real).ok_or(Error::NoAssets),
            _ => Ok(Self::Embedded),
        }
    }
}

/// What a server is told.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Ranges of cluster IPs, the primary family first.
    pub service_ranges: Vec<IpNet>,
    /// Users besides the administrator; each gets a token.
    pub users: Vec<User>,
    /// File to which the embedded server appends every question of a user about rights, and its answer.
    pub requests: Option<PathBuf>,
}

/// A running API server. Dropped, it ends.
pub struct Server(Inner);

enum Inner {
    Embedded(ApiServer),
    Real(Box<Real>),
}

impl Server {
    /// Starts the kind of server that the environment chooses, and says which on standard
    /// error, once a process.
    ///
    /// # Errors
    ///
    /// When it does not become ready.
    pub async fn start(options: Options) -> Result<Self, Error> {
        let kind = Kind::chosen()?;
        static SAID: Once = Once::new();
        SAID.call_once(|| {
            let what = match &kind {
                Kind::Embedded => "the embedded one".to_owned(),
                Kind::Real(assets) => format!("kube-apiserver of {}", assets.dir().display()),
            };
            let _ = writeln!(std::io::stderr(), "API server of these tests: {what}");
        });
        Self::start_kind(&kind, options).await
    }

    /// Starts a server of a kind.
    ///
    /// # Errors
    ///
    /// When it does not become ready.
    pub async fn start_kind(kind: &Kind, options: Options) -> Result<Self, Error> {
        match kind {
            Kind::Real(assets) => {
                Real::start(assets, &options).await.map(|real| Self(Inner::Real(Box::new(real))))
            }
            Kind::Embedded => {
                let listener = TcpListener::bind("127.0.0.1:0").map_err(Error::Port)?;
                let Options { service_ranges, users, requests } = options;
                let config = Config { service_ranges, users, requests, ..Config::default() };
                Ok(Self(Inner::Embedded(ApiServer::start(listener, config)?)))
            }
        }
    }

    /// Whether it is a real one.
    #[must_use]
    pub fn is_real(&self) -> bool {
        matches!(self.0, Inner::Real(_))
    }

    /// Its URL.
    #[must_use]
    pub fn url(&self) -> String {
        match &self.0 {
            Inner::Embedded(server) => server.url(),
            Inner::Real(real) => real.url(),
        }
    }

    /// The kubeconfig of `admin` or of a user of the options; `None` for anybody else.
    #[must_use]
    pub fn kubeconfig(&self, user: &str) -> Option<String> {
        let (ca, token) = match &self.0 {
            Inner::Embedded(server) => (server.ca_pem(), server.token(user)),
            Inner::Real(real) => (real.ca(), real.token(user)),
        };
        Some(kubeconfig(&self.url(), ca, user, token?))
    }

    /// A client of the administrator.
    ///
    /// # Errors
    ///
    /// When none can be made.
    pub async fn client(&self) -> Result<Client, Error> {
        client_of(&self.kubeconfig("admin").unwrap_or_default()).await
    }

    /// Ends the server and waits until it has.
    pub async fn stop(self) {
        match self.0 {
            Inner::Embedded(server) => server.stop().await,
            Inner::Real(real) => drop(real),
        }
    }
}

/// A client by a kubeconfig's text, whatever proxy the environment names.
pub(crate) async fn client_of(text: &str) -> Result<Client, Error> {
    let failed = |error: &dyn std::fmt::Display| Error::Client(error.to_string());
    let kubeconfig = Kubeconfig::from_yaml(text).map_err(|error| failed(&error))?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    let mut config = config.map_err(|error| failed(&error))?;
    config.proxy_url = None;
    Client::try_from(config).map_err(|error| failed(&error))
}
