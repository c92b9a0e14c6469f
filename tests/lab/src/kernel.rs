//! What of this kernel egress by the kernel alone needs.

use std::process::Command;

use anyhow::{Context as _, Result};

/// What is needed, and an `ip` command that succeeds where it is there.
const NEEDED: [(&str, &str); 4] = [
    ("FOU", "fou add port 5555 ipproto 4"),
    ("FOU over IPv6", "fou add port 5555 ipproto 41 -6"),
    ("ipip", "link add probe4 type ipip external"),
    ("ip6tnl", "link add probe6 type ip6tnl external"),
];

/// What the kernel lacks, in words; none when a client's packets can leave by FOU. Tried in a namespace of its own, with
/// which all of it goes.
///
/// # Errors
/// When there is no such namespace, or no `ip`.
pub fn lacks() -> Result<Option<String>> {
    // No kernel asks for these by name; coild loads them, where it is told to leave everything to the kernel. Where they are
    // built in, or not at all, this fails.
    for module in ["fou", "fou6"] {
        let _ = Command::new("modprobe").args(["--quiet", module]).status();
    }
    let tried = coil_netns::in_new(|| -> Result<Vec<&str>> {
        let mut lacks = Vec::new();
        for (what, words) in NEEDED {
            let output = Command::new("ip").args(words.split(' ')).output();
            if !output.context("cannot run ip (package iproute2)")?.status.success() {
                lacks.push(what);
            }
        }
        Ok(lacks)
    });
    let lacks = tried.context("cannot make a network namespace")??;
    Ok(if lacks.is_empty() { None } else { Some(lacks.join(", ")) })
}
