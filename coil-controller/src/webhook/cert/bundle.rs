//! Which authorities API servers are told to trust: those of the Secret, and those that some replica may still
//! be served with although the Secret does not have them any more. Pure; time is passed in.
//!
//! A Secret that this program writes keeps the old authority for a day. One that somebody else writes (Coil v2,
//! a restored backup, a person) need not: without more care API servers would refuse the old certificate while
//! replicas still show it.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use tokio_rustls::rustls::pki_types::CertificateDer;

use super::{
    pair,
    secret::{Material, bundle_of},
};

/// Most authorities that are kept beside those of the Secret.
const KEPT: usize = 8;

/// Knows which authorities are kept in the configurations.
#[derive(Debug)]
pub(super) struct Keeper {
    /// Common name of the authorities that this program makes; others are left in place only while this
    /// replica needs them.
    authority: String,
    /// How long one is kept.
    keep: SignedDuration,
    /// Whose certificate this replica shows.
    serving: Option<CertificateDer<'static>>,
    /// Since when an authority in the configurations is none of the Secret's.
    since: Mutex<BTreeMap<Vec<u8>, Timestamp>>,
}

impl Keeper {
    pub(super) fn new(authority: String, keep: SignedDuration) -> Self {
        Self { authority, keep, serving: None, since: Mutex::default() }
    }

    /// From now on this replica shows a certificate by this authority.
    pub(super) fn serves(&mut self, authority: Option<&CertificateDer<'static>>) {
        self.serving = authority.cloned();
    }

    pub(super) fn serving(&self) -> Option<&CertificateDer<'static>> {
        self.serving.as_ref()
    }

    /// What a configuration that has `current` is to say, in PEM form.
    pub(super) fn bundle(
        &self,
        material: &Material,
        current: &[CertificateDer<'static>],
        now: Timestamp,
    ) -> Vec<u8> {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        since.retain(|der, _| !material.authorities.iter().any(|a| a.as_ref() == der.as_slice()));
        let mut kept: Vec<CertificateDer<'static>> = Vec::new();
        for old in self.serving.iter().chain(current) {
            if material.authorities.contains(old) || kept.contains(old) || kept.len() == KEPT {
                continue;
            }
            let needed = self.serving.as_ref() == Some(old);
            let facts = pair::facts(old);
            let good =
                facts.is_some_and(|f| f.authority && f.is_good(now) && (needed || f.name == self.authority));
            let first = *since.entry(old.to_vec()).or_insert(now);
            if good && (needed || now.duration_since(first) < self.keep) {
                kept.push(old.clone());
            }
        }
        let mut bundle = material.bundle.clone();
        if !kept.is_empty() {
            if !bundle.ends_with(b"\n") {
                bundle.push(b'\n');
            }
            bundle.extend(bundle_of(&kept).into_bytes());
        }
        bundle
    }

    /// All configurations were told. One that was dropped and that another replica puts back, because it shows a
    /// certificate by it, is kept anew: the two do not write against each other.
    pub(super) fn told(&self, now: Timestamp) {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        since.retain(|_, first| now.duration_since(*first) < self.keep);
    }
}

#[cfg(test)]
#[path = "bundle_tests.rs"]
mod tests;
