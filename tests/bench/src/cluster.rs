//! The API server, and many objects in it.

use std::{
    fmt::Debug,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use coil_api::crd::{AddressPool, definitions};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client, Resource,
    api::{ListParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::process::Program;

/// How many creations run at once.
const CREATORS: usize = 32;
const LIMIT: Duration = Duration::from_secs(60);

/// A fresh API server with Coil's definitions.
pub(crate) struct Cluster {
    pub(crate) client: Client,
    pub(crate) kubeconfig: PathBuf,
    _server: Program,
    pub(crate) dir: TempDir,
    programs: PathBuf,
}

impl Cluster {
    pub(crate) async fn start(programs: &Path) -> Result<Self> {
        let dir = tempfile::tempdir().context("cannot make a directory")?;
        let kubeconfig = dir.path().join("admin.kubeconfig");
        let mut server = Command::new(programs.join("coil-apiserver"));
        server.args(["--listen", "127.0.0.1:6443", "--kubeconfig-dir"]).arg(dir.path());
        let server = Program::start(&mut server, dir.path())?;
        wait("the API server's kubeconfig", async || kubeconfig.exists()).await?;
        let config = Kubeconfig::read_from(&kubeconfig)?;
        let config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
        let cluster = Self {
            client: Client::try_from(config)?,
            kubeconfig,
            _server: server,
            dir,
            programs: programs.to_owned(),
        };
        wait("the API server", async || cluster.client.apiserver_version().await.is_ok()).await?;
        for definition in definitions() {
            cluster.all::<CustomResourceDefinition>().create(&PostParams::default(), &definition).await?;
        }
        let pools = cluster.all::<AddressPool>();
        wait("the definitions", async || pools.list(&ListParams::default()).await.is_ok()).await?;
        Ok(cluster)
    }

    pub(crate) fn all<K: Resource<DynamicType = ()>>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }

    /// Starts one of Coil's programs on this API server.
    pub(crate) fn program(&self, name: &str, args: &[&str]) -> Result<Program> {
        let mut command = Command::new(self.programs.join(name));
        command.args(args).env("KUBECONFIG", &self.kubeconfig).env_remove("RUST_LOG");
        Program::start(&mut command, self.dir.path())
    }

    /// Creates a pool.
    pub(crate) async fn pool(&self, name: &str, bits: u32, ipv4: &str, ipv6: &str) -> Result<()> {
        let spec = json!({"blockSizeBits": bits, "subnets": [{"ipv4": ipv4, "ipv6": ipv6}]});
        self.create_all::<AddressPool>([json!({"metadata": {"name": name}, "spec": spec})]).await
    }

    /// Creates cluster-wide objects from their JSON.
    pub(crate) async fn create_all<K>(&self, objects: impl IntoIterator<Item = Value>) -> Result<()>
    where
        K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
    {
        self.create_in(&self.all::<K>(), objects).await
    }

    /// Creates objects from their JSON, many at once.
    pub(crate) async fn create_in<K>(
        &self,
        api: &Api<K>,
        objects: impl IntoIterator<Item = Value>,
    ) -> Result<()>
    where
        K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
    {
        let creations = objects.into_iter().map(|mut object| async move {
            object["apiVersion"] = json!(K::api_version(&()));
            object["kind"] = json!(K::kind(&()));
            let object: K = serde_json::from_value(object)?;
            api.create(&PostParams::default(), &object).await?;
            Ok::<_, anyhow::Error>(())
        });
        stream::iter(creations).buffer_unordered(CREATORS).try_collect().await
    }
}

/// Waits until a condition holds.
pub(crate) async fn wait(what: &str, mut holds: impl AsyncFnMut() -> bool) -> Result<()> {
    let start = Instant::now();
    while !holds().await {
        ensure!(start.elapsed() < LIMIT, "not within {} s: {what}", LIMIT.as_secs());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}
