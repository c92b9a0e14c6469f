//! The lab's API server: the embedded one, or a kube-apiserver with its etcd.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, Result};
use coil_apiserver::User;
use coil_apitest::{Assets, ControlPlane};
use tokio::time;

use super::{Lab, bootstrap, proxy};
use crate::{
    access::Access,
    config::{API_PORT, CONTROL},
    programs::{self, OnExit},
    state::{self, ADMIN},
};

/// Ports of etcd, on control's loopback.
const ETCD_PORT: u16 = 2379;
const ETCD_PEER_PORT: u16 = 2380;
/// What users asked the embedded API server for, beside the logs.
pub(crate) const REQUESTS: &str = "requests.jsonl";
/// Everything is allowed to it; the stand-in for the kubelet does more than a kubelet may.
const MASTERS: &str = "system:masters";

impl Lab {
    /// Starts the API server, sees that the kubeconfigs of its users are inside the lab, and
    /// writes the one for the host.
    pub(super) async fn start_api_server(&self) -> Result<Access> {
        let inside = self.state.inside();
        std::fs::create_dir_all(&inside).with_context(|| format!("cannot make {}", inside.display()))?;
        let address = SocketAddr::new(self.options.api_address(), API_PORT);
        match self.options.real_api()? {
            Some(assets) => self.start_real(&assets, address)?,
            None => self.start_embedded(address)?,
        }
        let access = loop {
            // The embedded server writes it when it listens.
            match Access::read(&self.state.inner_kubeconfig(ADMIN)) {
                Ok(access) => break access,
                Err(_) => time::sleep(bootstrap::POLL).await,
            }
        };
        let host = proxy::start(self.place(CONTROL)?, address).await?;
        let outside = access.at(host);
        outside.write(&self.state.kubeconfig(), &self.options.name)?;
        Ok(outside)
    }

    fn start_embedded(&self, address: SocketAddr) -> Result<()> {
        let mut args = vec![
            format!("--listen={address}"),
            format!("--kubeconfig-dir={}", self.state.inside().display()),
            format!("--san={}", Ipv4Addr::LOCALHOST),
        ];
        args.extend(self.options.family.each().iter().map(|ip| format!("--service-cidr={}", ip.services())));
        let nodes = self.options.node_names();
        args.extend(nodes.iter().map(|node| format!("--user={}={MASTERS}", state::node_user(node))));
        args.push(format!("--requests={}", self.logs.join(REQUESTS).display()));
        let path = programs::find("coil-apiserver")?;
        self.launch(CONTROL, "coil-apiserver", path, args, Vec::new(), OnExit::Fatal)
    }

    fn start_real(&self, assets: &Assets, address: SocketAddr) -> Result<()> {
        let dir = self.state.inside().join("control-plane");
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let ranges = self.options.family.each().iter().map(|ip| ip.services().parse());
        let plane = ControlPlane {
            dir,
            etcd: local(ETCD_PORT),
            etcd_peer: local(ETCD_PEER_PORT),
            address,
            service_ranges: ranges.collect::<Result<_, _>>()?,
            extra_sans: vec![Ipv4Addr::LOCALHOST.to_string()],
            // A pod may come before its namespace's service account: the kubelet waits for it.
            without_plugins: vec!["ServiceAccount".into()],
        };
        let nodes = self.options.node_names();
        let users: Vec<User> = std::iter::once(User::admin())
            .chain(nodes.iter().map(|node| User::new(state::node_user(node), [MASTERS])))
            .collect();
        let (_, tokens) = plane.write_files(&users)?;
        for (user, token) in users.iter().zip(&tokens) {
            let text = plane.kubeconfig(&format!("https://{address}"), &user.name, token);
            state::replace(&self.state.inner_kubeconfig(&user.name), &text)?;
        }
        let (etcd, server) = (plane.etcd_args(), plane.api_server_args());
        self.launch(CONTROL, "etcd", assets.etcd(), etcd, Vec::new(), OnExit::Fatal)?;
        self.launch(CONTROL, "kube-apiserver", assets.api_server(), server, Vec::new(), OnExit::Fatal)
    }
}
