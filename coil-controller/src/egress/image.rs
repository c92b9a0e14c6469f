//! The image of gateway pods: that of the controller itself.

use anyhow::{Context, Result, bail};
use coil_api::names::{ENV_POD_NAME, ENV_POD_NAMESPACE};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};

/// The image to use: the one given, else that of the first container of the pod we run in.
///
/// # Errors
/// When there is neither, naming both ways to give one.
pub async fn find(client: &Client, given: Option<String>) -> Result<String> {
    if let Some(image) = given {
        return Ok(image);
    }
    let env = |name| std::env::var(name).ok().filter(|v: &String| !v.is_empty());
    let (Some(namespace), Some(name)) = (env(ENV_POD_NAMESPACE), env(ENV_POD_NAME)) else {
        bail!(
            "the image of gateway pods is unknown: set --image, or {ENV_POD_NAMESPACE} and {ENV_POD_NAME} \
             to this controller's own pod to use its image"
        );
    };
    let pod = Api::<Pod>::namespaced(client.clone(), &namespace).get(&name).await.with_context(|| {
        format!("cannot read this controller's own pod {namespace}/{name}; or set --image")
    })?;
    let image = pod.spec.and_then(|s| s.containers.into_iter().next()).and_then(|c| c.image);
    image.with_context(|| format!("pod {namespace}/{name} names no image; set --image"))
}
