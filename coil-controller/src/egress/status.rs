//! The status of an Egress.

use coil_api::crd::{Egress, EgressStatus};
use k8s_openapi::{
    api::apps::v1::Deployment,
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use kube::ResourceExt;

use super::template::labels;

/// Condition: whether clients can get out.
pub const CONDITION_AVAILABLE: &str = "Available";
/// Condition: whether some object of the Egress is not as it should be.
pub const CONDITION_DEGRADED: &str = "Degraded";

/// What is not as it should be, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// One word for programs.
    pub reason: &'static str,
    /// A sentence for people.
    pub message: String,
}

/// What the Deployment says of its pods: refused by the API server (a quota, an admission policy), or not
/// coming up in time.
#[must_use]
pub fn trouble_of(deployment: &Deployment) -> Vec<Trouble> {
    let conditions = deployment.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let told = conditions.filter_map(|c| {
        let reason = match (c.type_.as_str(), c.status.as_str()) {
            ("ReplicaFailure", "True") => "GatewaysRefused",
            ("Progressing", "False") => "RolloutStuck",
            _ => return None,
        };
        let message = c.message.clone().or_else(|| c.reason.clone()).unwrap_or_default();
        Some(Trouble { reason, message: format!("Deployment {}: {message}", deployment.name_any()) })
    });
    told.collect()
}

/// The status that says what the Deployment has and what went wrong; `said` is what gateways say of themselves.
/// Conditions of others stay.
#[must_use]
pub fn status(
    egress: &Egress,
    deployment: Option<&Deployment>,
    trouble: &[Trouble],
    said: &[String],
    now: Timestamp,
) -> EgressStatus {
    let available = available(deployment);
    let old = egress.status.clone().unwrap_or_default();
    let wanted = egress.spec.replicas;
    let mut gateways = format!("{available} of {wanted} gateways are available");
    for reason in said {
        gateways.push_str("; ");
        gateways.push_str(reason);
    }
    let (is_available, reason) =
        if available > 0 { ("True", "GatewaysAvailable") } else { ("False", "NoGateway") };
    let (is_degraded, why, message) = match trouble {
        [] => ("False", "AsWanted", "all objects are as wanted".to_owned()),
        [first, ..] => {
            let all: Vec<&str> = trouble.iter().map(|t| t.message.as_str()).collect();
            ("True", first.reason, all.join("; "))
        }
    };
    let mut conditions = old.conditions.unwrap_or_default();
    for (type_, status, reason, message) in [
        (CONDITION_AVAILABLE, is_available, reason, gateways),
        (CONDITION_DEGRADED, is_degraded, why, message),
    ] {
        let known = conditions.iter().position(|c| c.type_ == type_);
        let since = known
            .and_then(|i| conditions.get(i))
            .filter(|c| c.status == status)
            .map_or(Time(now), |c| c.last_transition_time.clone());
        let condition = Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message,
            last_transition_time: since,
            observed_generation: egress.metadata.generation,
        };
        match known.and_then(|i| conditions.get_mut(i)) {
            Some(slot) => *slot = condition,
            None => conditions.push(condition),
        }
    }
    EgressStatus {
        replicas: Some(available),
        selector: Some(selector(&egress.name_any())),
        conditions: Some(conditions),
    }
}

/// Whether gateways are missing.
#[must_use]
pub fn is_short(egress: &Egress, deployment: Option<&Deployment>) -> bool {
    available(deployment) < egress.spec.replicas
}

fn available(deployment: Option<&Deployment>) -> i32 {
    deployment.and_then(|d| d.status.as_ref()).and_then(|s| s.available_replicas).unwrap_or_default()
}

/// The selector of the gateway pods as one string, sorted by key.
pub(super) fn selector(egress: &str) -> String {
    labels(egress).iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use coil_api::crd::EgressSpec;
    use serde_json::json;

    use super::*;

    fn egress() -> Egress {
        let spec: EgressSpec =
            serde_json::from_value(json!({"destinations": ["0.0.0.0/0"], "replicas": 2})).unwrap();
        Egress::new("nat", spec)
    }

    fn with_available(n: i32) -> Deployment {
        serde_json::from_value(json!({"status": {"availableReplicas": n}})).unwrap()
    }

    fn condition<'a>(status: &'a EgressStatus, type_: &str) -> &'a Condition {
        status.conditions.as_ref().unwrap().iter().find(|c| c.type_ == type_).unwrap()
    }

    #[test]
    fn replicas_selector_and_conditions() {
        let mut egress = egress();
        let refused =
            Trouble { reason: "ReconcileFailed", message: "cannot create Deployment nat: no".into() };
        let early = Timestamp::from_second(1).unwrap();
        let first = status(&egress, None, &[refused], &[], early);
        assert_eq!(first.replicas, Some(0));
        assert_eq!(
            first.selector.as_deref(),
            Some(
                "app.kubernetes.io/component=egress,app.kubernetes.io/instance=nat,app.kubernetes.io/name=coil"
            )
        );
        assert_eq!(condition(&first, "Available").status, "False");
        assert!(condition(&first, "Degraded").message.contains("Deployment nat"));

        egress.status = Some(first);
        let late = Timestamp::from_second(2).unwrap();
        let second =
            status(&egress, Some(&with_available(1)), &[], &["nat-1 on node2: no FOU".to_owned()], late);
        assert_eq!(condition(&second, "Available").status, "True");
        assert_eq!(
            condition(&second, "Available").message,
            "1 of 2 gateways are available; nat-1 on node2: no FOU"
        );
        assert_eq!(condition(&second, "Degraded").status, "False");

        egress.status = Some(second.clone());
        let unready = ["nat-1 on node2: no FOU".to_owned()];
        let third =
            status(&egress, Some(&with_available(1)), &[], &unready, Timestamp::from_second(3).unwrap());
        assert_eq!(third, second, "nothing changes when nothing changed");
        assert!(is_short(&egress, Some(&with_available(1))) && is_short(&egress, None));
        assert!(!is_short(&egress, Some(&with_available(2))));
    }

    #[test]
    fn a_deployment_whose_pods_do_not_come_is_trouble() {
        let with = |conditions: serde_json::Value| -> Deployment {
            serde_json::from_value(json!({"metadata": {"name": "nat"}, "status": {"conditions": conditions}}))
                .unwrap()
        };
        let fine =
            json!([{"type": "Progressing", "status": "True"}, {"type": "Available", "status": "False"}]);
        assert_eq!(trouble_of(&with(fine)), []);
        let bad = with(json!([
            {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"},
            {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"},
        ]));
        let trouble = trouble_of(&bad);
        let reasons: Vec<&str> = trouble.iter().map(|t| t.reason).collect();
        assert_eq!(reasons, ["GatewaysRefused", "RolloutStuck"]);
        assert_eq!(trouble[0].message, "Deployment nat: exceeded quota");
        let status = status(&egress(), Some(&bad), &trouble, &[], Timestamp::UNIX_EPOCH);
        assert_eq!(condition(&status, "Degraded").reason, "GatewaysRefused");
        assert!(condition(&status, "Degraded").message.contains("ProgressDeadlineExceeded"));
    }
}
