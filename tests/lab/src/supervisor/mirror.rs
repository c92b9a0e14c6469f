//! Coil's programs as the API shows them: a Pod for each, as a kubelet shows its static pods.
//!
//! The pods say what is: they are ready while their programs are. Deleting one has its program stopped and started
//! anew, under a new pod of the same name.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result};
use coil_traffic::machine::patience;
use k8s_openapi::{
    api::core::v1::{Pod, PodSpec},
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;
use tokio::time;

use super::manifests::Workload;
use crate::{kubelet::MIRROR, place::OpenPlace, state::StateDir};

/// How often pods and programs are looked at.
const INTERVAL: Duration = Duration::from_millis(500);
/// How long a program may take to answer.
const PROBE_LIMIT: Duration = Duration::from_secs(1);

/// A program and its pod.
#[derive(Clone)]
pub(super) struct Mirror {
    pub(super) client: Client,
    pub(super) workload: Workload,
    /// Name of the pod.
    pub(super) name: String,
    /// The member of the lab that it runs on, and its addresses.
    pub(super) place_name: String,
    pub(super) place: OpenPlace,
    pub(super) addresses: Vec<std::net::IpAddr>,
    pub(super) state: StateDir,
}

impl Mirror {
    fn api(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.workload.namespace)
    }

    /// Creates the pod.
    pub(super) async fn create(&self) -> Result<()> {
        let template = self.workload.template.clone();
        let pod = Pod {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                labels: template.metadata.and_then(|metadata| metadata.labels),
                annotations: Some([(MIRROR.to_owned(), self.name.clone())].into()),
                ..ObjectMeta::default()
            },
            spec: Some(PodSpec {
                node_name: Some(self.place_name.clone()),
                ..template.spec.unwrap_or_default()
            }),
            status: None,
        };
        let created = self.api().create(&PostParams::default(), &pod).await;
        created.map(drop).with_context(|| format!("cannot create pod {}", self.name))
    }

    /// Keeps pod and program together until the lab ends.
    pub(super) fn keep(self) {
        tokio::spawn(async move {
            let mut said = None;
            loop {
                if let Err(error) = self.look(&mut said).await {
                    tracing::warn!(pod = self.name, error = format!("{error:#}"), "mirroring a program");
                }
                time::sleep(INTERVAL).await;
            }
        });
    }

    /// Brings the pod up to date; `said` is what its status says already.
    async fn look(&self, said: &mut Option<bool>) -> Result<()> {
        match self.api().get_opt(&self.name).await? {
            Some(pod) if pod.metadata.deletion_timestamp.is_some() => {
                self.restart().await?;
                self.api().delete(&self.name, &DeleteParams::default().grace_period(0)).await?;
            }
            Some(pod) => {
                let place = self.clone();
                let ready = tokio::task::spawn_blocking(move || place.is_ready()).await?;
                if *said != Some(ready) {
                    self.report(&pod, ready).await?;
                    *said = Some(ready);
                }
            }
            None => {
                self.create().await?;
                *said = None;
            }
        }
        Ok(())
    }

    /// Stops the program, and waits until it runs again.
    async fn restart(&self) -> Result<()> {
        let before = self.pid()?;
        kill(Pid::from_raw(before), Signal::SIGTERM).context("cannot stop the program")?;
        while self.pid()? == before {
            time::sleep(INTERVAL).await;
        }
        Ok(())
    }

    fn pid(&self) -> Result<i32> {
        let path = self.state.program_file(&self.place_name, self.workload.program()?);
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        text.trim().parse().with_context(|| format!("{} holds no process id", path.display()))
    }

    fn is_ready(&self) -> bool {
        let asked = self.place.run(|| {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.workload.port("health")?))?;
            stream.set_read_timeout(Some(patience(PROBE_LIMIT)))?;
            stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer.starts_with("HTTP/1.1 200"))
        });
        asked.unwrap_or_default()
    }

    async fn report(&self, pod: &Pod, ready: bool) -> Result<()> {
        let now = Timestamp::now();
        let ips: Vec<_> = self.addresses.iter().map(|ip| json!({"ip": ip})).collect();
        let condition = |kind: &str| json!({"type": kind, "status": if ready { "True" } else { "False" }, "lastTransitionTime": now});
        let container = self.workload.container()?;
        let status = json!({
            "phase": "Running",
            "startTime": pod.metadata.creation_timestamp,
            "hostIP": self.addresses.first(), "hostIPs": ips,
            "podIP": self.addresses.first(), "podIPs": ips,
            "conditions": [condition("Ready"), condition("ContainersReady")],
            "containerStatuses": [{
                "name": container.name, "image": container.image, "imageID": "", "ready": ready, "started": true,
                "restartCount": 0, "state": {"running": {"startedAt": now}},
            }],
        });
        let patch = Patch::Merge(json!({"metadata": {"uid": pod.uid()}, "status": status}));
        self.api().patch_status(&self.name, &PatchParams::default(), &patch).await?;
        Ok(())
    }
}

impl Workload {
    /// A named port of its container.
    fn port(&self, name: &str) -> Result<u16> {
        let ports = self.container()?.ports.as_deref().unwrap_or_default();
        let port = ports.iter().find(|port| port.name.as_deref() == Some(name));
        let number = port.with_context(|| format!("it has no port {name}"))?.container_port;
        u16::try_from(number).with_context(|| format!("{number} is no port"))
    }

    /// The number of a probe's port must be one of the container's names.
    #[cfg(test)]
    pub(super) fn probes_name_ports(&self) -> Result<bool> {
        let container = self.container()?;
        let probes = [&container.readiness_probe, &container.liveness_probe, &container.startup_probe];
        let gets = probes.into_iter().flatten().filter_map(|probe| probe.http_get.as_ref());
        Ok(gets.into_iter().all(|get| matches!(&get.port, k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::String(name) if self.port(name).is_ok())))
    }
}
