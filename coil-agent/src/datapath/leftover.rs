//! Programs of an earlier agent, on a node that does without: nobody tells them what changes.
//!
//! What they forward past the kernel ends at once. What they keep from leaving without its gateway stays so until
//! somebody else does: taken away at once, they would let clients out under their own addresses.

use std::{
    fs,
    path::{Path, PathBuf},
};

use aya::{
    maps::{Array, Map, MapData, MapError},
    programs::TcAttachType,
};
use coil_packet::abi::Config;
use tracing::warn;

use super::{DatapathConfig, DatapathError, FAST_FLAGS, Removed, cleanup, filter, lock::Lock};

/// They are there, and forward nothing.
pub struct Leftover {
    _lock: Option<Lock>,
    root: PathBuf,
}

impl Leftover {
    /// Looks for programs, and stops what they forward. Without any, what else is left goes at once.
    ///
    /// # Errors
    /// When another agent runs, or the kernel cannot be asked.
    pub fn find(config: &DatapathConfig) -> Result<(Option<Self>, Removed), DatapathError> {
        let root = config.pin_root.clone();
        // Without the directory nobody owns anything.
        let lock = root.exists().then(|| Lock::take(&root, config.patience)).transpose()?;
        if runs(&root)? {
            match stop_forwarding(root.join("maps").join("coil_config")) {
                Ok(()) => return Ok((Some(Self { _lock: lock, root }), Removed::default())),
                // With stale maps they would send packets where no pod is any more.
                Err(error) => {
                    warn!(%error, "programs of an earlier run cannot be told to stop, and go at once");
                }
            }
        }
        cleanup::all(&root).map(|removed| (None, removed))
    }

    /// Takes them off the node.
    ///
    /// # Errors
    /// When something cannot be removed; calling again continues.
    pub fn remove(&self) -> Result<Removed, DatapathError> {
        cleanup::all(&self.root)
    }
}

/// Whether programs are on links.
fn runs(root: &Path) -> Result<bool, DatapathError> {
    if fs::read_dir(root.join("links")).is_ok_and(|mut links| links.next().is_some()) {
        return Ok(true);
    }
    for (link, name) in filter::links().map_err(DatapathError::Links)? {
        for side in [TcAttachType::Ingress, TcAttachType::Egress] {
            let failed = |source| DatapathError::Filters { link: name.clone(), source };
            if filter::program(link, side).map_err(failed)?.is_some() {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn stop_forwarding(pin: PathBuf) -> Result<(), MapError> {
    let map = Map::from_map_data(MapData::from_pin(pin)?)?;
    let mut map: Array<_, Config> = map.try_into()?;
    let config = map.get(&0, 0)?;
    map.set(0, Config { flags: config.flags & !FAST_FLAGS, ..config }, 0)
}
