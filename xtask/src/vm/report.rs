//! Results of all kernels: as they come, as a table, as JSON.

use std::path::Path;

use anyhow::{Result, bail};
use serde_json::json;

use super::{groups::Entry, kernels::Kernel, results::Outcome};

/// How much of a failed entry's output is shown.
const SHOWN_LINES: usize = 60;

/// Everything that was found out.
#[derive(Default)]
pub(super) struct Report {
    rows: Vec<Row>,
    /// Kernel, answer, feature.
    features: Vec<[String; 3]>,
}

struct Row {
    kernel: String,
    package: String,
    outcome: Outcome,
}

impl Report {
    /// Takes one result, and shows it.
    pub(super) fn add(&mut self, kernel: &Kernel, outcome: Outcome) {
        let row = Row { kernel: kernel.name.into(), package: kernel.package.clone(), outcome };
        eprintln!("{}", row.line(0));
        self.rows.push(row);
    }

    /// A kernel that could not be had.
    pub(super) fn no_kernel(&mut self, kernel: &str, error: &anyhow::Error) {
        let failure = Some(format!("{error:#}"));
        let outcome = Outcome { test: "fetch".into(), failure, seconds: 0.0 };
        let row = Row { kernel: kernel.into(), package: String::new(), outcome };
        eprintln!("{}", row.line(0));
        self.rows.push(row);
    }

    /// Takes a line of the probe: the answer and the feature, with a tab between.
    pub(super) fn feature(&mut self, kernel: &Kernel, line: &str) {
        if let Some((answer, feature)) = line.split_once('\t') {
            self.features.push([kernel.name.into(), answer.into(), feature.into()]);
        }
    }

    /// Shows the end of a failed entry's output.
    pub(super) fn show(&self, kernel: &Kernel, entry: &Entry, log: &Path, lines: &[(f64, &str)]) {
        eprintln!("--- {}: the end of {} ({})", kernel.name, log.display(), entry.prefix);
        for (_, text) in &lines[lines.len().saturating_sub(SHOWN_LINES)..] {
            eprintln!("    {text}");
        }
        eprintln!("---");
    }

    /// Whether a test has a result.
    pub(super) fn has(&self, kernel: &Kernel, test: &str) -> bool {
        self.rows.iter().any(|row| row.kernel == kernel.name && row.outcome.test == test)
    }

    /// Prints the table of results, and that of features if the probe ran.
    pub(super) fn print(&self) {
        let width = self.rows.iter().map(|row| row.outcome.test.len()).max().unwrap_or_default();
        println!("\n{:<8} {:<width$} {:<6} {:>7}", "kernel", "test", "result", "seconds");
        for row in &self.rows {
            println!("{}", row.line(width));
        }
        let failed = self.failed();
        println!("{} ok, {failed} FAIL", self.rows.len() - failed);
        if !self.features.is_empty() {
            println!("\n{}", self.features_table());
        }
    }

    /// One row for each feature, one column for each kernel, in Markdown.
    fn features_table(&self) -> String {
        let column = |index: usize| {
            let mut names: Vec<&str> = Vec::new();
            for feature in &self.features {
                if !names.contains(&feature[index].as_str()) {
                    names.push(&feature[index]);
                }
            }
            names
        };
        let (kernels, features) = (column(0), column(2));
        let mut table =
            format!("| feature | {} |\n|---|{}\n", kernels.join(" | "), "---|".repeat(kernels.len()));
        for feature in features {
            let answer = |kernel: &&str| {
                let found = self.features.iter().find(|known| known[0] == **kernel && known[2] == feature);
                found.map_or("", |found| found[1].as_str()).to_owned()
            };
            let answers: Vec<String> = kernels.iter().map(answer).collect();
            table += &format!("| {feature} | {} |\n", answers.join(" | "));
        }
        table
    }

    /// `{"results": [{kernel, package, test, result, seconds, reason}], "features": [{kernel, feature, answer}]}`
    pub(super) fn json(&self) -> String {
        let results: Vec<_> = self.rows.iter().map(Row::json).collect();
        let features: Vec<_> = self
            .features
            .iter()
            .map(|[kernel, answer, feature]| json!({"kernel": kernel, "feature": feature, "answer": answer}))
            .collect();
        format!("{:#}\n", json!({"results": results, "features": features}))
    }

    /// Fails when anything failed.
    pub(super) fn verdict(&self) -> Result<()> {
        match self.failed() {
            0 => Ok(()),
            failed => bail!("{failed} of {} results are FAIL", self.rows.len()),
        }
    }

    fn failed(&self) -> usize {
        self.rows.iter().filter(|row| row.outcome.failure.is_some()).count()
    }
}

impl Row {
    fn result(&self) -> &'static str {
        if self.outcome.failure.is_none() { "ok" } else { "FAIL" }
    }

    fn line(&self, width: usize) -> String {
        let (kernel, result, outcome) = (&self.kernel, self.result(), &self.outcome);
        let why = outcome.failure.as_deref().map(|why| format!("  {why}")).unwrap_or_default();
        format!("{kernel:<8} {:<width$} {result:<6} {:>7.1}{why}", outcome.test, outcome.seconds)
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "kernel": self.kernel,
            "package": self.package,
            "test": self.outcome.test,
            "result": self.result(),
            "seconds": self.outcome.seconds,
            "reason": self.outcome.failure,
        })
    }
}
