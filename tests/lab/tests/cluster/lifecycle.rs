//! Labs end, however they end, and leave nothing.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::Path,
    process::{Child, Command},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use coil_lab::Remains;

use crate::common::{LIMIT, check, coil_lab, forget_logs, idle_pod, name, program, start, wait_ready};

fn state(name: &str) -> std::path::PathBuf {
    Path::new("/run/coil-lab").join(name)
}

/// A demo that has come as far as having pods.
fn demo_with_pods(name: &str) -> Result<Child> {
    let mut demo = coil_lab(&["demo", "--name", name]).spawn().context("cannot start the demo")?;
    let mut printed = BufReader::new(demo.stdout.take().context("the demo has no output")?);
    let mut line = String::new();
    while !line.contains("An Egress, and a pod") {
        line.clear();
        let count = printed.read_line(&mut line).context("cannot read what the demo prints")?;
        check(count > 0, || "the demo ended too early".into())?;
    }
    // Nobody reads on: the demo must not wait for that.
    std::thread::spawn(move || printed.read_to_end(&mut Vec::new()));
    Ok(demo)
}

fn signal(pid: u32, signal: &str) -> Result<()> {
    let sent = Command::new("kill").args([signal, &pid.to_string()]).status().context("cannot run kill")?;
    check(sent.success(), || format!("kill {signal} {pid}: {sent}"))
}

#[test]
fn down_leaves_nothing() -> Result<()> {
    let name = name("down");
    let up = coil_lab(&["up", "--name", &name, "--nodes", "2"]).output()?;
    let printed = String::from_utf8_lossy(&up.stdout);
    check(up.status.success(), || format!("{printed}{}", String::from_utf8_lossy(&up.stderr)))?;
    let kubeconfig = coil_lab(&["kubeconfig", "--name", &name]).output()?;
    let kubeconfig = String::from_utf8(kubeconfig.stdout)?.trim().to_owned();
    check(Path::new(&kubeconfig).exists(), || format!("there is no {kubeconfig:?}"))?;

    // While it runs, the name is taken.
    let again = coil_lab(&["up", "--name", &name]).output()?;
    let complaint = String::from_utf8_lossy(&again.stderr).into_owned();
    check(!again.status.success() && complaint.contains("is running"), || complaint)?;
    let status = coil_lab(&["status", "--name", &name]).output()?;
    let shown = String::from_utf8_lossy(&status.stdout).into_owned();
    check(status.status.success() && shown.contains("node2"), || shown)?;

    let remains = Remains::of_lab(&name)?;
    check(!remains.left()?.is_empty(), || {
        "a running lab holds nothing: the test looks at the wrong things".into()
    })?;
    let down = coil_lab(&["down", "--name", &name]).output()?;
    check(down.status.success(), || String::from_utf8_lossy(&down.stderr).into_owned())?;
    let left = remains.left()?;
    check(left.is_empty(), || left.join("\n"))?;
    let again = coil_lab(&["down", "--name", &name]).output()?;
    check(again.status.success(), || String::from_utf8_lossy(&again.stderr).into_owned())?;
    forget_logs(&name)
}

#[test]
fn a_killed_owner_leaves_nothing() -> Result<()> {
    let name = name("killed");
    let mut demo = demo_with_pods(&name)?;
    let remains = Remains::of_lab(&name)?;
    demo.kill().context("cannot kill the demo")?; // SIGKILL: it can do nothing itself
    demo.wait()?;
    remains.wait_until_gone()?;
    check(!state(&name).exists(), || "the state directory is there".into())?;
    forget_logs(&name)
}

#[test]
fn an_interrupted_demo_ends_its_lab_first() -> Result<()> {
    let name = name("interrupted");
    let mut demo = demo_with_pods(&name)?;
    let remains = Remains::of_lab(&name)?;
    signal(demo.id(), "-INT")?;
    let status = demo.wait()?;
    check(status.code() == Some(130), || format!("{status}, signal {:?}", status.signal()))?;
    check(!state(&name).exists(), || "the prompt was back before the lab was gone".into())?;
    remains.wait_until_gone()?;
    forget_logs(&name)
}

#[test]
fn a_crashed_lab_is_taken_over() -> Result<()> {
    let lab = start("crashed")?;
    let name = lab.options().name.clone();
    lab.apply(&idle_pod("default", "p", "node1", ""))?;
    wait_ready(&lab, "default", &["p"])?;
    let remains = Remains::of_lab(&name)?;
    signal(lab.keeper_pid(), "-KILL")?;
    drop(lab);
    // All but the directory goes with the keeper.
    let until = Instant::now() + LIMIT;
    loop {
        let left = remains.left()?;
        if left.iter().all(|line| line.starts_with("directory")) {
            break;
        }
        check(Instant::now() < until, || left.join("\n"))?;
        std::thread::sleep(Duration::from_millis(50));
    }
    check(state(&name).exists(), || {
        "a killed keeper cleans up nothing: the test killed something else".into()
    })?;
    let up = coil_lab(&["up", "--name", &name, "--nodes", "1", "--family", "v4"]).output()?;
    let printed = String::from_utf8_lossy(&up.stdout).into_owned();
    check(up.status.success() && printed.contains("taking over"), || {
        format!("{printed}{}", String::from_utf8_lossy(&up.stderr))
    })?;
    let down = coil_lab(&["down", "--name", &name]).output()?;
    check(down.status.success(), || String::from_utf8_lossy(&down.stderr).into_owned())?;
    forget_logs(&name)
}

/// Somebody else than root is told so in one line.
#[test]
fn not_root() -> Result<()> {
    const NOBODY: u32 = 65534;
    // Where the program was built, nobody may read it.
    let dir = tempfile::tempdir()?;
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let copy = dir.path().join("coil-lab");
    std::fs::copy(program(), &copy)?;
    for words in [&["up"][..], &["demo"], &["down"], &["world", "--", "true"]] {
        let output = Command::new(&copy).args(words).uid(NOBODY).gid(NOBODY).output()?;
        let complaint = String::from_utf8(output.stderr)?;
        check(!output.status.success() && output.stdout.is_empty(), || {
            format!("{words:?}: {}", output.status)
        })?;
        check(complaint.lines().count() == 1 && complaint.contains("root"), || {
            format!("{words:?}: {complaint:?}")
        })?;
    }
    Ok(())
}

#[test]
fn wrong_names_and_places_are_explained() -> Result<()> {
    for (words, wanted) in [
        (&["up", "--name", "Not_A_Name"][..], "cannot be a lab's name"),
        (&["kubeconfig", "--name", "no-such-lab"], "no lab \"no-such-lab\" is running"),
        (&["exec", "--name", "no-such-lab", "pod", "--", "true"], "write NAMESPACE/POD"),
    ] {
        let output = coil_lab(words).output()?;
        let complaint = String::from_utf8(output.stderr)?;
        check(!output.status.success() && complaint.contains(wanted), || format!("{words:?}: {complaint}"))?;
    }
    Ok(())
}
