//! An API server in this process, and what every test does with it.

use std::{
    fmt::Debug,
    net::TcpListener,
    time::{Duration, Instant},
};

use coil_api::crd::{AddressPool, BlockRequest, BlockRequestSpec, definitions};
use coil_apiserver::{ApiServer, Config};
use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{Namespace, Node},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Resource,
    api::{ApiResource, DynamicObject, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

/// Longest wait for anything.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// A running API server with Coil's definitions.
pub(crate) struct Cluster {
    pub(crate) client: Client,
    _server: ApiServer,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        let cluster = Self::empty().await;
        cluster.define(true).await;
        cluster
    }

    /// With definitions that judge nothing, as those of Coil v2.
    pub(crate) async fn without_rules() -> Self {
        let cluster = Self::empty().await;
        cluster.define(false).await;
        cluster
    }

    async fn empty() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let service_ranges = vec!["10.96.0.0/16".parse().unwrap(), "fd96::/112".parse().unwrap()];
        let server = ApiServer::start(listener, Config { service_ranges, ..Config::default() }).unwrap();
        let kubeconfig = Kubeconfig::from_yaml(&server.admin_kubeconfig(&server.url())).unwrap();
        let options = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
        let client = Client::try_from(config).unwrap();
        Self { client, _server: server }
    }

    /// Makes or replaces Coil's definitions, with or without their rules.
    pub(crate) async fn define(&self, rules: bool) {
        let api = self.all::<CustomResourceDefinition>();
        for definition in definitions() {
            let mut document = serde_json::to_value(&definition).unwrap();
            if !rules {
                unruled(&mut document);
            }
            let name = definition.metadata.name.clone().unwrap();
            let known = api.get_opt(&name).await.unwrap();
            document["metadata"]["resourceVersion"] =
                json!(known.as_ref().and_then(|d| d.metadata.resource_version.clone()));
            let definition = serde_json::from_value(document).unwrap();
            let written = match known {
                Some(_) => api.replace(&name, &PostParams::default(), &definition).await,
                None => api.create(&PostParams::default(), &definition).await,
            };
            written.unwrap();
        }
        let pools = ApiResource::erase::<AddressPool>(&());
        let pools = Api::<DynamicObject>::all_with(self.client.clone(), &pools);
        eventually("the definitions are served", async || pools.list(&Default::default()).await.is_ok())
            .await;
    }

    pub(crate) fn all<K: Resource<DynamicType = ()>>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }

    pub(crate) fn of<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(
        &self,
        namespace: &str,
    ) -> Api<K> {
        Api::namespaced(self.client.clone(), namespace)
    }

    pub(crate) async fn node(&self, name: &str) {
        self.create::<Node>(json!({"metadata": {"name": name}})).await;
    }

    pub(crate) async fn namespace(&self, name: &str) {
        self.create::<Namespace>(json!({"metadata": {"name": name}})).await;
    }

    pub(crate) async fn pool(&self, name: &str, bits: u32, subnets: Value) {
        let spec = json!({"blockSizeBits": bits, "subnets": subnets});
        self.create::<AddressPool>(json!({"metadata": {"name": name}, "spec": spec})).await;
    }

    pub(crate) async fn request(&self, node: &str, pool: &str) -> BlockRequest {
        let spec = BlockRequestSpec { node_name: node.into(), pool_name: pool.into() };
        let request = BlockRequest::new(&format!("req-{pool}-{node}"), spec);
        self.all().create(&PostParams::default(), &request).await.unwrap()
    }

    /// Creates a cluster-wide object from its JSON.
    pub(crate) async fn create<K>(&self, mut object: Value) -> K
    where
        K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
    {
        object["apiVersion"] = json!(K::api_version(&()));
        object["kind"] = json!(K::kind(&()));
        let object: K = serde_json::from_value(object).unwrap();
        self.all().create(&PostParams::default(), &object).await.unwrap()
    }
}

/// Takes rules and bounds out of a definition.
fn unruled(document: &mut Value) {
    match document {
        Value::Object(map) => {
            for key in ["x-kubernetes-validations", "maxItems", "maxLength"] {
                map.remove(key);
            }
            map.values_mut().for_each(unruled);
        }
        Value::Array(items) => items.iter_mut().for_each(unruled),
        _ => {}
    }
}

/// Waits until a condition holds.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < LIMIT, "not within {} s: {what}", LIMIT.as_secs());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
