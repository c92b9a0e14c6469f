//! API servers for tests, two kinds of them behind one door.
//!
//! ```text
//!   test body ──▶ Cluster ──▶ Server ─┬─▶ embedded: coil-apiserver in this process
//!                                     └─▶ real: etcd + kube-apiserver, children of this process,
//!                                               and the stand-in for kube-controller-manager
//! ```
//!
//! A test starts a [`Cluster`] and does not know which kind it got. `cargo test` runs every test
//! on the embedded server; a suite that calls [`again_on_a_real_server`] in a test of its own
//! then runs itself once more on a real one, when `KUBEBUILDER_ASSETS` names a directory with
//! `etcd` and `kube-apiserver`, or `/usr/local/kubebuilder/bin` has them. Which servers are used
//! is said on standard error. `COIL_TEST_API=real` runs chosen tests on the real one alone.
//!
//! Everything is on loopback, keeps its data in a temporary directory, and dies with the test's
//! process.

mod again;
mod assets;
mod cluster;
mod control_plane;
mod process;
mod real;
mod server;
pub mod standin;

pub use again::{again_on_a_real_server, again_on_a_real_server_except};
pub use assets::Assets;
pub use cluster::{Cluster, LIMIT, eventually};
pub use coil_apiserver::User;
pub use control_plane::ControlPlane;
pub use server::{Kind, Options, Server};

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The programs of a real server are not where the environment says.
    #[error("{}/{program} does not exist: put etcd and kube-apiserver there, or unset KUBEBUILDER_ASSETS", dir.display())]
    Assets {
        /// The directory.
        dir: std::path::PathBuf,
        /// The program that it lacks.
        program: &'static str,
    },
    /// No directory with the programs of a real server.
    #[error("no etcd and kube-apiserver: set KUBEBUILDER_ASSETS to a directory that has them")]
    NoAssets,
    /// A file of the control plane could not be written.
    #[error("writing {path}", path = path.display())]
    Write {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A key or certificate could not be made.
    #[error("making the certificate of the API server")]
    Certificate(#[from] rcgen::Error),
    /// A program could not be started or has ended.
    #[error("{program} does not run: {why}")]
    Program {
        /// Its name.
        program: &'static str,
        /// What happened, with the end of its log.
        why: String,
    },
    /// The embedded server did not start.
    #[error(transparent)]
    Embedded(#[from] coil_apiserver::StartError),
    /// Loopback is not usable.
    #[error("taking a port on loopback")]
    Port(#[source] std::io::Error),
    /// The server's kubeconfig does not make a client.
    #[error("connecting to the API server: {0}")]
    Client(String),
}
