//! The image of gateway pods: that of the controller itself.

use anyhow::{Context, Result, bail};
use coil_api::names::{ENV_POD_NAME, ENV_POD_NAMESPACE};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};

/// Where the image comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A flag or its variable gave it.
    Given(String),
    /// The first container of this pod, which is the controller's own.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
}

impl Source {
    /// The image given, else the pod that the environment names.
    ///
    /// # Errors
    /// When there is neither, naming both ways to give one.
    pub fn find(given: Option<String>, env: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let set = |name| env(name).filter(|v| !v.is_empty());
        match (given.filter(|i| !i.is_empty()), set(ENV_POD_NAMESPACE), set(ENV_POD_NAME)) {
            (Some(image), _, _) => Ok(Self::Given(image)),
            (None, Some(namespace), Some(name)) => Ok(Self::Pod { namespace, name }),
            _ => bail!(
                "the image of gateway pods is unknown: set --image, or {ENV_POD_NAMESPACE} and {ENV_POD_NAME} \
                 to this controller's own pod to use its image"
            ),
        }
    }

    /// The image.
    ///
    /// # Errors
    /// When the pod cannot be read or names no image.
    pub async fn read(self, client: &Client) -> Result<String> {
        let (namespace, name) = match self {
            Self::Given(image) => return Ok(image),
            Self::Pod { namespace, name } => (namespace, name),
        };
        let pod = Api::<Pod>::namespaced(client.clone(), &namespace).get(&name).await.with_context(|| {
            format!("cannot read this controller's own pod {namespace}/{name}; or set --image")
        })?;
        let image = pod.spec.and_then(|s| s.containers.into_iter().next()).and_then(|c| c.image);
        image.with_context(|| format!("pod {namespace}/{name} names no image; set --image"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_given_image_wins_and_none_is_an_error() {
        let nothing = |_: &str| None;
        let pod = |name: &str| Some(format!("my-{name}"));
        assert_eq!(Source::find(Some("coil:1".into()), pod).unwrap(), Source::Given("coil:1".into()));
        let own = Source::Pod { namespace: "my-COIL_POD_NAMESPACE".into(), name: "my-COIL_POD_NAME".into() };
        assert_eq!(Source::find(None, pod).unwrap(), own);
        let error = Source::find(None, nothing).unwrap_err().to_string();
        assert!(error.contains("--image") && error.contains("COIL_POD_NAME"), "{error}");
    }
}
