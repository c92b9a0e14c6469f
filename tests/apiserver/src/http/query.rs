//! Query parameters.

use std::borrow::Cow;

use crate::selector::Selector;
use crate::status::{ApiError, Result};
use crate::verbs::{FieldValidation, WriteOptions};

/// The parameters of a request.
#[derive(Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(query: Option<&str>) -> Self {
        let pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
        Self(pairs.map(|(key, value)| (Cow::into_owned(key), Cow::into_owned(value))).collect())
    }

    /// The first value of a parameter; an empty one is none.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let value = self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        value.filter(|value| !value.is_empty())
    }

    pub(crate) fn flag(&self, name: &str) -> bool {
        matches!(self.get(name), Some("true" | "1"))
    }

    pub(crate) fn number(&self, name: &str) -> Result<Option<u64>> {
        self.get(name)
            .map(|text| {
                text.parse().map_err(|_| ApiError::bad_request(format!("{name}: {text:?} is not a number")))
            })
            .transpose()
    }

    pub(crate) fn selector(&self) -> Result<Selector> {
        Selector::parse(self.get("labelSelector"), self.get("fieldSelector"))
    }

    /// What all writes understand; `user_agent` names the field manager when nothing else does.
    pub(crate) fn write_options(&self, user_agent: &str) -> Result<WriteOptions> {
        let validation = match self.get("fieldValidation") {
            None | Some("Warn") => FieldValidation::Warn,
            Some("Strict") => FieldValidation::Strict,
            Some("Ignore") => FieldValidation::Ignore,
            Some(other) => {
                return Err(ApiError::bad_request(format!("fieldValidation: {other:?} is not known")));
            }
        };
        let agent = user_agent.split('/').next().unwrap_or_default();
        Ok(WriteOptions {
            dry_run: self.dry_run(),
            manager: self.get("fieldManager").unwrap_or(agent).to_owned(),
            force: self.flag("force"),
            validation,
        })
    }

    pub(crate) fn dry_run(&self) -> bool {
        self.get("dryRun") == Some("All")
    }
}
