//! The supervisor: builds the lab from inside, keeps its programs running, ends with the first
//! that the lab cannot do without.
//!
//! ```text
//! topology ─▶ API server, world ─▶ CRDs ─▶ controllers, kubelets ─▶ coild, coil-router ─▶ ready
//! ```

mod bootstrap;
mod proxy;
mod routes;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use coil_api::names::ENV_NODE_NAME;
use tokio::{sync::mpsc, time};

use crate::{
    access::Access,
    config::{API_PORT, CONTROL, Family, Options, WORLD},
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
            let ready = time::timeout(READY_LIMIT, self.start()).await;
            ready.with_context(|| {
                format!("not ready within {READY_LIMIT:?}; see the logs in {}", self.logs.display())
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
        let client = access.client().await?;
        bootstrap::wait_for_api(&client).await?;
        bootstrap::install_crds(&client).await?;
        say("starting controllers, kubelets, coild and coil-router");
        self.start_world()?;
        self.start_controllers()?;
        for node in self.options.node_names() {
            self.start_node(&node)?;
        }
        bootstrap::create_pools(&client, self.options.family).await?;
        say("waiting for the nodes");
        bootstrap::wait_for_nodes(&client, &self.options.node_names()).await
    }

    fn place(&self, name: &str) -> Result<OpenPlace> {
        self.places.get(name).cloned().with_context(|| format!("there is no place {name:?}"))
    }

    /// Starts a program with access to the API, and keeps it running.
    fn run(&self, place: &str, program: &str, args: Vec<String>, env: &[(&str, &str)]) -> Result<()> {
        let path = programs::find(program)?;
        let mut env: Vec<(String, String)> = env.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        env.push(("KUBECONFIG".into(), self.state.inner_kubeconfig(ADMIN).display().to_string()));
        self.launch(place, program, path, args, env, OnExit::Restart)
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
            on_exit,
        };
        programs::run(program, self.state.clone(), self.logs.clone(), self.fatal.clone());
        Ok(())
    }

    /// Starts the API server, which writes the kubeconfigs of its users inside the lab, and writes
    /// the one for the host.
    async fn start_api_server(&self) -> Result<Access> {
        let inside = self.state.inside();
        std::fs::create_dir_all(&inside).with_context(|| format!("cannot make {}", inside.display()))?;
        let address = SocketAddr::new(self.options.api_address(), API_PORT);
        let mut args = vec![
            format!("--listen={address}"),
            format!("--kubeconfig-dir={}", inside.display()),
            format!("--san={}", Ipv4Addr::LOCALHOST),
        ];
        args.extend(self.options.family.each().iter().map(|ip| format!("--service-cidr={}", ip.services())));
        args.extend(
            self.options.node_names().iter().map(|node| format!("--user={}", state::node_user(node))),
        );
        let path = programs::find("coil-apiserver")?;
        self.launch(CONTROL, "coil-apiserver", path, args, Vec::new(), OnExit::Fatal)?;
        let access = loop {
            // The file appears when the server listens.
            match Access::read(&self.state.inner_kubeconfig(ADMIN)) {
                Ok(access) => break access,
                Err(_) => time::sleep(bootstrap::POLL).await,
            }
        };
        let host = proxy::start(self.place(CONTROL)?, address).await?;
        let outside = access.at(host);
        outside.write(&self.state.kubeconfig(), &self.options.name)?;
        Ok(outside)
    }

    fn start_world(&self) -> Result<()> {
        let family = clap::ValueEnum::to_possible_value(&self.options.family);
        let family = family.context("a family without a name")?.get_name().to_owned();
        self.run_own(WORLD, "serve-world", vec![family])?;
        for node in self.options.node_names() {
            let importers = vec![
                routes::Importer { place: self.place(CONTROL)?, only_routable: false },
                routes::Importer { place: self.place(WORLD)?, only_routable: true },
            ];
            routes::follow(self.options.family, node.clone(), self.place(&node)?, importers);
        }
        Ok(())
    }

    fn start_controllers(&self) -> Result<()> {
        let kubeconfig = self.state.inner_kubeconfig(ADMIN).display().to_string();
        self.run_own(CONTROL, "cluster", vec![kubeconfig])?;
        // Often, as Coil v2's own end-to-end tests have it.
        self.run(CONTROL, "coil-ipam-controller", vec!["--gc-interval=10s".to_owned()], &[])?;
        // A container's command comes from the machine's own files: the image is a name only.
        self.run(CONTROL, "coil-egress-controller", vec!["--image=coil".to_owned()], &[])
    }

    fn start_node(&self, node: &str) -> Result<()> {
        let role = Role { node: node.to_owned(), options: self.options.clone(), logs: self.logs.clone() };
        self.run_own(node, "kubelet", vec![serde_json::to_string(&role)?])?;
        let env = [(ENV_NODE_NAME, node)];
        let datapath = vec!["--datapath".to_owned(), self.options.datapath.clone()];
        self.run(node, "coild", datapath, &env)?;
        self.run(node, "coil-router", Vec::new(), &env)
    }
}

/// What `serve-world` is told.
pub(crate) fn family_of(name: &str) -> Result<Family> {
    let family = <Family as clap::ValueEnum>::from_str(name, false);
    ensure!(family.is_ok(), "{name:?} is no family");
    family.map_err(anyhow::Error::msg)
}
