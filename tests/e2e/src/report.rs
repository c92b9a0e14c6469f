//! What became of each scenario, for people and for machines.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::{
    cluster::Cluster,
    scenario::{Outcome, Scenario},
};

/// The results so far.
#[derive(Default)]
pub(crate) struct Report(Vec<(&'static str, Duration, Verdict)>);

enum Verdict {
    Passed,
    NotHere(&'static str),
    Failed(String),
}

impl Report {
    /// Runs one scenario; one that is required fails where it is not possible.
    pub(crate) async fn run(&mut self, scenario: &Scenario, cluster: &Cluster, required: bool) {
        let began = Instant::now();
        println!("== {}: {}", scenario.name, scenario.what);
        let verdict = verdict((scenario.run)(cluster).await, required);
        if let Verdict::Failed(error) = &verdict {
            println!("   FAILED: {error}");
            // What it left must not fail the next one.
            if let Err(error) = cluster.clear().await {
                println!("   cannot clear: {error:#}");
            }
        }
        self.0.push((scenario.name, began.elapsed(), verdict));
    }

    pub(crate) fn passed(&self) -> bool {
        self.0.iter().all(|(_, _, verdict)| !matches!(verdict, Verdict::Failed(_)))
    }

    pub(crate) fn print(&self) {
        println!("== Results");
        for (name, took, verdict) in &self.0 {
            let verdict = match verdict {
                Verdict::Passed => "passed".to_owned(),
                Verdict::NotHere(why) => format!("not here: {why}"),
                Verdict::Failed(error) => format!("FAILED: {error}"),
            };
            println!("  {name:<20} {:>6.1} s  {verdict}", took.as_secs_f64());
        }
    }

    pub(crate) fn write_junit(&self, path: &Path) -> Result<()> {
        std::fs::write(path, self.junit()).with_context(|| format!("cannot write {}", path.display()))
    }

    fn junit(&self) -> String {
        let count =
            |wanted: fn(&Verdict) -> bool| self.0.iter().filter(|(_, _, verdict)| wanted(verdict)).count();
        let mut text = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuite name=\"coil-e2e\" tests=\"{}\" failures=\"{}\" skipped=\"{}\">\n",
            self.0.len(),
            count(|verdict| matches!(verdict, Verdict::Failed(_))),
            count(|verdict| matches!(verdict, Verdict::NotHere(_))),
        );
        for (name, took, verdict) in &self.0 {
            let inner = match verdict {
                Verdict::Passed => String::new(),
                Verdict::NotHere(why) => format!("<skipped message=\"{}\"/>", escaped(why)),
                Verdict::Failed(error) => format!("<failure message=\"{}\"/>", escaped(error)),
            };
            text += &format!(
                "  <testcase classname=\"coil-e2e\" name=\"{name}\" time=\"{:.3}\">{inner}</testcase>\n",
                took.as_secs_f64()
            );
        }
        text + "</testsuite>\n"
    }
}

fn verdict(outcome: Result<Outcome>, required: bool) -> Verdict {
    match outcome {
        Ok(Outcome::Passed) => Verdict::Passed,
        Ok(Outcome::NotHere(why)) if required => {
            Verdict::Failed(format!("required, and not possible here: {why}"))
        }
        Ok(Outcome::NotHere(why)) => Verdict::NotHere(why),
        Err(error) => Verdict::Failed(format!("{error:#}")),
    }
}

/// Text as the value of an XML attribute.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\n' => out += "&#10;",
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_required_must_be_possible() {
        let not_here = || Ok(Outcome::NotHere("no modules"));
        assert!(matches!(verdict(not_here(), false), Verdict::NotHere("no modules")));
        assert!(matches!(verdict(not_here(), true), Verdict::Failed(why) if why.contains("no modules")));
        assert!(matches!(verdict(Ok(Outcome::Passed), true), Verdict::Passed));
    }

    #[test]
    fn junit_counts_and_escapes() {
        let second = Duration::from_secs(1);
        let report = Report(vec![
            ("ready", second, Verdict::Passed),
            ("egress", second, Verdict::Failed("a < \"b\" &\nc".into())),
            ("originating-only", second, Verdict::NotHere("the flag is off")),
        ]);
        assert!(!report.passed());
        let text = report.junit();
        assert!(text.contains("tests=\"3\" failures=\"1\" skipped=\"1\""), "{text}");
        assert!(text.contains("<failure message=\"a &lt; &quot;b&quot; &amp;&#10;c\"/>"), "{text}");
        assert!(text.contains("name=\"ready\" time=\"1.000\"></testcase>"), "{text}");
    }
}
