//! A suite, once more on a real server.

use std::io::Write as _;
use std::process::Command;

use crate::Assets;
use crate::server::VARIABLE;

/// Runs the tests of this program again, on a real API server when one is there; says on
/// standard error when none is. To be called by a test of the suite.
///
/// Real servers are heavy: two tests run at a time.
///
/// # Panics
///
/// When a test fails on the real server, or the environment names one that is not there.
pub fn again_on_a_real_server() {
    again_on_a_real_server_except(&[]);
}

/// As [`again_on_a_real_server`], without tests that a real server cannot run: their names, and
/// why. What is left out is said on standard error.
///
/// # Panics
///
/// As [`again_on_a_real_server`].
pub fn again_on_a_real_server_except(left_out: &[(&str, &str)]) {
    if std::env::var_os(VARIABLE).is_some() {
        // Somebody chose the server for all tests of this run, this one's child included.
        return;
    }
    let assets = match Assets::find() {
        Ok(Some(assets)) => assets,
        Ok(None) => {
            let hint = "set KUBEBUILDER_ASSETS to test on a real kube-apiserver as well";
            let _ = writeln!(std::io::stderr(), "API servers: the embedded one alone; {hint}");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let _ =
        writeln!(std::io::stderr(), "API servers: the embedded one and that of {}", assets.dir().display());
    for (name, why) in left_out {
        let _ = writeln!(std::io::stderr(), "not on the real API server: {name}: {why}");
    }
    let program = std::env::current_exe().expect("the running program has a path");
    let done = Command::new(program)
        .env(VARIABLE, "real")
        .args(["--test-threads", "2"])
        .args(left_out.iter().flat_map(|(name, _)| ["--skip", *name]))
        .output()
        .expect("the running program can be run again");
    let output = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "on the real API server:\n{output}");
    let summary = output.lines().find(|line| line.starts_with("test result")).unwrap_or_default();
    let _ = writeln!(std::io::stderr(), "on the real API server: {summary}");
}
