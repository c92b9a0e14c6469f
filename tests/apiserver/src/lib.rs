//! An embedded Kubernetes API server for tests and the lab.
//!
//! ```text
//!   http ─▶ verbs ─▶ decode ─▶ admission: mutate ─▶ strategy, schema, cel ─▶ admission: validate ─▶ store ─▶ watches
//!                                  │  TLS                                        │
//!                                  └──▶ webhooks ◀───────────────────────────────┘
//! ```
//!
//! It is made for Coil's programs, kubectl and kube-rs: what these do works as on a real server, in
//! the same words. `tests/apitest` asks both kinds of servers the same questions.
//!
//! # What differs on purpose
//!
//! - **Users.** Bearer tokens, no client certificates, no impersonation. Roles and bindings decide as on a real server;
//!   of a role's own making nobody is asked whether he holds what it gives. A role that is made of others has their
//!   rules, and does not show them.
//! - **State** is in memory. A watch can go back [`Config::watch_window`] events of its resource; a list
//!   in pages is remembered until 64 others have been begun.
//! - **Kinds.** The built-in ones of `registry::builtin`. Their types, names, and the rules that tests
//!   met are checked, not every rule of Kubernetes. A definition's versions share one schema's objects:
//!   nothing is converted. PUT creates nothing. `pods/log`, `exec` and their like are not implemented.
//! - **Controllers.** Owner references, foreground and orphan deletion, the end of namespaces, and what a
//!   namespace has from its start are done by the server itself. A real one leaves them to
//!   kube-controller-manager; `coil-apitest` has a stand-in for tests and the lab.
//! - **Webhooks.** The Services of webhooks are found by their EndpointSlices, as with
//!   `--enable-aggregator-routing`, and may lead to loopback. Match conditions are refused. A generated name is made before the
//!   mutating webhooks. There are no admission policies.
//! - **Rules in CEL.** No cost is estimated or limited: a rule over a list without `maxItems` passes here
//!   and not there. The libraries for IPs, CIDRs, lists, strings, regular expressions and optionals are
//!   there; those for URLs, quantities, versions, sets and formats are not. Of formats, `date-time` alone
//!   makes another type than string. Types that cannot be told are accepted.
//! - **Owned fields.** Maps have no `.` entry of their own, and old updaters are never merged.
//!
//! - **Reviews.** Of rules (`kubectl auth can-i --list`) there is none.
//! - **Faults.** A test may have watches held back, at paths below `/faults`: see `faults`.
//! - **Answers.** What is not there is told by a `Status` also where a real server answers in plain text.
//!
//! # What differed, and was mended
//!
//! Found by running the tests on kube-apiserver 1.36:
//!
//! - Rules of a definition whose versions share a schema are at `spec.validation`, not at a version.
//! - The value of an object or list that breaks a rule is not repeated in the error.
//! - Updates without a version are refused for custom resources; for built-in ones they are repeated.
//! - Updaters own fields, and conflict with appliers.
//! - A `caBundle` is not read before a webhook is called.
//! - Warnings go with refusals too; a finalizer without a path earns one.
//! - Values that an update does not change are not judged by the schema again.
//! - The words and codes of refused preconditions, of a changed uid, of an apply without a manager, of
//!   owner references without a uid, and of a new object that has a version.
//! - Applying an empty map conflicts with nobody; an orphan has no empty list of owners.

mod admission;
mod auth;
mod backend;
mod bootstrap;
mod cel;
mod discovery;
mod faults;
mod gc;
mod http;
mod kubeconfig;
mod meta;
mod names;
mod openapi;
mod patch;
mod protobuf;
mod rbac;
mod registry;
mod schema;
mod selector;
mod server;
mod services;
mod status;
mod store;
mod strategy;
mod table;
mod tls;
mod verbs;

pub use auth::User;
pub use faults::HELD_WATCHES;
pub use kubeconfig::kubeconfig;
pub use rbac::{Attributes, Policy, Question};
pub use server::{ApiServer, Config, ServiceResolver, StartError};
pub use tls::TlsError;
