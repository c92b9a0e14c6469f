//! As many flows as the tables hold, nearly: how fast they begin, what they take, and what a packet costs beside them.

use std::{
    ops::Range,
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::MapData;
use coil_packet::Reason;
use serde_json::{Value, json};

use crate::{
    egress::Journey,
    place::End,
    traffic::{self, Flows},
};

/// The name of these results.
const SCENARIO: &str = "flows";
/// Flows at the end of each step, and the names of its results. One more finds room at the end.
const STEPS: [(u32, &str, &str); 3] = [
    (10_000, "new_flows_10k", "memory_10k_mib"),
    (100_000, "new_flows_100k", "memory_100k_mib"),
    (999_000, "new_flows_999k", "memory_999k_mib"),
];
/// Maps whose size goes with the flows.
const MAPS: [&str; 2] = ["coil_nat", "coil_nat_rev"];

/// Begins nearly a million flows, each with one small datagram. Everything is in relation to small datagrams of one flow over
/// the bare pair.
pub(crate) fn many(journey: &Journey, bare: &[End; 2], v4: bool, time: Duration) -> Result<Vec<Value>> {
    let reference = traffic::udp(&bare[0], &bare[1], time)?;
    let result = |metric: &str, value: f64, ratio: Option<f64>| {
        let mut result = json!({"scenario": SCENARIO, "path": "ebpf", "metric": metric, "median": value});
        if let Some(ratio) = ratio {
            result["ratio_to_veth"] = json!(ratio);
        }
        result
    };
    let mut results = vec![result("udp_pps", reference, Some(1.0))];
    results[0]["path"] = json!("veth");
    let mut flows = Flows::new(&journey.client, journey.nobody)?;
    let mut begun = 0;
    for (up_to, rate, memory) in STEPS {
        eprintln!("{up_to} flows");
        let taken = begin(journey, &mut flows, begun..up_to)?;
        let each = f64::from(up_to - begun) / taken.as_secs_f64();
        begun = up_to;
        results.push(result(rate, each, Some(each / reference)));
        results.push(result(memory, mebibytes(&journey.maps(), v4)?, None));
    }
    let beside = traffic::udp(&journey.client, &journey.world, time)?;
    results.push(result("udp_pps", beside, Some(beside / reference)));
    Ok(results)
}

/// Begins some flows; the answer is how long that took. Each must have got its port.
fn begin(journey: &Journey, flows: &mut Flows, numbers: Range<u32>) -> Result<Duration> {
    let before = journey.count(Reason::Out)?;
    let wanted = u64::from(numbers.end - numbers.start);
    let taken = flows.begin(&journey.client, numbers)?;
    let begun = journey.count(Reason::Out)? - before;
    ensure!(begun >= wanted, "{begun} of {wanted} flows have begun: {}", journey.drops()?);
    Ok(taken)
}

/// What the translations take, as the kernel accounts for it.
fn mebibytes(maps: &Path, v4: bool) -> Result<f64> {
    let mut bytes = 0;
    for name in MAPS {
        let name = format!("{name}{}", if v4 { 4 } else { 6 });
        let map = MapData::from_pin(maps.join(&name)).with_context(|| format!("cannot open {name}"))?;
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd()))?;
        let line = info.lines().find_map(|line| line.strip_prefix("memlock:"));
        let size: u64 = line.context("the kernel does not say what a map takes")?.trim().parse()?;
        bytes += size;
    }
    Ok(bytes as f64 / f64::from(1 << 20))
}
