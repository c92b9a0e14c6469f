//! Whether kubectl is new enough for the manifests and for the API servers that the tests run on.

use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::run;

/// The oldest minor version: one less than the oldest Kubernetes that Coil runs on, as far as kubectl may be behind.
/// Older ones know neither kustomize's components (before 1.21) nor all that the tests ask of kubectl.
const OLDEST: u32 = 30;

/// Fails, with the way out, when kubectl is too old.
pub(super) fn check() -> Result<()> {
    let text = run::output(Command::new("kubectl").args(["version", "--client", "--output=json"]))?;
    let version: Value = serde_json::from_str(&text).context("kubectl's version is no JSON")?;
    judge(&version["clientVersion"])
}

fn judge(version: &Value) -> Result<()> {
    let number = |key: &str| -> Option<u32> {
        // Some are called "32+".
        let digits = version[key].as_str()?.trim_end_matches(|c: char| !c.is_ascii_digit());
        digits.parse().ok()
    };
    let (Some(major), Some(minor)) = (number("major"), number("minor")) else {
        bail!("kubectl says that its version is {version}: 1.{OLDEST} or later is needed");
    };
    if (major, minor) < (1, OLDEST) {
        bail!(
            "kubectl is {major}.{minor}, and 1.{OLDEST} or later is needed: Debian 12's package is too old, Debian 13's is \
             not; for others see https://kubernetes.io/docs/tasks/tools/, and put the new one before the old one on PATH"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn old_ones_are_refused_with_the_way_out() {
        for (major, minor) in [("1", "30"), ("1", "32+"), ("1", "36"), ("2", "0")] {
            judge(&json!({"major": major, "minor": minor})).unwrap();
        }
        let error = judge(&json!({"major": "1", "minor": "20"})).unwrap_err().to_string();
        assert!(error.contains("kubectl is 1.20, and 1.30") && error.contains("PATH"), "{error}");
        assert!(judge(&json!({})).unwrap_err().to_string().contains("1.30"));
    }
}
