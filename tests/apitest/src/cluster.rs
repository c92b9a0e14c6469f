//! An API server with Coil's definitions, and what every test does with it.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use coil_api::crd::{AddressPool, BlockRequest, BlockRequestSpec, definitions};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Namespace, Node};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ListParams, PostParams};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{Error, Options, Server};

/// Longest wait for anything.
pub const LIMIT: Duration = Duration::from_secs(30);

/// A running API server with Coil's definitions.
pub struct Cluster {
    /// A client of the administrator.
    pub client: Client,
    /// The server; it ends with this.
    pub server: Server,
}

impl Cluster {
    /// Starts one, dual stack.
    ///
    /// # Panics
    ///
    /// When it does not become ready.
    pub async fn start() -> Self {
        match Self::with(dual_stack()).await {
            Ok(cluster) => cluster,
            Err(error) => panic!("{error}"),
        }
    }

    /// The same, with definitions that judge nothing, as those of Coil v2.
    ///
    /// # Panics
    ///
    /// When it does not become ready.
    pub async fn without_rules() -> Self {
        let start = async {
            let cluster = Self::empty(dual_stack()).await?;
            cluster.define(false).await?;
            Ok::<_, Error>(cluster)
        };
        match start.await {
            Ok(cluster) => cluster,
            Err(error) => panic!("{error}"),
        }
    }

    /// Starts one with options of its own.
    ///
    /// # Errors
    ///
    /// When the server does not become ready, or refuses the definitions.
    pub async fn with(options: Options) -> Result<Self, Error> {
        let cluster = Self::empty(options).await?;
        cluster.define(true).await?;
        Ok(cluster)
    }

    async fn empty(options: Options) -> Result<Self, Error> {
        let server = Server::start(options).await?;
        let client = server.client().await?;
        Ok(Self { client, server })
    }

    /// Makes or replaces Coil's definitions, with or without their rules. A server may need a moment until it
    /// judges by new ones.
    ///
    /// # Errors
    ///
    /// When the server refuses them.
    pub async fn define(&self, rules: bool) -> Result<(), Error> {
        let api = self.all::<CustomResourceDefinition>();
        for mut definition in definitions() {
            if !rules {
                definition = unruled(&definition)?;
            }
            let name = definition.name_any();
            let known = api.get_opt(&name).await.map_err(|error| Error::Client(error.to_string()))?;
            let written = match known {
                Some(known) => {
                    definition.metadata.resource_version = known.metadata.resource_version;
                    api.replace(&name, &PostParams::default(), &definition).await
                }
                None => api.create(&PostParams::default(), &definition).await,
            };
            written.map_err(|error| Error::Client(error.to_string()))?;
        }
        for definition in definitions() {
            self.until_served(&definition).await;
        }
        Ok(())
    }

    async fn until_served(&self, definition: &CustomResourceDefinition) {
        let names = &definition.spec.names;
        let path =
            format!("/apis/{}/{}/{}", definition.spec.group, definition.spec.versions[0].name, names.plural);
        eventually(&format!("{path} is served"), async || {
            let request = kube::core::Request::new(&path).list(&ListParams::default());
            match request {
                Ok(request) => self.client.request::<Value>(request).await.is_ok(),
                Err(_) => false,
            }
        })
        .await;
    }

    /// Objects of a kind, everywhere.
    #[must_use]
    pub fn all<K: Resource<DynamicType = ()>>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }

    /// Objects of a kind in a namespace.
    #[must_use]
    pub fn of<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(
        &self,
        namespace: &str,
    ) -> Api<K> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Creates a node.
    pub async fn node(&self, name: &str) {
        self.create::<Node>(json!({"metadata": {"name": name}})).await;
    }

    /// Creates a namespace.
    pub async fn namespace(&self, name: &str) {
        self.create::<Namespace>(json!({"metadata": {"name": name}})).await;
    }

    /// Creates an AddressPool.
    pub async fn pool(&self, name: &str, bits: u32, subnets: Value) {
        let spec = json!({"blockSizeBits": bits, "subnets": subnets});
        self.create::<AddressPool>(json!({"metadata": {"name": name}, "spec": spec})).await;
    }

    /// Creates the BlockRequest of a node for a pool.
    ///
    /// # Panics
    ///
    /// When the server refuses it.
    pub async fn request(&self, node: &str, pool: &str) -> BlockRequest {
        let spec = BlockRequestSpec { node_name: node.into(), pool_name: pool.into() };
        let request = BlockRequest::new(&format!("req-{pool}-{node}"), spec);
        match self.all().create(&PostParams::default(), &request).await {
            Ok(request) => request,
            Err(error) => panic!("BlockRequest of {node} for {pool}: {error}"),
        }
    }

    /// Creates a cluster-wide object from its JSON.
    ///
    /// # Panics
    ///
    /// When the server refuses it.
    pub async fn create<K>(&self, object: Value) -> K
    where
        K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
    {
        create(&self.all(), object).await
    }

    /// Creates an object in a namespace from its JSON.
    ///
    /// # Panics
    ///
    /// When the server refuses it.
    pub async fn create_in<K>(&self, namespace: &str, object: Value) -> K
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + Serialize
            + DeserializeOwned,
    {
        create(&self.of(namespace), object).await
    }
}

async fn create<K>(api: &Api<K>, mut object: Value) -> K
where
    K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
{
    object["apiVersion"] = json!(K::api_version(&()));
    object["kind"] = json!(K::kind(&()));
    let shown = object.to_string();
    let created = match serde_json::from_value::<K>(object) {
        Ok(object) => api.create(&PostParams::default(), &object).await.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    created.unwrap_or_else(|error| panic!("creating {shown}: {error}"))
}

fn dual_stack() -> Options {
    let ranges = ["10.96.0.0/16", "fd96::/112"].map(|range| range.parse().expect("a constant range"));
    Options { service_ranges: ranges.into(), ..Options::default() }
}

/// A definition without its rules and bounds.
fn unruled(definition: &CustomResourceDefinition) -> Result<CustomResourceDefinition, Error> {
    fn strip(document: &mut Value) {
        match document {
            Value::Object(map) => {
                for key in ["x-kubernetes-validations", "maxItems", "maxLength"] {
                    map.remove(key);
                }
                map.values_mut().for_each(strip);
            }
            Value::Array(items) => items.iter_mut().for_each(strip),
            _ => {}
        }
    }
    let written = serde_json::to_value(definition).and_then(|mut document| {
        strip(&mut document);
        serde_json::from_value(document)
    });
    written.map_err(|error| Error::Client(error.to_string()))
}

/// Waits until a condition holds.
///
/// # Panics
///
/// When it does not within [`LIMIT`].
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < LIMIT, "not within {} s: {what}", LIMIT.as_secs());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
