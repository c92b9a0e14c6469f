//! The UNIX socket that the plugin finds coild by.

use std::{
    fs, io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::PermissionsExt as _,
    },
    path::{Path, PathBuf},
};

use tokio::net::UnixListener;

/// The socket cannot be made or used.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve the plugin on {}: {action}", path.display())]
pub struct SocketError {
    path: PathBuf,
    action: &'static str,
    source: io::Error,
}

/// Makes the socket, for root alone. It takes the place of one that an earlier run left.
///
/// # Errors
/// When the directory cannot be written.
pub fn listen(path: &Path) -> Result<UnixListener, SocketError> {
    let failed = |action| move |source| SocketError { path: path.to_owned(), action, source };
    // Under another name until it has its mode.
    let mut hidden = path.as_os_str().to_owned();
    hidden.push(".new");
    let hidden = PathBuf::from(hidden);
    match fs::remove_file(&hidden) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("remove a stale socket")(e)),
        _ => {}
    }
    let listener = UnixListener::bind(&hidden).map_err(failed("listen"))?;
    fs::set_permissions(&hidden, fs::Permissions::from_mode(0o600)).map_err(failed("set its mode"))?;
    fs::rename(&hidden, path).map_err(failed("put it in its place"))?;
    Ok(listener)
}

/// Keeps the socket there when its listener is gone: who connects then waits until this process has ended.
/// The plugin removes a pod alone where nobody listens, and may not do so while requests still run here.
///
/// # Errors
/// When there are no more descriptors to have.
pub fn hold(listener: &UnixListener) -> io::Result<OwnedFd> {
    listener.as_fd().try_clone_to_owned()
}
