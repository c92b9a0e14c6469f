//! How programs of the lab reach its API server: kubeconfig files and what is in them.

use std::path::Path;

use anyhow::{Context as _, Result};
use k8s_openapi::ByteString;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};

use crate::state;

/// The way to an API server: what a kubeconfig with one context holds.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    /// URL of the server.
    pub(crate) server: String,
    /// PEM of the authority that signed its certificate.
    pub(crate) ca: String,
    /// Bearer token.
    pub(crate) token: String,
}

impl Access {
    /// Reads the first cluster and user of a kubeconfig.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let describe = || format!("cannot read the kubeconfig {}", path.display());
        let text = std::fs::read_to_string(path).with_context(describe)?;
        let document: Value = serde_yaml_ng::from_str(&text).with_context(describe)?;
        Self::parse(&document).with_context(describe)
    }

    fn parse(document: &Value) -> Result<Self> {
        let cluster = &document["clusters"][0]["cluster"];
        let user = &document["users"][0]["user"];
        let string = |value: &Value, name: &str| {
            value.as_str().map(str::to_owned).with_context(|| format!("it has no {name}"))
        };
        let ca = match &cluster["certificate-authority-data"] {
            Value::Null => {
                let path = string(&cluster["certificate-authority"], "certificate-authority")?;
                std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?
            }
            data => String::from_utf8(serde_json::from_value::<ByteString>(data.clone())?.0)?,
        };
        Ok(Self {
            server: string(&cluster["server"], "server")?,
            ca,
            token: string(&user["token"], "token")?,
        })
    }

    /// The same server under another address.
    pub(crate) fn at(&self, address: std::net::SocketAddr) -> Self {
        Self { server: format!("https://{address}"), ..self.clone() }
    }

    /// Writes it as a kubeconfig.
    pub(crate) fn write(&self, path: &Path, name: &str) -> Result<()> {
        let document = self.document(name);
        state::replace(path, &serde_yaml_ng::to_string(&document)?)
    }

    fn document(&self, name: &str) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": name, "cluster": {
                "server": self.server,
                "certificate-authority-data": ByteString(self.ca.clone().into_bytes()),
            }}],
            "users": [{"name": "admin", "user": {"token": self.token}}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": "admin"}}],
            "current-context": name,
        })
    }

    /// A client, whatever proxy the environment names.
    pub(crate) async fn client(&self) -> Result<Client> {
        let kubeconfig: Kubeconfig = serde_json::from_value(self.document("lab"))?;
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .context("the kubeconfig cannot be used")?;
        config.proxy_url = None;
        Client::try_from(config).context("cannot make a client of the API server")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kubeconfig");
        let access =
            Access { server: "https://172.18.0.10:6443".into(), ca: "PEM\n".into(), token: "t".into() };
        access.at(([127, 0, 0, 1], 7).into()).write(&path, "coil").unwrap();
        let read = Access::read(&path).unwrap();
        assert_eq!((&*read.server, &*read.ca, &*read.token), ("https://127.0.0.1:7", "PEM\n", "t"));
    }
}
