//! The command line.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};
use coil_traffic::Tool;

use crate::{
    cluster,
    config::{DEFAULT_NAME, Options},
    demo, down,
    enter::{self, Where},
    init, keeper, kubelet, programs, signals,
    state::{self, StateDir},
    supervisor, world,
};

/// A Coil cluster in network namespaces of this machine.
///
/// Real coild, coil-router, controllers and eBPF programs on three nodes, an API server that
/// kubectl works with, and a world outside. It runs as root and leaves nothing behind.
#[derive(Debug, Parser)]
#[command(name = "lab", bin_name = "cargo xtask lab")]
struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Args)]
struct Name {
    /// Name of the lab
    #[arg(long, default_value = DEFAULT_NAME)]
    name: String,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start a cluster and leave it running
    Up(Options),
    /// Show whether the lab runs, where its files are, its nodes and pods
    Status(Name),
    /// Print the path of the kubeconfig: export KUBECONFIG=$(cargo xtask lab kubeconfig)
    Kubeconfig(Name),
    /// Run a command in a pod: exec NAMESPACE/POD -- ping -c1 10.64.0.1
    Exec {
        #[command(flatten)]
        lab: Name,
        /// NAMESPACE/POD
        pod: String,
        /// The command, from the machine's own files
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Run a command on a node (or in `control` or `far`): node node1 -- ip route show table 119
    Node {
        #[command(flatten)]
        lab: Name,
        /// node1, node2, ..., control or far
        node: String,
        /// The command, from the machine's own files
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Run a command in the world outside the cluster: world -- ip route
    World {
        #[command(flatten)]
        lab: Name,
        /// The command, from the machine's own files
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// End a lab, and check that nothing is left of it
    Down(Name),
    /// Start a lab of its own, show everything that Coil does in it, and end it
    Demo(demo::Args),
    /// Traffic tools
    #[command(hide = true)]
    Tool {
        #[command(subcommand)]
        tool: Tool,
    },
    #[command(hide = true)]
    Keeper { options: String },
    #[command(hide = true)]
    Init { options: String },
    #[command(hide = true)]
    Supervisor { options: String },
    #[command(hide = true)]
    Kubelet { role: String },
    #[command(hide = true)]
    Cluster {
        kubeconfig: PathBuf,
        /// Collect garbage and end namespaces: the API server does not do it itself
        #[arg(long)]
        collect: bool,
    },
    #[command(hide = true)]
    ServeWorld { family: String },
    #[command(hide = true)]
    Pause,
}

/// The main function of `coil-lab`.
#[must_use]
pub fn main() -> ExitCode {
    let args = Args::parse();
    let for_people = matches!(
        args.verb,
        Verb::Up(_)
            | Verb::Status(_)
            | Verb::Kubeconfig(_)
            | Verb::Exec { .. }
            | Verb::Node { .. }
            | Verb::World { .. }
            | Verb::Down(_)
            | Verb::Demo(_)
    );
    if for_people && !nix::unistd::geteuid().is_root() {
        eprintln!("error: the lab makes network namespaces: run it as root");
        return ExitCode::FAILURE;
    }
    if !for_people {
        log();
    }
    let done = run(args.verb);
    signals::leave_the_end_to_them();
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<ExitCode> {
    let inside = |lab: &Name, place: &Where, command: &[String]| {
        enter::run(&lab.name, place, command).map(|status| ExitCode::from(enter::code(status)))
    };
    match verb {
        Verb::Up(options) => up(&options)?,
        Verb::Status(lab) => return status(&lab.name),
        Verb::Kubeconfig(lab) => {
            let state = StateDir::of(&lab.name);
            state.lab(&lab.name)?;
            println!("{}", state.kubeconfig().display());
        }
        Verb::Exec { lab, pod, command } => return inside(&lab, &Where::pod(&pod)?, &command),
        Verb::Node { lab, node, command } => return inside(&lab, &Where::Member(node), &command),
        Verb::World { lab, command } => {
            return inside(&lab, &Where::Member(crate::config::WORLD.to_owned()), &command);
        }
        Verb::Down(lab) => down::down(&lab.name)?,
        Verb::Demo(args) => return demo::run(&args),
        Verb::Tool { tool } => match coil_traffic::run(tool)? {
            said if said.is_empty() => {}
            said => println!("{}", said.trim_end_matches('\n')),
        },
        Verb::Keeper { options } => keeper::main(&options)?,
        Verb::Init { options } => init::main(&options)?,
        Verb::Supervisor { options } => supervisor::main(&options)?,
        Verb::Kubelet { role } => kubelet::main(&role)?,
        Verb::Cluster { kubeconfig, collect } => cluster::main(&kubeconfig, collect)?,
        Verb::ServeWorld { family } => world::main(supervisor::family_of(&family)?)?,
        Verb::Pause => loop {
            nix::unistd::pause(); // until a signal ends the process
        },
    }
    Ok(ExitCode::SUCCESS)
}

fn log() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
}

fn up(options: &Options) -> Result<()> {
    signals::end_lab_first(&options.name)?;
    let owned = keeper::start(&keeper::own_program()?, options, |line| println!("{line}"))?;
    owned.let_go()?;
    let state = StateDir::of(&options.name);
    let name = if options.name == DEFAULT_NAME { String::new() } else { format!(" --name {}", options.name) };
    println!("lab {:?} is ready: {} nodes, {:?}", options.name, options.nodes, options.family);
    println!("  kubectl: export KUBECONFIG={}", state.kubeconfig().display());
    println!("  logs:    {}", programs::logs_dir(&options.name)?.display());
    println!("  end it:  cargo xtask lab down{name}");
    Ok(())
}

fn status(name: &str) -> Result<ExitCode> {
    let state = StateDir::of(name);
    if !state.is_held() {
        let what = if state.path().exists() { "has crashed; `lab up` takes over" } else { "is not running" };
        println!("lab {name:?} {what}");
        for (other, _) in state::all().into_iter().filter(|(other, held)| *held && other != name) {
            println!("lab {other:?} is running");
        }
        return Ok(ExitCode::FAILURE);
    }
    let lab = state.lab(name)?;
    let Options { datapath, family, nodes, .. } = &lab.options;
    println!("lab {name:?} is running: {nodes} nodes, family {family:?}, datapath {datapath}");
    println!("  kubeconfig: {}", state.kubeconfig().display());
    println!("  logs:       {}", lab.logs.display());
    let kubectl = std::process::Command::new("kubectl")
        .args(["get", "nodes,pods", "-A", "-o", "wide"])
        .env("KUBECONFIG", state.kubeconfig())
        .status()
        .context("cannot run kubectl")?;
    if !kubectl.success() {
        bail!("the API server does not answer as it should");
    }
    Ok(ExitCode::SUCCESS)
}
