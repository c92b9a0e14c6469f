//! `cargo xtask setup`

mod kubectl;

use std::{path::Path, process::Command};

use anyhow::{Result, bail};

use crate::run::{self, succeeds};

/// Debian's compiler, which has `core` for BPF ready.
pub(crate) const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const BPF_LINKER_VERSION: &str = "0.13.0";
/// The LLVM that bpf-linker is built with must be at least the compiler's.
const LLVM: &str = "22";
/// rustup's compiler where Debian's is not: of a day, because a later one may have a later LLVM.
pub(crate) const NIGHTLY: &str = "nightly-2026-05-20";

/// Find what building and testing need, and install what is missing.
///
/// Debian packages: a compiler with the BPF target, LLVM for bpf-linker, and the tools of the lab
/// (iproute2, ping, bpftool, kubectl, nft, iptables, bird, the reference CNI plugins). Then bpf-linker by
/// cargo. kubectl must be 1.30 or later, which Debian has from 13 on. Without root it installs nothing and prints the commands to run. Another way to the compiler, on any distribution:
/// `rustup toolchain install nightly-2026-05-20 --component rust-src`, and on the path either a released binary of bpf-linker
/// 0.13, or LLVM 22's llvm-config with its libraries, which bpf-linker is then built with (on Ubuntu: llvm-22-dev and
/// libpolly-22-dev of apt.llvm.org, and LLVM_PREFIX=/usr/lib/llvm-22).
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only say what is missing; fail when something is
    #[arg(long)]
    check: bool,
}

/// What compiles the eBPF programs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum BpfCompiler {
    /// Debian's rustc-web with libstd-rust-web-dev-bpf.
    Debian,
    /// rustup's nightly with rust-src.
    Nightly,
}

/// A program that must be found, and the Debian package that has it.
pub(crate) struct Tool {
    program: &'static str,
    package: &'static str,
}

impl Tool {
    pub(crate) const fn new(program: &'static str, package: &'static str) -> Self {
        Self { program, package }
    }
}

const TOOLS: [Tool; 9] = [
    Tool::new("ip", "iproute2"),
    Tool::new("ping", "iputils-ping"),
    Tool::new("bpftool", "bpftool"),
    Tool::new("kubectl", "kubernetes-client"),
    Tool::new("nft", "nftables"),
    Tool::new("conntrack", "conntrack"),
    Tool::new("iptables-legacy-restore", "iptables"),
    Tool::new("ptp", "containernetworking-plugins"),
    Tool::new("bird", "bird2"),
];

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.check {
        let missing = Missing::find();
        if !missing.is_empty() {
            bail!("missing:\n{}", missing.commands().join("\n"));
        }
        kubectl::check()?;
    } else {
        ensure()?;
    }
    println!("everything needed is here");
    Ok(())
}

/// Installs what is missing; without root, fails with the commands to run.
pub(crate) fn ensure() -> Result<()> {
    provide(Missing::find)?;
    kubectl::check()
}

/// As [`ensure`], for building alone: the lab's tools may be missing.
pub(crate) fn ensure_build() -> Result<()> {
    provide(Missing::to_build)
}

fn provide(find: fn() -> Missing) -> Result<()> {
    let missing = find();
    if missing.is_empty() {
        return Ok(());
    }
    carry_out(&missing.commands(), !missing.packages.is_empty())?;
    let still = find();
    if !still.is_empty() {
        bail!("still missing after the installation:\n{}", still.commands().join("\n"));
    }
    Ok(())
}

/// The packages of the programs that cannot be found.
pub(crate) fn packages_of(tools: &[Tool]) -> Vec<String> {
    tools.iter().filter(|tool| find(tool.program).is_none()).map(|tool| tool.package.to_owned()).collect()
}

/// Installs Debian packages; without root, fails with the commands to run.
pub(crate) fn install(packages: &[String]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    carry_out(&apt_commands(packages), true)
}

fn apt_commands(packages: &[String]) -> Vec<String> {
    let mut commands = vec![
        "apt-get update -q".to_owned(),
        format!("apt-get install -q -y --no-install-recommends {}", packages.join(" ")),
    ];
    if packages.iter().any(|package| package == "bird2") {
        // The lab runs BIRD itself; the machine's own routing is none of its business.
        commands.push("[ ! -d /run/systemd/system ] || systemctl disable --now bird".to_owned());
    }
    commands
}

fn carry_out(commands: &[String], with_packages: bool) -> Result<()> {
    if with_packages && (!run::is_root() || find("apt-get").is_none()) {
        bail!(
            "something is missing; as root, run:\n{}\n(or see `cargo xtask setup --help`)",
            commands.join("\n")
        );
    }
    for command in commands {
        run::run(Command::new("sh").args(["-c", command]).env("DEBIAN_FRONTEND", "noninteractive"))?;
    }
    Ok(())
}

/// The compiler for the eBPF programs, if there is one.
pub(crate) fn bpf_compiler() -> Option<BpfCompiler> {
    let debian = Command::new(DEBIAN_RUSTC)
        .args(["--print", "target-libdir", "--target", "bpfel-unknown-none"])
        .output()
        .is_ok_and(|out| {
            out.status.success() && Path::new(String::from_utf8_lossy(&out.stdout).trim()).exists()
        });
    if debian {
        return Some(BpfCompiler::Debian);
    }
    let components = Command::new("rustup")
        .args(["component", "list", "--installed", "--toolchain", NIGHTLY])
        .output()
        .ok()?;
    let has_source =
        String::from_utf8_lossy(&components.stdout).lines().any(|line| line.starts_with("rust-src"));
    has_source.then_some(BpfCompiler::Nightly)
}

struct Missing {
    packages: Vec<String>,
    linker: bool,
}

impl Missing {
    fn find() -> Self {
        let build = Self::to_build();
        let tools = packages_of(&TOOLS);
        Self { packages: tools.into_iter().chain(build.packages).collect(), ..build }
    }

    fn to_build() -> Self {
        let mut packages = Vec::new();
        let compiler = bpf_compiler();
        if compiler.is_none() {
            packages.extend(["rustc-web", "libstd-rust-web-dev-bpf"].map(str::to_owned));
        }
        if compiler != Some(BpfCompiler::Nightly) && !Path::new("/usr/bin/cargo-clippy").exists() {
            packages.push("rust-web-clippy".into());
        }
        let linker = find("bpf-linker").is_none() || !succeeds(Command::new("bpf-linker").arg("--version"));
        if linker && compiler != Some(BpfCompiler::Nightly) {
            for package in [
                format!("llvm-{LLVM}-dev"),
                format!("libpolly-{LLVM}-dev"),
                "zlib1g-dev".into(),
                "libzstd-dev".into(),
            ] {
                if !succeeds(Command::new("dpkg").args(["-s", &package])) {
                    packages.push(package);
                }
            }
        }
        Self { packages, linker }
    }

    fn is_empty(&self) -> bool {
        self.packages.is_empty() && !self.linker
    }

    fn commands(&self) -> Vec<String> {
        let mut commands = Vec::new();
        if !self.packages.is_empty() {
            commands.extend(apt_commands(&self.packages));
        }
        if self.linker {
            // Its own default is a later LLVM. Debian's is in a folder of its own, another is found by llvm-config.
            let prefix = match bpf_compiler() {
                Some(BpfCompiler::Nightly) => String::new(),
                _ => format!("LLVM_PREFIX=/usr/lib/llvm-{LLVM} "),
            };
            commands.push(format!(
                "{prefix}cargo install bpf-linker --version {BPF_LINKER_VERSION} --no-default-features \
                 --features llvm-{LLVM}"
            ));
        }
        commands
    }
}

/// Where Debian has the CNI plugins of other projects.
const CNI_DIR: &str = "/usr/lib/cni";

/// A program on the path, or where the administrator's programs and CNI plugins are.
pub(crate) fn find(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into(), CNI_DIR.into()])
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}
