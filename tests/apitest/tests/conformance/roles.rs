//! Who may give rights: what coil-egress-controller needs to bind gateways' accounts, and that it is no more.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use coil_apiserver::User;
use coil_apitest::{Cluster, Options, eventually};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Subject};
use kube::api::{DeleteParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde::Deserialize as _;
use serde_json::{Value, json};

const EGRESS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/overlays/egress-only");
const FROM_V2: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/from-v2");
const CONTROLLER: &str = "coil-egress-controller";
const GATEWAYS: &str = "coil-egress";

/// The shipped objects of a kind about the controller and its gateways.
fn shipped(folder: &str, kind: &str) -> Vec<Value> {
    let done = Command::new("kubectl").arg("kustomize").arg(Path::new(folder)).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let text = String::from_utf8(done.stdout).unwrap();
    let documents = serde_yaml_ng::Deserializer::from_str(&text).map(|of| Value::deserialize(of).unwrap());
    documents
        .filter(|object| {
            let name = object["metadata"]["name"].as_str().unwrap();
            object["kind"] == kind && [CONTROLLER, GATEWAYS].contains(&name.trim_end_matches("-from-v2"))
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
    let (roles, bindings) = (shipped(EGRESS, "ClusterRole"), shipped(EGRESS, "ClusterRoleBinding"));
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
    bind_gateways(&api, false, 0).await.unwrap();
    for (name, why) in [("beyond", "not currently held"), ("none", "not found")] {
        let refused = bind(name).await.unwrap_err();
        assert!(refused.contains(why), "{name}: {refused}");
    }
}

/// The binding of gateways' accounts, as the controller writes it: anew, or with one account more. The error says why not.
async fn bind_gateways(api: &Api<ClusterRoleBinding>, anew: bool, namespace: usize) -> Result<(), String> {
    let account = Subject {
        kind: "ServiceAccount".to_owned(),
        namespace: Some(format!("n{namespace}")),
        name: GATEWAYS.to_owned(),
        ..Subject::default()
    };
    let done = if anew {
        let mut binding = ClusterRoleBinding::default();
        binding.metadata.name = Some(GATEWAYS.to_owned());
        "rbac.authorization.k8s.io".clone_into(&mut binding.role_ref.api_group);
        "ClusterRole".clone_into(&mut binding.role_ref.kind);
        GATEWAYS.clone_into(&mut binding.role_ref.name);
        binding.subjects = Some(vec![account]);
        api.create(&PostParams::default(), &binding).await
    } else {
        let mut binding = api.get(GATEWAYS).await.map_err(|error| error.to_string())?;
        binding.subjects.get_or_insert_default().push(account);
        api.replace(GATEWAYS, &PostParams::default(), &binding).await
    };
    done.map(drop).map_err(|error| error.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn while_gateways_have_the_rights_of_coil_v2_the_controller_binds_them_with_its_own_of_coil_v2() {
    let user = User::service_account("kube-system", CONTROLLER);
    let options = Options { users: vec![user.clone()], ..Options::default() };
    let cluster = Cluster::with(options).await.unwrap();
    for role in shipped(EGRESS, "ClusterRole") {
        cluster.create::<ClusterRole>(role).await;
    }
    for binding in shipped(EGRESS, "ClusterRoleBinding") {
        cluster.create::<ClusterRoleBinding>(binding).await;
    }
    let api: Api<ClusterRoleBinding> = Api::all(client(&cluster, &user).await);
    // Each try is another account: a server need not judge a write that changes nothing.
    let tries = AtomicUsize::new(0);
    let bind = async |anew| bind_gateways(&api, anew, tries.fetch_add(1, Ordering::Relaxed)).await;
    eventually("the empty role is bound", async || bind(true).await.is_ok()).await;
    bind(false).await.unwrap();

    let is_of_gateways = |role: &Value| role["metadata"]["name"] == "coil-egress-from-v2";
    let (parts, own): (Vec<Value>, Vec<Value>) =
        shipped(FROM_V2, "ClusterRole").into_iter().partition(is_of_gateways);
    let [part] = parts.as_slice() else { panic!("{parts:?}") };
    cluster.create::<ClusterRole>(part.clone()).await;
    // What kube-controller-manager does, which is not here.
    let roles = cluster.all::<ClusterRole>();
    let mut whole = roles.get(GATEWAYS).await.unwrap();
    whole.rules = serde_json::from_value(part["rules"].clone()).unwrap();
    roles.replace(GATEWAYS, &PostParams::default(), &whole).await.unwrap();
    let refused = |done: Result<(), String>| done.is_err_and(|why| why.contains("not currently held"));
    eventually("an update without these rights is refused", async || refused(bind(false).await)).await;
    let all = cluster.all::<ClusterRoleBinding>();
    all.delete(GATEWAYS, &DeleteParams::default()).await.unwrap();
    assert!(refused(bind(true).await), "nor is it made anew");

    let [own] = own.as_slice() else { panic!("{own:?}") };
    cluster.create::<ClusterRole>(own.clone()).await;
    for binding in shipped(FROM_V2, "ClusterRoleBinding") {
        cluster.create::<ClusterRoleBinding>(binding).await;
    }
    eventually("it is made anew by who has the same", async || bind(true).await.is_ok()).await;
    bind(false).await.unwrap();
}
