//! The programs pass the verifier, and their maps are readable.

use anyhow::{Context as _, Result};
use coil_agent::datapath::PINNED_MAPS;
use coil_kernel_tests::Pins;

#[test]
fn the_kernel_takes_the_programs() -> Result<()> {
    let pins = Pins::new()?;
    let datapath = pins.open().map_err(|error| {
        let mut text = format!("{error}");
        let mut source = std::error::Error::source(error.root_cause()).or(Some(error.as_ref()));
        while let Some(s) = source {
            text += &format!("\n  {s:?}");
            source = s.source();
        }
        anyhow::anyhow!(text)
    })?;
    for name in PINNED_MAPS {
        let pin = pins.config().pin_root.join("maps").join(name);
        std::fs::metadata(&pin).with_context(|| format!("{name} is not pinned"))?;
    }
    drop(datapath);
    Ok(())
}
