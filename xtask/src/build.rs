//! Building the programs that the tests and the lab run.

use anyhow::Result;

use crate::{build_ebpf, run};

/// Builds the eBPF object and all programs, for development.
pub(crate) fn all() -> Result<()> {
    build_ebpf::build()?;
    run::run(run::cargo().args(["build", "--workspace", "--exclude", "coil-ebpf", "--bins"]))
}
