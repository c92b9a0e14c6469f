//! What routing rules look at is what the programs ask with. The fabric is that of `tests/journey.rs`.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use coil_kernel_tests::{Fabric, Pod};
use coil_packet::Reason;

/// Whether the pod on the other node answers an echo request with this type of service.
fn answers(fabric: &Fabric, tos: &str) -> Result<bool> {
    let to = fabric.address(Pod::Remote).to_string();
    let output = fabric.inside(Pod::Plain, || {
        Command::new("ping").args(["-c", "2", "-i", "0.2", "-W", "1", "-Q", tos, &to]).output()
    })?;
    Ok(output.context("cannot run ping (package iputils-ping)")?.status.success())
}

fn by_type_of_service(v4: bool) -> Result<()> {
    let fabric = Fabric::new(v4)?;
    ensure!(answers(&fabric, "0x10")? && answers(&fabric, "0")?, "the start");
    ensure!(fabric.count(Reason::ToNode) > 0, "nothing is fast\n{}", fabric.counters());
    let family = if v4 { "-4" } else { "-6" };
    fabric.ip_on(0, &format!("{family} rule add dsfield 0x10 pref 100 unreachable"))?;
    ensure!(!answers(&fabric, "0x10")?, "a packet passed the rule by\n{}", fabric.counters());
    ensure!(answers(&fabric, "0")?, "the rule is for others\n{}", fabric.counters());
    fabric.ip_on(0, &format!("{family} rule del dsfield 0x10 pref 100 unreachable"))?;
    ensure!(answers(&fabric, "0x10")?, "the rule is gone\n{}", fabric.counters());
    Ok(())
}

#[test]
fn rules_by_type_of_service_hold() -> Result<()> {
    by_type_of_service(true)?;
    by_type_of_service(false)
}
