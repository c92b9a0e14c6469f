//! The ClusterRoleBinding over the ServiceAccounts of all Egress namespaces.

use std::collections::BTreeSet;

use coil_api::names::EGRESS_SERVICE_ACCOUNT;
use k8s_openapi::api::rbac::v1::{ClusterRoleBinding, RoleRef, Subject};
use kube::{Api, Client, api::PostParams};
use tracing::info;

use super::ensure::EnsureError;

/// Its name, and that of the ClusterRole that it gives. As in Coil v2.
pub const NAME: &str = "coil-egress";

/// Makes the binding name exactly the namespaces that have an Egress.
///
/// # Errors
/// When the API server refuses or does not answer.
pub async fn reconcile(client: &Client, namespaces: &BTreeSet<String>) -> Result<(), EnsureError> {
    let api = Api::<ClusterRoleBinding>::all(client.clone());
    let failed =
        |verb: &str, source| EnsureError::Api { doing: format!("{verb} ClusterRoleBinding {NAME}"), source };
    let existing = api.get_opt(NAME).await.map_err(|e| failed("read", e))?;
    let subjects = subjects(existing.as_ref().and_then(|b| b.subjects.as_deref()), namespaces);
    match existing {
        Some(binding) if binding.subjects.clone().unwrap_or_default() == subjects => Ok(()),
        Some(mut binding) => {
            binding.subjects = Some(subjects);
            api.replace(NAME, &PostParams::default(), &binding).await.map_err(|e| failed("update", e))?;
            info!(namespaces = namespaces.len(), "updated the ClusterRoleBinding");
            Ok(())
        }
        None if namespaces.is_empty() => Ok(()),
        None => {
            let mut binding = ClusterRoleBinding {
                role_ref: RoleRef {
                    api_group: "rbac.authorization.k8s.io".to_owned(),
                    kind: "ClusterRole".to_owned(),
                    name: NAME.to_owned(),
                },
                subjects: Some(subjects),
                ..ClusterRoleBinding::default()
            };
            binding.metadata.name = Some(NAME.to_owned());
            api.create(&PostParams::default(), &binding).await.map_err(|e| failed("create", e))?;
            info!("created the ClusterRoleBinding");
            Ok(())
        }
    }
}

/// Our ServiceAccounts of these namespaces and no others; what else stands there is somebody's wish.
fn subjects(current: Option<&[Subject]>, namespaces: &BTreeSet<String>) -> Vec<Subject> {
    let ours = |s: &&Subject| s.kind == "ServiceAccount" && s.name == EGRESS_SERVICE_ACCOUNT;
    let others = current.unwrap_or_default().iter().filter(|s| !ours(s)).cloned();
    let wanted = namespaces.iter().map(|namespace| Subject {
        api_group: None,
        kind: "ServiceAccount".to_owned(),
        name: EGRESS_SERVICE_ACCOUNT.to_owned(),
        namespace: Some(namespace.clone()),
    });
    others.chain(wanted).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(name: &str, namespace: &str) -> Subject {
        Subject {
            kind: "ServiceAccount".into(),
            name: name.into(),
            namespace: Some(namespace.into()),
            api_group: None,
        }
    }

    #[test]
    fn stale_subjects_go_and_those_of_others_stay() {
        let now = [account("coil-egress", "old"), account("coil-egress", "b"), account("mine", "old")];
        let wanted = subjects(Some(&now), &BTreeSet::from(["a".to_owned(), "b".to_owned()]));
        assert_eq!(
            wanted,
            [account("mine", "old"), account("coil-egress", "a"), account("coil-egress", "b")]
        );
        assert_eq!(subjects(Some(&wanted), &BTreeSet::from(["a".to_owned(), "b".to_owned()])), wanted);
    }
}
