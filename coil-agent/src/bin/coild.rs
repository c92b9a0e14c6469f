//! coild, the node agent of Coil.

use std::process::ExitCode;

use coil_agent::coild;

// Two threads: one may wait for the kernel while the other serves.
fn main() -> ExitCode {
    coil_program::main(2, async { coild::run(coil_program::start()).await })
}
