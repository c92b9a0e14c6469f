//! An embedded Kubernetes API server for tests and the lab.

mod admission;
mod auth;
mod backend;
mod bootstrap;
mod cel;
mod discovery;
mod gc;
mod http;
mod kubeconfig;
mod meta;
mod names;
mod openapi;
mod patch;
mod protobuf;
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
pub use kubeconfig::kubeconfig;
pub use server::{ApiServer, Config, ServiceResolver, StartError};
pub use tls::TlsError;
