//! The status of a pod, from what is known of its containers: pure.

use std::net::IpAddr;

use k8s_openapi::{
    api::core::v1::{Container, Pod},
    jiff::Timestamp,
};
use serde_json::{Value, json};

/// What a container is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    /// Not running, with a reason and a message.
    Waiting(&'static str, String),
    /// Running since.
    Running(Timestamp),
    /// Ended: exit code, start and end.
    Terminated(i32, Timestamp, Timestamp, String),
}

/// A container as its pod's worker knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ContainerReport {
    pub(super) state: State,
    /// The end of the run before this one.
    pub(super) last: Option<State>,
    pub(super) ready: bool,
    pub(super) restarts: u32,
}

impl Default for ContainerReport {
    fn default() -> Self {
        let state = State::Waiting("ContainerCreating", String::new());
        Self { state, last: None, ready: false, restarts: 0 }
    }
}

/// Whether a pod has run to its end.
pub(super) fn is_finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// What a status is made of.
#[derive(Debug)]
pub(super) struct Input<'a> {
    pub(super) containers: &'a [(Container, ContainerReport)],
    pub(super) ips: &'a [IpAddr],
    pub(super) host_ips: &'a [IpAddr],
    pub(super) since: Timestamp,
    /// When the pod became ready or stopped being it.
    pub(super) ready_since: Timestamp,
    pub(super) restart_policy: &'a str,
}

/// Whether every container is ready.
pub(super) fn is_ready(containers: &[(Container, ContainerReport)]) -> bool {
    containers.iter().all(|(_, report)| report.ready)
}

/// The status object.
pub(super) fn of(input: &Input<'_>) -> Value {
    let ready = is_ready(input.containers) && !input.ips.is_empty();
    let phase = phase(input);
    let condition = |kind: &str, status: bool, since: Timestamp| json!({"type": kind, "status": if status { "True" } else { "False" }, "lastTransitionTime": since});
    let list = |ips: &[IpAddr]| ips.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>();
    let mut status = json!({
        "phase": phase,
        "startTime": input.since,
        "hostIP": input.host_ips.first(),
        "hostIPs": list(input.host_ips),
        "conditions": [
            condition("PodReadyToStartContainers", !input.ips.is_empty(), input.since),
            condition("Initialized", true, input.since),
            condition("Ready", ready, input.ready_since),
            condition("ContainersReady", ready, input.ready_since),
            condition("PodScheduled", true, input.since),
        ],
        "containerStatuses": input.containers.iter().map(|(c, r)| container(c, r)).collect::<Vec<_>>(),
    });
    if let Some(first) = input.ips.first() {
        status["podIP"] = json!(first);
        status["podIPs"] = json!(list(input.ips));
    }
    status
}

fn phase(input: &Input<'_>) -> &'static str {
    let ended = |report: &ContainerReport| match report.state {
        State::Terminated(code, ..) => Some(code),
        _ => None,
    };
    let codes: Vec<Option<i32>> = input.containers.iter().map(|(_, report)| ended(report)).collect();
    let restarts = |code: i32| match input.restart_policy {
        "Never" => false,
        "OnFailure" => code != 0,
        _ => true,
    };
    if !codes.is_empty() && codes.iter().all(|code| code.is_some_and(|code| !restarts(code))) {
        return if codes.iter().all(|code| *code == Some(0)) { "Succeeded" } else { "Failed" };
    }
    let started =
        |r: &ContainerReport| r.restarts > 0 || r.last.is_some() || !matches!(r.state, State::Waiting(..));
    if input.containers.iter().any(|(_, report)| started(report)) { "Running" } else { "Pending" }
}

fn container(container: &Container, report: &ContainerReport) -> Value {
    let mut status = json!({
        "name": container.name,
        "image": container.image.as_deref().unwrap_or_default(),
        "imageID": "",
        "ready": report.ready,
        "started": matches!(report.state, State::Running(_)),
        "restartCount": report.restarts,
        "state": state(&report.state),
    });
    if let Some(last) = &report.last {
        status["lastState"] = state(last);
    }
    status
}

fn state(state: &State) -> Value {
    match state {
        State::Waiting(reason, message) if message.is_empty() => json!({"waiting": {"reason": reason}}),
        State::Waiting(reason, message) => json!({"waiting": {"reason": reason, "message": message}}),
        State::Running(since) => json!({"running": {"startedAt": since}}),
        State::Terminated(code, from, to, message) => json!({"terminated": {
            "exitCode": code, "startedAt": from, "finishedAt": to, "message": message,
            "reason": if *code == 0 { "Completed" } else { "Error" },
        }}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(reports: Vec<ContainerReport>, restart_policy: &str) -> Value {
        let containers: Vec<_> = reports.into_iter().map(|r| (Container::default(), r)).collect();
        let now = Timestamp::UNIX_EPOCH;
        of(&Input {
            containers: &containers,
            ips: &["10.64.0.1".parse().unwrap(), "fd64::1".parse().unwrap()],
            host_ips: &["172.18.0.1".parse().unwrap()],
            since: now,
            ready_since: now,
            restart_policy,
        })
    }

    fn report(state: State, ready: bool) -> ContainerReport {
        ContainerReport { state, ready, ..Default::default() }
    }

    #[test]
    fn phases() {
        let now = Timestamp::UNIX_EPOCH;
        let running = report(State::Running(now), true);
        let ended = |code| report(State::Terminated(code, now, now, String::new()), false);
        for (reports, policy, phase) in [
            (vec![ContainerReport::default()], "Always", "Pending"),
            (vec![running.clone()], "Always", "Running"),
            (vec![running.clone(), ContainerReport::default()], "Always", "Running"),
            (vec![ended(1)], "Always", "Running"),
            (vec![ended(0)], "Never", "Succeeded"),
            (vec![ended(0), ended(2)], "Never", "Failed"),
            (vec![ended(0), running], "Never", "Running"),
            (vec![ended(3)], "OnFailure", "Running"),
        ] {
            assert_eq!(status(reports.clone(), policy)["phase"], phase, "{reports:?} {policy}");
        }
    }

    #[test]
    fn ready_when_all_containers_are() {
        let now = Timestamp::UNIX_EPOCH;
        let ready = |reports| {
            let status = status(reports, "Always");
            let conditions = status["conditions"].as_array().unwrap();
            conditions.iter().find(|c| c["type"] == "Ready").unwrap()["status"] == "True"
        };
        assert!(ready(vec![report(State::Running(now), true)]));
        assert!(!ready(vec![report(State::Running(now), true), report(State::Running(now), false)]));
    }

    #[test]
    fn both_addresses_in_order() {
        let status = status(vec![], "Always");
        assert_eq!(status["podIP"], "10.64.0.1");
        assert_eq!(status["podIPs"], json!([{"ip": "10.64.0.1"}, {"ip": "fd64::1"}]));
    }
}
