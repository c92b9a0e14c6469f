use serde_json::{Value, json};

use super::*;
use crate::egress::Backend;

fn settings() -> Settings {
    Settings { image: "coil:1".into(), port: 5555, backend: Backend::Iptables }
}

fn egress(spec: Value) -> Egress {
    let mut egress = Egress::new("nat", serde_json::from_value(spec).unwrap());
    egress.metadata.namespace = Some("internet".into());
    egress.metadata.uid = Some("uid-1".into());
    egress
}

fn pod_json(egress: &Egress, settings: &Settings) -> Value {
    serde_json::to_value(deployment(egress, settings).spec.unwrap().template).unwrap()
}

#[test]
fn a_plain_egress() {
    let egress = egress(json!({"destinations": ["0.0.0.0/0"]}));
    let all = serde_json::to_value(deployment(&egress, &settings())).unwrap();
    assert_eq!(all["metadata"]["name"], "nat");
    assert_eq!(all["metadata"]["namespace"], "internet");
    let owner = &all["metadata"]["ownerReferences"][0];
    assert_eq!(
        (&owner["kind"], &owner["uid"], &owner["controller"]),
        (&json!("Egress"), &json!("uid-1"), &json!(true))
    );
    assert_eq!(all["spec"]["replicas"], 1);
    let labels = json!({
        "app.kubernetes.io/name": "coil",
        "app.kubernetes.io/instance": "nat",
        "app.kubernetes.io/component": "egress",
    });
    assert_eq!(all["spec"]["selector"]["matchLabels"], labels);
    let pod = &all["spec"]["template"];
    assert_eq!(pod["metadata"]["labels"], labels);
    assert_eq!(pod["spec"]["serviceAccountName"], "coil-egress");
    assert_eq!(
        pod["spec"]["volumes"],
        json!([{"name": "run", "emptyDir": {}}, {"name": "modules", "hostPath": {"path": "/lib/modules"}}])
    );
    let container = &pod["spec"]["containers"][0];
    assert_eq!(
        *container,
        json!({
            "name": "egress",
            "image": "coil:1",
            "command": ["coil-egress"],
            "args": ["--fou-port=5555", "--backend=iptables"],
            "env": [
                {"name": "COIL_POD_NAMESPACE", "value": "internet"},
                {"name": "COIL_EGRESS_NAME", "value": "nat"},
                {"name": "COIL_POD_ADDRESSES", "valueFrom": {"fieldRef": {"fieldPath": "status.podIPs"}}},
            ],
            "volumeMounts": [
                {"name": "run", "mountPath": "/run"},
                {"name": "modules", "mountPath": "/lib/modules", "readOnly": true},
            ],
            "securityContext": {
                "privileged": true,
                "readOnlyRootFilesystem": true,
                "capabilities": {"add": ["NET_ADMIN"]},
            },
            "resources": {"requests": {"cpu": "100m", "memory": "200Mi"}},
            "ports": [
                {"name": "metrics", "containerPort": 8080, "protocol": "TCP"},
                {"name": "health", "containerPort": 8081, "protocol": "TCP"},
            ],
            "livenessProbe": {"httpGet": {"path": "/healthz", "port": "health", "scheme": "HTTP"}},
            "readinessProbe": {"httpGet": {"path": "/readyz", "port": "health", "scheme": "HTTP"}},
        })
    );
}

#[test]
fn the_template_is_merged() {
    let egress = egress(json!({
        "destinations": ["0.0.0.0/0"],
        "replicas": 3,
        "strategy": {"type": "Recreate"},
        "fouSourcePortAuto": true,
        "template": {
            "metadata": {
                "annotations": {"a": "b"},
                "labels": {"x": "y", "app.kubernetes.io/instance": "stolen"},
            },
            "spec": {
                "nodeSelector": {"edge": "true"},
                "terminationGracePeriodSeconds": 300,
                "volumes": [{"name": "run", "emptyDir": {"medium": "Memory"}}],
                "containers": [
                    {"name": "side", "image": "side:2"},
                    {"name": "egress", "env": [{"name": "COIL_EGRESS_NAME", "value": "x"}, {"name": "K", "value": "v"}],
                     "resources": {"requests": {"cpu": "2"}, "limits": {"memory": "1Gi"}}},
                ],
            },
        },
    }));
    let settings = Settings { port: 6000, backend: Backend::Nftables, ..settings() };
    let pod = pod_json(&egress, &settings);
    assert_eq!(pod["metadata"]["annotations"], json!({"a": "b"}));
    assert_eq!(pod["metadata"]["labels"]["x"], "y");
    assert_eq!(pod["metadata"]["labels"]["app.kubernetes.io/instance"], "nat", "the selector wins");
    assert_eq!(pod["spec"]["nodeSelector"], json!({"edge": "true"}));
    assert_eq!(pod["spec"]["volumes"][0], json!({"name": "run", "emptyDir": {"medium": "Memory"}}));
    assert_eq!(pod["spec"]["containers"][0], json!({"name": "side", "image": "side:2"}));
    let container = &pod["spec"]["containers"][1];
    assert_eq!(container["image"], "coil:1");
    assert_eq!(
        container["args"],
        json!(["--fou-port=6000", "--enable-sport-auto=true", "--backend=nftables", "--drain-timeout=295s"])
    );
    assert_eq!(container["env"][0], json!({"name": "K", "value": "v"}));
    assert_eq!(container["env"].as_array().unwrap().len(), 4);
    assert_eq!(container["resources"]["requests"], json!({"cpu": "2", "memory": "200Mi"}));
    assert_eq!(container["resources"]["limits"], json!({"memory": "1Gi"}));
    let deployment = deployment(&egress, &settings).spec.unwrap();
    assert_eq!(deployment.replicas, Some(3));
    assert_eq!(deployment.strategy.unwrap().type_.as_deref(), Some("Recreate"));
    assert_eq!(service(&egress, &settings).spec.unwrap().ports.unwrap()[0].port, 6000);
}

#[test]
fn the_service() {
    let plain = egress(json!({"destinations": ["0.0.0.0/0"]}));
    let service_json = |e: &Egress| serde_json::to_value(service(e, &settings())).unwrap()["spec"].clone();
    let spec = service_json(&plain);
    assert_eq!(spec["type"], "ClusterIP");
    assert_eq!(spec["ipFamilyPolicy"], "PreferDualStack");
    assert_eq!(spec["sessionAffinity"], "ClientIP");
    assert_eq!(spec["ports"], json!([{"port": 5555, "targetPort": 5555, "protocol": "UDP"}]));
    let config = json!({"clientIP": {"timeoutSeconds": 60}});
    let pinned = egress(json!({"destinations": ["0.0.0.0/0"], "sessionAffinityConfig": config}));
    assert_eq!(service_json(&pinned)["sessionAffinityConfig"], config);
    let spread = egress(json!({
        "destinations": ["0.0.0.0/0"], "sessionAffinity": "None", "sessionAffinityConfig": config,
    }));
    assert_eq!(service_json(&spread)["sessionAffinity"], "None");
    assert_eq!(service_json(&spread)["sessionAffinityConfig"], Value::Null);
}

#[test]
fn the_disruption_budget() {
    assert_eq!(disruption_budget(&egress(json!({"destinations": ["::/0"]}))), None);
    let with = egress(json!({"destinations": ["::/0"], "podDisruptionBudget": {"maxUnavailable": "50%"}}));
    let spec = serde_json::to_value(disruption_budget(&with).unwrap()).unwrap()["spec"].clone();
    assert_eq!(spec["maxUnavailable"], "50%");
    assert_eq!(spec["minAvailable"], Value::Null);
    assert_eq!(spec["selector"]["matchLabels"]["app.kubernetes.io/instance"], "nat");
}
