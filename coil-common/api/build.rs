//! Compiles the plugin's protocol. `protox` parses it, so no `protoc` is needed.

use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto/cni.proto");
    if env::var_os("CARGO_FEATURE_CNI").is_none() {
        return Ok(());
    }
    let files = protox::compile(["proto/cni.proto"], ["proto"])?;
    let descriptor = PathBuf::from(env::var("OUT_DIR")?).join("cni_descriptor.bin");
    fs::write(descriptor, prost::Message::encode_to_vec(&files))?;
    tonic_prost_build::configure().build_transport(false).compile_fds(files)?;
    Ok(())
}
