//! What a guest's log says about tests.

use super::groups::Entry;

/// How one test went.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Outcome {
    pub(super) test: String,
    /// Why it failed, when it did.
    pub(super) failure: Option<String>,
    pub(super) seconds: f64,
}

/// Seconds since the guest's start, and what was written then.
type Line<'a> = (f64, &'a str);

/// The lines of a log; the last one may still be in the making.
pub(super) fn lines(log: &str) -> Vec<Line<'_>> {
    let whole = log.rfind('\n').map_or("", |end| &log[..end]);
    whole
        .lines()
        .filter_map(|line| {
            let (time, text) = line.split_once(' ').unwrap_or((line, ""));
            Some((time.parse().ok()?, text))
        })
        .collect()
}

/// The tests of an entry that have ended, in the order they did.
///
/// `status` is the command's exit status, once there is one: then every test of the entry has an outcome.
pub(super) fn outcomes(entry: &Entry, log: &str, status: Option<&str>) -> Vec<Outcome> {
    let lines = lines(log);
    if entry.tests.is_empty() {
        return status.map(|status| single(entry, &lines, status)).into_iter().collect();
    }
    let mut outcomes = libtest(entry, &lines);
    let Some(status) = status else { return outcomes };
    let missing: Vec<&String> = entry
        .tests
        .iter()
        .filter(|test| outcomes.iter().all(|outcome| outcome.test != format!("{}{test}", entry.prefix)))
        .collect();
    let all_good = missing.is_empty() && outcomes.iter().all(|outcome| outcome.failure.is_none());
    let failed = |test: String| Outcome { test, failure: Some(said(status)), seconds: 0.0 };
    outcomes.extend(missing.into_iter().map(|test| failed(format!("{}{test}", entry.prefix))));
    if all_good && status != "0" {
        outcomes.push(failed(format!("{}(exit)", entry.prefix)));
    }
    outcomes
}

/// A command that is one test: its exit status is its outcome, and its last line says why.
fn single(entry: &Entry, lines: &[Line<'_>], status: &str) -> Outcome {
    let seconds = match (lines.first(), lines.last()) {
        (Some((start, _)), Some((end, _))) => end - start,
        _ => 0.0,
    };
    let failure = (status != "0").then(|| {
        let text = lines.iter().rev().map(|(_, text)| text.trim()).filter(|text| *text != "ended");
        let why = text
            .clone()
            .find(|text| text.starts_with("FAIL"))
            .or_else(|| text.clone().find(|text| !text.is_empty()));
        format!("{}; {}", said(status), why.unwrap_or_default())
    });
    Outcome { test: entry.prefix.clone(), failure, seconds }
}

fn said(status: &str) -> String {
    match status {
        // As coreutils' timeout says it.
        "124" | "137" => "took too long".into(),
        status => format!("exit status {status}"),
    }
}

/// Rust's test runner: `test NAME ... ok`, with other output between the dots and the word.
fn libtest(entry: &Entry, lines: &[Line<'_>]) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    let mut running = None;
    let mut since = lines.first().map_or(0.0, |line| line.0);
    for (time, text) in lines {
        let mut word = text.trim();
        if let Some((name, rest)) = text.strip_prefix("test ").and_then(|text| text.split_once(" ... ")) {
            running = Some(name.trim_end_matches(" - should panic"));
            word = rest.trim();
        } else if text.starts_with("running ") {
            since = *time;
        }
        let failure = match word {
            "ok" => None,
            "FAILED" => Some("failed".to_owned()),
            word if word.starts_with("ignored") => Some("ignored, and nothing may be skipped".to_owned()),
            _ => continue,
        };
        if let Some(name) = running.take() {
            outcomes.push(Outcome {
                test: format!("{}{name}", entry.prefix),
                failure,
                seconds: time - since,
            });
            since = *time;
        }
    }
    outcomes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(tests: &[&str]) -> Entry {
        Entry {
            prefix: "netns/p::".into(),
            tests: tests.iter().map(|test| (*test).to_owned()).collect(),
            folder: "/".into(),
            command: Vec::new(),
        }
    }

    fn short(outcomes: &[Outcome]) -> Vec<(&str, Option<&str>, f64)> {
        outcomes.iter().map(|o| (o.test.as_str(), o.failure.as_deref(), o.seconds)).collect()
    }

    #[test]
    fn tests_end_one_by_one() {
        let log = "10.0 started\n11.0 running 2 tests\n12.5 test a ... ok\n13.0 test b ... ";
        let outcomes = outcomes(&entry(&["a", "b"]), log, None);
        assert_eq!(short(&outcomes), [("netns/p::a", None, 1.5)]);
    }

    #[test]
    fn output_between_a_name_and_its_word_is_passed_over() {
        let log = "1.0 running 1 test\n2.0 test a ... PING 10.0.0.1\n3.0 64 bytes\n4.0 ok\n5.0 ended\n";
        assert_eq!(short(&outcomes(&entry(&["a"]), log, Some("0"))), [("netns/p::a", None, 3.0)]);
    }

    #[test]
    fn a_test_that_never_ended_failed() {
        let log = "1.0 running 2 tests\n2.0 test a ... ok\n3.0 ended\n";
        let outcomes = outcomes(&entry(&["a", "b"]), log, Some("124"));
        assert_eq!(short(&outcomes)[1], ("netns/p::b", Some("took too long"), 0.0));
    }

    #[test]
    fn an_ignored_test_is_no_success() {
        let log = "1.0 running 1 test\n1.0 test a ... ignored, too slow\n1.0 ended\n";
        assert!(outcomes(&entry(&["a"]), log, Some("0"))[0].failure.is_some());
    }

    #[test]
    fn a_bad_exit_after_good_tests_is_a_failure() {
        let log = "1.0 running 1 test\n2.0 test a ... ok\n3.0 ended\n";
        let outcomes = outcomes(&entry(&["a"]), log, Some("134"));
        assert_eq!(short(&outcomes)[1], ("netns/p::(exit)", Some("exit status 134"), 0.0));
    }

    #[test]
    fn a_script_says_why_it_failed() {
        let log = "1.0 started\n2.0 FAIL: no module fou\n3.0 more\n4.0 ended\n";
        let outcomes = outcomes(&entry(&[]), log, Some("1"));
        assert_eq!(short(&outcomes), [("netns/p::", Some("exit status 1; FAIL: no module fou"), 3.0)]);
    }
}
