//! Who may give rights: what coil-egress-controller needs to bind gateways' accounts, and that it is no more.

use std::path::Path;
use std::process::Command;

use coil_apiserver::User;
use coil_apitest::{Cluster, Options, eventually};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde::Deserialize as _;
use serde_json::{Value, json};

const EGRESS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/overlays/egress-only");
const CONTROLLER: &str = "coil-egress-controller";

/// The shipped objects of a kind about the controller and its gateways.
fn shipped(kind: &str) -> Vec<Value> {
    let done = Command::new("kubectl").arg("kustomize").arg(Path::new(EGRESS)).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let text = String::from_utf8(done.stdout).unwrap();
    let documents = serde_yaml_ng::Deserializer::from_str(&text).map(|of| Value::deserialize(of).unwrap());
    documents
        .filter(|object| {
            object["kind"] == kind
                && [CONTROLLER, "coil-egress"].iter().any(|n| object["metadata"]["name"] == *n)
        })
        .collect()
}

async fn client(cluster: &Cluster, user: &User) -> Client {
    let kubeconfig = Kubeconfig::from_yaml(&cluster.server.kubeconfig(&user.name).unwrap()).unwrap();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    config.proxy_url = None;
    Client::try_from(config).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_controller_binds_gateways_to_their_role_and_nobody_to_more_than_it_has() {
    let user = User::service_account("kube-system", CONTROLLER);
    let options = Options { users: vec![user.clone()], ..Options::default() };
    let cluster = Cluster::with(options).await.unwrap();
    let (roles, bindings) = (shipped("ClusterRole"), shipped("ClusterRoleBinding"));
    assert_eq!((roles.len(), bindings.len()), (2, 1));
    for role in roles {
        cluster.create::<ClusterRole>(role).await;
    }
    for binding in bindings {
        cluster.create::<ClusterRoleBinding>(binding).await;
    }
    for (name, resource) in [("within", "services"), ("beyond", "secrets")] {
        let rule = json!({"apiGroups": [""], "resources": [resource], "verbs": ["get"]});
        cluster.create::<ClusterRole>(json!({"metadata": {"name": name}, "rules": [rule]})).await;
    }

    let api: Api<ClusterRoleBinding> = Api::all(client(&cluster, &user).await);
    let bind = async |name: &str| {
        let binding = serde_json::from_value(json!({
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
            "subjects": [{"kind": "ServiceAccount", "namespace": "default", "name": "coil-egress"}],
        }))
        .unwrap();
        api.create(&PostParams::default(), &binding).await.map(drop).map_err(|error| error.to_string())
    };
    // A real server may take a moment until it knows new roles.
    for name in ["coil-egress", "within"] {
        eventually(&format!("{name} is bound"), async || bind(name).await.is_ok()).await;
    }
    for (name, why) in [("beyond", "not currently held"), ("none", "not found")] {
        let refused = bind(name).await.unwrap_err();
        assert!(refused.contains(why), "{name}: {refused}");
    }
}
