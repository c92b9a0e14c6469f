//! Results of paths beside one another: as a table, as bars, as JSON, and in docs/performance.md.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::run;

/// What a bench compares.
pub(super) struct Sheet {
    /// As in `cargo xtask bench VERB`.
    pub(super) verb: &'static str,
    pub(super) scenarios: &'static [Scenario],
    /// A path's name, its heading, and its colour among the bars; the bare pair has none.
    pub(super) paths: &'static [(&'static str, &'static str, Option<&'static str>)],
}

/// A part of the table.
pub(super) struct Scenario {
    pub(super) name: &'static str,
    /// What the table calls it.
    pub(super) title: &'static str,
    pub(super) metrics: &'static [Metric],
}

/// A metric's name, what it is in the table, and its unit.
type Metric = (&'static str, &'static str, &'static str);

/// What is sent between two ends.
pub(super) const TRAFFIC: &[Metric] = &[
    ("udp_pps", "UDP, 18 bytes", "packets/s"),
    ("tcp_gbps", "TCP stream", "Gbit/s"),
    ("tcp_nogso_gbps", "TCP stream, no GSO", "Gbit/s"),
    ("tcp_rr", "TCP requests", "1/s"),
    ("tcp_crr", "TCP connections", "1/s"),
];

/// One result.
pub(super) struct Found {
    scenario: String,
    path: String,
    metric: String,
    median: f64,
    /// To a bare veth pair, where that means something.
    ratio: Option<f64>,
    /// To the kernel's FOU, where that was measured.
    ratio_to_fou: Option<f64>,
}

/// Reads the lines of a bench program.
pub(super) fn parse(text: &str) -> Result<Vec<Found>> {
    let found = text.lines().map(parse_line).collect::<Result<Vec<_>>>()?;
    ensure!(!found.is_empty(), "nothing was measured");
    Ok(found)
}

fn parse_line(line: &str) -> Result<Found> {
    let value: Value = serde_json::from_str(line).with_context(|| format!("{line:?} is no result"))?;
    let text = |key: &str| value[key].as_str().map(str::to_owned);
    let found = (text("scenario"), text("path"), text("metric"), value["median"].as_f64());
    let (Some(scenario), Some(path), Some(metric), Some(median)) = found else {
        bail!("{line:?} has not all of scenario, path, metric and median");
    };
    let ratio = |key: &str| value[key].as_f64();
    let (ratio, ratio_to_fou) = (ratio("ratio_to_veth"), ratio("ratio_to_kernel_fou"));
    Ok(Found { scenario, path, metric, median, ratio, ratio_to_fou })
}

/// Writes the results as JSON.
fn write_json(file: &Path, found: &[Found]) -> Result<()> {
    let text = serde_json::to_string_pretty(&document(found))? + "\n";
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

fn document(found: &[Found]) -> Value {
    let one = |f: &Found| {
        let mut one = json!({"scenario": f.scenario, "path": f.path, "metric": f.metric, "median": f.median});
        for (key, ratio) in [("ratio_to_veth", f.ratio), ("ratio_to_kernel_fou", f.ratio_to_fou)] {
            if let Some(ratio) = ratio {
                one[key] = json!(ratio);
            }
        }
        one
    };
    json!({"results": found.iter().map(one).collect::<Vec<_>>()})
}

/// The path that everything is compared with.
const BARE: &str = "veth";

fn find<'a>(found: &'a [Found], scenario: &str, path: &str, metric: &str) -> Option<&'a Found> {
    found.iter().find(|f| f.scenario == scenario && f.path == path && f.metric == metric)
}

/// A number with as many digits as say something.
fn short(value: f64) -> String {
    if value >= 1000.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

impl Sheet {
    /// The metrics that were measured, each with its scenario.
    fn lines(&self, found: &[Found]) -> Vec<(&'static Scenario, &'static Metric)> {
        let all = self.scenarios.iter().flat_map(|s| s.metrics.iter().map(move |m| (s, m)));
        all.filter(|(s, m)| found.iter().any(|f| f.scenario == s.name && f.metric == m.0)).collect()
    }

    /// Shows what was found, and writes it to `file` and, with `docs`, into the page there: `how` it was measured.
    pub(super) fn publish(&self, found: &[Found], file: Option<&Path>, docs: Option<&str>) -> Result<()> {
        print!("{}", self.table(found));
        if let Some(file) = file {
            write_json(file, found)?;
        }
        docs.map_or(Ok(()), |how| self.write_docs(how, found))
    }

    /// The paths that were measured, in the order of the table.
    fn measured(&self, found: &[Found]) -> Vec<(&'static str, &'static str, Option<&'static str>)> {
        self.paths.iter().copied().filter(|(path, ..)| found.iter().any(|f| f.path == *path)).collect()
    }

    /// One line for each metric of each scenario.
    fn table(&self, found: &[Found]) -> String {
        let paths = self.measured(found);
        let mut text = String::from("| | ");
        let mut line = String::from("| --- | --- |");
        for (_, heading, _) in &paths {
            let _ = write!(text, "| {heading} ");
            line += " ---: |";
        }
        let with_fou = found.iter().any(|f| f.ratio_to_fou.is_some());
        if with_fou {
            text += "| eBPF by kernel FOU ";
            line += " ---: |";
        }
        text += "| CPU a packet, eBPF |\n";
        line += " ---: |\n";
        text += &line;
        for (scenario, (metric, what, unit)) in self.lines(found) {
            let _ = write!(text, "| {} | {what}, {unit} ", scenario.title);
            for (path, ..) in &paths {
                let cell = find(found, scenario.name, path, metric);
                let _ = match cell.map(|f| (short(f.median), f.ratio)) {
                    Some((median, Some(ratio))) if *path != BARE => write!(text, "| {median} ({ratio:.2}) "),
                    Some((median, _)) => write!(text, "| {median} "),
                    None => write!(text, "| "),
                };
            }
            let ebpf = find(found, scenario.name, "ebpf", metric);
            if with_fou {
                let ratio = ebpf.and_then(|f| f.ratio_to_fou).map(|ratio| format!("{ratio:.1} "));
                let _ = write!(text, "| {}", ratio.unwrap_or_default());
            }
            // One core does nothing else.
            let _ = match ebpf.filter(|_| *metric == "udp_pps") {
                Some(f) => writeln!(text, "| {:.0} ns |", 1e9 / f.median),
                None => writeln!(text, "| |"),
            };
        }
        text
    }

    /// Bars of the ratios to a bare veth pair.
    fn plot(&self, found: &[Found]) -> String {
        const LEFT: u32 = 190;
        const TOP: u32 = 40;
        const BAR: u32 = 12;
        const FULL: f64 = 400.0;
        let bars: Vec<(&str, &str)> =
            self.measured(found).into_iter().filter_map(|(path, _, colour)| Some((path, colour?))).collect();
        let has_bar = |f: &Found| f.ratio.is_some() && bars.iter().any(|(path, _)| f.path == *path);
        let mut groups = self.lines(found);
        groups.retain(|(s, m)| found.iter().any(|f| has_bar(f) && f.scenario == s.name && f.metric == m.0));
        let count = |n: usize| u32::try_from(n).unwrap_or(0);
        let step = BAR * count(bars.len()) + 10;
        let height = TOP + step * count(groups.len()) + 10;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"680\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        );
        for (n, (path, colour)) in (0u32..).zip(&bars) {
            let x = LEFT + n * 140;
            let _ = writeln!(
                svg,
                "<rect x=\"{x}\" y=\"10\" width=\"12\" height=\"12\" fill=\"{colour}\"/><text x=\"{}\" y=\"20\">{path}</text>",
                x + 16
            );
        }
        for tick in [0.0, 0.25, 0.5, 0.75, 1.0] {
            let x = f64::from(LEFT) + tick * FULL;
            let _ = writeln!(
                svg,
                "<line x1=\"{x}\" y1=\"{TOP}\" x2=\"{x}\" y2=\"{height}\" stroke=\"#ddd\"/><text x=\"{x}\" y=\"{}\" text-anchor=\"middle\" fill=\"#888\">{tick}</text>",
                TOP - 3
            );
        }
        for (n, (scenario, (metric, what, _))) in (0u32..).zip(groups) {
            let y = TOP + 5 + n * step;
            let _ = writeln!(
                svg,
                "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}: {what}</text>",
                LEFT - 6,
                y + BAR * 2,
                scenario.title
            );
            for (k, (path, colour)) in (0u32..).zip(&bars) {
                let of = find(found, scenario.name, path, metric);
                let Some(ratio) = of.and_then(|f| f.ratio) else { continue };
                let (width, y) = (ratio.clamp(0.0, 1.15) * FULL, y + k * BAR);
                let _ = writeln!(
                    svg,
                    "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{width:.1}\" height=\"{}\" fill=\"{colour}\"/><text x=\"{:.1}\" y=\"{}\" font-size=\"9\">{:.2}</text>",
                    BAR - 1,
                    f64::from(LEFT) + width + 3.0,
                    y + BAR - 3,
                    ratio
                );
            }
        }
        svg + "</svg>\n"
    }

    /// Writes table and plot into docs/performance.md; `how` says how it was measured.
    fn write_docs(&self, how: &str, found: &[Found]) -> Result<()> {
        let docs = run::root().join("docs");
        let write = |name: &str, text: &str| {
            fs::write(docs.join(name), text).with_context(|| format!("cannot write docs/{name}"))
        };
        let plot = format!("performance-{}.svg", self.verb.replace(" --", "-"));
        write(&plot, &self.plot(found))?;
        let page =
            fs::read_to_string(docs.join("performance.md")).context("cannot read docs/performance.md")?;
        let part = format!(
            "{how}; in brackets the median ratio to a bare veth pair:\n\n{}\n![Ratios to a bare veth pair]({plot})\n",
            self.table(found)
        );
        write("performance.md", &self.replaced(&page, &part)?)
    }

    /// The page with another text between the marks.
    fn replaced(&self, page: &str, part: &str) -> Result<String> {
        let mark =
            |which: &str| format!("<!-- written by `cargo xtask bench {} --docs`: {which} -->\n", self.verb);
        let (begin, end) = (mark("begin"), mark("end"));
        let marks =
            page.split_once(&begin).and_then(|(before, rest)| Some((before, rest.split_once(&end)?.1)));
        let (before, after) = marks.with_context(|| {
            format!("docs/performance.md has no marks for the table of bench {}", self.verb)
        })?;
        Ok(format!("{before}{begin}{part}{end}{after}"))
    }
}

/// How something was measured, for people.
pub(super) fn how(kernel: &str, v6: bool, rounds: u32, millis: u64) -> String {
    let family = if v6 { "IPv6" } else { "IPv4" };
    format!("Linux {kernel}, {family}, one core, medians of {rounds} rounds of {millis} ms")
}

/// The running kernel's version, for people.
pub(super) fn kernel() -> String {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    kernel.split('-').next().unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::egress;

    const SHEET: Sheet = Sheet {
        verb: "x",
        scenarios: &[
            Scenario { name: "same-node", title: "one node", metrics: TRAFFIC },
            Scenario { name: "many", title: "many", metrics: &[("mib", "memory", "MiB")] },
        ],
        paths: &[
            ("veth", "bare veth", None),
            ("kernel", "kernel", Some("#9aa5b1")),
            ("kernel-fou", "kernel FOU", Some("#5f6c7b")),
            ("ebpf", "eBPF", Some("#2f7ed8")),
        ],
    };

    fn found() -> Vec<Found> {
        let line = |path: &str, median: f64, ratio: f64| {
            json!({"scenario": "same-node", "path": path, "metric": "udp_pps", "median": median, "ratio_to_veth": ratio}).to_string() + "\n"
        };
        let memory = json!({"scenario": "many", "path": "ebpf", "metric": "mib", "median": 7.5}).to_string();
        parse(&[line("veth", 1e6, 1.0), line("kernel", 8e5, 0.8), line("ebpf", 5e5, 0.5), memory].concat())
            .unwrap()
    }

    #[test]
    fn results_come_out_as_they_went_in() {
        let mut found = found();
        assert_eq!(document(&found)["results"][2]["ratio_to_veth"], 0.5);
        assert!(document(&found)["results"][2].get("ratio_to_kernel_fou").is_none());
        assert!(document(&found)["results"][3].get("ratio_to_veth").is_none());
        found[2].ratio_to_fou = Some(3.5);
        assert_eq!(document(&found)["results"][2]["ratio_to_kernel_fou"], 3.5);
        assert!(SHEET.table(&found).contains("| 500000 (0.50) | 3.5 | 2000 ns |"), "{}", SHEET.table(&found));
        assert!(parse(r#"{"scenario":"same-node"}"#).is_err());
        assert!(parse("").is_err());
    }

    #[test]
    fn the_table_has_a_line_for_each_metric_and_the_plot_a_bar_for_each_result() {
        let table = SHEET.table(&found());
        assert_eq!(table.lines().count(), 2 + 2, "what was not measured has none");
        assert!(table.contains("| 1000000 | 800000 (0.80) | 500000 (0.50) | 2000 ns |"), "{table}");
        assert!(table.contains("| many | memory, MiB | | | 7.5 | |"), "{table}");
        assert_eq!(SHEET.plot(&found()).matches("<rect").count(), 1 + 2 + 2);
    }

    #[test]
    fn only_the_table_is_replaced() {
        let mark = |which| format!("<!-- written by `cargo xtask bench x --docs`: {which} -->\n");
        let page = |part: &str| format!("before\n{}{part}{}after\n", mark("begin"), mark("end"));
        assert_eq!(SHEET.replaced(&page("old\n"), "new\n").unwrap(), page("new\n"));
        assert!(SHEET.replaced("no marks", "new").is_err());
    }

    #[test]
    fn the_page_has_the_marks() {
        let page = fs::read_to_string(run::root().join("docs/performance.md")).unwrap();
        for sheet in [&crate::bench::datapath::SHEET, &egress::SHEET, &egress::SHEET_VM] {
            sheet.replaced(&page, "").unwrap();
        }
    }
}
