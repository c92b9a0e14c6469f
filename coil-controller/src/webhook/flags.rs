//! The flags of the webhooks, as in Coil v2.

use std::{
    hash::{BuildHasher as _, Hasher as _, RandomState},
    path::PathBuf,
    time::Duration,
};

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

/// Replicas that end for a new certificate do so within this time, each at its own.
const RESTART_SPREAD: Duration = Duration::from_secs(300);

/// A time below `limit`.
fn within(limit: Duration, random: u64) -> Duration {
    let millis = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(random % millis.max(1))
}

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
    /// End the program when a new certificate replaces the one in use, to be started again: each replica at a
    /// time of its own within five minutes, so that they do not end together. The new certificate is used at once
    /// with and without this.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = parse_bool)]
    pub enable_restart_on_cert_refresh: bool,
}

impl Flags {
    /// Where to listen.
    #[must_use]
    pub fn address(&self, webhook: &Webhook) -> ListenAddr {
        self.webhook_addr.unwrap_or(ListenAddr { host: None, port: webhook.port })
    }

    /// How long after a new certificate the program ends, if it does.
    #[must_use]
    pub fn restart(&self) -> Option<Duration> {
        let random = RandomState::new().build_hasher().finish();
        self.enable_restart_on_cert_refresh.then(|| within(RESTART_SPREAD, random))
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
    fn replicas_end_at_times_of_their_own() {
        assert_eq!(parse("").restart(), None);
        let flags = parse("--enable-restart-on-cert-refresh");
        let times: std::collections::BTreeSet<_> = (0..20).map(|_| flags.restart().unwrap()).collect();
        // Of 300,000 possible ones.
        assert!(times.len() > 10 && times.iter().all(|time| *time < RESTART_SPREAD), "{times:?}");
        assert_eq!(within(Duration::from_secs(3), 7_123), Duration::from_millis(1_123));
        assert_eq!(within(Duration::ZERO, 9), Duration::ZERO);
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
