//! `cargo xtask bench datapath`

use std::{fmt::Write as _, fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::build;
use crate::run;

/// How fast pods reach each other: the eBPF path, the kernel's, and a bare veth pair.
///
/// All are measured in turn on one core, round by round: small datagrams, TCP with and without segmentation offload,
/// requests and connections, on one node and between two; the kernel's path also with kube-proxy's rules for 1,000
/// services. UDP is that of --fast-udp. Results are a table and, with --json,
/// {"results":[{"scenario","path","metric","median","ratio_to_veth"}]}: medians over the rounds, and medians of the
/// ratios to the bare pair in the same round.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Rounds; each measures everything once
    #[arg(long, default_value_t = 7)]
    rounds: u32,
    /// Milliseconds of each measurement
    #[arg(long, default_value_t = 300)]
    millis: u64,
    /// IPv6 in place of IPv4
    #[arg(long)]
    v6: bool,
    /// Write table and plot into docs/performance.md
    #[arg(long)]
    docs: bool,
}

/// The table's place in docs/performance.md.
const BEGIN: &str = "<!-- written by `cargo xtask bench datapath --docs`: begin -->\n";
const END: &str = "<!-- written by `cargo xtask bench datapath --docs`: end -->\n";
const PLOT: &str = "performance-datapath.svg";

/// A metric's name, what it is in the table, and its unit.
const METRICS: [(&str, &str, &str); 5] = [
    ("udp_pps", "UDP, 18 bytes", "packets/s"),
    ("tcp_gbps", "TCP stream", "Gbit/s"),
    ("tcp_nogso_gbps", "TCP stream, no GSO", "Gbit/s"),
    ("tcp_rr", "TCP requests", "1/s"),
    ("tcp_crr", "TCP connections", "1/s"),
];
const SCENARIOS: [(&str, &str); 2] = [("same-node", "one node"), ("two-nodes", "two nodes")];
const PATHS: [&str; 4] = ["veth", "kernel", "kernel+services", "ebpf"];

/// One result.
struct Found {
    scenario: String,
    path: String,
    metric: String,
    median: f64,
    ratio: f64,
}

pub(super) fn run(args: &Args, file: Option<&Path>) -> Result<()> {
    let programs = build(&["coil-kernel-tests/coil-bench-datapath"])?;
    let mut bench = Command::new(programs.join("coil-bench-datapath"));
    bench.args(["--rounds", &args.rounds.to_string(), "--millis", &args.millis.to_string()]);
    if args.v6 {
        bench.arg("--v6");
    }
    eprintln!("+ {}", run::shown(&bench));
    let found = run::output(&mut bench)?.lines().map(parse).collect::<Result<Vec<_>>>()?;
    ensure!(!found.is_empty(), "nothing was measured");
    let table = table(&found);
    print!("{table}");
    if let Some(file) = file {
        let text = serde_json::to_string_pretty(&document(&found))? + "\n";
        fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    if args.docs {
        write_docs(args, &table, &plot(&found))?;
    }
    Ok(())
}

fn parse(line: &str) -> Result<Found> {
    let value: Value = serde_json::from_str(line).with_context(|| format!("{line:?} is no result"))?;
    let text = |key: &str| value[key].as_str().map(str::to_owned);
    let found = (
        text("scenario"),
        text("path"),
        text("metric"),
        value["median"].as_f64(),
        value["ratio_to_veth"].as_f64(),
    );
    let (Some(scenario), Some(path), Some(metric), Some(median), Some(ratio)) = found else {
        bail!("{line:?} has not all of scenario, path, metric, median and ratio_to_veth");
    };
    Ok(Found { scenario, path, metric, median, ratio })
}

fn document(found: &[Found]) -> Value {
    let one = |f: &Found| json!({"scenario": f.scenario, "path": f.path, "metric": f.metric, "median": f.median, "ratio_to_veth": f.ratio});
    json!({"results": found.iter().map(one).collect::<Vec<_>>()})
}

fn find<'a>(found: &'a [Found], scenario: &str, path: &str, metric: &str) -> Option<&'a Found> {
    found.iter().find(|f| f.scenario == scenario && f.path == path && f.metric == metric)
}

/// A number with as many digits as say something.
fn short(value: f64) -> String {
    if value >= 1000.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

fn table(found: &[Found]) -> String {
    let mut text =
        String::from("| | | bare veth | kernel | kernel, 1,000 services | eBPF | CPU a packet, eBPF |\n");
    text += "| --- | --- | ---: | ---: | ---: | ---: | ---: |\n";
    for (scenario, where_) in SCENARIOS {
        for (metric, what, unit) in METRICS {
            let _ = write!(text, "| {where_} | {what}, {unit} ");
            for path in PATHS {
                let _ = match find(found, scenario, path, metric) {
                    Some(f) if path == "veth" => write!(text, "| {} ", short(f.median)),
                    Some(f) => write!(text, "| {} ({:.2}) ", short(f.median), f.ratio),
                    None => write!(text, "| "),
                };
            }
            // One core does nothing else.
            let cpu = find(found, scenario, "ebpf", metric).filter(|_| metric == "udp_pps");
            let _ = match cpu {
                Some(f) => writeln!(text, "| {:.0} ns |", 1e9 / f.median),
                None => writeln!(text, "| |"),
            };
        }
    }
    text
}

/// Bars of the ratios to a bare veth pair.
fn plot(found: &[Found]) -> String {
    const COLOURS: [(&str, &str); 3] =
        [("kernel", "#9aa5b1"), ("kernel+services", "#5f6c7b"), ("ebpf", "#2f7ed8")];
    const LEFT: u32 = 190;
    const TOP: u32 = 40;
    const BAR: u32 = 12;
    const FULL: f64 = 400.0;
    let groups: Vec<_> = SCENARIOS.iter().flat_map(|s| METRICS.iter().map(move |m| (s, m))).collect();
    let step = BAR * 3 + 10;
    let height = TOP + step * u32::try_from(groups.len()).unwrap_or(0) + 10;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"680\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for (n, (path, colour)) in (0u32..).zip(COLOURS) {
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
    for (n, ((scenario, where_), (metric, what, _))) in (0u32..).zip(groups) {
        let y = TOP + 5 + n * step;
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{where_}: {what}</text>",
            LEFT - 6,
            y + BAR * 2
        );
        for (k, (path, colour)) in (0u32..).zip(COLOURS) {
            let Some(f) = find(found, scenario, path, metric) else { continue };
            let (width, y) = (f.ratio.clamp(0.0, 1.15) * FULL, y + k * BAR);
            let _ = writeln!(
                svg,
                "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{width:.1}\" height=\"{}\" fill=\"{colour}\"/><text x=\"{:.1}\" y=\"{}\" font-size=\"9\">{:.2}</text>",
                BAR - 1,
                f64::from(LEFT) + width + 3.0,
                y + BAR - 3,
                f.ratio
            );
        }
    }
    svg + "</svg>\n"
}

fn write_docs(args: &Args, table: &str, plot: &str) -> Result<()> {
    let docs = run::root().join("docs");
    let write = |name: &str, text: &str| {
        fs::write(docs.join(name), text).with_context(|| format!("cannot write docs/{name}"))
    };
    write(PLOT, plot)?;
    let page = fs::read_to_string(docs.join("performance.md")).context("cannot read docs/performance.md")?;
    let family = if args.v6 { "IPv6" } else { "IPv4" };
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let kernel = kernel.split('-').next().unwrap_or_default().trim();
    let part = format!(
        "Linux {kernel}, {family}, one core, medians of {} rounds of {} ms; in brackets the median ratio to a bare veth pair:\n\n\
         {table}\n![Ratios to a bare veth pair]({PLOT})\n",
        args.rounds, args.millis
    );
    write("performance.md", &replaced(&page, &part)?)
}

/// The page with another text between the marks.
fn replaced(page: &str, part: &str) -> Result<String> {
    let marks = page.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) = marks.context("docs/performance.md has no marks for the table")?;
    Ok(format!("{before}{BEGIN}{part}{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found() -> Vec<Found> {
        let line = |path: &str, median: f64, ratio: f64| {
            let line = json!({"scenario": "same-node", "path": path, "metric": "udp_pps", "median": median, "ratio_to_veth": ratio});
            parse(&line.to_string()).unwrap()
        };
        vec![line("veth", 1e6, 1.0), line("kernel", 8e5, 0.8), line("ebpf", 5e5, 0.5)]
    }

    #[test]
    fn results_come_out_as_they_went_in() {
        let document = document(&found());
        assert_eq!(document["results"][2]["ratio_to_veth"], 0.5);
        assert!(parse(r#"{"scenario":"same-node"}"#).is_err());
    }

    #[test]
    fn the_table_has_a_line_for_each_metric_and_the_plot_a_bar_for_each_result() {
        let table = table(&found());
        assert_eq!(table.lines().count(), 2 + METRICS.len() * SCENARIOS.len());
        assert!(table.contains("| 1000000 | 800000 (0.80) | | 500000 (0.50) | 2000 ns |"), "{table}");
        assert_eq!(plot(&found()).matches("<rect").count(), 1 + 3 + 2);
    }

    #[test]
    fn only_the_table_is_replaced() {
        let page = format!("before\n{BEGIN}old\n{END}after\n");
        assert_eq!(replaced(&page, "new\n").unwrap(), format!("before\n{BEGIN}new\n{END}after\n"));
        assert!(replaced("no marks", "new").is_err());
    }

    #[test]
    fn the_page_has_the_marks() {
        let page = fs::read_to_string(run::root().join("docs/performance.md")).unwrap();
        replaced(&page, "").unwrap();
    }
}
