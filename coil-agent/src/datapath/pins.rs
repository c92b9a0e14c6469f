//! The directory of the pins.

use std::{fs, io, path::Path};

use aya::maps::{Map, MapData, MapInfo};
use aya_obj::Object;

use super::{DatapathError, OBJECT, PINNED_MAPS, log, outgrown::Outgrown};

/// Maps of flows, and the map that says whether flows may be fast.
const FLOWS: [&str; 4] = ["coil_flows4", "coil_flows6", "coil_datagrams4", "coil_datagrams6"];
const CONFIG: &str = "coil_config";

/// Makes the directory, and removes pins of maps whose layout is not the object's: an upgrade that
/// changes a layout begins with an empty map, which the agent fills again. `entries`: sizes that are other than the
/// object's. The answer is maps that have the wrong size alone, and what is worth keeping.
pub(super) fn prepare(dir: &Path, entries: &[(&'static str, u32)]) -> Result<Outgrown, DatapathError> {
    fs::create_dir_all(dir).map_err(|source| DatapathError::Pins {
        action: "make",
        path: dir.to_owned(),
        source,
    })?;
    let object = Object::parse(OBJECT).map_err(|error| DatapathError::Load(Box::new(error)))?;
    let mut outgrown = Outgrown::default();
    for name in PINNED_MAPS {
        let wanted = object.maps.get(name).ok_or(DatapathError::Missing(name))?;
        let path = dir.join(name);
        let Ok(there) = MapInfo::from_pin(&path) else { continue };
        let size = entries.iter().find(|(of, _)| *of == name).map_or(wanted.max_entries(), |(_, size)| *size);
        let same = there.map_type().is_ok_and(|t| t as u32 == wanted.map_type())
            && there.key_size() == wanted.key_size()
            && there.value_size() == wanted.value_size();
        if !same || there.max_entries() != size {
            let by = wanted.value_size().checked_sub(there.value_size());
            let widens = there.key_size() == wanted.key_size()
                && there.map_type().is_ok_and(|t| t as u32 == wanted.map_type())
                && by.is_some_and(|by| Outgrown::widens(name, by));
            if same && Outgrown::moves(name) || widens {
                let failed = |source| DatapathError::Map { name, action: "open the one of before", source };
                outgrown.keep(name, MapData::from_pin(&path).and_then(Map::from_map_data).map_err(failed)?);
            }
            remove_file(&path)?;
            // Flows that are forgotten may be the kernel's. Programs of before keep the configuration that they have;
            // in the new one nothing is fast until the kernel's flows are marked again.
            if FLOWS.contains(&name) {
                match fs::remove_file(dir.join(CONFIG)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        let path = dir.join(CONFIG);
                        return Err(DatapathError::Pins { action: "remove", path, source: error });
                    }
                    _ => {}
                }
            }
        }
    }
    Ok(outgrown)
}

/// Removes pins of maps that no program of this version has: an earlier version's, whose programs run no more.
pub(super) fn remove_others(dir: &Path) -> Result<usize, DatapathError> {
    let failed = |source| DatapathError::Pins { action: "read", path: dir.to_owned(), source };
    let mut removed = 0;
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if PINNED_MAPS.iter().chain([&log::LEVEL]).all(|name| entry.file_name() != *name) {
            remove_file(&entry.path())?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// Removes the directory with all pins.
pub(super) fn remove(root: &Path) -> Result<(), DatapathError> {
    for dir in [root.join("maps"), root.join("links"), root.to_owned()] {
        let failed = |action| {
            let path = dir.clone();
            move |source| DatapathError::Pins { action, path, source }
        };
        let entries = match fs::read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries.map_err(failed("read"))?,
        };
        for entry in entries {
            let path = entry.map_err(failed("read"))?.path();
            if !path.is_dir() {
                remove_file(&path)?;
            }
        }
        fs::remove_dir(&dir).map_err(failed("remove"))?;
    }
    Ok(())
}

fn remove_file(path: &Path) -> Result<(), DatapathError> {
    fs::remove_file(path).map_err(|source| DatapathError::Pins {
        action: "remove",
        path: path.to_owned(),
        source,
    })
}
