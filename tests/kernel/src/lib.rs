//! Support for tests of the TC programs in this machine's kernel.
//!
//! Needs root and a mounted bpf file system: what is missing fails a test in one line.

pub mod ear;
mod fabric;
pub mod foreign;
pub mod gate;
mod node;
mod program;
pub mod rules;
pub mod stream;
pub mod traffic;

pub use fabric::{Fabric, Pod};
pub use node::{MARK, Node, desired};
pub use program::{Ran, test_run};

use std::{
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use coil_agent::datapath::{Datapath, DatapathConfig};

/// How long a second agent waits for the first.
const PATIENCE: Duration = Duration::from_millis(300);

/// A directory for pins of one test, removed at the end.
#[derive(Debug)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    /// Makes a directory that no other test has.
    ///
    /// # Errors
    /// Without root or without a bpf file system.
    pub fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        ensure!(
            nix::unistd::geteuid().is_root(),
            "tests of the kernel's side load eBPF programs: run them as root"
        );
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let root = PathBuf::from(format!("/sys/fs/bpf/coil-test-{}-{number}", std::process::id()));
        std::fs::create_dir(&root)
            .with_context(|| format!("cannot make {}: is bpffs mounted on /sys/fs/bpf?", root.display()))?;
        Ok(Self { root })
    }

    /// The configuration of a datapath with these pins.
    #[must_use]
    pub fn config(&self) -> DatapathConfig {
        DatapathConfig { pin_root: self.root.clone(), patience: PATIENCE, entries: vec![] }
    }

    /// Opens a datapath.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn open(&self) -> Result<Datapath> {
        Ok(Datapath::open(&self.config())?)
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        for dir in ["maps", "links", ""] {
            let dir = self.root.join(dir);
            let Ok(entries) = std::fs::read_dir(&dir) else { continue };
            for entry in entries.flatten() {
                let _ = std::fs::remove_file(entry.path());
            }
            let _ = std::fs::remove_dir(&dir);
        }
    }
}
