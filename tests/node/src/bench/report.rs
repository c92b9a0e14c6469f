//! Numbers of the times.

use std::{fmt::Write as _, time::Duration};

use serde::Serialize;

use crate::measure::{CROWD, Measured};

/// One line of the results.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Outcome {
    pub(crate) scenario: String,
    pub(crate) subject: &'static str,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    /// ADD and DEL: p50 by ptp's p50. A crowd: pods a second by those of ptp, one after the other.
    pub(crate) ratio_to_ptp: f64,
}

pub(crate) fn results(measured: &Measured) -> Vec<Outcome> {
    let Measured { coil, ptp } = measured;
    let mut results = Vec::new();
    for (scenario, ours, theirs) in [
        ("add-v4", &coil.v4.add, &ptp.v4.add),
        ("del-v4", &coil.v4.del, &ptp.v4.del),
        ("add-dual", &coil.dual.add, &ptp.dual.add),
        ("del-dual", &coil.dual.del, &ptp.dual.del),
    ] {
        for (subject, times) in [("coil", ours), ("ptp", theirs)] {
            let ratio = quantile(times, 50) / quantile(theirs, 50);
            results.push(outcome(scenario.to_owned(), subject, times, ratio));
        }
    }
    let serial = 1e3 / quantile(&ptp.v4.add, 50);
    for (subject, of) in [("coil", coil), ("ptp", ptp)] {
        let ratio = per_second(&of.crowds) / serial;
        results.push(outcome(format!("add-v4-{CROWD}-at-once"), subject, &of.crowd, ratio));
    }
    results
}

fn outcome(scenario: String, subject: &'static str, times: &[Duration], ratio: f64) -> Outcome {
    let round = |n: f64| (n * 100.0).round() / 100.0;
    Outcome {
        scenario,
        subject,
        p50_ms: round(quantile(times, 50)),
        p99_ms: round(quantile(times, 99)),
        ratio_to_ptp: round(ratio),
    }
}

/// Pods a second in the middle one of the crowds.
fn per_second(crowds: &[Duration]) -> f64 {
    f64::from(u32::try_from(CROWD).unwrap_or(u32::MAX)) * 1e3 / quantile(crowds, 50)
}

/// A quantile in milliseconds: the smallest time that so many percent do not exceed.
fn quantile(times: &[Duration], percent: usize) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let place = (sorted.len() * percent).div_ceil(100).max(1) - 1;
    sorted.get(place).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
}

pub(crate) fn table(results: &[Outcome], measured: &Measured) -> String {
    let mut text = String::from(
        "| scenario | subject | p50 ms | p99 ms | ratio to ptp |\n| --- | --- | ---: | ---: | ---: |\n",
    );
    for r in results {
        let _ = writeln!(
            text,
            "| {} | {} | {:.2} | {:.2} | {:.2} |",
            r.scenario, r.subject, r.p50_ms, r.p99_ms, r.ratio_to_ptp
        );
    }
    let find = |scenario: &str| results.iter().find(|r| r.scenario == scenario && r.subject == "coil");
    let value = |scenario: &str, of: fn(&Outcome) -> f64| find(scenario).map_or(f64::NAN, of);
    let dual = value("add-dual", |r| r.p50_ms) / value("add-v4", |r| r.p50_ms);
    let crowd = format!("add-v4-{CROWD}-at-once");
    let _ = writeln!(text);
    for (what, ratio, holds) in [
        (
            "ADD, p50 by ptp's: at most 0.5",
            value("add-v4", |r| r.ratio_to_ptp),
            value("add-v4", |r| r.ratio_to_ptp) <= 0.5,
        ),
        (
            "DEL, p50 by ptp's: at most 0.5",
            value("del-v4", |r| r.ratio_to_ptp),
            value("del-v4", |r| r.ratio_to_ptp) <= 0.5,
        ),
        ("ADD, dual stack by IPv4: at most 1.3", dual, dual <= 1.3),
        (
            "ADD, 50 at once, pods a second by ptp's in turn: at least 5",
            value(&crowd, |r| r.ratio_to_ptp),
            value(&crowd, |r| r.ratio_to_ptp) >= 5.0,
        ),
    ] {
        let _ = writeln!(text, "{what}: {ratio:.2}, {}", if holds { "reached" } else { "not reached" });
    }
    let _ = writeln!(
        text,
        "pods a second, {CROWD} at once: coil {:.0}, ptp {:.0}",
        per_second(&measured.coil.crowds),
        per_second(&measured.ptp.crowds)
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::{Subject, Times};

    #[test]
    fn quantiles() {
        let times: Vec<Duration> = (1..=100).rev().map(Duration::from_millis).collect();
        assert!((quantile(&times, 50) - 50.0).abs() < 1e-9);
        assert!((quantile(&times, 99) - 99.0).abs() < 1e-9);
        assert!((quantile(&times[..1], 99) - 100.0).abs() < 1e-9);
        assert!(quantile(&[], 50).is_nan());
    }

    #[test]
    fn ratios() {
        let subject = |ms: u64, crowd: u64| {
            let some = vec![Duration::from_millis(ms)];
            let times = Times { add: some.clone(), del: some };
            Subject {
                v4: times.clone(),
                dual: times,
                crowd: vec![],
                crowds: vec![Duration::from_millis(crowd)],
            }
        };
        let measured = Measured { coil: subject(2, 100), ptp: subject(8, 400) };
        let results = results(&measured);
        let ratio = |scenario: &str, subject: &str| {
            let found = results.iter().find(|r| r.scenario == scenario && r.subject == subject);
            found.unwrap().ratio_to_ptp
        };
        assert!((ratio("add-v4", "coil") - 0.25).abs() < 1e-9);
        assert!((ratio("del-dual", "ptp") - 1.0).abs() < 1e-9);
        // 500 pods a second by 125.
        assert!((ratio("add-v4-50-at-once", "coil") - 4.0).abs() < 1e-9);
        assert!(table(&results, &measured).contains("ADD, p50 by ptp's: at most 0.5: 0.25, reached"));
    }
}
