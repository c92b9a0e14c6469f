//! Installs the `coil` plugin and its network configuration on a node.

use std::{process::ExitCode, thread::sleep, time::Duration};

use clap::Parser;
use coil_agent::installer::{Settings, install};

/// Installs the coil CNI plugin and its network configuration on a node, and ends.
///
/// Environment: CNI_CONF_NAME (10-coil.conflist), CNI_ETC_DIR (/host/etc/cni/net.d), CNI_BIN_DIR
/// (/host/opt/cni/bin), COIL_PATH (/usr/local/coil/coil), and CNI_NETCONF or CNI_NETCONF_FILE, the network
/// configuration or a file with it. With CNI_CHAIN=true the configuration that is in CNI_ETC_DIR is copied to
/// CNI_CONF_NAME, which must come before it, with coil after its plugins; CNI_CHAIN_NAME, the name of that network or of its
/// file, says which one to wait for where there may be others.
#[derive(Parser)]
#[command(name = "coil-installer", version)]
struct Args {
    /// End at once, instead of waiting until the kubelet has seen the configuration
    #[arg(long)]
    no_wait: bool,
}

/// The kubelet looks for a network configuration every 5 seconds (its containerRuntimeState
/// loop); pods that start right after this init container should find the node ready.
const KUBELET_PERIOD: Duration = Duration::from_secs(6);

fn main() -> ExitCode {
    let args = Args::parse();
    match Settings::from_env(|name| std::env::var_os(name)).and_then(|settings| install(&settings)) {
        Ok(installed) => {
            installed.written.iter().for_each(|path| println!("installed {}", path.display()));
            installed.removed.iter().for_each(|path| println!("removed {}", path.display()));
            if installed.written.is_empty() && installed.removed.is_empty() {
                println!("everything was in place");
            } else if !args.no_wait {
                sleep(KUBELET_PERIOD);
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("coil-installer: {error}");
            ExitCode::FAILURE
        }
    }
}
