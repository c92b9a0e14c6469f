//! What can go wrong with the datapath.

use std::{io, path::PathBuf};

/// An operation on the node's datapath failed.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// The kernel is too old.
    #[error(
        "this kernel ({0}) cannot run the eBPF programs: they need Linux 5.10; run coild with --datapath kernel, \
         or update the kernel"
    )]
    OldKernel(String),
    /// The directory of the pins cannot be used.
    #[error("eBPF pins: cannot {action} {}: is a bpf file system mounted there?", path.display())]
    Pins {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The kernel refused the object.
    #[error("eBPF object: cannot load it into the kernel")]
    Load(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The kernel refused a program.
    #[error("eBPF program {name}: cannot {action}")]
    Program {
        /// Its name.
        name: &'static str,
        /// What was tried.
        action: String,
        /// Why it failed.
        source: Box<aya::programs::ProgramError>,
    },
    /// A program's link cannot be kept.
    #[error("eBPF link {}: cannot {action}", path.display())]
    Link {
        /// Its pin.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The embedded object lacks something that this program uses.
    #[error("eBPF object: {0} is missing; rebuild it with `cargo xtask build-ebpf`")]
    Missing(&'static str),
    /// A map operation failed.
    #[error("eBPF map {name}: cannot {action}")]
    Map {
        /// Its name.
        name: &'static str,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: aya::maps::MapError,
    },
    /// Another agent has the datapath.
    #[error(
        "another coild runs on this node and owns its datapath (a lock on {}): stop it first",
        path.display()
    )]
    Owned {
        /// The directory of the pins.
        path: PathBuf,
    },
    /// The links of the node cannot be listed.
    #[error("cannot list the links of this node")]
    Links(#[source] io::Error),
    /// The filters of a link cannot be looked at.
    #[error("cannot look at the filters of {link}")]
    Filters {
        /// Its name.
        link: String,
        /// Why it failed.
        source: io::Error,
    },
    /// Connection tracking cannot be asked.
    #[error("connection tracking: cannot ask the kernel")]
    Conntrack(#[source] io::Error),
    /// There is no link with the index.
    #[error("cannot attach {program} to interface {ifindex} ({owner}): no such interface")]
    NoInterface {
        /// The program.
        program: &'static str,
        /// The interface index.
        ifindex: u32,
        /// The pod or uplink that it belongs to.
        owner: String,
    },
}
