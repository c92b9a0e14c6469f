//! The supervisor: builds the lab from inside, keeps its programs running, ends with the first
//! that the lab cannot do without.
//!
//! ```text
//! topology ─▶ API server (embedded, or etcd + kube-apiserver), world ─▶ CRDs ─▶ controllers, kubelets ─▶ coild, coil-router ─▶ ready
//! ```

mod api;
mod bird;
mod bootstrap;
mod install;
mod manifests;
mod mirror;
mod proxy;
mod routes;
mod services;
mod webhooks;

pub(crate) use api::REQUESTS;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use coil_api::names::{ENV_NODE_NAME, ENV_POD_NAME, ENV_POD_NAMESPACE};
use coil_traffic::machine::patience;
use kube::Client;
use tokio::{sync::mpsc, time};

use self::{manifests::Manifests, mirror::Mirror};
use crate::{
    access::Access,
    capabilities,
    config::{self, CONTROL, CONTROL_HOST, Family, Options, Routing, WORLD},
    keeper::{self, own_program, say},
    kubelet::Role,
    place::OpenPlace,
    programs::{self, OnExit, Program},
    state::{self, ADMIN, StateDir},
    topology::{self, OpenPlaces},
};

/// How long a lab may take to become ready.
const READY_LIMIT: Duration = Duration::from_secs(90);

/// The supervisor's main function; the lab lives as long as it does.
pub(crate) fn main(options: &str) -> Result<()> {
    let options: Options = serde_json::from_str(options).context("the supervisor's argument is no lab")?;
    let ended = run(&options);
    if let Err(error) = &ended {
        say(&format!("{}{error:#}", keeper::FAILED));
    }
    ended
}

fn run(options: &Options) -> Result<()> {
    let state = StateDir::of(&options.name);
    say("making the namespaces and the wires between them");
    let places = topology::build(options, &state)?;
    state.write_places(&places.iter().map(|(name, place)| (name.clone(), place.published())).collect())?;
    for place in options.programs.iter().flat_map(|_| places.keys()) {
        state.set_other_build(place, options.programs.as_deref())?;
    }
    let (fatal, fatal_end) = mpsc::channel(1);
    let lab =
        Lab { options: options.clone(), logs: programs::logs_dir(&options.name)?, state, places, fatal };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(lab.live(fatal_end))
}

struct Lab {
    options: Options,
    state: StateDir,
    logs: PathBuf,
    places: OpenPlaces,
    /// Told when a program ends that the lab cannot do without.
    fatal: mpsc::Sender<String>,
}

impl Lab {
    async fn live(self, mut fatal: mpsc::Receiver<String>) -> Result<()> {
        let readiness = async {
            let limit = patience(READY_LIMIT);
            let ready = time::timeout(limit, self.start()).await;
            ready.with_context(|| {
                format!("not ready within {limit:?}; see the logs in {}", self.logs.display())
            })?
        };
        tokio::select! {
            ready = readiness => ready?,
            Some(ended) = fatal.recv() => bail!(ended),
        }
        say(keeper::READY);
        match fatal.recv().await {
            Some(ended) => bail!(ended),
            None => bail!("nothing is left to wait for"),
        }
    }

    async fn start(&self) -> Result<()> {
        say("starting the API server");
        let access = self.start_api_server().await?;
        let access_inside = Access::read(&self.state.inner_kubeconfig(ADMIN))?;
        let client = access.client().await?;
        bootstrap::wait_for_api(&client).await?;
        let manifests = Manifests::read(&self.options.datapath)?;
        install::objects(&client, &manifests, self.options.api_address()).await?;
        say("starting controllers, kubelets, coild and coil-router");
        self.start_world()?;
        let coil = Coil::new(&client, manifests, &access_inside, &self.state).await?;
        self.start_controllers(&coil).await?;
        for node in self.options.node_names() {
            self.start_node(&coil, &node).await?;
        }
        if self.options.datapath == "kernel" {
            let nodes =
                self.options.node_names().iter().map(|node| self.place(node)).collect::<Result<_>>()?;
            services::follow(client.clone(), self.options.family, nodes);
        }
        bootstrap::create_pools(&client, self.options.family).await?;
        say("waiting for the nodes");
        bootstrap::wait_for_nodes(&client, &self.options.node_names()).await
    }

    fn place(&self, name: &str) -> Result<OpenPlace> {
        self.places.get(name).cloned().with_context(|| format!("there is no place {name:?}"))
    }

    /// Starts a program as its manifest says, with more flags and variables, and keeps it running; the API shows
    /// a pod of it.
    async fn run(
        &self,
        coil: &Coil,
        place: &str,
        name: &str,
        more: &[&str],
        env: &[(&str, &str)],
    ) -> Result<()> {
        let workload = coil.manifests.workload(name)?;
        let mut env: Vec<(String, String)> = env.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        env.push(("KUBECONFIG".into(), coil.kubeconfig(name)?.display().to_string()));
        let program = workload.program()?;
        let program = Program {
            name: program.to_owned(),
            place_name: place.to_owned(),
            place: self.place(place)?,
            path: programs::find(program)?,
            args: workload.args()?.into_iter().chain(more.iter().map(|flag| (*flag).to_owned())).collect(),
            env,
            capabilities: Some(capabilities::parse(&workload.capabilities()?)?),
            on_exit: OnExit::Restart,
        };
        let addresses = match place {
            CONTROL => self.options.family.each().iter().map(|ip| ip.lan(CONTROL_HOST).addr()).collect(),
            node => config::node_addresses(self.options.family, node)?,
        };
        let mirror = Mirror {
            client: coil.client.clone(),
            workload: workload.clone(),
            name: pod_name(name, place),
            place_name: place.to_owned(),
            place: self.place(place)?,
            addresses,
            state: self.state.clone(),
        };
        mirror.create().await?;
        programs::run(program, self.state.clone(), self.logs.clone(), self.fatal.clone());
        mirror.keep();
        Ok(())
    }

    /// Starts the lab's own program in another role; the lab ends with it.
    fn run_own(&self, place: &str, role: &str, args: Vec<String>) -> Result<()> {
        let args = [vec![role.to_owned()], args].concat();
        self.launch(place, role, own_program()?, args, Vec::new(), OnExit::Fatal)
    }

    fn launch(
        &self,
        place: &str,
        name: &str,
        path: PathBuf,
        args: Vec<String>,
        env: Vec<(String, String)>,
        on_exit: OnExit,
    ) -> Result<()> {
        let program = Program {
            name: name.to_owned(),
            place_name: place.to_owned(),
            place: self.place(place)?,
            path,
            args,
            env,
            capabilities: None,
            on_exit,
        };
        programs::run(program, self.state.clone(), self.logs.clone(), self.fatal.clone());
        Ok(())
    }

    fn start_world(&self) -> Result<()> {
        let family = clap::ValueEnum::to_possible_value(&self.options.family);
        let family = family.context("a family without a name")?.get_name().to_owned();
        self.run_own(WORLD, "serve-world", vec![family])?;
        if self.options.routing == Routing::Bird {
            return self.start_birds();
        }
        for node in self.options.node_names() {
            let importers = vec![
                routes::Importer { place: self.place(CONTROL)?, only_routable: false },
                routes::Importer { place: self.place(WORLD)?, only_routable: true },
            ];
            routes::follow(self.options.family, node.clone(), self.place(&node)?, importers);
        }
        Ok(())
    }

    /// Starts BIRD on every member of the LAN.
    fn start_birds(&self) -> Result<()> {
        let program = bird::program()?;
        let dir = self.state.path().join("bird");
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        for (member, host) in self.options.members() {
            let config = dir.join(format!("{member}.conf"));
            state::replace(&config, &bird::config(&self.options, &member, host)?)?;
            let at = |path: PathBuf| path.display().to_string();
            let socket = at(dir.join(format!("{member}.ctl")));
            let args = vec!["-f".to_owned(), "-c".to_owned(), at(config), "-s".to_owned(), socket];
            self.launch(&member, "bird", program.clone(), args, Vec::new(), OnExit::Restart)?;
        }
        Ok(())
    }

    async fn start_controllers(&self, coil: &Coil) -> Result<()> {
        let kubeconfig = self.state.inner_kubeconfig(ADMIN).display().to_string();
        let collect = self.options.real_api()?.map(|_| "--collect".to_owned());
        self.run_own(CONTROL, "cluster", std::iter::once(kubeconfig).chain(collect).collect())?;
        // Often, as Coil v2's own end-to-end tests have it.
        self.run(coil, CONTROL, "coil-ipam-controller", &["--gc-interval=10s"], &[]).await?;
        // It takes its own pod's image; a container's command comes from the machine's own files.
        let egress = "coil-egress-controller";
        let workload = coil.manifests.workload(egress)?;
        let pod = pod_name(egress, CONTROL);
        let env = [(ENV_POD_NAMESPACE, &*workload.namespace), (ENV_POD_NAME, &*pod)];
        self.run(coil, CONTROL, egress, &[], &env).await
    }

    async fn start_node(&self, coil: &Coil, node: &str) -> Result<()> {
        let role = Role { node: node.to_owned(), options: self.options.clone(), logs: self.logs.clone() };
        self.run_own(node, "kubelet", vec![serde_json::to_string(&role)?])?;
        let env = [(ENV_NODE_NAME, node)];
        let mut flags: Vec<&str> = self.options.coild.iter().map(String::as_str).collect();
        // The manifests for the kernel alone say it themselves.
        if self.options.datapath != "kernel" {
            flags.extend(["--datapath", &self.options.datapath]);
        }
        self.run(coil, node, "coild", &flags, &env).await?;
        match self.options.routing {
            Routing::Router => self.run(coil, node, "coil-router", &[], &env).await,
            Routing::Bird => Ok(()),
        }
    }
}

/// What is shipped, and the service accounts in it.
struct Coil {
    client: Client,
    manifests: Manifests,
    /// By workload.
    kubeconfigs: BTreeMap<String, PathBuf>,
}

impl Coil {
    async fn new(client: &Client, manifests: Manifests, access: &Access, state: &StateDir) -> Result<Self> {
        let mut kubeconfigs = BTreeMap::new();
        for (name, workload) in &manifests.workloads {
            let account = (&*workload.namespace, workload.account()?);
            kubeconfigs.insert(name.clone(), install::account(client, account, access, state).await?);
        }
        Ok(Self { client: client.clone(), manifests, kubeconfigs })
    }

    fn kubeconfig(&self, workload: &str) -> Result<&PathBuf> {
        self.kubeconfigs.get(workload).with_context(|| format!("{workload} has no account"))
    }
}

/// The pod of a workload on a member of the lab.
fn pod_name(workload: &str, place: &str) -> String {
    format!("{workload}-{place}")
}

/// What `serve-world` is told.
pub(crate) fn family_of(name: &str) -> Result<Family> {
    let family = <Family as clap::ValueEnum>::from_str(name, false);
    ensure!(family.is_ok(), "{name:?} is no family");
    family.map_err(anyhow::Error::msg)
}
