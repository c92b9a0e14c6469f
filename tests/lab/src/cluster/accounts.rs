//! The `default` ServiceAccount of each namespace.

use std::collections::HashSet;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::{Api, Client, ResourceExt as _, api::PostParams};
use serde_json::json;

use super::is_race;

const NAME: &str = "default";

pub(super) async fn reconcile(
    client: &Client,
    namespaces: &[Namespace],
    accounts: &[ServiceAccount],
) -> Result<()> {
    let have: HashSet<_> =
        accounts.iter().filter(|a| a.name_any() == NAME).filter_map(|a| a.namespace()).collect();
    let wanting = namespaces.iter().filter(|n| n.metadata.deletion_timestamp.is_none());
    for namespace in wanting.map(kube::ResourceExt::name_any).filter(|name| !have.contains(name)) {
        let api: Api<ServiceAccount> = Api::namespaced(client.clone(), &namespace);
        let account = serde_json::from_value(json!({"metadata": {"name": NAME, "namespace": namespace}}))?;
        match api.create(&PostParams::default(), &account).await {
            Err(e) if !is_race(&e) => {
                return Err(e).with_context(|| format!("cannot create ServiceAccount {namespace}/{NAME}"));
            }
            _ => {}
        }
    }
    Ok(())
}
