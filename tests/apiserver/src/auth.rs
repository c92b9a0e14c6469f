//! Who is asking: bearer tokens. What they may do is [`crate::rbac`]'s.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;

use crate::names;
use crate::status::{ApiError, Result};

/// The group whose members nobody restricts.
const MASTERS: &str = "system:masters";

/// An authenticated user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The name, e.g. `admin` or `system:serviceaccount:NAMESPACE:NAME`.
    pub name: String,
    /// The groups, without `system:authenticated`, which everybody is in.
    pub groups: Vec<String>,
}

impl User {
    /// A user with groups.
    pub fn new(name: impl Into<String>, groups: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { name: name.into(), groups: groups.into_iter().map(Into::into).collect() }
    }

    /// The administrator, in `system:masters`.
    #[must_use]
    pub fn admin() -> Self {
        Self::new("admin", [MASTERS])
    }

    /// The user that a service account is.
    #[must_use]
    pub fn service_account(namespace: &str, name: &str) -> Self {
        Self::new(
            format!("system:serviceaccount:{namespace}:{name}"),
            ["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")],
        )
    }

    /// Whether nobody restricts him.
    pub(crate) fn is_master(&self) -> bool {
        self.groups.iter().any(|group| group == MASTERS)
    }

    /// All groups, as the API shows them.
    pub(crate) fn all_groups(&self) -> Vec<&str> {
        self.groups.iter().map(String::as_str).chain(["system:authenticated"]).collect()
    }
}

/// The tokens in force.
#[derive(Default)]
pub(crate) struct Tokens(RwLock<HashMap<String, Arc<User>>>);

impl Tokens {
    /// Issues a new token.
    pub(crate) fn issue(&self, user: User) -> String {
        let token = names::token();
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(token.clone(), Arc::new(user));
        token
    }

    pub(crate) fn user(&self, token: &str) -> Option<Arc<User>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(token).cloned()
    }

    /// The user of a request.
    pub(crate) fn authenticate(&self, headers: &HeaderMap) -> Result<Arc<User>> {
        let header = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = header.and_then(|value| value.split_once(' '));
        match token {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
                self.user(token.trim()).ok_or_else(ApiError::unauthorized)
            }
            _ => Err(ApiError::unauthorized()),
        }
    }
}
