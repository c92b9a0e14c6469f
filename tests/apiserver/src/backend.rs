//! What all requests and background tasks share.

use std::sync::Arc;

use serde_json::Value;
use tokio::sync::mpsc;

use crate::admission::Admission;
use crate::auth::Tokens;
use crate::faults::Faults;
use crate::rbac::Authorizer;
use crate::registry::{Registry, Resource};
use crate::services::ServiceIps;
use crate::status::{ApiError, Result};
use crate::store::{Key, Object, Refused, Store};
use crate::verbs::Pages;

/// The server's state.
pub(crate) struct Backend {
    pub(crate) store: Store,
    pub(crate) registry: Registry,
    pub(crate) services: Arc<ServiceIps>,
    pub(crate) tokens: Tokens,
    pub(crate) authorizer: Authorizer,
    pub(crate) admission: Admission,
    pub(crate) pages: Pages,
    pub(crate) faults: Faults,
    /// PEM of the CA that signed the server's certificate.
    pub(crate) ca: String,
    /// Objects that the collector should look at.
    pub(crate) collector: mpsc::UnboundedSender<Key>,
}

impl Backend {
    pub(crate) fn key(resource: &Resource, namespace: &str, name: &str) -> Key {
        Key { table: resource.table.clone(), namespace: namespace.to_owned(), name: name.to_owned() }
    }

    pub(crate) fn get(&self, resource: &Resource, namespace: &str, name: &str) -> Result<Arc<Object>> {
        self.store
            .get(&Self::key(resource, namespace, name))
            .ok_or_else(|| ApiError::not_found(&resource.group, &resource.plural, name))
    }

    /// Stores a new object. All writes pass here or through the next two functions.
    pub(crate) fn insert(&self, resource: &Resource, object: Value) -> Result<Arc<Object>> {
        let name = crate::meta::name(&object).to_owned();
        let stored = self
            .store
            .create(&resource.table, object)
            .map_err(|_| ApiError::already_exists(&resource.group, &resource.plural, &name))?;
        self.written(resource);
        Ok(stored)
    }

    /// Replaces an object that is still at version `expected`.
    pub(crate) fn replace(&self, resource: &Resource, object: Value, expected: u64) -> Result<Arc<Object>> {
        let name = crate::meta::name(&object).to_owned();
        let stored = self
            .store
            .update(&resource.table, object, expected)
            .map_err(|refused| Self::refusal(resource, &name, refused))?;
        self.written(resource);
        Ok(stored)
    }

    /// Takes an object out that is still at version `expected`.
    pub(crate) fn remove(&self, resource: &Resource, object: &Value, expected: u64) -> Result<Arc<Object>> {
        let key = Key::of(&resource.table, object);
        let last = self
            .store
            .remove(&key, expected)
            .map_err(|refused| Self::refusal(resource, &key.name, refused))?;
        self.written(resource);
        Ok(last)
    }

    /// Asks the collector to look at an object: it is being deleted, or has owners.
    pub(crate) fn collect(&self, key: Key) {
        // The collector ends with the server; then there is nothing left to collect.
        let _ = self.collector.send(key);
    }

    fn refusal(resource: &Resource, name: &str, refused: Refused) -> ApiError {
        match refused {
            Refused::Stale => ApiError::modified(&resource.group, &resource.plural, name),
            Refused::Missing => ApiError::not_found(&resource.group, &resource.plural, name),
            Refused::Exists => ApiError::already_exists(&resource.group, &resource.plural, name),
        }
    }

    fn written(&self, resource: &Resource) {
        if resource.table.as_str() == CRD_TABLE {
            let (crds, _) = self.store.list(&resource.table, None);
            self.registry.set_crds(crds.iter().map(|crd| crd.value()));
        }
        self.authorizer.configured(&resource.table, self);
        self.admission.configured(resource.table.as_str(), self);
    }
}

/// The table of CustomResourceDefinitions.
pub(crate) const CRD_TABLE: &str = "customresourcedefinitions.apiextensions.k8s.io";
