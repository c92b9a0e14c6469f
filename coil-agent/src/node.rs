//! The node's pods: what is connected, and making kernel and datapath follow the index.

mod attachments;
mod entry;
mod gateways;
mod in_time;
mod inside;
mod kernel;
mod leftover;
mod ports;
mod resync;
mod tell;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use coil_api::annotation::{AnnotationError, EgressRef};
use kube::Client;
use prometheus::{IntCounterVec, Opts};
use tokio::time::Instant;
use tracing::{error, info};

use crate::{
    datapath::Remote,
    egress::{
        gateway::GatewayPod,
        kernel::plan::Wanted,
        plan::{self, Attached, NodeFacts},
    },
    ipam::{AttachmentId, NodeIpam},
    net::{
        Rtnl,
        chained::Chained,
        monitor::{Monitor, is_about_node},
        name,
        pod::{PodLink, PodNetwork, RoutePolicy},
        recover::Found,
    },
    plane::{Plane, PlaneError},
    watch::{Feed, index::ObjectKey},
};

pub use attachments::{Attachment, Connected};
pub use resync::drift;

/// What the node looks for by itself, besides what is announced.
const RESYNC: Duration = Duration::from_secs(30);
/// How long after a change of a link or an address the node is looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Changes that come together are applied so.
const SETTLE: Duration = Duration::from_millis(10);

/// Settings that do not change while the agent runs.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// `COIL_NODE_NAME`.
    pub name: String,
    /// `--enable-egress`: annotations and Egresses count.
    pub egress: bool,
    /// What the kernel lacks for egress; none when it has all.
    pub kernel_egress_lacks: Option<String>,
    /// Why the kernel cannot do egress in any family; none when it can.
    pub kernel_egress_missing: Option<String>,
    /// The flag for which every packet passes the host's stack, if there is one.
    pub by_host_stack: Option<&'static str>,
    /// `--devices`; empty to find the uplinks.
    pub devices: Vec<String>,
    /// Priority of the rule to the routes to pods; none when those are another plugin's.
    pub pod_rule: Option<u32>,
    /// What the flags say of [`NodeFacts`].
    pub facts: NodeFacts,
}

/// The node's state. Shared by the gRPC server and the tasks of coild.
pub struct Node {
    /// Settings.
    pub settings: Settings,
    /// The API server.
    pub client: Client,
    /// What is known of the cluster.
    pub feed: Feed,
    /// Addresses; none when other plugins connect the pods and give them theirs.
    pub ipam: Option<NodeIpam>,
    /// The kernel's part.
    pub network: PodNetwork,
    /// The same for pods that other plugins connect.
    pub chained: Chained,
    /// The eBPF part.
    pub plane: Plane,
    rtnl: Rtnl,
    facts: Mutex<NodeFacts>,
    pods: Mutex<BTreeMap<AttachmentId, Entry>>,
    /// Held while the datapath is changed, so that no older picture replaces a newer one.
    applying: tokio::sync::Mutex<()>,
    /// Held while the insides of pods follow the index.
    following: tokio::sync::Mutex<()>,
    /// Pods whose insides take long: they are followed again when that has ended.
    late: Mutex<BTreeSet<AttachmentId>>,
    /// One of them has ended.
    again: tokio::sync::Notify,
    applied: AtomicBool,
    /// What was not as it was left, by kind.
    pub drift: IntCounterVec,
    /// The reason of the last Event about the datapath.
    told: Mutex<String>,
    /// Clients and gateways for which programs of an earlier run stay, as last said.
    waiting: Mutex<String>,
    /// Egresses of which was said that they are not understood, since they last were.
    shut_in: Mutex<BTreeSet<EgressRef>>,
    /// Gateways whose ports were said to run out, with the remotes towards which.
    port_warnings: Mutex<BTreeSet<(IpAddr, Remote)>>,
}

/// One connected pod.
struct Entry {
    attached: Attached,
    /// From the link's alternative name; none for a pod that an older Coil connected.
    uid: Option<String>,
    /// What it is to the runtime.
    attachment: Attachment,
    /// When it was connected, or found.
    since: Instant,
    netns: Option<PathBuf>,
    /// The policy that the pod's routes follow; none when that is not known.
    routes: Option<RoutePolicy>,
    /// Whether the pod's link segments UDP; none when that is not known.
    segments_udp: Option<bool>,
    gateway: Option<GatewayPod>,
    /// What was last said in the log about the pod's annotations.
    complaint: Option<AnnotationError>,
    /// What was made inside the pod for egress by the kernel.
    kernel: Option<Wanted>,
    /// Why that could not be done.
    kernel_trouble: Option<String>,
    /// Why a gateway by the kernel is not followed as the client that it is, too.
    trouble_as_client: Option<String>,
    /// Held while something is done inside it.
    inside: Arc<tokio::sync::Mutex<()>>,
}

/// A pod that ADD has connected.
#[derive(Debug)]
pub struct NewPod {
    /// By what it is known: container and interface, as its link's alias has them.
    pub owner: AttachmentId,
    /// What it is to the runtime.
    pub attachment: Attachment,
    /// What the datapath needs.
    pub attached: Attached,
    /// Path of its namespace.
    pub netns: PathBuf,
    /// The policy that its routes follow.
    pub routes: RoutePolicy,
}

/// The datapath cannot be made what it should be.
#[derive(Debug, thiserror::Error)]
#[error("cannot program the eBPF datapath: {}", chain(.0.as_ref()))]
pub struct ApplyError(PlaneError);

fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |e| e.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn drift_counter() -> IntCounterVec {
    let help = "What of Coil's in the kernel was not as it had been left, and was put right.";
    let counter = IntCounterVec::new(Opts::new("coil_datapath_drift_total", help), &["kind"])
        .expect("the name and the label are valid");
    for kind in drift::ALL {
        counter.with_label_values(&[kind]);
    }
    counter
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The data is whole after each statement, so a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Node {
    /// A node without pods.
    #[must_use]
    pub fn new(
        settings: Settings,
        client: Client,
        feed: Feed,
        ipam: Option<NodeIpam>,
        network: PodNetwork,
        plane: Plane,
        rtnl: Rtnl,
    ) -> Arc<Self> {
        Arc::new(Self {
            chained: Chained::new(rtnl.clone()),
            facts: Mutex::new(settings.facts.clone()),
            settings,
            client,
            feed,
            ipam,
            network,
            plane,
            rtnl,
            pods: Mutex::default(),
            applying: tokio::sync::Mutex::default(),
            following: tokio::sync::Mutex::default(),
            late: Mutex::default(),
            again: tokio::sync::Notify::new(),
            applied: AtomicBool::new(false),
            drift: drift_counter(),
            told: Mutex::default(),
            waiting: Mutex::default(),
            shut_in: Mutex::default(),
            port_warnings: Mutex::default(),
        })
    }

    /// Takes over the pods that earlier runs connected. To be called before anything is added.
    pub fn recover(&self, mut found: Vec<Found>) {
        // Behind another plugin, the link of a pod's last container may be there still: the newest one counts.
        found.sort_by_key(|pod| pod.link.host.index);
        if let Some(ipam) = &self.ipam {
            let own = found.iter().filter(|pod| !pod.is_chained());
            ipam.recover(own.map(Found::allocation).collect());
        }
        let mut pods = lock(&self.pods);
        for pod in found {
            let altnames = &pod.link.host.altnames;
            // The alias of a chained pod has its UID.
            let chained_uid = Some(pod.alias.owner.container_id.as_str()).filter(|_| pod.is_chained());
            let entry = Entry {
                uid: name::uid_of(altnames).or(chained_uid).map(str::to_owned),
                attachment: Attachment::of(altnames, &pod.alias.owner),
                since: Instant::now(),
                netns: pod.netns,
                routes: None,
                segments_udp: None,
                gateway: None,
                complaint: None,
                kernel: None,
                kernel_trouble: None,
                trouble_as_client: None,
                inside: Arc::default(),
                attached: Attached {
                    link: pod.link,
                    pod: None,
                    kernel_client: pod.kernel_client,
                    kernel_gateway: pod.kernel_gateway,
                },
            };
            pods.insert(pod.alias.owner, entry);
        }
        info!(pods = pods.len(), "recovered connected pods");
    }

    /// Adds a pod and programs the datapath for it.
    ///
    /// # Errors
    /// When the datapath cannot be programmed; the caller then removes the pod again.
    pub async fn add(self: &Arc<Self>, pod: NewPod) -> Result<(), ApplyError> {
        let entry = Entry {
            uid: pod.attached.pod.as_ref().map(|p| p.uid.clone()),
            attachment: pod.attachment,
            since: Instant::now(),
            attached: pod.attached,
            netns: Some(pod.netns),
            routes: Some(pod.routes),
            segments_udp: None,
            gateway: None,
            complaint: None,
            kernel: None,
            kernel_trouble: None,
            trouble_as_client: None,
            inside: Arc::default(),
        };
        let link = entry.attached.link.host.index;
        let before = lock(&self.pods).insert(pod.owner.clone(), entry);
        // The link of an earlier container: behind other plugins a pod is known by its UID alone.
        if let Some(before) = before.filter(|before| before.attached.link.host.index != link) {
            self.take_out(&before.attached.link).await?;
        }
        if !self.feed.missing().is_empty() {
            return Ok(());
        }
        if self.applied.load(Ordering::Relaxed) {
            self.put(&pod.owner).await?;
        } else {
            self.apply().await?;
        }
        self.follow_inside(&pod.owner).await;
        Ok(())
    }

    /// What the node itself contributes, as it is now.
    fn facts(&self) -> NodeFacts {
        NodeFacts { knows_clients: self.feed.follows_clients(), ..lock(&self.facts).clone() }
    }

    /// Adds one pod to a datapath that has all others already.
    async fn put(&self, owner: &AttachmentId) -> Result<(), ApplyError> {
        let _one_at_a_time = self.applying.lock().await;
        let facts = self.facts();
        let part = self.feed.read(|index| {
            let pods = lock(&self.pods);
            plan::desired(index, &facts, pods.get(owner).map(|entry| &entry.attached))
        });
        self.plane.with(|plane| plane.put(&part)).unwrap_or(Ok(())).map_err(ApplyError)
    }

    /// Forgets a pod, and takes it out of the datapath.
    ///
    /// # Errors
    /// When the datapath cannot be programmed. The pod is forgotten anyway: the next attempt of anything
    /// takes it out.
    pub async fn forget(self: &Arc<Self>, owner: &AttachmentId) -> Result<(), ApplyError> {
        let Some(entry) = lock(&self.pods).remove(owner) else { return Ok(()) };
        self.take_out(&entry.attached.link).await
    }

    async fn take_out(&self, link: &PodLink) -> Result<(), ApplyError> {
        let _one_at_a_time = self.applying.lock().await;
        let taken = self.plane.with(|plane| plane.take_out(link.host.index, &link.addresses()));
        taken.unwrap_or(Ok(())).map_err(ApplyError)
    }

    /// Whether a gateway pod's socket is served.
    #[must_use]
    pub fn gateway_is_served(&self, owner: &AttachmentId) -> bool {
        lock(&self.pods).get(owner).is_some_and(|entry| entry.gateway.is_some())
    }

    /// The policy for the routes of a client.
    #[must_use]
    pub fn route_policy(&self, egresses: &[EgressRef]) -> RoutePolicy {
        let facts = self.facts();
        self.feed.read(|index| plan::route_policy(&plan::policy(index, &facts, egresses)))
    }

    /// Makes datapath and pods follow the index. Nothing happens before the index is complete, so
    /// what a former run programmed stays until then.
    ///
    /// # Errors
    /// When the datapath cannot be programmed. Trouble inside one pod is logged, and tried again later.
    pub async fn reconcile(self: &Arc<Self>) -> Result<(), ApplyError> {
        if !self.feed.missing().is_empty() {
            return Ok(());
        }
        let result = self.apply().await;
        let _one_at_a_time = self.following.lock().await;
        self.follow_all_inside().await;
        result
    }

    /// Makes the whole datapath follow the index.
    async fn apply(self: &Arc<Self>) -> Result<(), ApplyError> {
        let _one_at_a_time = self.applying.lock().await;
        let facts = self.facts();
        let desired = self.feed.read(|index| {
            let mut pods = lock(&self.pods);
            for entry in pods.values_mut() {
                let known = match &entry.uid {
                    Some(uid) => index.pod_by_uid(uid),
                    None => index.pod_by_address(&entry.attached.link.addresses()),
                };
                entry.follow(known);
            }
            plan::desired(index, &facts, pods.values().map(|entry| &entry.attached))
        });
        self.tell_of_unknown();
        let result = self.plane.with(|plane| plane.apply(&desired)).unwrap_or(Ok(()));
        self.applied.store(result.is_ok(), Ordering::Relaxed);
        result.map_err(ApplyError)
    }

    /// Follows the index, and the node's own links and addresses, for ever.
    pub async fn run(self: Arc<Self>, mut monitor: Monitor) {
        let mut changes = self.feed.changes();
        self.feed.synced().await;
        let mut known = None;
        let mut next_look = Instant::now();
        loop {
            // Only what concerns the node itself, or what is in its way, is a reason to look at all its links.
            let now = self.feed.read(|index| {
                let own = index.nodes.get(&ObjectKey::new("", &self.settings.name)).cloned();
                Some((own, index.pool_subnets()))
            });
            if Instant::now() >= next_look || known != now {
                known = now;
                next_look = Instant::now() + RESYNC;
                if let Err(e) = self.look_at_node().await {
                    error!(error = %e, "cannot look at the node's links; what was found before stays in use");
                }
                if let Err(e) = self.repair().await {
                    error!(error = %e, "cannot compare the kernel with what it was given; will try again");
                }
            }
            match self.reconcile().await {
                Ok(()) => self.remove_leftover(),
                Err(e) => error!(error = %e, "will try again"),
            }
            loop {
                let soon = Instant::now() + LOOK_AGAIN;
                tokio::select! {
                    _ = changes.changed() => {
                        tokio::time::sleep(SETTLE).await;
                        break;
                    }
                    () = self.again.notified() => break,
                    // Each pod that comes or goes is such a change, too: they are looked at together.
                    () = monitor.changed(is_about_node), if next_look > soon => next_look = soon,
                    () = tokio::time::sleep_until(next_look) => break,
                }
            }
            changes.mark_unchanged();
        }
    }
}
