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
const EGRESS_PATHS: [(&str, egress::By); 3] = [
    ("kernel-no-tunnel", egress::By::KernelWithoutTunnel),
    ("kernel-fou", egress::By::KernelFou),
    ("ebpf", egress::By::Ebpf),
];

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

    fn lines(self) -> Vec<Value> {
        let line = |((scenario, path, metric), (values, ratios)): ((&str, &str, &str), Series)| {
            json!({"scenario": scenario, "path": path, "metric": metric,
                "median": median(values), "ratio_to_veth": median(ratios)})
        };
        self.0.into_iter().map(line).collect()
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
        if holds(chosen.paths, path) && (by != egress::By::KernelFou || fou) {
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
    if fou {
        add_ratios(&mut lines);
    }
    if flows {
        let journey = Journey::new("flows", egress::By::Ebpf, v4)?;
        lines.extend(flows::many(&journey, &bare, v4, time)?);
    }
    Ok(lines)
}

/// Adds the ratio of each median to that of the kernel's FOU.
fn add_ratios(lines: &mut [Value]) {
    let of_fou: Vec<(Value, f64)> = lines
        .iter()
        .filter(|line| line["path"] == "kernel-fou")
        .filter_map(|line| Some((line["metric"].clone(), line["median"].as_f64()?)))
        .collect();
    for line in lines {
        let fou = of_fou.iter().find(|(metric, _)| *metric == line["metric"]);
        if let (Some((_, fou)), Some(median)) = (fou, line["median"].as_f64()) {
            line["ratio_to_kernel_fou"] = json!(median / fou);
        }
    }
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
    fn medians_are_compared_with_those_of_fou() {
        let line = |path: &str, median: f64| json!({"path": path, "metric": "udp_pps", "median": median});
        let mut lines = vec![line("ebpf", 30.0), line("kernel-fou", 10.0)];
        add_ratios(&mut lines);
        assert_eq!(
            (&lines[0]["ratio_to_kernel_fou"], &lines[1]["ratio_to_kernel_fou"]),
            (&json!(3.0), &json!(1.0))
        );
    }
}
