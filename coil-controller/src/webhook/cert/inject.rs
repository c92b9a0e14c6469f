//! The authorities that API servers trust: `caBundle` in the webhook configurations.

use k8s_openapi::{
    ByteString,
    api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration},
};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, PostParams},
};
use serde_json::{Value, json};
use tokio_rustls::rustls::pki_types::CertificateDer;
use tracing::info;

use super::{Failed, pair};
use crate::webhook::names::Webhook;

/// Attempts against other writers before it is left for the next round.
const ATTEMPTS: usize = 5;

/// One of the configurations.
#[derive(Debug, Clone)]
pub(super) struct Configuration {
    kind: String,
    /// Its name.
    pub(super) name: String,
    /// Where it is.
    pub(super) api: Api<DynamicObject>,
}

/// The configurations of a program. Objects are kept as they are read, so that fields which this program does
/// not know survive.
pub(super) fn configurations(client: &Client, webhook: &Webhook) -> [Configuration; 2] {
    let of = |resource: ApiResource, name: String| Configuration {
        kind: resource.kind.clone(),
        api: Api::all_with(client.clone(), &resource),
        name,
    };
    [
        of(ApiResource::erase::<MutatingWebhookConfiguration>(&()), webhook.mutating()),
        of(ApiResource::erase::<ValidatingWebhookConfiguration>(&()), webhook.validating()),
    ]
}

impl Configuration {
    /// For messages.
    fn subject(&self) -> String {
        format!("{} {}", self.kind, self.name)
    }

    async fn get(&self) -> Result<Option<DynamicObject>, Failed> {
        let read = self.api.get_opt(&self.name).await;
        read.map_err(|source| Failed::Api { doing: "read", object: self.subject(), source: Box::new(source) })
    }

    /// What it says now; empty when it does not exist.
    pub(super) async fn bundles(&self) -> Result<Vec<Vec<u8>>, Failed> {
        let Some(mut object) = self.get().await? else { return Ok(Vec::new()) };
        Ok(clients(&mut object.data).filter_map(|client| bundle(client)).collect())
    }

    /// Makes it say what `wanted` makes of the authorities that are in it. Tells whether it exists.
    pub(super) async fn inject(
        &self,
        wanted: impl Fn(&[CertificateDer<'static>]) -> Vec<u8>,
    ) -> Result<bool, Failed> {
        for _ in 0..ATTEMPTS {
            let Some(mut object) = self.get().await? else { return Ok(false) };
            let current: Vec<_> = clients(&mut object.data)
                .filter_map(|client| bundle(client))
                .flat_map(|pem| pair::certificates(&pem))
                .collect();
            if !set(&mut object.data, &wanted(&current)) {
                return Ok(true);
            }
            match self.api.replace(&self.name, &PostParams::default(), &object).await {
                Ok(_) => {
                    info!(configuration = self.subject(), "wrote the certificate authority");
                    return Ok(true);
                }
                Err(kube::Error::Api(status)) if status.is_conflict() => {}
                Err(source) => {
                    let source = Box::new(source);
                    return Err(Failed::Api { doing: "write", object: self.subject(), source });
                }
            }
        }
        Err(Failed::Contended(self.subject()))
    }
}

/// The `clientConfig` of each webhook.
fn clients(configuration: &mut Value) -> impl Iterator<Item = &mut Value> {
    let webhooks = configuration.get_mut("webhooks").and_then(Value::as_array_mut);
    webhooks.into_iter().flatten().filter_map(|webhook| webhook.get_mut("clientConfig"))
}

fn bundle(client: &Value) -> Option<Vec<u8>> {
    let bytes: ByteString = serde_json::from_value(client.get("caBundle")?.clone()).ok()?;
    Some(bytes.0)
}

/// Sets the bundle of each webhook. Tells whether something changed.
fn set(configuration: &mut Value, wanted: &[u8]) -> bool {
    let mut changed = false;
    for client in clients(configuration) {
        if bundle(client).as_deref() != Some(wanted) {
            client["caBundle"] = json!(ByteString(wanted.to_vec()));
            changed = true;
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_webhook_gets_it_and_what_has_it_is_left_alone() {
        let mut object = json!({"webhooks": [
            {"name": "a", "clientConfig": {"service": {"name": "x"}}, "unknown": 1},
            {"name": "b", "clientConfig": {"url": "https://x", "caBundle": "????"}},
            {"name": "c"},
        ]});
        assert!(set(&mut object, b"ca"));
        assert_eq!(
            object["webhooks"][0],
            json!({"name": "a", "clientConfig": {"service": {"name": "x"}, "caBundle": "Y2E="}, "unknown": 1})
        );
        assert_eq!(object["webhooks"][1]["clientConfig"]["caBundle"], "Y2E=");
        assert_eq!(object["webhooks"][2], json!({"name": "c"}));
        assert!(!set(&mut object, b"ca"));
        assert!(set(&mut object, b"cb"));
        for other in [json!({}), json!({"webhooks": null}), json!({"webhooks": [3]}), json!({"webhooks": {}})]
        {
            assert!(!set(&mut other.clone(), b"ca"), "{other}");
        }
    }
}
