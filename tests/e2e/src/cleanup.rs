//! Everything that the tests make goes, whatever became of them.

use std::{fmt::Debug, time::Duration};

use anyhow::{Context as _, Result};
use coil_api::crd::{AddressBlock, AddressPool};
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{DeleteParams, ListParams},
};
use serde::de::DeserializeOwned;

use crate::{cluster::LABEL, wait::until};

/// Pods need their grace period, blocks their agent.
const LIMIT: Duration = Duration::from_secs(120);

/// Removes it all: namespaces first, because pods hold blocks, and blocks hold pools.
pub(crate) async fn all(client: &Client) -> Result<()> {
    remove::<Namespace>(client).await?;
    remove::<AddressBlock>(client).await?;
    remove::<AddressPool>(client).await
}

async fn remove<K>(client: &Client) -> Result<()>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let (api, kind) = (Api::<K>::all(client.clone()), K::kind(&()));
    let labelled = ListParams::default().labels(LABEL);
    let list = async || match api.list_metadata(&labelled).await {
        // Not every cluster has every kind.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Vec::new()),
        other => other.map(|list| list.items).with_context(|| format!("cannot list {kind}s of the tests")),
    };
    for object in list().await? {
        match api.delete(&object.name_any(), &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            other => {
                other.map(drop).with_context(|| format!("cannot delete {kind} {}", object.name_any()))?;
            }
        }
    }
    until(&format!("no {kind} of the tests is left"), LIMIT, async || {
        let left: Vec<String> = list().await?.iter().map(kube::ResourceExt::name_any).collect();
        Ok(if left.is_empty() { Ok(()) } else { Err(left.join(", ")) })
    })
    .await
}
