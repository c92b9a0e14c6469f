//! A record of what was asked for, for tests that look whether each rule is needed.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::request::Attributes;

/// A file with one question a line, as JSON; each is written once.
#[derive(Debug)]
pub(crate) struct Record(Mutex<(File, HashSet<Attributes>)>);

impl Record {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self(Mutex::new((file, HashSet::new()))))
    }

    pub(crate) fn note(&self, asked: &Attributes) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (file, known) = &mut *inner;
        if !known.insert(asked.clone()) {
            return;
        }
        let written = serde_json::to_string(asked).map_err(io::Error::from);
        if let Err(error) = written.and_then(|line| writeln!(file, "{line}")) {
            tracing::error!(%error, "cannot record a request");
        }
    }
}
