//! coil-installer on nodes whose folders cannot be written: a clear error, and the old state works as before.
//!
//! ```text
//! mount namespace of the test's own: /…/bin and /…/net.d are small or read-only file systems
//! ```

#![expect(clippy::unwrap_used, reason = "a test: what fails is a failure")]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

const OLD: &str = r#"{"cniVersion":"0.4.0","name":"k8s-pod-network","plugins":[{"type":"coil"}]}"#;
const NEW: &str = r#"{"cniVersion":"1.0.0","name":"k8s-pod-network","plugins":[{"type":"coil"}]}"#;

/// Runs the installer in a mount namespace that `script` has prepared; afterwards the folders are listed, with
/// their contents, on standard output. `$BIN` and `$ETC` are the node's folders, each a small file system.
fn install(script: &str) -> Output {
    let root = tempfile::tempdir().unwrap();
    let dir = |name: &str| {
        let path = root.path().join(name);
        fs::create_dir(&path).unwrap();
        path
    };
    let (bin, etc, image) = (dir("bin"), dir("net.d"), dir("image"));
    fs::write(image.join("coil"), vec![b'n'; 300_000]).unwrap();
    let script = format!(
        r#"
        mount -t tmpfs -o size=400k,mode=0755 none "$BIN"
        mount -t tmpfs -o size=64k,mode=0755 none "$ETC"
        printf old > "$BIN/coil"; printf theirs > "$BIN/ptp"
        printf '%s' '{OLD}' > "$ETC/10-coil.conflist"; printf theirs > "$ETC/50-other.conflist"
        {script}
        "$INSTALLER" --no-wait && echo installed || echo "failed with $?"
        for file in $(ls -A "$BIN"); do echo "bin/$file $(head -c 10 "$BIN/$file")"; done
        for file in $(ls -A "$ETC"); do echo "etc/$file $(head -c 100 "$ETC/$file")"; done
        "#
    );
    Command::new("unshare")
        .args(["--mount", "sh", "-ec", &script])
        .env("INSTALLER", env!("CARGO_BIN_EXE_coil-installer"))
        .env("BIN", &bin)
        .env("ETC", &etc)
        .env("CNI_BIN_DIR", &bin)
        .env("CNI_ETC_DIR", &etc)
        .env("COIL_PATH", Path::new(&image).join("coil"))
        .env("CNI_NETCONF", NEW)
        .output()
        .unwrap()
}

/// What was printed, and what was complained of.
fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// The old state is all there, and nothing else.
fn assert_old(said: &str, complaint: &str) {
    let lines: Vec<&str> = said.lines().collect();
    let (plugin, conf) = ("bin/coil old", format!("etc/10-coil.conflist {OLD}"));
    let expected = ["failed with 1", plugin, "bin/ptp theirs", &conf, "etc/50-other.conflist theirs"];
    assert_eq!(lines, expected, "{complaint}");
}

#[test]
fn a_node_that_can_be_written_gets_the_new_state() {
    let (said, complaint) = texts(&install(""));
    let conf = format!("etc/10-coil.conflist {NEW}");
    for line in ["installed", "bin/coil nnnnnnnnnn", "bin/ptp theirs", &conf, "etc/50-other.conflist theirs"]
    {
        assert!(said.lines().any(|said| said == line), "{line:?} is not in {said}{complaint}");
    }
}

#[test]
fn a_read_only_node() {
    for folder in ["BIN", "ETC"] {
        let output = install(&format!(r#"mount -o remount,ro "${folder}""#));
        let (said, complaint) = texts(&output);
        assert!(complaint.contains("mount the host folder writable"), "{complaint}");
        if folder == "BIN" {
            assert_old(&said, &complaint);
        } else {
            // The plugin comes first; a newer plugin serves the older configuration.
            assert!(said.contains(&format!("etc/10-coil.conflist {OLD}")), "{said}");
            assert!(said.contains("bin/coil nnnnnnnnnn") && said.contains("failed with 1"), "{said}");
        }
    }
}

#[test]
fn a_full_node() {
    let (said, complaint) = texts(&install(
        r#"head -c 200000 /dev/zero > "$BIN/ptp"; printf theirs | dd of="$BIN/ptp" conv=notrunc 2>&1"#,
    ));
    assert!(complaint.contains("free some space on the node, nothing was changed"), "{complaint}");
    assert!(said.contains("bin/coil old") && said.contains("failed with 1"), "{said}");
    assert!(!said.contains("coil-new"), "a temporary file is left: {said}");
    assert!(said.contains(&format!("etc/10-coil.conflist {OLD}")), "{said}");
}
