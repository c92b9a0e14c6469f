//! Which resources the server has: the built-in table and what CRDs declare.

mod builtin;
mod crd;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use serde_json::Value;

use crate::names::NameRule;
use crate::schema::{Refs, Schema};
use crate::store::TableId;

pub(crate) use crd::{established, validate as validate_crd};

/// Where a scale subresource finds its numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ScalePaths {
    pub(crate) spec: String,
    pub(crate) status: String,
    /// Path of the selector in string form; built-in types have it in `spec.selector`.
    pub(crate) selector: Option<String>,
}

/// A printer column of a CRD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CrdColumn {
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) format: String,
    pub(crate) description: String,
    pub(crate) priority: i64,
    pub(crate) path: String,
}

/// One resource in one version.
pub(crate) struct Resource {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) kind: String,
    pub(crate) list_kind: String,
    pub(crate) plural: String,
    pub(crate) singular: String,
    pub(crate) short_names: Vec<String>,
    pub(crate) categories: Vec<String>,
    pub(crate) namespaced: bool,
    pub(crate) name_rule: NameRule,
    /// Versions of a resource share one table; so do the two faces of Event.
    pub(crate) table: TableId,
    pub(crate) has_status: bool,
    pub(crate) has_generation: bool,
    pub(crate) scale: Option<ScalePaths>,
    /// Further subresources: name, group, version and kind of what is posted there.
    pub(crate) subresources: &'static [Subresource],
    /// Columns of a CRD; built-in types have theirs in the table module.
    pub(crate) columns: Vec<CrdColumn>,
    /// Declared by a CRD.
    pub(crate) custom: bool,
    source: SchemaSource,
    compiled: OnceLock<Arc<Schema>>,
}

/// A subresource that only takes POST.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Subresource {
    pub(crate) name: &'static str,
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    pub(crate) kind: &'static str,
}

/// Where the schema comes from: generating those of built-in types waits for the
/// first use, because it takes longer than starting the server.
enum SchemaSource {
    BuiltIn(fn() -> Value),
    Custom(Value),
}

impl Resource {
    /// `apiVersion` as objects carry it.
    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// Whether an update may come without the version that it is for.
    pub(crate) fn allows_unconditional_update(&self) -> bool {
        let conditional = matches!(self.plural.as_str(), "leases" | "customresourcedefinitions");
        !self.custom && !conditional && self.group != "admissionregistration.k8s.io"
    }

    /// The compiled schema.
    pub(crate) fn schema(&self) -> &Arc<Schema> {
        self.compiled.get_or_init(|| {
            let source = self.schema_source();
            let definitions = source.get("$defs").cloned().unwrap_or(Value::Null);
            // A CRD's schema was compiled when it was checked; built-in ones have no patterns.
            Arc::new(Schema::compile(&source, Refs::into(&definitions)).unwrap_or_default())
        })
    }

    /// The schema as JSON; `$defs` holds what it refers to.
    pub(crate) fn schema_source(&self) -> Value {
        match &self.source {
            SchemaSource::BuiltIn(generate) => generate(),
            SchemaSource::Custom(schema) => schema.clone(),
        }
    }
}

/// A consistent view of all resources.
#[derive(Default)]
pub(crate) struct Snapshot {
    resources: Vec<Arc<Resource>>,
    by_path: HashMap<(String, String, String), Arc<Resource>>,
}

impl Snapshot {
    fn new(resources: Vec<Arc<Resource>>) -> Self {
        let by_path = resources
            .iter()
            .map(|r| ((r.group.clone(), r.version.clone(), r.plural.clone()), r.clone()))
            .collect();
        Self { resources, by_path }
    }

    pub(crate) fn resources(&self) -> &[Arc<Resource>] {
        &self.resources
    }

    pub(crate) fn find(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Resource>> {
        self.by_path.get(&(group.to_owned(), version.to_owned(), plural.to_owned())).cloned()
    }

    /// Groups in the order of their first resource, each with its versions, best first.
    pub(crate) fn groups(&self) -> Vec<(String, Vec<String>)> {
        let mut groups: Vec<(String, Vec<String>)> = Vec::new();
        for resource in &self.resources {
            let index = groups.iter().position(|(name, _)| *name == resource.group).unwrap_or_else(|| {
                groups.push((resource.group.clone(), Vec::new()));
                groups.len() - 1
            });
            let versions = &mut groups[index].1;
            if !versions.contains(&resource.version) {
                versions.push(resource.version.clone());
            }
        }
        groups
    }

    /// Any version of the resource that a table belongs to.
    pub(crate) fn of_table(&self, table: &TableId) -> Option<Arc<Resource>> {
        self.resources.iter().find(|resource| resource.table == *table).cloned()
    }
}

/// The current set of resources.
pub(crate) struct Registry {
    builtin: Vec<Arc<Resource>>,
    current: RwLock<Arc<Snapshot>>,
}

impl Registry {
    pub(crate) fn new() -> Self {
        let builtin = builtin::resources();
        let current = RwLock::new(Arc::new(Snapshot::new(builtin.clone())));
        Self { builtin, current }
    }

    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn find(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Resource>> {
        self.snapshot().find(group, version, plural)
    }

    /// A built-in resource that the server itself uses.
    pub(crate) fn builtin(&self, group: &str, plural: &str) -> Arc<Resource> {
        let found = self.builtin.iter().find(|r| r.group == group && r.plural == plural);
        found.unwrap_or_else(|| unreachable!("{plural}.{group} is in the built-in table")).clone()
    }

    /// Replaces what CRDs declare by what `crds` declare now.
    pub(crate) fn set_crds<'a>(&self, crds: impl Iterator<Item = &'a Value>) {
        let mut resources = self.builtin.clone();
        resources.extend(crds.flat_map(crd::resources).map(Arc::new));
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(Snapshot::new(resources));
    }
}
