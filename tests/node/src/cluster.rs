//! The API's objects, and coild.

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use coil_api::{
    crd::{self, AddressBlock, AddressPool, Egress},
    names::{
        ANN_EGRESS_PREFIX, APP_NAME, COMPONENT_EGRESS, LABEL_APP_COMPONENT, LABEL_APP_INSTANCE,
        LABEL_APP_NAME,
    },
};
use coil_apitest::{Options, Server};
use coil_controller::ipam;
use k8s_openapi::{
    api::{
        core::v1::{Namespace, Node, Pod},
        events::v1::Event,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::place::{NODE_V4, NODE_V6, on_node};

/// Name of the Node.
pub const NODE: &str = "n1";
/// Where coild serves its metrics, and tells whether it is ready: the node's network is its own.
const METRICS: &str = "127.0.0.1:9384";
const HEALTH: &str = "127.0.0.1:9385";
/// How long after its creation a Pod is known to coild: its watch is a connection to this process.
pub const WATCH_DELAY: Duration = Duration::from_millis(30);
const LIMIT: Duration = Duration::from_secs(40);
/// How long coild may take to start: in an emulated machine the verifier alone takes a minute.
const START: Duration = Duration::from_secs(240);
/// Namespaces, which are pools too, with their subnets.
const POOLS: [(&str, Option<&str>, Option<&str>); 3] = [
    ("v4", Some("10.64.0.0/16"), None),
    ("v6", None, Some("fd64::/112")),
    ("dual", Some("10.65.0.0/16"), Some("fd65::/112")),
];
/// Addresses of a block, as a power of two.
const BLOCK_BITS: i32 = 6;

/// The programs that are run.
#[derive(Debug, Clone)]
pub struct Programs {
    /// coild.
    pub coild: PathBuf,
    /// The plugin.
    pub plugin: PathBuf,
}

impl Programs {
    /// Those of a build.
    ///
    /// # Errors
    /// When one is not built.
    pub fn of(dir: &Path) -> Result<Self> {
        let find = |name: &str| {
            let path = dir.join(name);
            ensure!(
                path.exists(),
                "{} is not built: `cargo xtask test` builds all that it runs",
                path.display()
            );
            Ok(path)
        };
        // As it is installed.
        Ok(Self { coild: find("coild")?, plugin: find("../static/coil")? })
    }

    /// Those that were built with the running test.
    ///
    /// # Errors
    /// As [`Programs::of`].
    pub fn beside_tests() -> Result<Self> {
        let own = std::env::current_exe().context("cannot find the running program")?;
        // <target>/<profile>/deps/<test>
        Self::of(own.parent().and_then(Path::parent).unwrap_or(Path::new("/")))
    }
}

/// The cluster. Everything ends with it.
pub struct Cluster {
    /// The programs that are run.
    pub programs: Programs,
    client: Client,
    directory: TempDir,
    coild: Child,
    coild_args: Vec<String>,
    _server: Server,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.coild.kill();
        let _ = self.coild.wait();
    }
}

impl Cluster {
    /// Runs something on a node whose coild is ready. `coild_args` are further flags of coild.
    ///
    /// # Errors
    /// When something does not start; that of `work`.
    pub fn run<T: Send>(
        programs: Programs,
        coild_args: &[&str],
        work: impl AsyncFnOnce(Self) -> Result<T> + Send,
    ) -> Result<T> {
        on_node(|| {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            runtime.block_on(async { work(Self::start(programs, coild_args).await?).await })
        })
    }

    async fn start(programs: Programs, coild_args: &[&str]) -> Result<Self> {
        let directory = TempDir::new().context("cannot make a directory")?;
        let server = Server::start(Options::default()).await?;
        let text = server.kubeconfig("admin").context("the API server has no admin")?;
        std::fs::write(directory.path().join("kubeconfig"), text)?;
        let client = server.client().await?;
        populate(&client).await.context("cannot fill the API server")?;
        let controller = client.clone();
        tokio::spawn(async move {
            let options = ipam::Options { gc_interval: LIMIT };
            let (ready, _) = tokio::sync::watch::channel(None);
            if let Err(e) = ipam::run(controller, options, &prometheus::Registry::new(), ready).await {
                eprintln!("coil-ipam-controller: {e}");
            }
        });
        let coild_args = coild_args.iter().map(|arg| (*arg).to_owned()).collect();
        let coild = spawn(&programs, directory.path(), &coild_args)?;
        let this = Self { programs, client, directory, coild, coild_args, _server: server };
        this.until_ready().await?;
        Ok(this)
    }

    /// The API, for what this has no function for.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// coild's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("coild.sock")
    }

    /// What coild said.
    ///
    /// # Errors
    /// When its log cannot be read.
    pub fn coild_log(&self) -> Result<String> {
        std::fs::read_to_string(self.directory.path().join("coild.log")).context("cannot read coild's log")
    }

    /// `kill -9`, and a new one.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn restart_coild(&mut self) -> Result<()> {
        self.kill_coild()?;
        self.start_coild().await
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// When it is gone already.
    pub fn kill_coild(&mut self) -> Result<()> {
        self.coild.kill().context("cannot kill coild")?;
        self.coild.wait().context("cannot wait for coild")?;
        Ok(())
    }

    /// SIGTERM, and the wait until coild has ended.
    ///
    /// # Errors
    /// When it ends with an error.
    pub fn stop_coild(&mut self) -> Result<()> {
        let pid = i32::try_from(self.coild.id()).context("a process id")?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM)?;
        let status = self.coild.wait().context("cannot wait for coild")?;
        ensure!(status.success(), "coild: {status}: {}", self.coild_log()?);
        Ok(())
    }

    /// Starts coild after it was stopped, with other flags.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_coild_with(&mut self, coild_args: &[&str]) -> Result<()> {
        self.coild_args = coild_args.iter().map(|arg| (*arg).to_owned()).collect();
        self.start_coild().await
    }

    /// Starts coild after it was stopped.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_coild(&mut self) -> Result<()> {
        let _ = std::fs::remove_file(self.socket());
        self.coild = spawn(&self.programs, self.directory.path(), &self.coild_args)?;
        self.until_ready().await
    }

    /// Starts coild, which must end with an error; what it said.
    ///
    /// # Errors
    /// When it does not end so.
    pub fn coild_refuses(&mut self) -> Result<String> {
        let before = self.coild_log()?.len();
        self.coild = spawn(&self.programs, self.directory.path(), &self.coild_args)?;
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.coild.try_wait().context("cannot wait for coild")? {
                break status;
            }
            ensure!(start.elapsed() < START, "coild does not end: {}", self.coild_log()?);
            std::thread::sleep(Duration::from_millis(20));
        };
        let said = self.coild_log()?.split_off(before);
        ensure!(!status.success(), "coild ended without an error: {said}");
        Ok(said)
    }

    /// coild's metrics.
    ///
    /// # Errors
    /// When it serves none.
    pub fn metrics(&self) -> Result<String> {
        let mut stream = TcpStream::connect(METRICS).context("coild serves no metrics")?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: coild\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text).context("cannot read coild's metrics")?;
        Ok(text)
    }

    /// Reasons and notes of the Events about the node.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn events(&self) -> Result<Vec<(String, String)>> {
        let api: Api<Event> = Api::all(self.client.clone());
        let about = |event: &Event| event.regarding.as_ref().is_some_and(|r| r.name.as_deref() == Some(NODE));
        let events = api.list(&ListParams::default()).await?.items.into_iter().filter(about);
        Ok(events.map(|e| (e.reason.unwrap_or_default(), e.note.unwrap_or_default())).collect())
    }

    /// Deletes the Node.
    ///
    /// # Errors
    /// When the API refuses.
    pub async fn delete_node(&self) -> Result<()> {
        Api::<Node>::all(self.client.clone()).delete(NODE, &DeleteParams::default()).await?;
        Ok(())
    }

    async fn until_ready(&self) -> Result<()> {
        let start = Instant::now();
        while UnixStream::connect(self.socket()).is_err() {
            ensure!(start.elapsed() < START, "coild does not serve its socket: {}", self.coild_log()?);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Waits until coild knows the cluster, and the node is as it should be.
    ///
    /// # Errors
    /// When that does not come about.
    pub async fn until_in_charge(&self) -> Result<()> {
        let ask = async || {
            let mut answer = String::new();
            let asked = TcpStream::connect(HEALTH).and_then(|mut stream| {
                stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n")?;
                stream.read_to_string(&mut answer)
            });
            let ready = asked.is_ok() && answer.lines().next().is_some_and(|line| line.contains(" 200 "));
            Ok((!ready).then(|| format!("{asked:?} {answer}")))
        };
        self.wait_for("coild to be ready", ask).await
    }

    /// Creates a Pod of the node; its UID.
    ///
    /// # Errors
    /// When the API refuses.
    pub async fn create_pod(&self, namespace: &str, name: &str) -> Result<String> {
        let pod = json!({"metadata": {"name": name}, "spec": {"nodeName": NODE,
            "terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "c"}]}});
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let created = api.create(&PostParams::default(), &serde_json::from_value(pod)?).await?;
        created.uid().context("a pod without a UID")
    }

    /// Makes a pod of the node a client of an Egress.
    ///
    /// # Errors
    /// When the API refuses.
    pub async fn annotate_client(&self, pod: (&str, &str), egress: (&str, &str)) -> Result<()> {
        let annotations = json!({format!("{ANN_EGRESS_PREFIX}{}", egress.0): egress.1});
        let patch = Patch::Merge(json!({"metadata": {"annotations": annotations}}));
        let api: Api<Pod> = Api::namespaced(self.client.clone(), pod.0);
        api.patch(pod.1, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// Makes a pod of the node a gateway of an Egress of its namespace.
    ///
    /// # Errors
    /// When the API refuses.
    pub async fn label_gateway(&self, pod: (&str, &str), egress: &str) -> Result<()> {
        let labels = json!({
            LABEL_APP_NAME: APP_NAME, LABEL_APP_COMPONENT: COMPONENT_EGRESS, LABEL_APP_INSTANCE: egress,
        });
        let patch = Patch::Merge(json!({"metadata": {"labels": labels}}));
        let api: Api<Pod> = Api::namespaced(self.client.clone(), pod.0);
        api.patch(pod.1, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// Makes an Egress without gateways.
    ///
    /// # Errors
    /// When the API refuses.
    pub async fn create_egress(&self, namespace: &str, name: &str, destinations: &[&str]) -> Result<()> {
        let egress = json!({"metadata": {"namespace": namespace, "name": name},
            "spec": {"replicas": 1, "destinations": destinations}});
        create_in::<Egress>(&self.client, namespace, egress).await
    }

    /// Deletes a Pod.
    ///
    /// # Errors
    /// When the API refuses.
    pub async fn delete_pod(&self, namespace: &str, name: &str) -> Result<()> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        api.delete(name, &at_once).await?;
        Ok(())
    }

    /// Names of all AddressBlocks.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn blocks(&self) -> Result<BTreeSet<String>> {
        let api: Api<AddressBlock> = Api::all(self.client.clone());
        Ok(api.list(&ListParams::default()).await?.iter().map(kube::ResourceExt::name_any).collect())
    }

    /// Waits for a condition: `check` says what is missing.
    ///
    /// # Errors
    /// When it does not come true, with what was missing.
    pub async fn wait_for(&self, what: &str, check: impl AsyncFn() -> Result<Option<String>>) -> Result<()> {
        let start = Instant::now();
        while let Some(missing) = check().await? {
            if start.elapsed() > LIMIT {
                bail!("waited {LIMIT:?} for {what}: {missing}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }
}

fn spawn(programs: &Programs, directory: &Path, more: &Vec<String>) -> Result<Child> {
    let at = |name: &str| directory.join(name);
    let log = std::fs::OpenOptions::new().append(true).create(true).open(at("coild.log"))?;
    Command::new(&programs.coild)
        .args(["--metrics-addr", METRICS, "--health-addr", HEALTH, "--socket"])
        .arg(at("coild.sock"))
        .args(more)
        .env("KUBECONFIG", at("kubeconfig"))
        .env("COIL_NODE_NAME", NODE)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start {}", programs.coild.display()))
}

async fn populate(client: &Client) -> Result<()> {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    for definition in crd::definitions() {
        definitions.create(&PostParams::default(), &definition).await?;
    }
    create::<Node>(client, json!({"metadata": {"name": NODE}})).await?;
    let addresses = [NODE_V4, NODE_V6].map(|a| json!({"type": "InternalIP", "address": a}));
    let status = Patch::Merge(json!({"status": {"addresses": addresses}}));
    Api::<Node>::all(client.clone()).patch_status(NODE, &PatchParams::default(), &status).await?;
    for (name, ipv4, ipv6) in POOLS {
        let pool = json!({"metadata": {"name": name},
            "spec": {"blockSizeBits": BLOCK_BITS, "subnets": [{"ipv4": ipv4, "ipv6": ipv6}]}});
        create::<AddressPool>(client, pool).await?;
        let namespace = json!({"metadata": {"name": name, "annotations": {"coil.cybozu.com/pool": name}}});
        create::<Namespace>(client, namespace).await?;
    }
    Ok(())
}

async fn create_in<K>(client: &Client, namespace: &str, mut object: Value) -> Result<()>
where
    K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + Serialize
        + std::fmt::Debug,
{
    object["apiVersion"] = K::api_version(&()).into();
    object["kind"] = K::kind(&()).into();
    let object = serde_json::from_value(object)?;
    Api::<K>::namespaced(client.clone(), namespace).create(&PostParams::default(), &object).await?;
    Ok(())
}

async fn create<K>(client: &Client, mut object: Value) -> Result<()>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Serialize + std::fmt::Debug,
{
    object["apiVersion"] = K::api_version(&()).into();
    object["kind"] = K::kind(&()).into();
    let object = serde_json::from_value(object)?;
    Api::<K>::all(client.clone()).create(&PostParams::default(), &object).await?;
    Ok(())
}
