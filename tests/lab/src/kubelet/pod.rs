//! One pod's worker: from the object to running containers, and back to nothing.

use std::{sync::Arc, time::Duration};

use k8s_openapi::{
    api::core::v1::{Container, Pod, PodSpec},
    jiff::Timestamp,
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time,
};

use super::{
    Context, Wanted,
    container::{self, Plan, Update},
    env::{self, Facts},
    events::Recorder,
    sandbox::{self, Sandbox},
    status::{self, ContainerReport},
};
use crate::config::{self, API_PORT};

/// Wait before a failed sandbox is tried again, doubled up to [`RETRY_MAX`].
const RETRY: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(4);
/// Grace period of a pod that says none.
const DEFAULT_GRACE: i64 = 30;

/// Follows one pod to its end.
pub(super) struct Worker {
    context: Arc<Context>,
    wanted: watch::Receiver<Wanted>,
    recorder: Recorder,
    containers: Vec<(Container, ContainerReport)>,
    facts: Facts,
    since: Timestamp,
    ready_since: Timestamp,
    was_ready: bool,
    reported: Value,
}

impl Worker {
    pub(super) fn new(context: Arc<Context>, wanted: watch::Receiver<Wanted>) -> Self {
        let containers = spec(&wanted.borrow().pod).containers;
        let options = &context.role.options;
        let facts = Facts {
            pod_ips: Vec::new(),
            host_ips: config::node_addresses(options.family, &context.role.node).unwrap_or_default(),
            api: (options.api_address(), API_PORT),
        };
        Self {
            context,
            wanted,
            recorder: Recorder::default(),
            containers: containers.into_iter().map(|c| (c, ContainerReport::default())).collect(),
            facts,
            since: Timestamp::now(),
            ready_since: Timestamp::now(),
            was_ready: false,
            reported: Value::Null,
        }
    }

    pub(super) async fn run(mut self) {
        if !self.leaving() {
            self.report().await;
        }
        if let Some(sandbox) = self.sandbox().await {
            self.facts.pod_ips.clone_from(&sandbox.ips);
            self.live(&sandbox).await;
            self.remove(&sandbox).await;
        }
        while !self.leaving() {
            // The pod has run to its end; its object stays until somebody deletes it.
            if self.wanted.changed().await.is_err() {
                return;
            }
        }
        self.forget().await;
    }

    fn pod(&self) -> Arc<Pod> {
        self.wanted.borrow().pod.clone()
    }

    /// Whether the pod is to go.
    fn leaving(&self) -> bool {
        is_leaving(&self.wanted.borrow())
    }

    /// Makes the sandbox, however long it takes. None when the pod is to go before.
    async fn sandbox(&mut self) -> Option<Sandbox> {
        let mut wait = RETRY;
        while !self.leaving() {
            let pod = self.pod();
            self.wanted.mark_unchanged();
            match sandbox::make(&self.context, &pod).await {
                Ok(sandbox) => return Some(sandbox),
                Err(error) => {
                    let message = format!("Failed to create pod sandbox: {error:#}");
                    tracing::warn!(pod = pod.name_any(), namespace = pod.namespace(), message);
                    self.recorder.say(&self.context, &pod, true, "FailedCreatePodSandBox", &message).await;
                }
            }
            // A changed pod may be a mended one.
            let _ = time::timeout(wait, self.changed_annotations(&pod)).await;
            wait = (wait * 2).min(RETRY_MAX);
        }
        None
    }

    async fn changed_annotations(&mut self, before: &Pod) {
        let differs = |w: &Wanted| is_leaving(w) || w.pod.metadata.annotations != before.metadata.annotations;
        let _ = self.wanted.wait_for(differs).await;
    }

    /// Runs the containers until the pod is to go or all have ended for good.
    async fn live(&mut self, sandbox: &Sandbox) {
        let (updates, mut receiver) = mpsc::unbounded_channel();
        let (stop, stopped) = watch::channel(None);
        let mut running = JoinSet::new();
        match self.plans(sandbox) {
            Ok(plans) => {
                for (index, plan) in plans.into_iter().enumerate() {
                    running.spawn(container::run(index, plan, stopped.clone(), updates.clone()));
                }
            }
            Err(message) => {
                let pod = self.pod();
                self.recorder.say(&self.context, &pod, true, "CreateContainerConfigError", &message).await;
                let _ = self.wanted.wait_for(is_leaving).await;
            }
        }
        drop(updates);
        self.report().await;
        let mut wanted = self.wanted.clone();
        loop {
            tokio::select! {
                update = receiver.recv() => match update {
                    Some(update) => self.take(update).await,
                    None => break, // every container has ended
                },
                () = left(&mut wanted), if stop.borrow().is_none() => {
                    stop.send_replace(Some(self.grace()));
                }
            }
        }
        while running.join_next().await.is_some() {}
    }

    async fn take(&mut self, update: Update) {
        match update {
            Update::Report(index, report) => {
                if let Some((_, known)) = self.containers.get_mut(index) {
                    *known = report;
                }
                self.report().await;
            }
            Update::Say { warning, reason, message } => {
                let pod = self.pod();
                self.recorder.say(&self.context, &pod, warning, reason, &message).await;
            }
        }
    }

    fn plans(&self, sandbox: &Sandbox) -> Result<Vec<Plan>, String> {
        let pod = self.pod();
        let logs = self.context.role.logs.join("pods");
        let restart_policy = spec(&pod).restart_policy.unwrap_or_else(|| "Always".to_owned());
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let ip = *sandbox.ips.first().ok_or("the CNI plugin gave the pod no address")?;
        self.containers
            .iter()
            .map(|(container, _)| {
                Ok(Plan {
                    container: container.clone(),
                    env: env::of(container, &pod, &self.facts)?,
                    place: sandbox.place.clone(),
                    ip,
                    restart_policy: restart_policy.clone(),
                    log: logs.join(format!("{namespace}.{name}.{}.log", container.name)),
                    build: self.context.build.clone(),
                })
            })
            .collect()
    }

    fn grace(&self) -> Duration {
        let wanted = self.wanted.borrow();
        if wanted.gone {
            return Duration::ZERO;
        }
        let grace = wanted.pod.metadata.deletion_grace_period_seconds.or(wanted
            .pod
            .spec
            .as_ref()
            .and_then(|s| s.termination_grace_period_seconds));
        Duration::from_secs(u64::try_from(grace.unwrap_or(DEFAULT_GRACE)).unwrap_or_default())
    }

    /// Writes the status when it is another than before.
    async fn report(&mut self) {
        let ready = status::is_ready(&self.containers);
        if ready != self.was_ready {
            (self.was_ready, self.ready_since) = (ready, Timestamp::now());
        }
        let pod = self.pod();
        let restart_policy = spec(&pod).restart_policy.unwrap_or_else(|| "Always".to_owned());
        let status = status::of(&status::Input {
            containers: &self.containers,
            ips: &self.facts.pod_ips,
            host_ips: &self.facts.host_ips,
            since: self.since,
            ready_since: self.ready_since,
            restart_policy: &restart_policy,
        });
        if status == self.reported {
            return;
        }
        let patch = json!({"metadata": {"uid": pod.uid()}, "status": status});
        let api = self.api(&pod);
        match api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(_) => self.reported = status,
            Err(kube::Error::Api(e)) if e.code == 404 || e.code == 409 => {} // another pod has the name now
            Err(error) => tracing::warn!(pod = pod.name_any(), %error, "cannot report a pod's status"),
        }
    }

    fn api(&self, pod: &Pod) -> Api<Pod> {
        Api::namespaced(self.context.client.clone(), &pod.namespace().unwrap_or_default())
    }

    /// Removes the sandbox, however long it takes: what a failed DEL leaves is a leak.
    async fn remove(&mut self, sandbox: &Sandbox) {
        let mut wait = RETRY;
        while let Err(error) = sandbox.remove().await {
            let pod = self.pod();
            let message = format!("Failed to stop pod sandbox: {error:#}");
            tracing::warn!(pod = pod.name_any(), namespace = pod.namespace(), message);
            self.recorder.say(&self.context, &pod, true, "FailedKillPod", &message).await;
            time::sleep(wait).await;
            wait = (wait * 2).min(RETRY_MAX);
        }
    }

    /// Lets the API server drop the object.
    async fn forget(&self) {
        let pod = self.pod();
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: pod.uid(), resource_version: None }),
            ..DeleteParams::default()
        };
        while !self.wanted.borrow().gone {
            match self.api(&pod).delete(&pod.name_any(), &params).await {
                Ok(_) => return,
                Err(kube::Error::Api(e)) if e.code == 404 || e.code == 409 => return,
                Err(error) => tracing::warn!(pod = pod.name_any(), %error, "cannot delete a pod's object"),
            }
            time::sleep(RETRY).await;
        }
    }
}

/// Returns when the pod is to go.
async fn left(wanted: &mut watch::Receiver<Wanted>) {
    let _ = wanted.wait_for(is_leaving).await; // fails when the kubelet itself ends
}

fn is_leaving(wanted: &Wanted) -> bool {
    wanted.gone || wanted.pod.metadata.deletion_timestamp.is_some()
}

fn spec(pod: &Pod) -> PodSpec {
    pod.spec.clone().unwrap_or_default()
}
