//! What an upgrade finds in maps of another size: it moves into the new maps.
//!
//! A map that is pinned with another number of entries than the object wants gives way to a new one. The programs of
//! before go on with the old map until they are replaced, so what it holds is moved twice: at the start, and once more
//! when none of them runs any longer. Translations and gateways of flows move, so that no flow of a client breaks; the
//! flow tables do not, for the kernel knows what they must not forget (`Datapath::mark_connections`). A map whose entries
//! have another layout is begun anew: a layout that changes gets a new name.

use std::collections::BTreeMap;

use aya::{
    Pod,
    maps::{HashMap, Map, MapData},
};

use super::{DatapathError, state::errno};

/// `BPF_NOEXIST`.
const NO_EXIST: u64 = 1;

/// Maps that were there, by name.
#[derive(Default)]
pub(super) struct Outgrown(BTreeMap<&'static str, Map>);

impl Outgrown {
    /// True for a map whose entries move.
    pub(super) fn moves(name: &str) -> bool {
        ["coil_nat", "coil_pin", "coil_lent", "coil_returned"].iter().any(|moved| name.starts_with(moved))
    }

    pub(super) fn keep(&mut self, name: &'static str, map: Map) {
        self.0.insert(name, map);
    }

    /// Adds to `new` what the old map of that name holds and it does not. What finds no room is left behind. Returns
    /// how many entries moved.
    pub(super) fn move_to<K: Pod, V: Pod>(
        &self,
        name: &'static str,
        new: &mut HashMap<MapData, K, V>,
    ) -> Result<usize, DatapathError> {
        let Some(old) = self.0.get(name) else { return Ok(0) };
        let failed = |action| move |source| DatapathError::Map { name, action, source };
        let old: HashMap<_, K, V> = old.try_into().map_err(failed("use the one of before"))?;
        let mut moved = 0;
        for entry in old.iter() {
            let (key, value) = entry.map_err(failed("read the one of before"))?;
            match new.insert(key, value, NO_EXIST) {
                Ok(()) => moved += 1,
                Err(error) if errno(&error) == Some(nix::libc::EEXIST) => {}
                Err(error) if errno(&error) == Some(nix::libc::E2BIG) => break,
                Err(source) => return Err(failed("move an entry to it")(source)),
            }
        }
        Ok(moved)
    }
}
