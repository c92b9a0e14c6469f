//! `coil-apiserver`: the embedded API server as a program.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Parser;
use coil_apiserver::{ApiServer, Config, User, kubeconfig};
use ipnet::IpNet;
use tokio::signal::unix::{SignalKind, signal};

/// An in-memory Kubernetes API server.
///
/// Writes ca.crt, and NAME.kubeconfig and NAME.token for every user, into the kubeconfig
/// directory, then serves until SIGTERM or SIGINT. Nothing is kept over a restart.
#[derive(Parser)]
struct Args {
    /// Where to listen. Port 0 takes a free port.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:6443")]
    listen: SocketAddr,
    /// Where to write the CA, kubeconfigs and tokens.
    #[arg(long, value_name = "DIR")]
    kubeconfig_dir: PathBuf,
    /// Range of cluster IPs; repeat for dual stack, the primary family first.
    #[arg(long, value_name = "CIDR")]
    service_cidr: Vec<IpNet>,
    /// Further name or address for the server certificate; repeatable.
    #[arg(long, value_name = "NAME")]
    san: Vec<String>,
    /// URL for the kubeconfigs [default: the listening address].
    #[arg(long, value_name = "URL")]
    advertise: Option<String>,
    /// File to which every question of a user about rights is appended, one JSON object a line.
    #[arg(long, value_name = "FILE")]
    requests: Option<PathBuf>,
    /// Further user, optionally with groups: NAME[=GROUP,...]; repeatable.
    #[arg(long, value_name = "USER", value_parser = parse_user)]
    user: Vec<(String, Vec<String>)>,
}

/// `NAME[=GROUP,…]`.
fn parse_user(text: &str) -> Result<(String, Vec<String>), String> {
    let (name, groups) = text.split_once('=').unwrap_or((text, ""));
    if name.is_empty() {
        return Err("a user needs a name".into());
    }
    let groups = groups.split(',').filter(|group| !group.is_empty()).map(str::to_owned).collect();
    Ok((name.to_owned(), groups))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    let listener = TcpListener::bind(args.listen).with_context(|| format!("listening on {}", args.listen))?;
    let users: Vec<User> = args.user.into_iter().map(|(name, groups)| User::new(name, groups)).collect();
    let names: Vec<String> = users.iter().map(|user| user.name.clone()).chain(["admin".to_owned()]).collect();
    let config = Config {
        service_ranges: args.service_cidr,
        extra_sans: args.san,
        users,
        requests: args.requests,
        ..Config::default()
    };
    let server = ApiServer::start(listener, config)?;
    let url = args.advertise.unwrap_or_else(|| server.url());

    let dir = &args.kubeconfig_dir;
    fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    write(&dir.join("ca.crt"), server.ca_pem())?;
    for name in names {
        let token = server.token(&name).unwrap_or_default();
        write(&dir.join(format!("{name}.token")), token)?;
        let text = kubeconfig(&url, server.ca_pem(), &name, token);
        write(&dir.join(format!("{name}.kubeconfig")), &text)?;
    }
    println!("serving on {}, kubeconfig {}", server.url(), dir.join("admin.kubeconfig").display());

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    server.stop().await;
    Ok(())
}

/// Writes a file that only its owner can read, in one step: a reader sees all of it or nothing.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let partial = path.with_extension("partial");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&partial)
        .with_context(|| format!("creating {}", partial.display()))?;
    std::io::Write::write_all(&mut file, text.as_bytes())
        .and_then(|()| fs::rename(&partial, path))
        .with_context(|| format!("writing {}", path.display()))
}
