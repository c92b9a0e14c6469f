//! A record of what was asked for, for tests that look whether each rule is needed.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::request::Attributes;

/// What was asked, and the answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Question {
    /// The answer.
    pub allowed: bool,
    /// What was asked.
    #[serde(flatten)]
    pub asked: Attributes,
}

/// A file with one question a line, as JSON; each is written once.
#[derive(Debug)]
pub(crate) struct Record(Mutex<(File, HashSet<Question>)>);

impl Record {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self(Mutex::new((file, HashSet::new()))))
    }

    pub(crate) fn note(&self, question: Question) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (file, known) = &mut *inner;
        if known.contains(&question) {
            return;
        }
        let written = serde_json::to_string(&question).map_err(io::Error::from);
        if let Err(error) = written.and_then(|line| writeln!(file, "{line}")) {
            tracing::error!(%error, "cannot record a request");
        }
        known.insert(question);
    }
}
