//! An API server and a coild in a node's namespace.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command},
    time::{Duration, Instant},
};

use coil_api::{
    cni::CniResult,
    crd::{self, AddressPool, Egress},
    rpc::{CniArgs, CniError, cni_client::CniClient, status},
};
use coil_apitest::{Options, Server, User};
use coil_controller::ipam;
use hyper_util::rt::TokioIo;
use k8s_openapi::{
    api::core::v1::{Namespace, Node, Pod},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams, PostParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::UnixStream;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use crate::roles;
use crate::topology::{NODE_V4, NODE_V6, TestNs, Topology};

const NODE: &str = "n1";
const LIMIT: Duration = Duration::from_secs(20);

/// What cluster it is, and what its coild does.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) v4: bool,
    pub(crate) v6: bool,
    /// Without it, the kinds that it needs do not exist.
    pub(crate) ipam: bool,
    /// As above.
    pub(crate) egress: bool,
    /// `--addressblock-gc-interval`.
    pub(crate) interval: &'static str,
    /// With programs in the kernel, pinned where nobody else sees them.
    pub(crate) ebpf: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self { v4: true, v6: true, ipam: true, egress: true, interval: "5m", ebpf: false }
    }
}

impl Setup {
    /// coild's flags.
    fn flags(self) -> Vec<String> {
        let datapath = if self.ebpf { "ebpf" } else { "kernel" };
        let mut flags =
            vec![format!("--addressblock-gc-interval={}", self.interval), format!("--datapath={datapath}")];
        if !self.ipam {
            // As the documentation of Coil v2 has it.
            let table = if self.v4 { 0 } else { 255 };
            flags.extend(["--enable-ipam=false".into(), format!("--pod-table-id={table}")]);
            flags.push("--protocol-id=2".into());
        }
        if !self.egress {
            flags.push("--enable-egress=false".into());
        }
        flags
    }
}

/// The cluster. Everything ends with it.
pub(crate) struct Cluster {
    topology: Topology,
    pub(crate) objects: Objects,
    pub(crate) setup: Setup,
    directory: TempDir,
    coild: Child,
    _server: Server,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Cluster {
    /// Runs a test in a cluster whose coild is ready.
    pub(crate) fn run<F: Future<Output = ()>>(test: impl FnOnce(Self) -> F + Send) {
        Self::run_with(Setup::default(), test);
    }

    /// The same, in another cluster.
    pub(crate) fn run_with<F: Future<Output = ()>>(setup: Setup, test: impl FnOnce(Self) -> F + Send) {
        let topology = Topology::new();
        let ns = coil_netns::NetNs::open(topology.node.path()).unwrap();
        let asked = tempfile::NamedTempFile::new().unwrap();
        ns.run(|| {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async { test(Self::start(topology, setup, asked.path()).await).await });
        })
        .unwrap();
        roles::nothing_was_denied(asked.path());
    }

    async fn start(topology: Topology, setup: Setup, asked: &Path) -> Self {
        let directory = TempDir::new().unwrap();
        let account = User::service_account(roles::NAMESPACE, roles::ACCOUNT);
        let options =
            Options { users: vec![account.clone()], requests: Some(asked.to_owned()), ..Options::default() };
        let server = Server::start(options).await.unwrap();
        let kubeconfig = server.kubeconfig(&account.name).unwrap();
        std::fs::write(directory.path().join("kubeconfig"), kubeconfig).unwrap();
        let objects = Objects(server.client().await.unwrap());
        roles::ship(&objects.0, setup).await;
        objects.populate(setup).await;
        if setup.ipam {
            let client = objects.0.clone();
            tokio::spawn(async move {
                let options = ipam::Options { gc_interval: LIMIT };
                let (ready, _) = tokio::sync::watch::channel(None);
                ipam::run(client, options, &prometheus::Registry::new(), ready).await.unwrap();
            });
        }
        let coild = spawn(&directory, setup);
        let this = Self { topology, objects, setup, directory, coild, _server: server };
        this.until_ready().await;
        this
    }

    pub(crate) fn node(&self) -> &TestNs {
        &self.topology.node
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("coild.sock")
    }

    /// `kill -9`, and a new one.
    pub(crate) async fn restart(&mut self) {
        self.stop();
        self.go_on().await;
    }

    /// `kill -9`.
    pub(crate) fn stop(&mut self) {
        let _ = self.coild.kill();
        let _ = self.coild.wait();
    }

    /// Asks coild to end.
    pub(crate) fn terminate(&self) {
        let pid = nix::unistd::Pid::from_raw(self.coild.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    }

    /// Waits until coild has ended by itself.
    pub(crate) async fn until_ended(&mut self) {
        let start = Instant::now();
        while self.coild.try_wait().unwrap().is_none() {
            assert!(start.elapsed() < LIMIT, "coild does not end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until table 119 has this IPv4 route, and no other.
    pub(crate) async fn until_exported(&self, route: &str) {
        let start = Instant::now();
        loop {
            let exported = self.node().ip("route show table 119");
            if exported.trim() == route {
                return;
            }
            assert!(start.elapsed() < LIMIT, "table 119 has {exported:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A new coild.
    pub(crate) async fn go_on(&mut self) {
        self.coild = spawn(&self.directory, self.setup);
        self.until_ready().await;
    }

    async fn until_ready(&self) {
        let start = Instant::now();
        while UnixStream::connect(self.socket()).await.is_err() {
            assert!(start.elapsed() < LIMIT, "coild does not serve its socket");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn client(&self) -> CniClient<Channel> {
        CniClient::new(self.channel().await)
    }

    pub(crate) async fn channel(&self) -> Channel {
        let path = self.socket();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        Endpoint::from_static("http://coild").connect_with_connector(connector).await.unwrap()
    }

    fn args(pod: &str, ns: &TestNs) -> CniArgs {
        let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        CniArgs {
            container_id: format!("container-{pod}"),
            netns: ns.path().display().to_string(),
            ifname: "eth0".to_owned(),
            args: [pair("K8S_POD_NAMESPACE", "default"), pair("K8S_POD_NAME", pod)].into(),
            ..CniArgs::default()
        }
    }

    pub(crate) async fn add(&self, pod: &str, ns: &TestNs) -> Result<CniResult, CniError> {
        let answer = self.client().await.add(Self::args(pod, ns)).await.map_err(|status| error(&status))?;
        Ok(serde_json::from_slice(&answer.into_inner().result).unwrap())
    }

    pub(crate) async fn del(&self, pod: &str, ns: &TestNs) -> Result<(), CniError> {
        self.client().await.del(Self::args(pod, ns)).await.map(drop).map_err(|status| error(&status))
    }

    pub(crate) async fn check(&self, pod: &str, ns: &TestNs) -> Result<(), CniError> {
        self.client().await.check(Self::args(pod, ns)).await.map(drop).map_err(|status| error(&status))
    }

    /// As the kubelet does: again until it works.
    pub(crate) async fn until_added(&self, pod: &str, ns: &TestNs) {
        let start = Instant::now();
        while let Err(e) = self.add(pod, ns).await {
            assert!(start.elapsed() < LIMIT, "{}", e.msg);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Until coild has seen what was changed.
    pub(crate) async fn until_add_fails(&self, pod: &str, ns: &TestNs, part: &str) {
        let start = Instant::now();
        loop {
            match self.add(pod, ns).await {
                Err(e) if e.msg.contains(part) => return,
                Err(e) => assert!(start.elapsed() < LIMIT, "{}", e.msg),
                Ok(_) => {
                    assert!(start.elapsed() < LIMIT, "it works");
                    self.del(pod, ns).await.unwrap();
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Without an answer, as while coild ends, the code is 0.
fn error(status: &Status) -> CniError {
    status::error_of(status).unwrap_or_else(|| CniError {
        msg: format!("an error without CNI details: {status}"),
        ..CniError::default()
    })
}

fn spawn(directory: &TempDir, setup: Setup) -> Child {
    let at = |name: &str| directory.path().join(name);
    let mut command = Command::new("unshare");
    // Namespaces of pods that are made later are seen, and what is mounted here is not.
    command.args(["--mount", "--propagation", "slave", "sh", "-ec"]);
    command.args(["mount -t bpf bpf /sys/fs/bpf; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_coild")]);
    command
        .args(["--metrics-addr", "127.0.0.1:0", "--health-addr", "127.0.0.1:0", "--socket"])
        .arg(at("coild.sock"))
        .args(setup.flags())
        .env("KUBECONFIG", at("kubeconfig"))
        .env("COIL_NODE_NAME", NODE)
        .spawn()
        .unwrap()
}

/// The objects of the API.
pub(crate) struct Objects(Client);

impl Objects {
    async fn create<K>(&self, api: Api<K>, object: Value)
    where
        K: Resource + Clone + DeserializeOwned + Serialize + std::fmt::Debug,
    {
        api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
    }

    async fn patch<K>(&self, api: Api<K>, name: &str, patch: Value)
    where
        K: Resource + Clone + DeserializeOwned + std::fmt::Debug,
    {
        api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    }

    fn all<K: Resource<DynamicType = ()>>(&self) -> Api<K> {
        Api::all(self.0.clone())
    }

    async fn populate(&self, setup: Setup) {
        let definitions: Api<CustomResourceDefinition> = self.all();
        for definition in crd::definitions() {
            let needed = if definition.spec.names.kind == "Egress" { setup.egress } else { setup.ipam };
            if needed {
                definitions.create(&PostParams::default(), &definition).await.unwrap();
            }
        }
        let namespaces: Api<Namespace> = self.all();
        for name in ["default", "internet"] {
            if namespaces.get_opt(name).await.unwrap().is_none() {
                self.create(self.all::<Namespace>(), json!({"metadata": {"name": name}})).await;
            }
        }
        let node = json!({"metadata": {"name": NODE}});
        self.create(self.all::<Node>(), node).await;
        let addresses = [(setup.v4, NODE_V4), (setup.v6, NODE_V6)].into_iter().filter(|(on, _)| *on);
        let addresses: Vec<Value> =
            addresses.map(|(_, a)| json!({"type": "InternalIP", "address": a})).collect();
        let status = json!({"status": {"addresses": addresses}});
        let nodes: Api<Node> = self.all();
        nodes.patch_status(NODE, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
        if setup.ipam {
            let mut subnet = json!({});
            if setup.v4 {
                subnet["ipv4"] = json!("10.64.0.0/30");
            }
            if setup.v6 {
                subnet["ipv6"] = json!("fd64::/126");
            }
            let pool = json!({"apiVersion": "coil.cybozu.com/v2", "kind": "AddressPool",
                "metadata": {"name": "default"}, "spec": {"blockSizeBits": 2, "subnets": [subnet]}});
            self.create(self.all::<AddressPool>(), pool).await;
        }
    }

    /// Creates a Pod; its UID.
    pub(crate) async fn pod(&self, name: &str, annotations: Value) -> String {
        let pod = json!({"metadata": {"name": name, "annotations": annotations},
            "spec": {"nodeName": NODE, "containers": [{"name": "c", "image": "c"}]}});
        let api = Api::<Pod>::namespaced(self.0.clone(), "default");
        self.create(api.clone(), pod).await;
        api.get(name).await.unwrap().metadata.uid.unwrap()
    }

    pub(crate) async fn annotate_pod(&self, name: &str, annotations: Value) {
        let api = Api::<Pod>::namespaced(self.0.clone(), "default");
        self.patch(api, name, json!({"metadata": {"annotations": annotations}})).await;
    }

    pub(crate) async fn annotate_namespace(&self, annotations: Value) {
        let patch = json!({"metadata": {"annotations": annotations}});
        self.patch(self.all::<Namespace>(), "default", patch).await;
    }

    pub(crate) async fn egress(&self, namespace: &str, name: &str) {
        let egress = json!({"apiVersion": "coil.cybozu.com/v2", "kind": "Egress", "metadata": {"name": name},
            "spec": {"destinations": ["198.51.100.0/24"]}});
        self.create(Api::<Egress>::namespaced(self.0.clone(), namespace), egress).await;
    }
}
