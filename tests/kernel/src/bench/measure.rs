//! The rounds, and what comes of them.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::{
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

/// Measures everything that is chosen; the answer is one result a line.
pub(crate) fn all(rounds: u32, time: Duration, v4: bool, chosen: &Chosen<'_>) -> Result<Vec<Value>> {
    let bare = place::bare(v4)?;
    let mut clusters = vec![];
    for (number, (path, by)) in PATHS.into_iter().enumerate().filter(|(_, (p, _))| holds(chosen.paths, p)) {
        clusters.push((path, Cluster::new(&number.to_string(), by, v4)?));
    }
    // By scenario, path and metric.
    let mut found: BTreeMap<_, Series> = BTreeMap::new();
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        for (metric, measure) in METRICS.into_iter().filter(|(metric, _)| holds(chosen.metrics, metric)) {
            let reference = measure(&bare[0], &bare[1], time)?;
            ensure!(reference > 0.0, "nothing arrives over a bare pair: {metric}");
            let mut note = |scenario, path, value: f64| {
                let (values, ratios) = found.entry((scenario, path, metric)).or_default();
                values.push(value);
                ratios.push(value / reference);
            };
            for (scenario, to) in [("same-node", 1), ("two-nodes", 2)] {
                note(scenario, "veth", reference);
                for (path, cluster) in &clusters {
                    let before = cluster.fast()?;
                    note(scenario, path, measure(&cluster.pods[0], &cluster.pods[to], time)?);
                    ensure!(
                        *path != "ebpf" || cluster.fast()? > before + 100,
                        "{scenario} {metric}: the eBPF path was not taken"
                    );
                }
            }
        }
    }
    Ok(found
        .into_iter()
        .map(|((scenario, path, metric), (values, ratios))| {
            json!({"scenario": scenario, "path": path, "metric": metric,
                "median": median(values), "ratio_to_veth": median(ratios)})
        })
        .collect())
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
    use super::median;

    #[test]
    fn the_median_is_in_the_middle() {
        assert!((median(vec![3.0, 1.0, 100.0]) - 3.0).abs() < 1e-9);
        assert!((median(vec![4.0, 1.0, 2.0, 100.0]) - 3.0).abs() < 1e-9);
    }
}
