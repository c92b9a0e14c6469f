//! A walk through a hash map in steps, many entries a system call: what it costs is bounded, and entries that come and go
//! meanwhile do not send it back to the start, as they do where each key is looked for after the one before.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

use aya::{
    Ebpf, Pod,
    maps::{HashMap, Map, MapData, MapError},
};
use nix::libc;

use super::DatapathError;

/// `BPF_MAP_LOOKUP_BATCH` of `linux/bpf.h`, since Linux 5.6.
const LOOKUP_BATCH: libc::c_long = 24;
/// Entries of one call. All of a bucket must fit; then it grows.
const ROOM: u32 = 4096;
const MOST_ROOM: u32 = 1 << 20;

/// The part of `union bpf_attr` that is for batches.
#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Where a walk through one map is.
pub(super) struct Walk {
    name: &'static str,
    fd: OwnedFd,
    at: Option<u32>,
    room: u32,
}

/// A part of a map's entries.
pub(super) struct Step<K, V> {
    pub(super) entries: Vec<(K, V)>,
    /// The map has no more: the next step begins anew.
    pub(super) last: bool,
}

/// Takes a map of the object, to use and to walk through.
pub(super) fn take<K: Pod, V: Pod>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<(HashMap<MapData, K, V>, Walk), DatapathError> {
    let map = ebpf.take_map(name).ok_or(DatapathError::Missing(name))?;
    let failed = |source: MapError| DatapathError::Map { name, action: "use it", source };
    let fd = match &map {
        Map::HashMap(data) => data.fd().as_fd().try_clone_to_owned().map_err(MapError::IoError),
        _ => Err(MapError::InvalidMapType { map_type: 0 }),
    };
    let walk = Walk { name, fd: fd.map_err(failed)?, at: None, room: ROOM };
    Ok((HashMap::try_from(map).map_err(failed)?, walk))
}

impl Walk {
    /// Begins anew.
    pub(super) const fn restart(&mut self) {
        self.at = None;
    }

    /// The next entries. `K` and `V` are those of the map.
    pub(super) fn step<K: Pod, V: Pod>(&mut self) -> Result<Step<K, V>, DatapathError> {
        loop {
            match self.call() {
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && self.room < MOST_ROOM => {
                    self.room *= 2;
                }
                Err(error) => {
                    let source = MapError::IoError(error);
                    return Err(DatapathError::Map { name: self.name, action: "read a part of it", source });
                }
                Ok(step) => return Ok(step),
            }
        }
    }

    fn call<K: Pod, V: Pod>(&mut self) -> io::Result<Step<K, V>> {
        let room = self.room as usize;
        let mut keys: Vec<K> = Vec::with_capacity(room);
        let mut values: Vec<V> = Vec::with_capacity(room);
        let (before, mut after) = (self.at.unwrap_or_default(), 0_u32);
        let mut batch = Batch {
            in_batch: if self.at.is_some() { (&raw const before) as u64 } else { 0 },
            out_batch: (&raw mut after) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: self.room,
            map_fd: self.fd.as_raw_fd().cast_unsigned(),
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: the attributes, and all that they point to, outlive the call; keys and values have room for as many
        // entries as `count` says.
        let code = unsafe { libc::syscall(libc::SYS_bpf, LOOKUP_BATCH, &raw mut batch, size_of::<Batch>()) };
        // What ends the map is an error that comes with entries.
        let error = (code != 0).then(io::Error::last_os_error);
        let last = error.as_ref().is_some_and(|error| error.raw_os_error() == Some(libc::ENOENT));
        if let Some(error) = error.filter(|_| !last) {
            return Err(error);
        }
        let count = (batch.count as usize).min(room);
        // SAFETY: the kernel has written so many of each, and any bytes are a value of a `Pod`.
        unsafe {
            keys.set_len(count);
            values.set_len(count);
        }
        self.at = if last { None } else { Some(after) };
        Ok(Step { entries: keys.into_iter().zip(values).collect(), last })
    }
}
