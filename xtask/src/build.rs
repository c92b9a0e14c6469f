//! Building the programs that the tests and the lab run.

use anyhow::Result;

use crate::{build_ebpf, plugin, run};

/// Builds the eBPF object and all programs, for development; the plugin also as it is installed.
pub(crate) fn all() -> Result<()> {
    build_ebpf::build()?;
    plugin::build()?;
    run::run(run::cargo().args(["build", "--workspace", "--exclude", "coil-ebpf", "--bins"]))
}
