//! What booting a kernel needs on the host, and where it is kept.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    run,
    setup::{self, Tool},
};

const VIRTME_NG: &str = "1.42";
/// Debian's python: the one that `python3-venv` belongs to.
const PYTHON: &str = "/usr/bin/python3";

/// Programs of the host and of the guest, which shares the host's files.
const TOOLS: [Tool; 12] = [
    Tool::new("qemu-system-x86_64", "qemu-system-x86"),
    // For the guest's first steps, before it sees the host's files.
    Tool::new("busybox", "busybox-static"),
    Tool::new("depmod", "kmod"),
    // virtme-ng reads a kernel image's version with it.
    Tool::new("file", "file"),
    Tool::new("xz", "xz-utils"),
    Tool::new("setpriv", "util-linux"),
    Tool::new("apt-get", "apt"),
    Tool::new("dpkg-deb", "dpkg"),
    Tool::new("ip", "iproute2"),
    Tool::new("ping", "iputils-ping"),
    Tool::new("nft", "nftables"),
    Tool::new("sysctl", "procps"),
];

/// Installs what is missing; without root, fails with the command to run.
pub(super) fn ensure() -> Result<()> {
    let mut packages = setup::packages_of(&TOOLS);
    if !can_make_venv() {
        packages.push("python3-venv".into());
    }
    // Debian has a busybox that needs libraries, too, which a guest's first steps do not have.
    if !static_busybox() && !packages.iter().any(|package| package == "busybox-static") {
        packages.push("busybox-static".into());
    }
    setup::install(&packages)?;
    if !setup::packages_of(&TOOLS).is_empty() || !can_make_venv() || !static_busybox() {
        bail!("still missing after the installation: {}", packages.join(" "));
    }
    Ok(())
}

fn can_make_venv() -> bool {
    run::succeeds(Command::new(PYTHON).args(["-c", "import ensurepip, venv"]))
}

fn static_busybox() -> bool {
    // A static program has no interpreter, so the loader refuses to list its libraries.
    setup::find("busybox").is_some_and(|path| !run::succeeds(Command::new("ldd").arg(path)))
}

/// Where kernels, package lists and virtme-ng are kept between runs.
pub(super) fn cache() -> Result<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let dir = base
        .or_else(home)
        .context("neither XDG_CACHE_HOME nor HOME is set: there is nowhere to keep kernels")?
        .join("coil/vm");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}

/// virtme-ng, from the Python package index, in a folder of its own.
pub(super) fn virtme_ng() -> Result<PathBuf> {
    let dir = cache()?.join(format!("virtme-ng-{VIRTME_NG}"));
    let program = dir.join("bin/vng");
    if !run::succeeds(Command::new(&program).arg("--version")) {
        run::run(Command::new(PYTHON).args(["-m", "venv", "--clear"]).arg(&dir))?;
        let package = format!("virtme-ng=={VIRTME_NG}");
        run::run(Command::new(dir.join("bin/pip")).args(["install", "--quiet", &package]))?;
    }
    Ok(program)
}

/// Where virtme-ng finds its own parts, and the programs of the administrator.
pub(super) fn path(vng: &Path) -> Result<OsString> {
    let own = vng.parent().map(PathBuf::from);
    let rest = std::env::var_os("PATH").unwrap_or_default();
    let dirs =
        own.into_iter().chain(std::env::split_paths(&rest)).chain(["/usr/sbin".into(), "/sbin".into()]);
    std::env::join_paths(dirs).context("PATH cannot take virtme-ng's folder")
}
