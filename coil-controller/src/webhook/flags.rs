//! The flags of the webhooks, as in Coil v2.

use std::path::PathBuf;

use coil_api::{
    flags::{ListenAddr, parse_bool},
    names::ENV_POD_NAMESPACE,
};

use super::{
    cert::{Rotation, Source},
    names::Webhook,
};

/// Namespace of the Secret and the Service when the environment names none.
const DEFAULT_NAMESPACE: &str = "kube-system";

/// How webhooks are served.
#[derive(Debug, Clone, clap::Args)]
pub struct Flags {
    /// Address of the admission webhooks [default: :9443 for coil-ipam-controller, :9444 for coil-egress-controller].
    #[arg(long)]
    pub webhook_addr: Option<ListenAddr>,
    /// Directory with tls.crt and tls.key for the webhooks. They are read again when they change. Not used with
    /// --enable-cert-rotation.
    #[arg(long, default_value = "/certs")]
    pub cert_dir: PathBuf,
    /// Make the certificates, keep them in a Secret, renew them, and write their authority into the webhook
    /// configurations.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = parse_bool)]
    pub enable_cert_rotation: bool,
    /// End the program when a new certificate replaces the one in use, to be started again.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = parse_bool)]
    pub enable_restart_on_cert_refresh: bool,
}

impl Flags {
    /// Where to listen.
    #[must_use]
    pub fn address(&self, webhook: &Webhook) -> ListenAddr {
        self.webhook_addr.unwrap_or(ListenAddr { host: None, port: webhook.port })
    }

    /// Where certificates come from.
    #[must_use]
    pub fn source(&self, env: impl Fn(&str) -> Option<String>) -> Source {
        if !self.enable_cert_rotation {
            return Source::Files(self.cert_dir.clone());
        }
        let namespace = env(ENV_POD_NAMESPACE).filter(|n| !n.is_empty());
        Source::Rotation(Rotation::new(namespace.unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned())))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::webhook::names::{EGRESS, IPAM};

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        flags: Flags,
    }

    fn parse(args: &str) -> Flags {
        Program::parse_from(std::iter::once("x").chain(args.split_whitespace())).flags
    }

    #[test]
    fn defaults_are_those_of_coil_v2() {
        let flags = parse("");
        assert_eq!(flags.address(&IPAM).to_string(), ":9443");
        assert_eq!(flags.address(&EGRESS).to_string(), ":9444");
        assert!(!flags.enable_restart_on_cert_refresh);
        let Source::Files(dir) = flags.source(|_| None) else { panic!("no rotation") };
        assert_eq!(dir, PathBuf::from("/certs"));
    }

    #[test]
    fn all_flags_count() {
        let flags = parse(
            "--webhook-addr=127.0.0.1:1 --cert-dir /x --enable-cert-rotation=true --enable-restart-on-cert-refresh",
        );
        assert_eq!(flags.address(&IPAM).to_string(), "127.0.0.1:1");
        assert!(flags.enable_restart_on_cert_refresh);
        let namespace = |flags: &Flags, env: Option<&str>| match flags.source(|name| {
            assert_eq!(name, "COIL_POD_NAMESPACE");
            env.map(str::to_owned)
        }) {
            Source::Rotation(rotation) => rotation.namespace,
            Source::Files(dir) => panic!("{}", dir.display()),
        };
        assert_eq!(namespace(&flags, None), "kube-system");
        assert_eq!(namespace(&flags, Some("")), "kube-system");
        assert_eq!(namespace(&flags, Some("coil")), "coil");
        assert!(matches!(parse("--enable-cert-rotation=false").source(|_| None), Source::Files(_)));
    }
}
