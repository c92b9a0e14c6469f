//! A dropped packet is told of, with what it was.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use coil_kernel_tests::{Node, Pins};
use coil_packet::Reason;

const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn drops_are_told_of() -> Result<()> {
    let pins = Pins::new()?;
    Node::run(&pins, |node| {
        for (v4, source) in [(true, "10.64.0."), (false, "[fd64::")] {
            let cases = coil_cases::all();
            let dropped =
                |case: &&coil_cases::Case| case.reason == Reason::NoGateway && case.net.is_v4() == v4;
            let case = cases.iter().find(dropped).context("a case without a gateway")?;
            let end = Instant::now() + PATIENCE;
            // Those of the last moment are not told of: there is a pace.
            let told = loop {
                node.case(case)?;
                let told = node.datapath()?.dropped();
                if let Some(told) = told.last() {
                    break *told;
                }
                ensure!(Instant::now() < end, "{}: nothing is told", case.name);
            };
            ensure!((told.path, told.reason) == (case.path, case.reason), "{told}");
            ensure!(told.ifindex == case.ingress && told.bytes as usize == case.frame.len(), "{told}");
            ensure!(told.source.to_string().starts_with(source), "{told}");
        }
        Ok(())
    })
}
