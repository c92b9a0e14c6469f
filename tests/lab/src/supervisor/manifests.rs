//! The manifests as they are shipped: what the cluster is given, and how the programs are run.
//!
//! Definitions, roles, accounts, webhooks and the rest are created as they stand. Workloads of Coil are not: their pods
//! run as processes of the lab, with the command, flags, account and capabilities that the manifests say.

use std::{collections::BTreeMap, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::{Container, PodTemplateSpec};
use kube::{ResourceExt as _, api::DynamicObject};
use serde::Deserialize as _;

/// Everything, so that one lab needs one set.
const OVERLAY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/overlays/with-router");
/// The same for the kernel alone: coild has other capabilities then.
const KERNEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests/kernel");

/// What is shipped.
pub(super) struct Manifests {
    /// To be created, in this order.
    pub(super) objects: Vec<DynamicObject>,
    /// To be run, by name.
    pub(super) workloads: BTreeMap<String, Workload>,
}

/// A Deployment or DaemonSet of Coil.
#[derive(Debug, Clone)]
pub(super) struct Workload {
    pub(super) namespace: String,
    pub(super) template: PodTemplateSpec,
}

impl Manifests {
    /// Builds those for a datapath by kubectl.
    pub(super) fn read(datapath: &str) -> Result<Self> {
        Self::build(Path::new(if datapath == "kernel" { KERNEL } else { OVERLAY }))
    }

    fn build(overlay: &Path) -> Result<Self> {
        let output = Command::new("kubectl").arg("kustomize").arg(overlay).output();
        let output = output.context("cannot run kubectl")?;
        if !output.status.success() {
            bail!("kubectl kustomize {}: {}", overlay.display(), String::from_utf8_lossy(&output.stderr));
        }
        let text = String::from_utf8(output.stdout).context("manifests that are no text")?;
        let mut manifests = Self { objects: Vec::new(), workloads: BTreeMap::new() };
        for document in serde_yaml_ng::Deserializer::from_str(&text) {
            let object = DynamicObject::deserialize(document).context("a manifest is no object")?;
            match object.types.as_ref().map(|types| &*types.kind) {
                Some("Deployment" | "DaemonSet") => {
                    let name = object.name_any();
                    let template = object.data["spec"]["template"].clone();
                    let template = serde_json::from_value(template)
                        .with_context(|| format!("{name} has no template"))?;
                    let namespace = object.namespace().unwrap_or_default();
                    manifests.workloads.insert(name, Workload { namespace, template });
                }
                Some("CustomResourceDefinition") => manifests.objects.insert(0, object),
                _ => manifests.objects.push(object),
            }
        }
        Ok(manifests)
    }

    pub(super) fn workload(&self, name: &str) -> Result<&Workload> {
        self.workloads.get(name).with_context(|| format!("the manifests have no workload {name}"))
    }
}

impl Workload {
    pub(super) fn container(&self) -> Result<&Container> {
        let spec = self.template.spec.as_ref();
        spec.and_then(|spec| spec.containers.first()).context("a workload without containers")
    }

    /// Its program.
    pub(super) fn program(&self) -> Result<&str> {
        let command = self.container()?.command.as_deref().unwrap_or_default();
        Ok(command.first().context("a container without a command")?)
    }

    /// Its flags.
    pub(super) fn args(&self) -> Result<Vec<String>> {
        Ok(self.container()?.args.clone().unwrap_or_default())
    }

    /// Its service account.
    pub(super) fn account(&self) -> Result<&str> {
        let spec = self.template.spec.as_ref();
        spec.and_then(|spec| spec.service_account_name.as_deref()).context("a workload without an account")
    }

    /// The capabilities that it keeps.
    pub(super) fn capabilities(&self) -> Result<Vec<String>> {
        let context = self.container()?.security_context.as_ref();
        let capabilities =
            context.and_then(|c| c.capabilities.as_ref()).context("it drops no capabilities")?;
        if capabilities.drop.as_deref() != Some(&["ALL".to_owned()]) {
            bail!("it does not drop all capabilities");
        }
        Ok(capabilities.add.clone().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_is_found_with_an_account_and_capabilities() {
        let manifests = Manifests::read("auto").unwrap();
        let names: Vec<&str> = manifests.workloads.keys().map(String::as_str).collect();
        assert_eq!(names, ["coil-egress-controller", "coil-ipam-controller", "coil-router", "coild"]);
        for (name, workload) in &manifests.workloads {
            assert_eq!((workload.program().unwrap(), workload.account().unwrap()), (&**name, &**name));
            let capabilities = workload.capabilities().unwrap();
            assert!(workload.probes_name_ports().unwrap(), "{name}");
            assert_eq!(capabilities.is_empty(), name.ends_with("controller"), "{name}: {capabilities:?}");
        }
        assert!(manifests.workload("nobody").is_err());
        let coild = |datapath| Manifests::read(datapath).unwrap().workload("coild").unwrap().clone();
        let has =
            |workload: &Workload, name: &str| workload.capabilities().unwrap().iter().any(|c| c == name);
        let (auto, kernel) = (coild("auto"), coild("kernel"));
        assert!(has(&auto, "BPF") && !has(&auto, "SYS_MODULE") && has(&kernel, "SYS_MODULE"));
        assert!(!has(&kernel, "BPF") && kernel.args().unwrap().contains(&"--datapath=kernel".to_owned()));
        let definitions = coil_api::crd::definitions().len();
        let kind = |object: &DynamicObject| object.types.clone().unwrap().kind;
        assert!(manifests.objects[..definitions].iter().all(|o| kind(o) == "CustomResourceDefinition"));
        assert!(manifests.objects[definitions..].iter().all(|o| kind(o) != "CustomResourceDefinition"));
    }
}
