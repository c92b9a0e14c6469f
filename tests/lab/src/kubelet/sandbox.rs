//! What a pod's containers run in: a network namespace, attached by CNI, and a mount namespace.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use coil_api::cni::CniResult;
use coil_netns::NetNs;
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::{Pod, ServiceAccount},
};
use kube::{Api, ResourceExt as _, api::PostParams};

use super::{Context, cni};
use crate::{
    config,
    place::{self, OpenPlace},
    state,
    topology::sysctl,
};

const NETNS_DIR: &str = "/run/netns";
const SERVICE_ACCOUNT: &str = "/run/secrets/kubernetes.io/serviceaccount";

/// A pod's namespaces and addresses.
#[derive(Debug)]
pub(super) struct Sandbox {
    pub(super) place: OpenPlace,
    pub(super) ips: Vec<IpAddr>,
    /// None for a pod in the node's own network.
    attachment: Option<cni::Attachment>,
    published: PathBuf,
}

/// Makes a sandbox; on failure nothing of it is left.
pub(super) async fn make(context: &Context, pod: &Pod) -> Result<Sandbox> {
    let namespace = pod.namespace().unwrap_or_default();
    let host_network = pod.spec.as_ref().and_then(|s| s.host_network).unwrap_or_default();
    let (net, ips, attachment) = if host_network {
        let addresses = config::node_addresses(context.role.options.family, &context.role.node)?;
        (None, addresses, None)
    } else {
        let (attachment, result) = attach(context, pod, &namespace).await?;
        let ips = result.ips.iter().map(|ip| ip.address.addr()).collect();
        (Some(attachment.netns.clone()), ips, Some(attachment))
    };
    let published = context.state.pod_file(&namespace, &pod.name_any());
    let made = async {
        let token = service_account_token(context, pod, &namespace).await?;
        let place = furnished_place(context, &namespace, &token, net.as_deref())?;
        state::write(&published, &place.published()).map(|()| place)
    };
    match made.await {
        Ok(place) => Ok(Sandbox { place, ips, attachment, published }),
        Err(error) => {
            detach(attachment.as_ref()).await?;
            Err(error)
        }
    }
}

async fn attach(context: &Context, pod: &Pod, namespace: &str) -> Result<(cni::Attachment, CniResult)> {
    let container_id = random_id()?;
    let netns = Path::new(NETNS_DIR).join(format!("cni-{}", &container_id[..16]));
    let attachment = cni::Attachment {
        container_id,
        netns,
        namespace: namespace.to_owned(),
        pod: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
        build: context.build.clone(),
    };
    let ns = NetNs::create(&attachment.netns)?;
    // As runtimes do: loopback is up before the plugins run.
    let up = ns.run(|| std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status())?;
    let attached = match up.context("cannot run ip (package iproute2)") {
        Ok(_) => cni::add(&attachment).await,
        Err(error) => Err(error),
    };
    match attached {
        Ok(result) => Ok((attachment, result)),
        Err(error) => {
            // A runtime calls DEL after a failed ADD; what that says is less than what ADD said.
            if let Err(error) = cni::del(&attachment).await {
                tracing::warn!(pod = attachment.pod, error = format!("{error:#}"), "DEL after a failed ADD");
            }
            NetNs::remove(&attachment.netns)?;
            Err(error)
        }
    }
}

/// A token of the pod's service account, as the pod finds it in a file.
async fn service_account_token(context: &Context, pod: &Pod, namespace: &str) -> Result<String> {
    let name = pod.spec.as_ref().and_then(|s| s.service_account_name.as_deref()).unwrap_or("default");
    let api: Api<ServiceAccount> = Api::namespaced(context.client.clone(), namespace);
    let request = TokenRequest {
        spec: TokenRequestSpec { audiences: Vec::new(), ..Default::default() },
        ..Default::default()
    };
    let made: TokenRequest = api
        .create_subresource("token", name, &PostParams::default(), &request)
        .await
        .with_context(|| format!("cannot make a token of ServiceAccount {namespace}/{name}"))?;
    made.status.map(|status| status.token).context("the API server made no token")
}

fn furnished_place(context: &Context, namespace: &str, token: &str, net: Option<&Path>) -> Result<OpenPlace> {
    let node = OpenPlace::own()?;
    let place = match net {
        Some(path) => node.with_net(place::open(path)?),
        None => node,
    };
    place.with_own_mounts(|| {
        if net.is_some() {
            // The view of another network; a pod in the node's own sees what the node sees.
            place::mount_fs("sysfs", Path::new("/sys"), None)?;
        }
        // Hides the node's sockets, and holds the files of the service account: /var/run is /run.
        place::mount_fs("tmpfs", Path::new("/run"), Some("mode=0755"))?;
        let dir = Path::new(SERVICE_ACCOUNT);
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        for (file, text) in [("token", token), ("ca.crt", &context.access.ca), ("namespace", namespace)] {
            std::fs::write(dir.join(file), text).with_context(|| format!("cannot write {file}"))?;
        }
        if net.is_some() {
            // Any program may ping, as container runtimes allow.
            sysctl("net/ipv4/ping_group_range", "0 2147483647")?;
        }
        Ok(())
    })
}

impl Sandbox {
    /// Detaches the pod from its network and forgets it.
    pub(super) async fn remove(&self) -> Result<()> {
        detach(self.attachment.as_ref()).await?;
        let _ = std::fs::remove_file(&self.published);
        if let Some(parent) = self.published.parent() {
            let _ = std::fs::remove_dir(parent); // the namespace's, with its last pod
        }
        Ok(())
    }
}

async fn detach(attachment: Option<&cni::Attachment>) -> Result<()> {
    let Some(attachment) = attachment else { return Ok(()) };
    cni::del(attachment).await?;
    NetNs::remove(&attachment.netns)?;
    Ok(())
}

/// A container id as runtimes make them: 64 hex digits.
fn random_id() -> Result<String> {
    let mut id = String::new();
    while id.len() < 64 {
        let uuid =
            std::fs::read_to_string("/proc/sys/kernel/random/uuid").context("cannot read a random id")?;
        id.extend(uuid.chars().filter(char::is_ascii_hexdigit));
    }
    Ok(id)
}
