//! The programs of an archive start where nothing else is.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::{fs::chroot, process::CommandExt as _},
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use flate2::read::GzDecoder;
use serde_json::Value;
use tar::Archive;

use super::rootfs::PROGRAMS_DIR;
use crate::{generated, run};

/// Unpacks an archive into an empty folder, and starts every program in it with that folder as its root.
pub(super) fn programs_start(archive: &Path) -> Result<()> {
    if !run::is_root() {
        eprintln!("not root: whether the programs start by themselves is not looked at");
        return Ok(());
    }
    let root = archive.with_extension("root");
    generated::clear(&root)?;
    unpack(archive, &root)?;
    let mut started = 0;
    let dir = root.join(PROGRAMS_DIR);
    for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let name = entry?.file_name();
        let path = Path::new("/").join(PROGRAMS_DIR).join(&name);
        // The plugin of a runtime has no flags: without CNI_COMMAND it says what it is.
        let flags: &[&str] = if name == "coil" { &[] } else { &["--version", "--help"] };
        for flag in flags {
            let said = start(&root, &path, Some(flag))?;
            ensure!(said.contains(&*name.to_string_lossy()), "{} {flag} says {said:?}", path.display());
        }
        if flags.is_empty() {
            start(&root, &path, None)?;
        }
        started += 1;
    }
    ensure!(started > 0, "{} has no programs", archive.display());
    generated::clear(&root)
}

/// Runs a program in the folder; what it prints.
fn start(root: &Path, path: &Path, flag: Option<&str>) -> Result<String> {
    let mut command = Command::new(path);
    command.args(flag).env_clear();
    let root = root.to_owned();
    let enter = move || chroot(&root).and_then(|()| std::env::set_current_dir("/"));
    // SAFETY: between fork and exec the closure makes two system calls.
    unsafe { command.pre_exec(enter) };
    let shown = run::shown(&command);
    let output = command.output().with_context(|| format!("cannot start {shown} in a bare root"))?;
    if flag.is_some() && !output.status.success() {
        bail!("{shown} in a bare root: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    // A signal has no code: it did start when it ended by itself.
    ensure!(output.status.code().is_some(), "{shown} in a bare root: {}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Unpacks the layers of an archive, found as Docker finds them.
fn unpack(archive: &Path, root: &Path) -> Result<()> {
    let contents: Value = serde_json::from_slice(&read(archive, "manifest.json")?)?;
    for layer in contents[0]["Layers"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        let layer = read(archive, layer)?;
        Archive::new(GzDecoder::new(&*layer)).unpack(root).context("cannot unpack a layer")?;
    }
    Ok(())
}

/// One file of an archive.
fn read(archive: &Path, path: &str) -> Result<Vec<u8>> {
    let shown = archive.display();
    let file = File::open(archive).with_context(|| format!("cannot open {shown}"))?;
    for entry in Archive::new(file).entries().with_context(|| format!("{shown} is no archive"))? {
        let mut entry = entry?;
        if entry.path()?.as_ref() == Path::new(path) {
            let mut content = Vec::new();
            entry.read_to_end(&mut content)?;
            return Ok(content);
        }
    }
    bail!("{shown} has no {path}")
}
