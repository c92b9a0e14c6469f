//! Columns of built-in kinds.

use serde_json::Value;

use super::age;
use crate::meta::{self, str_at};
use crate::selector::label_selector_text;

/// A column; priority 1 shows with `-o wide`.
pub(super) struct Column {
    pub(super) name: &'static str,
    pub(super) priority: i64,
    pub(super) cell: fn(&Value) -> String,
}

const fn column(name: &'static str, cell: fn(&Value) -> String) -> Column {
    Column { name, priority: 0, cell }
}

const fn wide(name: &'static str, cell: fn(&Value) -> String) -> Column {
    Column { name, priority: 1, cell }
}

const AGE: Column = column("Age", |o| age::since(meta::field(o, "creationTimestamp")));
const SELECTOR: Column = wide("Selector", |o| or_none(&label_selector_text(&o["spec"]["selector"])));

/// The columns after the name.
pub(super) fn columns(group: &str, plural: &str) -> &'static [Column] {
    match (group, plural) {
        ("", "pods") => PODS,
        ("", "nodes") => NODES,
        ("", "namespaces") => const { &[column("Status", |o| text(&o["status"]["phase"])), AGE] },
        ("", "services") => SERVICES,
        ("", "configmaps") => const { &[column("Data", |o| count(&o["data"])), AGE] },
        ("", "secrets") => {
            const { &[column("Type", |o| text(&o["type"])), column("Data", |o| count(&o["data"])), AGE] }
        }
        ("", "serviceaccounts") => const { &[column("Secrets", |o| count(&o["secrets"])), AGE] },
        ("", "endpoints") => const { &[column("Endpoints", endpoints), AGE] },
        ("" | "events.k8s.io", "events") => EVENTS,
        ("apps", "deployments") => DEPLOYMENTS,
        ("apps", "replicasets") => REPLICA_SETS,
        ("apps", "daemonsets") => DAEMON_SETS,
        ("policy", "poddisruptionbudgets") => BUDGETS,
        ("coordination.k8s.io", "leases") => {
            const { &[column("Holder", |o| text(&o["spec"]["holderIdentity"])), AGE] }
        }
        ("discovery.k8s.io", "endpointslices") => SLICES,
        ("apiextensions.k8s.io", _) => {
            const { &[column("Created At", |o| meta::field(o, "creationTimestamp").to_owned())] }
        }
        ("networking.k8s.io", "servicecidrs") => {
            const { &[column("CIDRs", |o| join(&o["spec"]["cidrs"], Value::as_str)), AGE] }
        }
        ("rbac.authorization.k8s.io", "rolebindings" | "clusterrolebindings") => {
            const {
                &[
                    column("Role", |o| {
                        format!("{}/{}", text(&o["roleRef"]["kind"]), text(&o["roleRef"]["name"]))
                    }),
                    AGE,
                ]
            }
        }
        _ => const { &[AGE] },
    }
}

const PODS: &[Column] = &[
    column("Ready", |o| {
        let statuses = o["status"]["containerStatuses"].as_array().map(Vec::as_slice).unwrap_or_default();
        let ready = statuses.iter().filter(|status| status["ready"] == true).count();
        format!("{ready}/{}", o["spec"]["containers"].as_array().map_or(0, Vec::len))
    }),
    column("Status", pod_status),
    column("Restarts", |o| {
        let statuses = o["status"]["containerStatuses"].as_array().into_iter().flatten();
        statuses.filter_map(|status| status["restartCount"].as_i64()).sum::<i64>().to_string()
    }),
    AGE,
    wide("IP", |o| or_none(&text(&o["status"]["podIP"]))),
    wide("Node", |o| or_none(&text(&o["spec"]["nodeName"]))),
    wide("Nominated Node", |o| or_none(&text(&o["status"]["nominatedNodeName"]))),
    wide("Readiness Gates", |o| or_none(if o["spec"]["readinessGates"].is_array() { "0/1" } else { "" })),
];

/// The reason that a person wants to see: of the pod, else of its first container in trouble.
fn pod_status(pod: &Value) -> String {
    if meta::is_deleting(pod) {
        return "Terminating".into();
    }
    let statuses = pod["status"]["containerStatuses"].as_array().into_iter().flatten();
    let reason = statuses
        .filter_map(|status| {
            str_at(status, &["state", "waiting", "reason"])
                .or_else(|| str_at(status, &["state", "terminated", "reason"]))
        })
        .next();
    let pod_reason = str_at(pod, &["status", "reason"]).filter(|reason| !reason.is_empty());
    let phase = str_at(pod, &["status", "phase"]);
    reason.or(pod_reason).or(phase).unwrap_or("Unknown").to_owned()
}

const NODES: &[Column] = &[
    column("Status", |o| {
        let mut status = match condition(o, "Ready") {
            Some("True") => "Ready".to_owned(),
            Some(_) => "NotReady".to_owned(),
            None => "Unknown".to_owned(),
        };
        if o["spec"]["unschedulable"] == true {
            status.push_str(",SchedulingDisabled");
        }
        status
    }),
    column("Roles", |o| {
        const PREFIX: &str = "node-role.kubernetes.io/";
        let roles: Vec<&str> =
            meta::pairs(o, "labels").filter_map(|(key, _)| key.strip_prefix(PREFIX)).collect();
        or_none(&roles.join(","))
    }),
    AGE,
    column("Version", |o| text(&o["status"]["nodeInfo"]["kubeletVersion"])),
    wide("Internal-IP", |o| or_none(&node_address(o, "InternalIP"))),
    wide("External-IP", |o| or_none(&node_address(o, "ExternalIP"))),
    wide("OS-Image", |o| or_unknown(&text(&o["status"]["nodeInfo"]["osImage"]))),
    wide("Kernel-Version", |o| or_unknown(&text(&o["status"]["nodeInfo"]["kernelVersion"]))),
    wide("Container-Runtime", |o| or_unknown(&text(&o["status"]["nodeInfo"]["containerRuntimeVersion"]))),
];

const SERVICES: &[Column] = &[
    column("Type", |o| text(&o["spec"]["type"])),
    column("Cluster-IP", |o| or_none(&text(&o["spec"]["clusterIP"]))),
    column("External-IP", |o| or_none(&join(&o["spec"]["externalIPs"], Value::as_str))),
    column("Port(s)", |o| {
        let ports = o["spec"]["ports"].as_array().into_iter().flatten();
        let ports = ports.map(|port| match port["nodePort"].as_i64() {
            Some(node) => format!("{}:{node}/{}", port["port"], text(&port["protocol"])),
            None => format!("{}/{}", port["port"], text(&port["protocol"])),
        });
        or_none(&ports.collect::<Vec<_>>().join(","))
    }),
    AGE,
    SELECTOR,
];

const EVENTS: &[Column] = &[
    column("Last Seen", |o| {
        let seen = ["lastTimestamp", "eventTime", "firstTimestamp"].iter().find_map(|key| o[*key].as_str());
        age::since(seen.unwrap_or_else(|| meta::field(o, "creationTimestamp")))
    }),
    column("Type", |o| text(&o["type"])),
    column("Reason", |o| text(&o["reason"])),
    column("Object", |o| {
        let about = &o["involvedObject"];
        format!("{}/{}", text(&about["kind"]).to_lowercase(), text(&about["name"]))
    }),
    column("Message", |o| text(&o["message"]).trim().to_owned()),
];

const DEPLOYMENTS: &[Column] = &[
    column("Ready", |o| {
        format!("{}/{}", number(&o["status"]["readyReplicas"]), number(&o["spec"]["replicas"]))
    }),
    column("Up-to-date", |o| number(&o["status"]["updatedReplicas"])),
    column("Available", |o| number(&o["status"]["availableReplicas"])),
    AGE,
    wide("Containers", |o| join(&o["spec"]["template"]["spec"]["containers"], |c| c["name"].as_str())),
    wide("Images", |o| join(&o["spec"]["template"]["spec"]["containers"], |c| c["image"].as_str())),
    SELECTOR,
];

const REPLICA_SETS: &[Column] = &[
    column("Desired", |o| number(&o["spec"]["replicas"])),
    column("Current", |o| number(&o["status"]["replicas"])),
    column("Ready", |o| number(&o["status"]["readyReplicas"])),
    AGE,
    SELECTOR,
];

const DAEMON_SETS: &[Column] = &[
    column("Desired", |o| number(&o["status"]["desiredNumberScheduled"])),
    column("Current", |o| number(&o["status"]["currentNumberScheduled"])),
    column("Ready", |o| number(&o["status"]["numberReady"])),
    column("Up-to-date", |o| number(&o["status"]["updatedNumberScheduled"])),
    column("Available", |o| number(&o["status"]["numberAvailable"])),
    column("Node Selector", |o| {
        or_none(&label_selector_text(&o["spec"]["template"]["spec"]["nodeSelector"]))
    }),
    AGE,
    SELECTOR,
];

const BUDGETS: &[Column] = &[
    column("Min Available", |o| or_na(&o["spec"]["minAvailable"])),
    column("Max Unavailable", |o| or_na(&o["spec"]["maxUnavailable"])),
    column("Allowed Disruptions", |o| number(&o["status"]["disruptionsAllowed"])),
    AGE,
];

const SLICES: &[Column] = &[
    column("AddressType", |o| text(&o["addressType"])),
    column("Ports", |o| {
        let ports = o["ports"].as_array().into_iter().flatten().map(|port| port["port"].to_string());
        or_unset(&ports.collect::<Vec<_>>().join(","))
    }),
    column("Endpoints", |o| {
        let all = o["endpoints"].as_array().into_iter().flatten();
        let addresses = all.flat_map(|endpoint| endpoint["addresses"].as_array().into_iter().flatten());
        or_unset(&addresses.filter_map(Value::as_str).collect::<Vec<_>>().join(","))
    }),
    AGE,
];

fn endpoints(object: &Value) -> String {
    let mut all = Vec::new();
    for subset in object["subsets"].as_array().into_iter().flatten() {
        for address in subset["addresses"].as_array().into_iter().flatten() {
            for port in subset["ports"].as_array().into_iter().flatten() {
                all.push(format!("{}:{}", text(&address["ip"]), port["port"]));
            }
        }
    }
    or_none(&all.join(","))
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a str> {
    let conditions = object["status"]["conditions"].as_array()?;
    conditions.iter().find(|condition| condition["type"] == kind)?["status"].as_str()
}

fn node_address(node: &Value, kind: &str) -> String {
    let addresses = node["status"]["addresses"].as_array().into_iter().flatten();
    addresses
        .filter(|address| address["type"] == kind)
        .map(|a| text(&a["address"]))
        .next()
        .unwrap_or_default()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn number(value: &Value) -> String {
    value.as_i64().unwrap_or(0).to_string()
}

fn count(value: &Value) -> String {
    let count = value.as_object().map(serde_json::Map::len).or_else(|| value.as_array().map(Vec::len));
    count.unwrap_or(0).to_string()
}

fn join<'a>(list: &'a Value, item: impl Fn(&'a Value) -> Option<&'a str>) -> String {
    let items: Vec<&str> = list.as_array().into_iter().flatten().filter_map(item).collect();
    items.join(",")
}

fn or_else(value: &str, other: &str) -> String {
    if value.is_empty() { other.to_owned() } else { value.to_owned() }
}

fn or_none(value: &str) -> String {
    or_else(value, "<none>")
}

fn or_unset(value: &str) -> String {
    or_else(value, "<unset>")
}

fn or_unknown(value: &str) -> String {
    or_else(value, "<unknown>")
}

fn or_na(value: &Value) -> String {
    match value {
        Value::Null => "N/A".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
