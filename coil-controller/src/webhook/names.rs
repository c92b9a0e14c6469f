//! Names of the webhooks, as Coil v2 has them. The manifests in `deploy/` say the same; a test
//! compares them.

/// The webhooks of one program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Webhook {
    /// What stands in the names: `ipam` or `egress`.
    pub part: &'static str,
    /// Kind of the resource.
    pub kind: &'static str,
    /// Plural of the resource.
    pub resource: &'static str,
    /// Path that completes new objects.
    pub mutate_path: &'static str,
    /// Name of the webhook behind [`Webhook::mutate_path`].
    pub mutate_name: &'static str,
    /// Path that judges objects.
    pub validate_path: &'static str,
    /// Name of the webhook behind [`Webhook::validate_path`].
    pub validate_name: &'static str,
    /// TCP port, unless `--webhook-addr` says another.
    pub port: u16,
}

/// AddressPool, in coil-ipam-controller.
pub const IPAM: Webhook = Webhook {
    part: "ipam",
    kind: "AddressPool",
    resource: "addresspools",
    mutate_path: "/mutate-coil-cybozu-com-v2-addresspool",
    mutate_name: "maddresspool.kb.io",
    validate_path: "/validate-coil-cybozu-com-v2-addresspool",
    validate_name: "vaddresspool.kb.io",
    port: 9443,
};

/// Egress, in coil-egress-controller.
pub const EGRESS: Webhook = Webhook {
    part: "egress",
    kind: "Egress",
    resource: "egresses",
    mutate_path: "/mutate-coil-cybozu-com-v2-egress",
    mutate_name: "megress.kb.io",
    validate_path: "/validate-coil-cybozu-com-v2-egress",
    validate_name: "vegress.kb.io",
    port: 9444,
};

impl Webhook {
    /// Name of the MutatingWebhookConfiguration.
    #[must_use]
    pub fn mutating(&self) -> String {
        format!("coilv2-mutating-{}-webhook-configuration", self.part)
    }

    /// Name of the ValidatingWebhookConfiguration.
    #[must_use]
    pub fn validating(&self) -> String {
        format!("coilv2-validating-{}-webhook-configuration", self.part)
    }

    /// Name of the Service in front of the program.
    #[must_use]
    pub fn service(&self) -> String {
        format!("coilv2-{}-webhook-service", self.part)
    }

    /// Name of the Secret with the certificates.
    #[must_use]
    pub fn secret(&self) -> String {
        format!("coilv2-{}-webhook-server-cert", self.part)
    }

    /// Common name of the certificate authority that the program makes.
    #[must_use]
    pub fn authority(&self) -> String {
        format!("coil-{}-ca", self.part)
    }

    /// Names that API servers may know the Service by.
    #[must_use]
    pub fn dns_names(&self, namespace: &str) -> Vec<String> {
        let service = self.service();
        vec![format!("{service}.{namespace}.svc"), format!("{service}.{namespace}.svc.cluster.local")]
    }
}
