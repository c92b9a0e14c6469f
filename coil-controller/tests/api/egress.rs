//! coil-egress-controller against an API server.
//!
//! ```text
//!   test (Egresses, Deployment status) ──▶ API server ◀──▶ egress::run
//! ```

use std::collections::BTreeSet;

use crate::support::{Cluster, eventually};
use coil_api::crd::Egress;
use coil_controller::egress::{
    self, Backend, Settings,
    ensure::{Ensured, ensure},
    image::Source,
    objects,
};
use k8s_openapi::api::{
    apps::v1::Deployment,
    autoscaling::v1::Scale,
    core::v1::{Event, Pod, Service, ServiceAccount},
    policy::v1::PodDisruptionBudget,
    rbac::v1::{ClusterRoleBinding, Subject},
};
use kube::{
    Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinHandle};

struct Controller(JoinHandle<anyhow::Result<()>>);

impl Drop for Controller {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn settings(port: u16) -> Settings {
    Settings { image: "coil:test".into(), port, backend: Backend::Iptables }
}

fn start(cluster: &Cluster, port: u16) -> Controller {
    let client = cluster.client.clone();
    Controller(tokio::spawn(egress::run(client, settings(port), watch::Sender::new(None))))
}

async fn create(cluster: &Cluster, namespace: &str, name: &str, spec: Value) -> Egress {
    let egress = Egress::new(name, serde_json::from_value(spec).unwrap());
    cluster.of::<Egress>(namespace).create(&PostParams::default(), &egress).await.unwrap()
}

async fn condition(cluster: &Cluster, name: &str, type_: &str) -> Option<(String, String)> {
    let status = cluster.of::<Egress>("internet").get_status(name).await.unwrap().status?;
    let condition = status.conditions?.into_iter().find(|c| c.type_ == type_)?;
    Some((condition.status, condition.message))
}

/// Reasons of the Events about an Egress, each once, in order.
async fn told(cluster: &Cluster, name: &str) -> Vec<String> {
    let events = cluster.of::<Event>("internet").list(&ListParams::default()).await.unwrap().items;
    let about = |e: &Event| {
        let object = &e.involved_object;
        (object.kind.as_deref(), object.name.as_deref()) == (Some("Egress"), Some(name))
    };
    let reasons: BTreeSet<String> = events.into_iter().filter(about).filter_map(|e| e.reason).collect();
    reasons.into_iter().collect()
}

async fn namespaces_bound(cluster: &Cluster) -> Vec<String> {
    let binding = cluster.all::<ClusterRoleBinding>().get_opt("coil-egress").await.unwrap();
    let subjects = binding.and_then(|b| b.subjects).unwrap_or_default();
    subjects.into_iter().filter_map(|s| s.namespace).collect()
}

fn version<K: Resource>(object: &K) -> Option<String> {
    object.meta().resource_version.clone()
}

#[tokio::test]
async fn an_egress_from_start_to_end() {
    let cluster = Cluster::start().await;
    cluster.namespace("internet").await;
    let _controller = start(&cluster, 5599);
    let spec = json!({
        "destinations": ["0.0.0.0/0", "::/0"], "replicas": 2, "podDisruptionBudget": {"maxUnavailable": 1},
    });
    let egress = create(&cluster, "internet", "nat", spec).await;
    let deployments = cluster.of::<Deployment>("internet");
    let services = cluster.of::<Service>("internet");
    let budgets = cluster.of::<PodDisruptionBudget>("internet");
    eventually("all objects are there", async || {
        deployments.get_opt("nat").await.unwrap().is_some()
            && services.get_opt("nat").await.unwrap().is_some()
            && budgets.get_opt("nat").await.unwrap().is_some()
            && cluster.of::<ServiceAccount>("internet").get_opt("coil-egress").await.unwrap().is_some()
            && namespaces_bound(&cluster).await == ["internet"]
    })
    .await;
    let deployment = deployments.get("nat").await.unwrap();
    assert_eq!(told(&cluster, "nat").await, [""; 0], "an Egress that begins is no news");
    assert_eq!(Some(&deployment.owner_references()[0].uid), egress.uid().as_ref());
    let container = deployment.spec.unwrap().template.spec.unwrap().containers.remove(0);
    assert_eq!(container.image.as_deref(), Some("coil:test"));
    assert!(container.args.unwrap().contains(&"--fou-port=5599".to_owned()), "the port is passed on");
    let service = services.get("nat").await.unwrap().spec.unwrap();
    assert_eq!(service.cluster_ips.unwrap().len(), 2, "dual stack");
    assert_eq!(service.ports.unwrap()[0].port, 5599);

    let available =
        Patch::Merge(json!({"status": {"replicas": 2, "readyReplicas": 2, "availableReplicas": 2}}));
    deployments.patch_status("nat", &PatchParams::default(), &available).await.unwrap();
    eventually("the status follows the Deployment", async || {
        let status = cluster.of::<Egress>("internet").get("nat").await.unwrap().status.unwrap();
        status.replicas == Some(2)
            && condition(&cluster, "nat", "Available").await.is_some_and(|(s, _)| s == "True")
    })
    .await;

    eventually("an Event tells that there are gateways", async || {
        told(&cluster, "nat").await == ["GatewaysAvailable"]
    })
    .await;

    let change = Patch::Merge(
        json!({"spec": {"podDisruptionBudget": null, "replicas": 3, "sessionAffinity": "None"}}),
    );
    cluster.of::<Egress>("internet").patch("nat", &PatchParams::default(), &change).await.unwrap();
    eventually("a changed Egress changes its objects", async || {
        let service = services.get("nat").await.unwrap().spec.unwrap();
        budgets.get_opt("nat").await.unwrap().is_none()
            && deployments.get("nat").await.unwrap().spec.unwrap().replicas == Some(3)
            && service.session_affinity.as_deref() == Some("None")
            && service.cluster_ips.unwrap().len() == 2
    })
    .await;

    cluster.of::<Egress>("internet").delete("nat", &DeleteParams::default()).await.unwrap();
    eventually("everything goes with the Egress", async || {
        deployments.get_opt("nat").await.unwrap().is_none()
            && services.get_opt("nat").await.unwrap().is_none()
            && namespaces_bound(&cluster).await.is_empty()
    })
    .await;
}

#[tokio::test]
async fn reconciling_twice_changes_nothing() {
    let cluster = Cluster::start().await;
    cluster.namespace("internet").await;
    let spec = json!({
        "destinations": ["0.0.0.0/0"],
        "podDisruptionBudget": {"minAvailable": "50%"},
        "template": {"metadata": {"annotations": {"a": "b"}}, "spec": {"hostNetwork": false, "containers": [
            {"name": "egress", "resources": {"limits": {"memory": "1Gi"}}},
        ]}},
    });
    create(&cluster, "internet", "nat", spec).await;
    let versions = async || {
        let get = async || -> Option<[Option<String>; 5]> {
            Some([
                version(&cluster.of::<Deployment>("internet").get_opt("nat").await.unwrap()?),
                version(&cluster.of::<Service>("internet").get_opt("nat").await.unwrap()?),
                version(&cluster.of::<PodDisruptionBudget>("internet").get_opt("nat").await.unwrap()?),
                version(&cluster.all::<ClusterRoleBinding>().get_opt("coil-egress").await.unwrap()?),
                version(&cluster.of::<Egress>("internet").get_opt("nat").await.unwrap()?),
            ])
        };
        get().await
    };
    let first = start(&cluster, 5555);
    eventually("the first round is done", async || {
        condition(&cluster, "nat", "Degraded").await.is_some_and(|(s, _)| s == "False")
            && versions().await.is_some()
    })
    .await;
    let before = versions().await;
    drop(first);
    let _second = start(&cluster, 5555);
    // A neighbour that is done tells that the second controller has been through the first.
    create(&cluster, "internet", "other", json!({"destinations": ["::/0"]})).await;
    eventually("the neighbour is done", async || {
        condition(&cluster, "other", "Degraded").await.is_some_and(|(s, _)| s == "False")
    })
    .await;
    assert_eq!(versions().await, before);

    let egress = cluster.of::<Egress>("internet").get("nat").await.unwrap();
    let deployment = objects::deployment(&egress, &settings(5555));
    let result = ensure(&cluster.of::<Deployment>("internet"), deployment).await.unwrap();
    assert!(matches!(result, Ensured::Unchanged(_)), "{result:?}");
    let service = objects::service(&egress, &settings(5555));
    let result = ensure(&cluster.of::<Service>("internet"), service).await.unwrap();
    assert!(matches!(result, Ensured::Unchanged(_)), "{result:?}");
}

#[tokio::test]
async fn drift_is_mended() {
    let cluster = Cluster::start().await;
    cluster.namespace("internet").await;
    let _controller = start(&cluster, 5555);
    create(&cluster, "internet", "nat", json!({"destinations": ["0.0.0.0/0"]})).await;
    let services = cluster.of::<Service>("internet");
    eventually("the Service is there", async || services.get_opt("nat").await.unwrap().is_some()).await;
    let drift = Patch::Merge(json!({"spec": {"ports": [{"port": 1, "protocol": "UDP"}]}}));
    services.patch("nat", &PatchParams::default(), &drift).await.unwrap();
    eventually("the port is back", async || {
        services.get("nat").await.unwrap().spec.unwrap().ports.unwrap()[0].port == 5555
    })
    .await;
    services.delete("nat", &DeleteParams::default()).await.unwrap();
    eventually("the Service is back", async || services.get_opt("nat").await.unwrap().is_some()).await;
    let bindings = cluster.all::<ClusterRoleBinding>();
    eventually("the binding is there", async || bindings.get_opt("coil-egress").await.unwrap().is_some())
        .await;
    bindings.delete("coil-egress", &DeleteParams::default()).await.unwrap();
    eventually("the binding is back", async || namespaces_bound(&cluster).await == ["internet"]).await;
    let stranger: Subject = serde_json::from_value(
        json!({"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "me"}),
    )
    .unwrap();
    let stale: Subject =
        serde_json::from_value(json!({"kind": "ServiceAccount", "namespace": "gone", "name": "coil-egress"}))
            .unwrap();
    let subjects = Patch::Merge(json!({"subjects": [stale, stranger]}));
    bindings.patch("coil-egress", &PatchParams::default(), &subjects).await.unwrap();
    eventually("stale subjects go, and those of others stay", async || {
        let now = bindings.get("coil-egress").await.unwrap().subjects.unwrap_or_default();
        now.len() == 2 && now.contains(&stranger) && namespaces_bound(&cluster).await == ["internet"]
    })
    .await;
    let accounts = cluster.of::<ServiceAccount>("internet");
    accounts.delete("coil-egress", &DeleteParams::default()).await.unwrap();
    eventually("the ServiceAccount is back", async || {
        accounts
            .get_opt("coil-egress")
            .await
            .unwrap()
            .is_some_and(|a| a.metadata.deletion_timestamp.is_none())
    })
    .await;
}

#[tokio::test]
async fn the_scale_subresource_scales_the_gateways() {
    let cluster = Cluster::start().await;
    cluster.namespace("internet").await;
    let _controller = start(&cluster, 5555);
    create(&cluster, "internet", "nat", json!({"destinations": ["0.0.0.0/0"]})).await;
    let egresses = cluster.of::<Egress>("internet");
    let deployments = cluster.of::<Deployment>("internet");
    eventually("the Deployment is there", async || deployments.get_opt("nat").await.unwrap().is_some()).await;
    let available =
        Patch::Merge(json!({"status": {"replicas": 1, "readyReplicas": 1, "availableReplicas": 1}}));
    deployments.patch_status("nat", &PatchParams::default(), &available).await.unwrap();
    let scale = async || egresses.get_scale("nat").await.unwrap();
    eventually("the scale shows gateways and selector", async || {
        let status = scale().await.status.unwrap_or_default();
        status.replicas == 1 && status.selector.is_some_and(|s| s.contains("app.kubernetes.io/instance=nat"))
    })
    .await;
    let mut wanted: Scale = scale().await;
    wanted.spec = Some(k8s_openapi::api::autoscaling::v1::ScaleSpec { replicas: Some(4) });
    egresses.replace_scale("nat", &PostParams::default(), &wanted).await.unwrap();
    eventually("the Deployment follows", async || {
        deployments.get("nat").await.unwrap().spec.unwrap().replicas == Some(4)
    })
    .await;
}

#[tokio::test]
async fn a_changed_template_reaches_the_pods_and_what_is_taken_out_goes() {
    let cluster = Cluster::start().await;
    cluster.namespace("internet").await;
    let _controller = start(&cluster, 5555);
    let template = json!({
        "metadata": {"labels": {"team": "net"}, "annotations": {"a": "b", "egress.coil.cybozu.com/inner": "nat"}},
        "spec": {"nodeSelector": {"edge": "true"}, "terminationGracePeriodSeconds": 60, "containers": [
            {"name": "egress", "resources": {"limits": {"memory": "1Gi"}}},
            {"name": "side", "image": "side:1"},
        ]},
    });
    let spec = json!({"destinations": ["0.0.0.0/0"], "template": template, "strategy": {"type": "Recreate"}});
    create(&cluster, "internet", "nat", spec).await;
    let deployments = cluster.of::<Deployment>("internet");
    eventually("the Deployment is there", async || deployments.get_opt("nat").await.unwrap().is_some()).await;
    let first = deployments.get("nat").await.unwrap().spec.unwrap();
    assert_eq!(first.strategy.unwrap().type_.as_deref(), Some("Recreate"));
    let pod = first.template.spec.unwrap();
    assert_eq!((pod.containers.len(), pod.termination_grace_period_seconds), (2, Some(60)));
    assert_eq!(first.template.metadata.unwrap().labels.unwrap()["team"], "net");

    // Merge patches replace lists as a whole.
    let change = Patch::Merge(json!({"spec": {"strategy": null, "template": {
        "metadata": {"annotations": {"a": "c", "egress.coil.cybozu.com/inner": null}},
        "spec": {"nodeSelector": null, "containers": [{"name": "egress"}]},
    }}}));
    cluster.of::<Egress>("internet").patch("nat", &PatchParams::default(), &change).await.unwrap();
    eventually("the Deployment follows", async || {
        let spec = deployments.get("nat").await.unwrap().spec.unwrap();
        let (meta, pod) = (spec.template.metadata.unwrap(), spec.template.spec.unwrap());
        let limits = pod.containers[0].resources.clone().unwrap_or_default().limits;
        pod.containers.len() == 1
            && limits.is_none()
            && pod.node_selector.is_none()
            && meta.annotations == Some([("a".to_owned(), "c".to_owned())].into())
            && spec.strategy.unwrap().type_.as_deref() == Some("RollingUpdate")
    })
    .await;
}

#[tokio::test]
async fn gateways_that_do_not_come_up_are_told_of() {
    let cluster = Cluster::start().await;
    cluster.namespace("internet").await;
    let _controller = start(&cluster, 5555);
    create(&cluster, "internet", "nat", json!({"destinations": ["0.0.0.0/0"]})).await;
    let deployments = cluster.of::<Deployment>("internet");
    eventually("the Deployment is there", async || deployments.get_opt("nat").await.unwrap().is_some()).await;
    let refused = json!([{"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate",
        "message": "exceeded quota: pods", "lastTransitionTime": "2024-01-01T00:00:00Z",
        "lastUpdateTime": "2024-01-01T00:00:00Z"}]);
    let patch = Patch::Merge(json!({"status": {"conditions": refused}}));
    deployments.patch_status("nat", &PatchParams::default(), &patch).await.unwrap();
    eventually("the Egress tells", async || {
        condition(&cluster, "nat", "Degraded")
            .await
            .is_some_and(|(s, m)| s == "True" && m.contains("exceeded quota"))
            && told(&cluster, "nat").await == ["GatewaysRefused"]
    })
    .await;
}

#[tokio::test]
async fn one_in_trouble_stops_no_other_and_takes_nothing_from_others() {
    let cluster = Cluster::start().await;
    cluster.namespace("internet").await;
    cluster.namespace("other").await;
    let services = cluster.of::<Service>("internet");
    let theirs: Service = serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "taken"}, "spec": {"ports": [{"port": 80}]},
    }))
    .unwrap();
    let theirs = services.create(&PostParams::default(), &theirs).await.unwrap();
    let _controller = start(&cluster, 5555);
    create(&cluster, "internet", "taken", json!({"destinations": ["0.0.0.0/0"]})).await;
    create(&cluster, "internet", "fine", json!({"destinations": ["0.0.0.0/0"]})).await;
    create(&cluster, "other", "fine", json!({"destinations": ["0.0.0.0/0"]})).await;
    eventually("the neighbours are served", async || {
        condition(&cluster, "fine", "Degraded").await.is_some_and(|(s, _)| s == "False")
            && cluster.of::<Deployment>("other").get_opt("fine").await.unwrap().is_some()
            && namespaces_bound(&cluster).await == ["internet", "other"]
    })
    .await;
    eventually("the trouble is told", async || {
        condition(&cluster, "taken", "Degraded")
            .await
            .is_some_and(|(s, m)| s == "True" && m.contains("Service taken exists"))
    })
    .await;
    assert_eq!(version(&services.get("taken").await.unwrap()), version(&theirs));
    eventually("so do Events", async || told(&cluster, "taken").await == ["NameTaken"]).await;
    services.delete("taken", &DeleteParams::default()).await.unwrap();
    eventually("mended, it is served", async || {
        condition(&cluster, "taken", "Degraded").await.is_some_and(|(s, _)| s == "False")
    })
    .await;
}

#[tokio::test]
async fn gateways_have_the_controllers_own_image() {
    let cluster = Cluster::start().await;
    cluster.namespace("system").await;
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "controller-1"},
        "spec": {"containers": [{"name": "controller", "image": "registry.example/coil:2"}]},
    }))
    .unwrap();
    cluster.of::<Pod>("system").create(&PostParams::default(), &pod).await.unwrap();
    let source = |name: &str| Source::Pod { namespace: "system".into(), name: name.into() };
    let image = source("controller-1").read(&cluster.client).await.unwrap();
    assert_eq!(image, "registry.example/coil:2");
    let error = source("absent").read(&cluster.client).await.unwrap_err();
    assert!(error.to_string().contains("system/absent"), "{error}");
}
