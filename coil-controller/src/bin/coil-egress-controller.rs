//! Makes Egresses into gateway pods.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use coil_api::{flags::ListenAddr, names::DEFAULT_EGRESS_PORT};
use coil_controller::{
    egress::{self, Backend, Settings, image::Source},
    program::{self, Program},
    webhook::{Egresses, flags::Flags, names::EGRESS},
};
use prometheus::Registry;

/// coil-egress-controller: makes Egresses into gateway pods, and judges Egresses.
#[derive(Debug, Parser)]
#[command(version, name = "coil-egress-controller")]
struct Args {
    /// Address of /metrics.
    #[arg(long, default_value = ":9396")]
    metrics_addr: ListenAddr,
    /// Address of /healthz and /readyz.
    #[arg(long, default_value = ":9397")]
    health_addr: ListenAddr,
    /// UDP port of the encapsulation, passed on to gateway pods.
    #[arg(long, default_value_t = DEFAULT_EGRESS_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    egress_port: u16,
    /// Tool for the kernel's NAT rules in gateway pods, passed on to them.
    #[arg(long, value_enum, default_value_t = Backend::Iptables)]
    backend: Backend,
    /// Image of gateway pods, unless their template names one [default: the image of this
    /// controller's own pod, which COIL_POD_NAMESPACE and COIL_POD_NAME name].
    #[arg(long, env = "COIL_EGRESS_IMAGE")]
    image: Option<String>,
    #[command(flatten)]
    webhook: Flags,
}

fn main() -> ExitCode {
    coil_program::main(2, run())
}

async fn run() -> Result<()> {
    let args: Args = coil_program::start();
    let image = Source::find(args.image, |name| std::env::var(name).ok())?;
    let (port, backend) = (args.egress_port, args.backend);
    let program = Program {
        lease: "coil-egress-leader",
        metrics_addr: args.metrics_addr,
        health_addr: args.health_addr,
        registry: Registry::new(),
        webhook: EGRESS,
        flags: args.webhook,
    };
    program::run(
        program,
        |_| Egresses,
        |client, ready| async move {
            let image = image.read(&client).await?;
            egress::run(client, Settings { image, port, backend }, ready).await
        },
    )
    .await
}
