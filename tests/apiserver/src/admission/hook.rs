//! Webhooks as their configurations declare them.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::ClientConfig;
use serde_json::Value;

use crate::meta::str_at;

/// One webhook.
pub(super) struct Hook {
    pub(super) name: String,
    pub(super) target: Target,
    /// PEM of the certificates to trust.
    pub(super) ca: Vec<u8>,
    /// TLS with this trust, made when it is first needed.
    pub(super) tls: OnceLock<Result<Arc<ClientConfig>, String>>,
    pub(super) rules: Vec<Rule>,
    /// Rules match the other versions of a resource as well.
    pub(super) equivalent: bool,
    pub(super) namespace_selector: Value,
    pub(super) object_selector: Value,
    /// Without an answer the write goes on.
    pub(super) fails_open: bool,
    /// It may be asked about writes that are not carried out.
    pub(super) dry_run_safe: bool,
    /// It is asked again when a later webhook changes the object.
    pub(super) again: bool,
    pub(super) timeout: Duration,
}

/// Where a webhook is.
pub(super) enum Target {
    Url(String),
    Service { namespace: String, name: String, port: u16, path: String },
}

/// What a webhook wants to hear of.
pub(super) struct Rule {
    pub(super) operations: Vec<String>,
    pub(super) groups: Vec<String>,
    pub(super) versions: Vec<String>,
    pub(super) resources: Vec<String>,
    /// `Cluster`, `Namespaced` or `*`.
    pub(super) scope: String,
}

impl Hook {
    /// The webhooks of a configuration.
    pub(super) fn all(configuration: &Value) -> Vec<Self> {
        let hooks = configuration.get("webhooks").and_then(Value::as_array).into_iter().flatten();
        hooks.filter_map(Self::of).collect()
    }

    /// A webhook without a target was refused when it was written.
    fn of(hook: &Value) -> Option<Self> {
        let text = |key: &str| str_at(hook, &[key]).unwrap_or_default();
        let client = &hook["clientConfig"];
        let rules = hook.get("rules").and_then(Value::as_array).into_iter().flatten();
        let seconds = hook.get("timeoutSeconds").and_then(Value::as_u64).unwrap_or(10);
        Some(Self {
            name: text("name").to_owned(),
            target: Target::of(client)?,
            ca: STANDARD.decode(str_at(client, &["caBundle"]).unwrap_or_default()).unwrap_or_default(),
            tls: OnceLock::new(),
            rules: rules.map(Rule::of).collect(),
            equivalent: text("matchPolicy") != "Exact",
            namespace_selector: hook["namespaceSelector"].clone(),
            object_selector: hook["objectSelector"].clone(),
            fails_open: text("failurePolicy") == "Ignore",
            dry_run_safe: matches!(text("sideEffects"), "None" | "NoneOnDryRun"),
            again: text("reinvocationPolicy") == "IfNeeded",
            timeout: Duration::from_secs(seconds),
        })
    }
}

impl Target {
    fn of(client: &Value) -> Option<Self> {
        if let Some(url) = str_at(client, &["url"]) {
            return Some(Self::Url(url.to_owned()));
        }
        let service = client.get("service")?;
        let text = |key: &str| str_at(service, &[key]).unwrap_or_default().to_owned();
        let port = service.get("port").and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok());
        Some(Self::Service {
            namespace: text("namespace"),
            name: text("name"),
            port: port.unwrap_or(443),
            path: text("path"),
        })
    }

    /// The URL by which errors name the target.
    pub(super) fn url(&self) -> String {
        match self {
            Self::Url(url) => url.clone(),
            Self::Service { namespace, name, port, path } => {
                format!("https://{name}.{namespace}.svc:{port}/{}", path.trim_start_matches('/'))
            }
        }
    }
}

impl Rule {
    fn of(rule: &Value) -> Self {
        let texts = |key: &str| {
            let list = rule.get(key).and_then(Value::as_array).into_iter().flatten();
            list.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        Self {
            operations: texts("operations"),
            groups: texts("apiGroups"),
            versions: texts("apiVersions"),
            resources: texts("resources"),
            scope: str_at(rule, &["scope"]).unwrap_or("*").to_owned(),
        }
    }
}
