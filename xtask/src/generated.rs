//! Generated files: what is there is compared with what should be.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// The texts of all files below a folder, by their path in it.
pub(crate) fn read(dir: &Path) -> Result<BTreeMap<PathBuf, String>> {
    let mut files = BTreeMap::new();
    collect(dir, Path::new(""), &mut files)?;
    Ok(files)
}

fn collect(root: &Path, below: &Path, files: &mut BTreeMap<PathBuf, String>) -> Result<()> {
    let dir = root.join(below);
    for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            collect(root, &path, files)?;
        } else {
            let file = root.join(&path);
            let text =
                fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            files.insert(path, text);
        }
    }
    Ok(())
}

/// Removes a folder with all that is in it, if it is there.
pub(crate) fn clear(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}
