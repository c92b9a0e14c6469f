//! The rounds, and what comes of them.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::{
    egress::{self, Journey},
    flows,
    place::{self, By, Cluster, End},
    traffic,
};

type Measure = fn(&End, &End, Duration) -> Result<f64>;

const METRICS: [(&str, Measure); 5] = [
    ("udp_pps", traffic::udp),
    ("tcp_gbps", traffic::stream),
    ("tcp_nogso_gbps", traffic::stream_of_packets),
    ("tcp_rr", traffic::requests),
    ("tcp_crr", traffic::connections),
];

/// Name of a path, and who forwards on it.
const PATHS: [(&str, By); 3] =
    [("kernel", By::Kernel), ("kernel+services", By::KernelWithServices), ("ebpf", By::Ebpf)];

/// The same for egress.
const EGRESS_PATHS: [(&str, egress::By); 4] = [
    ("kernel-no-tunnel", egress::By::KernelWithoutTunnel),
    ("kernel-fou-direct", egress::By::KernelFouDirect),
    (FOU, egress::By::KernelFou),
    ("ebpf", egress::By::Ebpf),
];

/// The path that egress is compared with where it was measured.
const FOU: &str = "kernel-fou";

/// Values, and their ratios to the bare pair of the same round.
type Series = (Vec<f64>, Vec<f64>);

/// What is measured: all of what no name is in the list of.
pub(crate) struct Chosen<'a> {
    pub(crate) metrics: &'a [String],
    pub(crate) paths: &'a [String],
}

fn holds(list: &[String], name: &str) -> bool {
    list.is_empty() || list.iter().any(|chosen| chosen == name)
}

/// By scenario, path and metric.
#[derive(Default)]
struct Found(BTreeMap<(&'static str, &'static str, &'static str), Series>);

impl Found {
    fn note(&mut self, of: (&'static str, &'static str, &'static str), value: f64, reference: f64) {
        let (values, ratios) = self.0.entry(of).or_default();
        values.push(value);
        ratios.push(value / reference);
    }

    fn lines(&self) -> Vec<Value> {
        let line = |(&(scenario, path, metric), (values, ratios)): (&(&str, &str, &str), &Series)| {
            let mut line = json!({"scenario": scenario, "path": path, "metric": metric,
                "median": median(values.clone()), "ratio_to_veth": median(ratios.clone())});
            if let Some((fou, _)) = self.0.get(&(scenario, FOU, metric)) {
                let ratios = values.iter().zip(fou).map(|(value, fou)| value / fou).collect();
                line["ratio_to_kernel_fou"] = json!(median(ratios));
            }
            line
        };
        self.0.iter().map(line).collect()
    }
}

/// Measures from pod to pod; the answer is one result a line.
pub(crate) fn pods(rounds: u32, time: Duration, v4: bool, chosen: &Chosen<'_>) -> Result<Vec<Value>> {
    let bare = place::bare(v4)?;
    let mut clusters = vec![];
    for (number, (path, by)) in PATHS.into_iter().enumerate().filter(|(_, (p, _))| holds(chosen.paths, p)) {
        clusters.push((path, Cluster::new(&number.to_string(), by, v4)?));
    }
    let mut found = Found::default();
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        for (metric, measure) in METRICS.into_iter().filter(|(metric, _)| holds(chosen.metrics, metric)) {
            let reference = reference(metric, measure, &bare, time)?;
            for (scenario, to) in [("same-node", 1), ("two-nodes", 2)] {
                found.note((scenario, "veth", metric), reference, reference);
                for (path, cluster) in &clusters {
                    let before = cluster.fast()?;
                    let value = measure(&cluster.pods[0], &cluster.pods[to], time)?;
                    found.note((scenario, path, metric), value, reference);
                    ensure!(
                        *path != "ebpf" || cluster.fast()? > before + 100,
                        "{scenario} {metric}: the eBPF path was not taken"
                    );
                }
            }
        }
    }
    Ok(found.lines())
}

/// Measures from a client through a gateway to the world; with the kernel's FOU only when `fou`, for which it needs
/// its modules, and beside a million flows when `flows`.
pub(crate) fn egress(
    rounds: u32,
    time: Duration,
    v4: bool,
    fou: bool,
    flows: bool,
    chosen: &Chosen<'_>,
) -> Result<Vec<Value>> {
    const SCENARIO: &str = "egress";
    let bare = place::bare(v4)?;
    let mut journeys = vec![];
    for (number, (path, by)) in EGRESS_PATHS.into_iter().enumerate() {
        if holds(chosen.paths, path) && (!by.fou() || fou) {
            journeys.push((path, Journey::new(&number.to_string(), by, v4)?));
        }
    }
    let mut found = Found::default();
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        for (metric, measure) in METRICS.into_iter().filter(|(metric, _)| holds(chosen.metrics, metric)) {
            let reference = reference(metric, measure, &bare, time)?;
            found.note((SCENARIO, "veth", metric), reference, reference);
            for (path, journey) in &journeys {
                let before = journey.fast()?;
                let value = measure(&journey.client, &journey.world, time)?;
                found.note((SCENARIO, path, metric), value, reference);
                ensure!(
                    *path != "ebpf" || journey.fast()? > before + 20,
                    "{metric}: the eBPF path was not taken"
                );
            }
        }
    }
    let mut lines = found.lines();
    if flows {
        let journey = Journey::new("flows", egress::By::Ebpf, v4)?;
        lines.extend(flows::many(&journey, &bare, v4, time)?);
    }
    Ok(lines)
}

/// What a bare pair does.
fn reference(metric: &str, measure: Measure, bare: &[End; 2], time: Duration) -> Result<f64> {
    let reference = measure(&bare[0], &bare[1], time)?;
    ensure!(reference > 0.0, "nothing arrives over a bare pair: {metric}");
    Ok(reference)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match values.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => values[half],
        _ => f64::midpoint(values[half - 1], values[half]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert!((median(vec![3.0, 1.0, 100.0]) - 3.0).abs() < 1e-9);
        assert!((median(vec![4.0, 1.0, 2.0, 100.0]) - 3.0).abs() < 1e-9);
    }

    #[test]
    fn each_round_is_compared_with_fou_in_the_same_round() {
        let mut found = Found::default();
        for (fou, ebpf) in [(10.0, 30.0), (100.0, 200.0), (1000.0, 4000.0)] {
            found.note(("egress", FOU, "udp_pps"), fou, fou);
            found.note(("egress", "ebpf", "udp_pps"), ebpf, fou);
        }
        let ratio = |path: &str| {
            found.lines().into_iter().find(|line| line["path"] == path).unwrap()["ratio_to_kernel_fou"]
                .clone()
        };
        assert_eq!((ratio("ebpf"), ratio(FOU)), (json!(3.0), json!(1.0)));
        let mut found = Found::default();
        found.note(("egress", "ebpf", "udp_pps"), 1.0, 1.0);
        assert!(found.lines()[0].get("ratio_to_kernel_fou").is_none(), "it was not measured");
    }
}
