//! The files of an image.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// Where the programs are; coil-installer looks for the plugin there.
pub(super) const PROGRAMS_DIR: &str = "usr/local/coil";

/// One file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Folder,
    /// Content and mode.
    File(Vec<u8>, u32),
    Link(&'static str),
}

/// Files by path, without a leading slash; folders come before what is in them.
#[derive(Debug)]
pub(super) struct Rootfs(pub(super) BTreeMap<PathBuf, Entry>);

impl Rootfs {
    /// What programs need beside themselves: mount points, and how names are looked up.
    pub(super) fn new() -> Self {
        let mut rootfs = Self(BTreeMap::new());
        for folder in ["dev", "proc", "run", "sys", "tmp", "var"] {
            rootfs.0.insert(folder.into(), Entry::Folder);
        }
        // Runtimes name network namespaces by /var/run, nodes have them in /run.
        rootfs.0.insert("var/run".into(), Entry::Link("/run"));
        // Without it glibc asks no DNS server.
        rootfs.file("etc/nsswitch.conf", b"hosts: files dns\n".to_vec(), 0o644);
        rootfs
    }

    pub(super) fn file(&mut self, path: impl Into<PathBuf>, content: Vec<u8>, mode: u32) {
        let path = path.into();
        let above = path.ancestors().skip(1).filter(|dir| !dir.as_os_str().is_empty());
        let folders: Vec<PathBuf> = above.map(Path::to_owned).collect();
        self.0.extend(folders.into_iter().map(|dir| (dir, Entry::Folder)));
        self.0.insert(path, Entry::File(content, mode));
    }

    /// Adds a built program.
    pub(super) fn program(&mut self, built: &Path) -> Result<()> {
        let content = fs::read(built).with_context(|| format!("cannot read {}", built.display()))?;
        let name = built.file_name().context("a program without a name")?;
        self.file(Path::new(PROGRAMS_DIR).join(name), content, 0o755);
        Ok(())
    }

    /// Writes the files into a folder.
    pub(super) fn write(&self, dir: &Path) -> Result<()> {
        for (path, entry) in &self.0 {
            let path = dir.join(path);
            let written = match entry {
                Entry::Folder => fs::create_dir_all(&path),
                Entry::Link(target) => symlink(target, &path),
                Entry::File(content, mode) => fs::write(&path, content)
                    .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(*mode))),
            };
            written.with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_come_first_and_nothing_is_a_shell() {
        let mut rootfs = Rootfs::new();
        rootfs.file(Path::new(PROGRAMS_DIR).join("coild"), b"x".to_vec(), 0o755);
        let paths: Vec<_> = rootfs.0.keys().map(|path| path.display().to_string()).collect();
        let at = |path: &str| paths.iter().position(|known| known == path).unwrap();
        assert!(at("usr") < at("usr/local") && at("usr/local/coil") < at("usr/local/coil/coild"));
        assert!(!paths.iter().any(|path| path.starts_with("bin") || path.ends_with("sh")), "{paths:?}");
        let dir = std::env::temp_dir().join(format!("coil-rootfs-{}", std::process::id()));
        rootfs.write(&dir).unwrap();
        assert_eq!(fs::read_link(dir.join("var/run")).unwrap(), Path::new("/run"));
        let mode = fs::metadata(dir.join("usr/local/coil/coild")).unwrap().permissions().mode();
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(mode & 0o777, 0o755);
    }
}
