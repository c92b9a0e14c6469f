//! coil-egress-controller against an API server.
//!
//! ```text
//!   test (Egresses, Deployment status) ──▶ API server ◀──▶ egress::run
//! ```

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
    core::v1::{Pod, Service, ServiceAccount},
    policy::v1::PodDisruptionBudget,
    rbac::v1::ClusterRoleBinding,
};
use kube::{
    Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
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
