//! File operations that either happen whole or not at all.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

/// An operation on a file failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}{}", path.display(), hint(source))]
pub struct FileError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "; is the host folder mounted there?",
        io::ErrorKind::ReadOnlyFilesystem => "; mount the host folder writable",
        io::ErrorKind::StorageFull => "; free some space on the node, nothing was changed",
        _ => "",
    }
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> FileError + 'a {
    move |source| FileError { action, path: path.to_owned(), source }
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    fs::read(path).map_err(failed("read", path))
}

pub(super) fn read_text(path: &Path) -> Result<String, FileError> {
    fs::read_to_string(path).map_err(failed("read", path))
}

pub(super) fn remove(path: &Path) -> Result<(), FileError> {
    fs::remove_file(path).map_err(failed("remove", path))
}

/// A file's permissions.
pub(super) fn mode(path: &Path) -> Result<u32, FileError> {
    let metadata = fs::metadata(path).map_err(failed("look at", path))?;
    Ok(metadata.permissions().mode() & 0o777)
}

/// Makes a folder and those above it, unless they are there.
pub(super) fn make_folder(path: &Path) -> Result<(), FileError> {
    fs::create_dir_all(path).map_err(failed("make the folder", path))
}

pub(super) fn list(dir: &Path) -> Result<Vec<PathBuf>, FileError> {
    let entries = fs::read_dir(dir).map_err(failed("list", dir))?;
    let mut paths = entries
        .map(|entry| entry.map(|e| e.path()))
        .collect::<io::Result<Vec<_>>>()
        .map_err(failed("list", dir))?;
    paths.sort();
    Ok(paths)
}

/// Writes the file unless it is already so. Says whether it wrote.
///
/// A reader sees the old file or the new one. The temporary name begins with a dot and has no
/// extension, so no runtime takes it for a configuration, and a failed try leaves none behind.
pub(super) fn replace(path: &Path, content: &[u8], mode: u32) -> Result<bool, FileError> {
    if is_already(path, content, mode) {
        return Ok(false);
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{}-new", name.replace('.', "-")));
    let done = write(&temporary, content, mode)
        .and_then(|()| fs::rename(&temporary, path))
        .and_then(|()| path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all()))
        .map_err(failed("install", path));
    if done.is_err() {
        // Best effort: it may never have been made.
        let _ = fs::remove_file(&temporary);
    }
    done.map(|()| true)
}

fn is_already(path: &Path, content: &[u8], mode: u32) -> bool {
    let same_mode = fs::symlink_metadata(path).is_ok_and(|m| {
        m.is_file() && m.permissions().mode() & 0o7777 == mode && m.len() == content.len() as u64
    });
    same_mode && fs::read(path).is_ok_and(|old| old == content)
}

fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?;
    // Whatever the umask is, and whatever a file left by a crash had.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(content)?;
    file.sync_all()
}
