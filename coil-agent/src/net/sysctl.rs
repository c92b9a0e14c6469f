//! Settings under `/proc/sys/net`, of the calling thread's network namespace.

use std::{fs, path::Path, sync::LazyLock};

use super::rtnl::RtnlError;

/// Where the settings are written. `/proc/sys` of a container without every privilege is read-only, so coild's
/// manifest mounts the node's at another place; both are views of the calling thread's namespace.
static ROOT: LazyLock<&Path> = LazyLock::new(|| {
    let mounted = Path::new("/host/proc/sys/net");
    if mounted.is_dir() { mounted } else { Path::new("/proc/sys/net") }
});

/// Writes a setting, unless it has the value: a read-only `/proc/sys` that is right needs no change.
///
/// # Errors
/// When it cannot be written; the message names the setting.
pub(crate) fn set(key: &str, value: &str) -> Result<(), RtnlError> {
    let path = format!("{}/{key}", ROOT.display());
    if fs::read_to_string(&path).is_ok_and(|now| same(&now, value)) {
        return Ok(());
    }
    fs::write(&path, value).map_err(|e| RtnlError::new(format!("set {path} to {value}"), e))
}

/// Whether this namespace has IPv6 at all.
pub(super) fn has_ipv6() -> bool {
    fs::metadata("/proc/sys/net/ipv6").is_ok()
}

fn same(now: &str, value: &str) -> bool {
    now.split_whitespace().eq(value.split_whitespace())
}
