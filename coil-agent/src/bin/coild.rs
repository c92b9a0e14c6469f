//! coild, the node agent of Coil.

use std::process::ExitCode;

use coil_agent::coild;

// Two threads: one may wait for the kernel while the other serves.
#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    coil_program::end(coild::run(coil_program::start()).await)
}
