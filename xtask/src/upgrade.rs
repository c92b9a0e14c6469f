//! `cargo xtask upgrade`

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{build_ebpf, built, generated, plugin, run, setup};

/// Roll a lab from another version's programs to this one's, node by node, under traffic. Needs root.
///
/// Takes the other version from git's history and builds it, into target/upgrade/COMMIT, where it is kept. Then a lab
/// starts with its programs, connections of every kind are opened, and one place after the other gets the programs of
/// the working tree: no connection may break.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The version to come from: a commit, a tag, a branch
    #[arg(long, default_value = "HEAD^")]
    from: String,
}

/// The programs of a node and of the controllers.
const PROGRAMS: [&str; 5] =
    ["coild", "coil-router", "coil-egress", "coil-ipam-controller", "coil-egress-controller"];
/// Packages that have them.
const PACKAGES: [&str; 2] = ["coil-agent", "coil-controller"];
/// The variable by which the test is told.
const VARIABLE: &str = "COIL_UPGRADE_FROM";
const TEST: &str = "upgrade::";

pub(crate) fn run(args: &Args) -> Result<()> {
    run::need_root("upgrade");
    setup::ensure()?;
    let programs = other(&commit(&args.from)?)?;
    build_ebpf::build()?;
    plugin::build()?;
    let built = built::workspace()?;
    let lab = built
        .iter()
        .find(|built| built.test && built.folder.ends_with("tests/lab") && built.target == "cluster");
    let mut command = lab.context("tests/lab has no test program `cluster`")?.command();
    command.args([TEST, "--ignored", "--nocapture"]).env(VARIABLE, &programs);
    run::run(&mut command)
}

fn commit(from: &str) -> Result<String> {
    let name = format!("{from}^{{commit}}");
    let text = run::output(git().args(["rev-parse", "--verify", "--quiet", &name]));
    let text = text.with_context(|| format!("git knows no commit {from}: is this a shallow clone?"))?;
    Ok(text.trim().to_owned())
}

fn git() -> Command {
    let mut command = Command::new("git");
    command.arg("-C").arg(run::root());
    command
}

/// The folder of another version's programs, built when they are not there yet.
fn other(commit: &str) -> Result<PathBuf> {
    let kept = run::target_dir().join("upgrade").join(commit);
    let programs = kept.join("programs");
    if programs.exists() {
        return Ok(programs);
    }
    let source = kept.join("source");
    generated::clear(&source)?;
    fs::create_dir_all(&source).with_context(|| format!("cannot make {}", source.display()))?;
    let archive = kept.join("source.tar");
    run::run(git().args(["archive", "--output"]).arg(&archive).arg(commit))?;
    let file = fs::File::open(&archive).with_context(|| format!("cannot open {}", archive.display()))?;
    tar::Archive::new(file)
        .unpack(&source)
        .with_context(|| format!("cannot unpack {}", archive.display()))?;
    let target = kept.join("target");
    build(&source, &target)?;
    // Complete under another name first: what is there is whole.
    let new = kept.join("new");
    generated::clear(&new)?;
    keep(&target, &new)?;
    fs::rename(new.join("static"), kept.join("static"))?;
    fs::rename(new.join("programs"), &programs)?;
    generated::clear(&new)?;
    generated::clear(&source)?;
    generated::clear(&target)?;
    fs::remove_file(&archive)?;
    Ok(programs)
}

/// Builds a version by its own commands, in a folder of its own: in a shared one cargo takes this version's eBPF programs for
/// the other's.
fn build(source: &Path, target: &Path) -> Result<()> {
    let cargo = || {
        let mut command = run::cargo();
        command.current_dir(source).env("CARGO_TARGET_DIR", target);
        command
    };
    run::run(cargo().args(["run", "--quiet", "--package", "xtask", "--", "build-ebpf"]))?;
    let mut programs = cargo();
    programs.arg("build");
    let flags = |flag: &'static str, names: &[&'static str]| {
        names.iter().flat_map(|name| [flag, *name].map(str::to_owned)).collect::<Vec<_>>()
    };
    programs.args(flags("--package", &PACKAGES)).args(flags("--bin", &PROGRAMS));
    run::run(&mut programs)?;
    run::run(cargo().args(["build", "--package", "coil-cni", "--bin", "coil"]))
}

/// Copies what was built to where it is kept.
fn keep(target: &Path, dir: &Path) -> Result<()> {
    let built = target.join("debug");
    for (folder, names) in [("programs", &PROGRAMS[..]), ("static", &["coil"])] {
        let folder = dir.join(folder);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        for name in names {
            let (from, to) = (built.join(name), folder.join(name));
            fs::copy(&from, &to)
                .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
        }
    }
    Ok(())
}
