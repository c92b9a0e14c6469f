//! BIRD, configured by the very pieces of the documentation; the lab adds the neighbours.

use std::{fmt::Write as _, path::PathBuf};

use anyhow::{Context as _, Result};

use crate::config::{CONTROL, Ip, Options, WORLD};

/// What users read, too.
const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/routing.md");
/// The piece that takes a node's blocks out of table 119.
const BLOCKS: &str = "bird blocks";
/// The piece that speaks BGP.
const BGP: &str = "bird bgp";
/// The autonomous system of that piece.
const AS: u32 = 64512;
/// Sessions come up at once: the lab's neighbours start together, and nobody else's patience is at stake.
const HASTE: &str = "connect delay time 1; connect retry time 1; error wait time 1,2;";

/// The program.
pub(super) fn program() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into()]);
    let found = dirs.map(|dir| dir.join("bird")).find(|file| file.is_file());
    found.context("there is no bird: install Debian's bird2, or start the lab without --routing bird")
}

/// The configuration of one member.
pub(super) fn config(options: &Options, member: &str, host: u8) -> Result<String> {
    let docs = std::fs::read_to_string(DOCS).with_context(|| format!("cannot read {DOCS}"))?;
    let piece = |name: &str| piece(&docs, name).with_context(|| format!("{DOCS} has no piece `{name}`"));
    // A router id is a number that is written as an IPv4 address, whatever the cluster speaks.
    let mut config = format!("log stderr all;\nrouter id {};\n\n", Ip::V4.lan(host).addr());
    if member != WORLD && member != CONTROL {
        config += &piece(BLOCKS)?;
    }
    config += &piece(BGP)?;
    for (neighbour, number) in options.members().into_iter().filter(|(name, _)| name != member) {
        for ip in options.family.each() {
            let (family, channel) = match ip {
                Ip::V4 => ("4", "ipv4"),
                Ip::V6 => ("6", "ipv6"),
            };
            // A provider's edge takes no private addresses from its customers.
            let import = match member {
                WORLD => format!(" {channel} {{ import where net ~ [{}+]; }};", ip.routable()),
                _ => String::new(),
            };
            let _ = writeln!(
                config,
                "protocol bgp {neighbour}_v{family} from coil_peer{family} {{\n    \
                 neighbor {} as {AS}; {HASTE}{import}\n}}",
                ip.lan(number).addr()
            );
        }
    }
    Ok(config)
}

/// A fenced piece of a document, by what is written behind the fence.
fn piece(docs: &str, name: &str) -> Option<String> {
    let (_, rest) = docs.split_once(&format!("\n```{name}\n"))?;
    let (piece, _) = rest.split_once("\n```")?;
    Some(format!("{piece}\n\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_use_the_pieces_of_the_documentation_word_for_word() {
        let docs = std::fs::read_to_string(DOCS).unwrap();
        let options = Options::named("x");
        let node = config(&options, "node1", 1).unwrap();
        for name in [BLOCKS, BGP] {
            let piece = piece(&docs, name).unwrap();
            assert!(piece.lines().count() > 20, "{piece}");
            assert!(node.contains(&piece), "{name} is not in {node}");
        }
        assert!(node.contains("neighbor fd00:18::2 as 64512"), "{node}");
        let world = config(&options, WORLD, 254).unwrap();
        assert!(!world.contains("krt_source") && world.contains("net ~ [203.0.113.0/24+]"), "{world}");
        assert_eq!(piece("\n```bird blocks\na\nb\n```\n", BLOCKS).unwrap(), "a\nb\n\n");
    }
}
