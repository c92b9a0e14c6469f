//! What the demo prints, and the table at its end.

use std::process::ExitCode;

use anyhow::Result;

use crate::Done;

/// How a check came out.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Ok,
    Failed(String),
    NotPossible(String),
}

/// The checks so far.
#[derive(Debug, Default)]
pub(super) struct Report {
    checks: Vec<(String, Outcome)>,
}

impl Report {
    /// Begins a new part.
    pub(super) fn heading(&self, text: &str) {
        println!("\n== {text}");
    }

    /// Prints a command and what it printed.
    pub(super) fn show(&self, done: Result<Done>) -> Result<Done> {
        let done = done?;
        println!("$ {}", done.command);
        for text in [&done.stdout, &done.stderr] {
            text.lines().for_each(|line| println!("  {line}"));
        }
        Ok(done)
    }

    /// Notes the outcome of a check.
    pub(super) fn check(&mut self, what: &str, outcome: Result<(), String>) {
        let outcome = match outcome {
            Ok(()) => Outcome::Ok,
            Err(why) => Outcome::Failed(why),
        };
        self.checks.push((what.to_owned(), outcome));
    }

    /// Notes that a command has to have succeeded.
    pub(super) fn check_success(&mut self, what: &str, done: &Done) {
        let why = || format!("`{}` failed: {}", done.command, done.stderr.trim());
        self.check(what, if done.ok { Ok(()) } else { Err(why()) });
    }

    /// Notes that this machine cannot do something.
    pub(super) fn not_possible(&mut self, what: &str, why: &str) {
        self.checks.push((what.to_owned(), Outcome::NotPossible(why.to_owned())));
    }

    /// Prints the table.
    pub(super) fn finish(&self) -> ExitCode {
        println!("\n== Checks");
        let width = self.checks.iter().map(|(what, _)| what.chars().count()).max().unwrap_or_default();
        for (what, outcome) in &self.checks {
            match outcome {
                Outcome::Ok => println!("  {what:width$}  ok"),
                Outcome::Failed(why) => println!("  {what:width$}  FAIL  {why}"),
                Outcome::NotPossible(why) => println!("  {what:width$}  not possible here  {why}"),
            }
        }
        if self.failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }

    /// Whether a check failed, or nothing was checked.
    fn failed(&self) -> bool {
        self.checks.is_empty() || self.checks.iter().any(|(_, o)| matches!(o, Outcome::Failed(_)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failure_is_failure() {
        let mut report = Report::default();
        assert!(report.failed(), "a demo that checked nothing has not succeeded");
        report.check("a", Ok(()));
        report.not_possible("b", "no FOU");
        assert!(!report.failed());
        report.check("c", Err("why".into()));
        assert!(report.failed());
    }
}
