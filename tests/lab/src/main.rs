//! `coil-lab`: a Coil cluster in network namespaces.

fn main() -> std::process::ExitCode {
    coil_lab::main()
}
