//! Whether the kernel can do egress by itself: what that takes is made once, in a network namespace that goes at once.
//!
//! Links, tables and expressions the kernel fetches by their names, through the node's own modprobe. Nothing asks it for
//! FOU by name, so that is what usually has to be loaded here ([`modules`]).

pub mod modules;

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use coil_api::gateway::KERNEL_LACKS;
use tracing::{debug, info};

use super::kernel::{nft, plan::Tunnel, tunnel};
use crate::datapath::netlink::generic_family;

/// Addresses to make links and rules with; nothing is sent.
const LOCAL: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];
const REMOTE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2))];
const PORT: u16 = 5555;
const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];

/// Something that egress by the kernel takes, by family where families differ, IPv4 first.
struct Part {
    /// How people call it.
    name: [&'static str; 2],
    /// What has it. Each loads what it depends on.
    modules: [&'static [&'static str]; 2],
    /// Makes it in the calling thread's network namespace; true for IPv6.
    make: fn(bool) -> io::Result<()>,
    /// Cannot be where an earlier part is missing.
    builds_on_others: bool,
}

const NFT: &[&str] = &["nft_chain_nat", "nft_masq", "nft_ct"];

const PARTS: [Part; 4] = [
    Part {
        name: ["FOU", "FOU"],
        modules: [&["fou"], &["fou"]],
        make: |v6| tunnel::add_port(PORT, v6),
        builds_on_others: false,
    },
    Part {
        name: ["ipip", "ip6tnl"],
        modules: [&["ipip"], &["ip6_tunnel"]],
        make: tunnel::add_receiver,
        builds_on_others: false,
    },
    Part {
        name: ["FOU in ipip", "FOU in ip6tnl"],
        modules: [&["fou"], &["fou6"]],
        make: |v6| {
            let of = usize::from(v6);
            // Both families' links are in one namespace.
            let name = ["fou4", "fou6"][of];
            tunnel::add_tunnel(
                name,
                &Tunnel { local: LOCAL[of], remote: REMOTE[of], sport_auto: Some(false) },
                PORT,
            )
        },
        builds_on_others: true,
    },
    Part {
        name: ["masquerading by nftables", "masquerading by nftables"],
        modules: [NFT, NFT],
        make: |v6| nft::ensure(LOCAL[usize::from(v6)], "eth0", None, &nft::Links::default()),
        builds_on_others: false,
    },
];

/// Something that is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Lack {
    v6: bool,
    name: &'static str,
    /// Why its modules were not loaded; none when they were, or nobody tried.
    modules: Option<String>,
}

/// What the kernel has for egress without eBPF.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Support {
    lacks: Vec<Lack>,
    /// Why nothing is known.
    unknown: Option<String>,
}

impl Support {
    /// Makes everything, and loads the modules of what cannot be made.
    #[must_use]
    pub fn with_modules() -> Self {
        // One that is built in is in no list: the others are still to load.
        let each = |module: &&str| modules::load(module).err();
        Self::of(move || by_making(|modules| modules.iter().filter_map(each).next_back().map_or(Ok(()), Err)))
    }

    /// What there is when nothing is loaded. Without FOU nothing else is tried: the kernel would fetch modules that put links
    /// of their own into every new namespace.
    #[must_use]
    pub fn as_it_is() -> Self {
        if let Err(error) = generic_family("fou") {
            debug!(%error, "the kernel has no FOU");
            let lack = |v6| Lack { v6, name: "FOU", modules: None };
            return Self { lacks: [false, true].map(lack).into(), unknown: None };
        }
        Self::of(|| by_making(|_| Ok(())))
    }

    fn of(look: impl FnOnce() -> Vec<Lack> + Send) -> Self {
        match coil_netns::in_new(look) {
            Ok(lacks) => Self { lacks, unknown: None },
            Err(e) => {
                Self { lacks: Vec::new(), unknown: Some(format!("no network namespace to try it in: {e}")) }
            }
        }
    }

    /// What is missing, for people; none when nothing is.
    #[must_use]
    pub fn missing(&self) -> Option<String> {
        if let Some(unknown) = &self.unknown {
            return Some(unknown.clone());
        }
        let mut by_family = Vec::new();
        for (family, v6) in FAMILIES.into_iter().zip([false, true]) {
            let names: Vec<&str> = self.lacks.iter().filter(|l| l.v6 == v6).map(|l| l.name).collect();
            if !names.is_empty() {
                by_family.push(format!("{} for {family}", names.join(" and ")));
            }
        }
        if by_family.is_empty() {
            return None;
        }
        let modules: BTreeSet<&str> = self.lacks.iter().filter_map(|l| l.modules.as_deref()).collect();
        let why: String = modules.into_iter().map(|why| format!("; {why}")).collect();
        Some(format!("{KERNEL_LACKS} {}{why}", by_family.join(", ")))
    }

    /// Why neither family can be served; none when one can, and what the other lacks its pods are told.
    #[must_use]
    pub fn obstacle(&self) -> Option<String> {
        let lacks = |v6| self.lacks.iter().any(|lack| lack.v6 == v6);
        if self.unknown.is_some() || (lacks(false) && lacks(true)) { self.missing() } else { None }
    }
}

/// Makes every part of both families, each at most twice: after its modules were loaded once more.
fn by_making(load: impl Fn(&[&str]) -> Result<(), modules::LoadError>) -> Vec<Lack> {
    let mut lacks = Vec::new();
    for (of, v6) in [false, true].into_iter().enumerate() {
        let mut missing = Vec::new();
        for part in &PARTS {
            if part.builds_on_others && !missing.is_empty() {
                continue;
            }
            let Err(first) = (part.make)(v6) else { continue };
            let loaded = load(part.modules[of]);
            let answer = match (part.make)(v6) {
                Ok(()) => {
                    info!(modules = ?part.modules[of], "loaded for egress by the kernel");
                    continue;
                }
                Err(again) => again,
            };
            debug!(part = part.name[of], family = FAMILIES[of], %first, %answer, "the kernel cannot do it");
            let modules = loaded.err().map(|e| e.to_string());
            missing.push(Lack { v6, name: part.name[of], modules });
        }
        lacks.extend(missing);
    }
    lacks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lack(v6: bool, name: &'static str, modules: Option<&str>) -> Lack {
        Lack { v6, name, modules: modules.map(str::to_owned) }
    }

    #[test]
    fn what_is_missing_is_named_by_family() {
        assert_eq!(Support::default().missing(), None);
        let no_list = Some("cannot read /lib/modules/6.1/modules.dep");
        let lacks = vec![
            lack(false, "FOU", no_list),
            lack(false, "ipip", no_list),
            lack(true, "FOU in ip6tnl", None),
        ];
        let both = Support { lacks, unknown: None };
        let said = "this kernel lacks FOU and ipip for IPv4, FOU in ip6tnl for IPv6; cannot read /lib/modules/6.1/modules.dep";
        assert_eq!(both.missing().as_deref(), Some(said));
        assert_eq!(both.obstacle(), both.missing());
    }

    #[test]
    fn one_family_is_enough_to_begin_with() {
        let support = Support { lacks: vec![lack(true, "ip6tnl", None)], unknown: None };
        assert_eq!(support.missing().as_deref(), Some("this kernel lacks ip6tnl for IPv6"));
        assert_eq!(support.obstacle(), None);
        let unknown = Support { lacks: Vec::new(), unknown: Some("who knows".to_owned()) };
        assert_eq!(
            (unknown.missing(), unknown.obstacle()),
            (Some("who knows".to_owned()), Some("who knows".to_owned()))
        );
    }

    /// Whether other people's tools can do it, in a namespace of its own.
    fn by_tools(command: &str) -> bool {
        let status = coil_netns::in_new(|| {
            std::process::Command::new("sh")
                .args(["-c", command])
                .stderr(std::process::Stdio::null())
                .status()
        });
        status.expect("a network namespace, which needs root").expect("sh runs").success()
    }

    /// On any kernel: this machine's, and those of `cargo xtask vm --only support`, which have the modules and not
    /// loaded them.
    #[test]
    fn the_answer_is_that_of_ip_and_nft() {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let list = format!("/lib/modules/{}/modules.dep", release.trim());
        let listed = std::fs::read_to_string(&list).is_ok_and(|list| list.contains("/fou6.ko"));
        let support = Support::with_modules();
        let said = support.missing().unwrap_or_default();
        let masquerade = "nft add table FAMILY t && nft add chain FAMILY t c '{ type nat hook postrouting priority 100; }' \
            && nft add rule FAMILY t c masquerade";
        for (v6, name, command) in [
            (false, "FOU", "ip fou add port 5555 ipproto 4".to_owned()),
            (true, "FOU", "ip -6 fou add port 5555 ipproto 41".to_owned()),
            (false, "ipip", "ip link add x type ipip external".to_owned()),
            (true, "ip6tnl", "ip link add x type ip6tnl external".to_owned()),
            (false, "masquerading by nftables", masquerade.replace("FAMILY", "ip")),
            (true, "masquerading by nftables", masquerade.replace("FAMILY", "ip6")),
        ] {
            let lacks = support.lacks.iter().any(|lack| lack.v6 == v6 && lack.name == name);
            assert_eq!(lacks, !by_tools(&command), "{command}: {said}");
        }
        if listed {
            assert!(support == Support::default() || said.contains("does not unpack"), "{said}");
        } else if support != Support::default() {
            assert!(said.contains(&list), "{said}");
        }
        let as_it_is = Support::as_it_is();
        assert_eq!(as_it_is.missing().is_none(), said.is_empty(), "{as_it_is:?}");
    }
}
