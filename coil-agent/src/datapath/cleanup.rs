//! Taking everything of the datapath off the node.

use std::{collections::BTreeSet, fs, path::Path};

use aya::programs::TcAttachType;

use super::{
    DatapathConfig, DatapathError,
    attach::{self, Program},
    filter,
    lock::Lock,
    pins,
};

/// What was found and removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Pinned links of programs.
    pub links: usize,
    /// Filters with programs.
    pub filters: usize,
    /// Qdiscs that held nothing but these filters.
    pub qdiscs: usize,
    /// Pinned maps.
    pub maps: usize,
}

/// Detaches every program of this network namespace, and removes every pin, whichever agent left them: the node is
/// as if the datapath had never been. Does nothing when there is nothing.
///
/// # Errors
/// When another agent runs, or something cannot be removed; calling again continues.
pub fn cleanup(config: &DatapathConfig) -> Result<Removed, DatapathError> {
    // Without the directory nobody owns anything: no agent runs with programs.
    let root = &config.pin_root;
    let _lock = root.exists().then(|| Lock::take(root, config.patience)).transpose()?;
    all(root)
}

/// The same for the owner of the lock.
pub(super) fn all(root: &Path) -> Result<Removed, DatapathError> {
    let mut removed = Removed::default();
    let links = filter::links().map_err(DatapathError::Links)?;
    let mut ours = BTreeSet::new();
    // What takes packets goes before what marks those of the kernel.
    for side in [TcAttachType::Ingress, TcAttachType::Egress] {
        removed.links += attach::unpin_all(&root.join("links"), side)?;
        for (ifindex, name) in &links {
            let failed = |source| DatapathError::Filters { link: name.clone(), source };
            if filter::program(*ifindex, side).map_err(failed)?.is_none() {
                continue;
            }
            filter::detach(name, side).map_err(|source| DatapathError::Program {
                name: Program::anywhere_on(side),
                action: format!("detach it from {name}"),
                source: Box::new(source),
            })?;
            removed.filters += 1;
            ours.insert((*ifindex, name));
        }
    }
    for (ifindex, name) in ours {
        let failed = |source| DatapathError::Filters { link: name.clone(), source };
        removed.qdiscs += usize::from(filter::leave(ifindex).map_err(failed)?);
    }
    removed.maps = fs::read_dir(root.join("maps")).map_or(0, Iterator::count);
    pins::remove(root)?;
    Ok(removed)
}
