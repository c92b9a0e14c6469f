//! Where the programs of a real server are.

use std::path::{Path, PathBuf};

use crate::Error;

/// The variable that names the directory, as for the tests of other controllers.
const VARIABLE: &str = "KUBEBUILDER_ASSETS";
/// Where they are without it.
const DEFAULT: &str = "/usr/local/kubebuilder/bin";

/// A directory with `etcd` and `kube-apiserver`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assets(PathBuf);

impl Assets {
    /// The programs, when they are there.
    ///
    /// # Errors
    ///
    /// When the environment names a directory that lacks one: nobody asks for a real server
    /// and means to get none.
    pub fn find() -> Result<Option<Self>, Error> {
        let named = std::env::var_os(VARIABLE).filter(|dir| !dir.is_empty()).map(PathBuf::from);
        let asked = named.is_some();
        let assets = Self(named.unwrap_or_else(|| DEFAULT.into()));
        match assets.missing() {
            None => Ok(Some(assets)),
            Some(program) if asked => Err(Error::Assets { dir: assets.0, program }),
            Some(_) => Ok(None),
        }
    }

    fn missing(&self) -> Option<&'static str> {
        ["etcd", "kube-apiserver"].into_iter().find(|program| !self.0.join(program).is_file())
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.0
    }

    /// The path of `etcd`.
    #[must_use]
    pub fn etcd(&self) -> PathBuf {
        self.0.join("etcd")
    }

    /// The path of `kube-apiserver`.
    #[must_use]
    pub fn api_server(&self) -> PathBuf {
        self.0.join("kube-apiserver")
    }
}
