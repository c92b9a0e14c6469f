//! What the kernel needs for egress without eBPF.

use std::{fs, path::Path, process::Command};

/// Kernel modules of the tunnels and of masquerading, and how people call them.
const MODULES: [(&str, &str); 6] = [
    ("fou", "FOU"),
    ("fou6", "FOU for IPv6"),
    ("ipip", "ipip"),
    ("ip6_tunnel", "ip6tnl"),
    ("nf_tables", "nftables"),
    ("nft_masq", "masquerading of nftables"),
];

/// Loads the modules, as far as they are there. Those that are asked for by name alone the kernel loads itself.
pub fn load() {
    let names = MODULES.map(|(module, _)| module);
    // Without modprobe, or in a kernel that has it all built in, there is nothing to load.
    let _ = Command::new("modprobe").arg("-aq").args(names).status();
}

/// Why egress by the kernel is not possible here; none when it is.
#[must_use]
pub fn missing() -> Option<String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let dir = Path::new("/lib/modules").join(release.trim());
    let lists =
        ["modules.builtin", "modules.dep"].map(|name| fs::read_to_string(dir.join(name)).unwrap_or_default());
    let loaded = |module: &str| Path::new("/sys/module").join(module).exists();
    reason(|module| loaded(module) || lists.iter().any(|list| names(list, module)))
}

fn reason(has: impl Fn(&str) -> bool) -> Option<String> {
    let missing: Vec<&str> =
        MODULES.iter().filter(|(module, _)| !has(module)).map(|(_, name)| *name).collect();
    (!missing.is_empty()).then(|| format!("this kernel lacks {}", missing.join(" and ")))
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
        assert!(reason(|_| false).unwrap().starts_with("this kernel lacks FOU and FOU for IPv6 and ipip"));
        assert_eq!(reason(|module| module != "ipip").as_deref(), Some("this kernel lacks ipip"));
        assert_eq!(reason(|_| true), None);
    }

    #[test]
    fn lists_of_modules() {
        let list = "kernel/net/ipv4/fou.ko.xz: kernel/net/ipv4/udp_tunnel.ko.xz\nkernel/net/ipv4/ipip.ko:\n";
        assert!(names(list, "fou") && names(list, "ipip"));
        assert!(!names(list, "udp_tunnel") && !names(list, "fo"));
    }
}
