//! A walk through a hash map in steps, many entries a system call: what it costs is bounded, and entries that come and go
//! meanwhile do not send it back to the start, as they do where each key is looked for after the one before.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

use aya::{
    Ebpf, Pod,
    maps::{HashMap, Map, MapData, MapError},
};
use nix::libc;

use super::{
    DatapathError,
    pairs::Store,
    state::{errno, remove},
};

/// `BPF_MAP_LOOKUP_AND_DELETE_ELEM` of `linux/bpf.h`, for hash maps since Linux 5.14 (commit 3e87f192b405).
const LOOKUP_AND_DELETE: libc::c_long = 21;
/// `BPF_MAP_LOOKUP_BATCH` of `linux/bpf.h`, since Linux 5.6.
const LOOKUP_BATCH: libc::c_long = 24;
/// `BPF_NOEXIST`.
const NO_EXIST: u64 = 1;
/// `ENOTSUPP` of the kernel, which has no name outside of it.
const ENOTSUPP: i32 = 524;
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

/// The part of `union bpf_attr` that is for one entry.
#[repr(C)]
struct Element {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// A map, and where a walk through it is.
pub(super) struct Walked<K, V> {
    pub(super) name: &'static str,
    pub(super) map: HashMap<MapData, K, V>,
    /// Most entries.
    pub(super) most: u32,
    walk: Walk,
}

/// Where a walk is.
struct Walk {
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

impl<K: Pod, V: Pod> Walked<K, V> {
    /// Takes a map of the object, to use and to walk through.
    pub(super) fn adopt(ebpf: &mut Ebpf, name: &'static str) -> Result<Self, DatapathError> {
        let map = ebpf.take_map(name).ok_or(DatapathError::Missing(name))?;
        let failed = |source: MapError| DatapathError::Map { name, action: "use it", source };
        let Map::HashMap(data) = &map else { return Err(failed(MapError::InvalidMapType { map_type: 0 })) };
        let fd = data.fd().as_fd().try_clone_to_owned().map_err(|e| failed(MapError::IoError(e)))?;
        let most = data.info().map_err(failed)?.max_entries();
        let walk = Walk { name, fd, at: None, room: ROOM };
        Ok(Self { name, map: HashMap::try_from(map).map_err(failed)?, most, walk })
    }

    /// Begins anew.
    pub(super) const fn restart(&mut self) {
        self.walk.at = None;
    }

    /// The next entries.
    pub(super) fn step(&mut self) -> Result<Step<K, V>, DatapathError> {
        self.walk.step()
    }

    fn failed(&self, action: &'static str) -> impl FnOnce(MapError) -> DatapathError + use<K, V> {
        let name = self.name;
        move |source| DatapathError::Map { name, action, source }
    }
}

impl<K: Pod, V: Pod> Store<K, V> for Walked<K, V> {
    fn look(&self, key: &K) -> Result<Option<V>, DatapathError> {
        match self.map.get(key, 0) {
            Ok(value) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(self.failed("read an entry")(error)),
        }
    }

    fn take(&mut self, key: &K) -> Result<Option<V>, DatapathError> {
        match self.walk.take(key) {
            Err(error)
                if matches!(error.raw_os_error(), Some(ENOTSUPP | libc::EOPNOTSUPP | libc::EINVAL)) =>
            {
                let value = self.look(key)?;
                remove(&mut self.map, key, self.name)?;
                Ok(value)
            }
            Err(error) => Err(self.failed("take an entry")(MapError::IoError(error))),
            Ok(value) => Ok(value),
        }
    }

    fn put_back(&mut self, key: &K, value: &V) -> Result<bool, DatapathError> {
        match self.map.insert(key, value, NO_EXIST) {
            Ok(()) => Ok(true),
            Err(error) if errno(&error) == Some(libc::EEXIST) => Ok(false),
            Err(error) => Err(self.failed("put an entry back")(error)),
        }
    }
}

impl Walk {
    /// The next entries. `K` and `V` are those of the map.
    fn step<K: Pod, V: Pod>(&mut self) -> Result<Step<K, V>, DatapathError> {
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

    /// Removes an entry, whose value is the answer. `K` and `V` are those of the map.
    fn take<K: Pod, V: Pod>(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = MaybeUninit::<V>::uninit();
        let mut element = Element {
            map_fd: self.fd.as_raw_fd().cast_unsigned(),
            pad: 0,
            key: std::ptr::from_ref(key) as u64,
            value: value.as_mut_ptr() as u64,
            flags: 0,
        };
        // SAFETY: the attributes, and all that they point to, outlive the call; the value has room for the map's.
        let code = unsafe {
            libc::syscall(libc::SYS_bpf, LOOKUP_AND_DELETE, &raw mut element, size_of::<Element>())
        };
        if code == 0 {
            // SAFETY: the kernel has written all of it, and any bytes are a value of a `Pod`.
            return Ok(Some(unsafe { value.assume_init() }));
        }
        match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            error => Err(error),
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
