//! A real server: etcd and kube-apiserver as children, and the stand-in controllers.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use coil_apiserver::User;
use kube::Client;
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::control_plane::{ControlPlane, Credentials};
use crate::process::Process;
use crate::server::{Options, client_of};
use crate::{Assets, Error, standin};

/// How long the API server may take to become ready: it is a big program on a small machine.
const READY_LIMIT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(50);

/// A running pair. Dropped, both end and their files go. Fields are in the order of their end.
pub(crate) struct Real {
    controllers: JoinHandle<()>,
    api_server: Process,
    _etcd: Process,
    plane: ControlPlane,
    users: Vec<Credentials>,
    ca: String,
    _dir: TempDir,
}

impl Drop for Real {
    fn drop(&mut self) {
        self.controllers.abort();
    }
}

impl Real {
    pub(crate) async fn start(assets: &Assets, options: &Options) -> Result<Self, Error> {
        let dir = TempDir::new().map_err(|source| Error::Write { path: std::env::temp_dir(), source })?;
        let [etcd, etcd_peer, address] = free_addresses()?;
        let plane = ControlPlane {
            dir: dir.path().to_owned(),
            etcd,
            etcd_peer,
            address,
            service_ranges: options.service_ranges.clone(),
            extra_sans: Vec::new(),
            without_plugins: Vec::new(),
        };
        let mut users = vec![User::admin()];
        users.extend(options.users.iter().cloned());
        let (ca, tokens) = plane.write_files(&users)?;
        let users: Vec<Credentials> =
            users.into_iter().zip(tokens).map(|(user, token)| Credentials { user, token }).collect();
        let log = |name: &str| dir.path().join(name);
        let etcd = Process::start("etcd", &assets.etcd(), &plane.etcd_args(), log("etcd.log"))?;
        let api_server = Process::start(
            "kube-apiserver",
            &assets.api_server(),
            &plane.api_server_args(),
            log("kube-apiserver.log"),
        )?;
        let text = plane.kubeconfig(&format!("https://{address}"), "admin", &users[0].token);
        let client = client_of(&text).await?;
        // What is not in the struct yet ends by its own drop when the wait fails.
        let controllers = tokio::spawn(standin::run(client.clone(), ca.clone()));
        let this = Self { controllers, api_server, _etcd: etcd, plane, users, ca, _dir: dir };
        this.until_ready(&client).await?;
        Ok(this)
    }

    async fn until_ready(&self, client: &Client) -> Result<(), Error> {
        let start = Instant::now();
        while !standin::is_ready(client).await {
            if self.api_server.has_ended() {
                return Err(self.api_server.failure("it ended"));
            }
            if start.elapsed() > READY_LIMIT {
                return Err(self.api_server.failure("it did not become ready"));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.plane.address)
    }

    pub(crate) fn ca(&self) -> &str {
        &self.ca
    }

    pub(crate) fn token(&self, user: &str) -> Option<&str> {
        let found = self.users.iter().find(|known| known.user.name == user);
        found.map(|known| known.token.as_str())
    }
}

/// Addresses on loopback that are free now. Another program may take one before it is used;
/// then the start fails and says so.
fn free_addresses<const N: usize>() -> Result<[SocketAddr; N], Error> {
    let mut listeners = Vec::new();
    let mut addresses = [SocketAddr::from((Ipv4Addr::LOCALHOST, 0)); N];
    for address in &mut addresses {
        let listener = TcpListener::bind(*address).map_err(Error::Port)?;
        *address = listener.local_addr().map_err(Error::Port)?;
        listeners.push(listener);
    }
    Ok(addresses)
}
