//! The built-in resources. Names, versions and schemas come from k8s-openapi; what it
//! does not know (short names, subresources) is stated here.

use std::sync::{Arc, OnceLock};

use k8s_openapi::api::{
    admissionregistration::v1 as admission, apps::v1 as apps, autoscaling::v2 as autoscaling,
    batch::v1 as batch, coordination::v1 as coordination, core::v1 as core, discovery::v1 as discovery,
    events::v1 as events, networking::v1 as networking, policy::v1 as policy, rbac::v1 as rbac,
    scheduling::v1 as scheduling, storage::v1 as storage,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 as apiextensions;
use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use schemars::JsonSchema;

use super::{Resource, ScalePaths, SchemaSource, Subresource};
use crate::names::NameRule;
use crate::store::TableId;

const POD: &[Subresource] = &[
    Subresource { name: "binding", group: "", version: "v1", kind: "Binding" },
    Subresource { name: "eviction", group: "policy", version: "v1", kind: "Eviction" },
];
const SERVICE_ACCOUNT: &[Subresource] =
    &[Subresource { name: "token", group: "authentication.k8s.io", version: "v1", kind: "TokenRequest" }];

struct Builtin(Resource);

impl Builtin {
    fn new<T: k8s_openapi::Resource + JsonSchema>(namespaced: bool) -> Self {
        Self(Resource {
            group: T::GROUP.into(),
            version: T::VERSION.into(),
            kind: T::KIND.into(),
            list_kind: format!("{}List", T::KIND),
            plural: T::URL_PATH_SEGMENT.into(),
            singular: T::KIND.to_lowercase(),
            short_names: Vec::new(),
            categories: Vec::new(),
            namespaced,
            name_rule: NameRule::Subdomain,
            table: TableId::new(T::GROUP, T::URL_PATH_SEGMENT),
            has_status: false,
            has_generation: false,
            scale: None,
            subresources: &[],
            columns: Vec::new(),
            custom: false,
            source: SchemaSource::BuiltIn(|| schemars::schema_for!(T).to_value()),
            compiled: OnceLock::new(),
        })
    }

    fn namespaced<T: k8s_openapi::Resource<Scope = NamespaceResourceScope> + JsonSchema>() -> Self {
        Self::new::<T>(true)
    }

    fn cluster<T: k8s_openapi::Resource<Scope = ClusterResourceScope> + JsonSchema>() -> Self {
        Self::new::<T>(false)
    }

    fn short(mut self, names: &[&str]) -> Self {
        self.0.short_names = names.iter().map(ToString::to_string).collect();
        self
    }

    fn all(mut self) -> Self {
        self.0.categories = vec!["all".into()];
        self
    }

    fn status(mut self) -> Self {
        self.0.has_status = true;
        self
    }

    fn generation(mut self) -> Self {
        self.0.has_generation = true;
        self
    }

    fn scale(mut self) -> Self {
        let (spec, status) = (".spec.replicas".into(), ".status.replicas".into());
        self.0.scale = Some(ScalePaths { spec, status, selector: None });
        self
    }

    fn names(mut self, rule: NameRule) -> Self {
        self.0.name_rule = rule;
        self
    }

    fn subresources(mut self, subresources: &'static [Subresource]) -> Self {
        self.0.subresources = subresources;
        self
    }

    fn table(mut self, group: &str, plural: &str) -> Self {
        self.0.table = TableId::new(group, plural);
        self
    }
}

/// All built-in resources, the core group first.
pub(super) fn resources() -> Vec<Arc<Resource>> {
    type B = Builtin;
    let path = NameRule::PathSegment;
    let table = vec![
        B::namespaced::<core::ConfigMap>().short(&["cm"]),
        B::namespaced::<core::Endpoints>().short(&["ep"]),
        B::namespaced::<core::Event>().short(&["ev"]),
        B::namespaced::<core::LimitRange>().short(&["limits"]),
        B::cluster::<core::Namespace>().short(&["ns"]).status().names(NameRule::Label),
        B::cluster::<core::Node>().short(&["no"]).status(),
        B::namespaced::<core::PersistentVolumeClaim>().short(&["pvc"]).status(),
        B::cluster::<core::PersistentVolume>().short(&["pv"]).status(),
        B::namespaced::<core::Pod>().short(&["po"]).all().status().generation().subresources(POD),
        B::namespaced::<core::PodTemplate>(),
        B::namespaced::<core::ReplicationController>().short(&["rc"]).all().status().generation().scale(),
        B::namespaced::<core::ResourceQuota>().short(&["quota"]).status(),
        B::namespaced::<core::Secret>(),
        B::namespaced::<core::ServiceAccount>().short(&["sa"]).subresources(SERVICE_ACCOUNT),
        B::namespaced::<core::Service>().short(&["svc"]).all().status().names(NameRule::Rfc1035),
        B::namespaced::<apps::ControllerRevision>(),
        B::namespaced::<apps::DaemonSet>().short(&["ds"]).all().status().generation(),
        B::namespaced::<apps::Deployment>().short(&["deploy"]).all().status().generation().scale(),
        B::namespaced::<apps::ReplicaSet>().short(&["rs"]).all().status().generation().scale(),
        B::namespaced::<apps::StatefulSet>().short(&["sts"]).all().status().generation().scale(),
        B::namespaced::<batch::Job>().all().status().generation(),
        B::namespaced::<batch::CronJob>().short(&["cj"]).all().status().generation(),
        B::namespaced::<autoscaling::HorizontalPodAutoscaler>().short(&["hpa"]).all().status(),
        B::namespaced::<policy::PodDisruptionBudget>().short(&["pdb"]).status().generation(),
        B::cluster::<rbac::ClusterRoleBinding>().names(path),
        B::cluster::<rbac::ClusterRole>().names(path),
        B::namespaced::<rbac::RoleBinding>().names(path),
        B::namespaced::<rbac::Role>().names(path),
        B::namespaced::<coordination::Lease>(),
        B::namespaced::<discovery::EndpointSlice>(),
        // Both faces of Event show the same objects.
        B::namespaced::<events::Event>().short(&["ev"]).table("", "events"),
        B::cluster::<networking::IngressClass>(),
        B::namespaced::<networking::Ingress>().short(&["ing"]).status().generation(),
        B::cluster::<networking::IPAddress>().short(&["ip"]),
        B::namespaced::<networking::NetworkPolicy>().short(&["netpol"]).generation(),
        B::cluster::<networking::ServiceCIDR>().status(),
        B::cluster::<scheduling::PriorityClass>().short(&["pc"]),
        B::cluster::<storage::CSIDriver>(),
        B::cluster::<storage::CSINode>(),
        B::cluster::<storage::StorageClass>().short(&["sc"]),
        B::cluster::<admission::MutatingWebhookConfiguration>().generation(),
        B::cluster::<admission::ValidatingWebhookConfiguration>().generation(),
        B::cluster::<apiextensions::CustomResourceDefinition>().short(&["crd", "crds"]).status().generation(),
    ];
    table.into_iter().map(|Builtin(resource)| Arc::new(resource)).collect()
}
