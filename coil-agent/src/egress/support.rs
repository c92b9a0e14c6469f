//! What the kernel would need for egress without eBPF.

use std::{fs, path::Path};

/// Kernel modules of the tunnels, and how people call them.
const MODULES: [(&str, &str); 2] = [("fou", "FOU"), ("ipip", "ipip")];

/// Why a node without the eBPF datapath serves no Egress.
#[must_use]
pub fn without_ebpf() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let dir = Path::new("/lib/modules").join(release.trim());
    let lists =
        ["modules.builtin", "modules.dep"].map(|name| fs::read_to_string(dir.join(name)).unwrap_or_default());
    let loaded = |module: &str| Path::new("/sys/module").join(module).exists();
    reason(|module| loaded(module) || lists.iter().any(|list| names(list, module)))
}

fn reason(has: impl Fn(&str) -> bool) -> String {
    let missing: Vec<&str> =
        MODULES.iter().filter(|(module, _)| !has(module)).map(|(_, name)| *name).collect();
    let mut reason = "egress without eBPF is not in this version of Coil".to_owned();
    if !missing.is_empty() {
        reason = format!("{reason}, and this kernel lacks {}", missing.join(" and "));
    }
    reason
}

/// Whether a list of the kernel's modules names one, as `kernel/net/ipv4/fou.ko.xz: …`.
fn names(list: &str, module: &str) -> bool {
    list.lines().any(|line| {
        let file = line.split(':').next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
        file.split('.').next().is_some_and(|name| name.replace('-', "_") == module)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        assert!(reason(|_| false).ends_with("this kernel lacks FOU and ipip"));
        assert!(reason(|module| module == "fou").ends_with("lacks ipip"));
        assert!(!reason(|_| true).contains("lacks"));
    }

    #[test]
    fn lists_of_modules() {
        let list = "kernel/net/ipv4/fou.ko.xz: kernel/net/ipv4/udp_tunnel.ko.xz\nkernel/net/ipv4/ipip.ko:\n";
        assert!(names(list, "fou") && names(list, "ipip"));
        assert!(!names(list, "udp_tunnel") && !names(list, "fo"));
    }
}
