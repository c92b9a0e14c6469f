//! Events about pods, written the way a kubelet writes them.

use std::collections::HashMap;

use anyhow::Result;
use k8s_openapi::{
    api::core::v1::{Event, Pod},
    jiff::Timestamp,
};
use kube::{
    Api, Resource as _, ResourceExt as _,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;

use super::Context;

/// The Events of one pod; the same one said again counts up.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    said: HashMap<(String, String), (String, u32)>,
}

impl Recorder {
    /// Says something; that it could not be said is logged and is no failure of the pod.
    pub(super) async fn say(
        &mut self,
        context: &Context,
        pod: &Pod,
        warning: bool,
        reason: &str,
        message: &str,
    ) {
        if let Err(error) = self.try_say(context, pod, warning, reason, message).await {
            tracing::warn!(
                pod = pod.name_any(),
                reason,
                message,
                error = format!("{error:#}"),
                "cannot write an Event"
            );
        }
    }

    async fn try_say(
        &mut self,
        context: &Context,
        pod: &Pod,
        warning: bool,
        reason: &str,
        message: &str,
    ) -> Result<()> {
        let namespace = pod.namespace().unwrap_or_default();
        let api: Api<Event> = Api::namespaced(context.client.clone(), &namespace);
        let now = Timestamp::now();
        let key = (reason.to_owned(), message.to_owned());
        if let Some((name, count)) = self.said.get_mut(&key) {
            *count += 1;
            let patch = json!({"count": count, "lastTimestamp": now});
            api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
            return Ok(());
        }
        let event: Event = serde_json::from_value(json!({
            "metadata": {"name": format!("{}.{:x}", pod.name_any(), now.as_nanosecond()), "namespace": namespace},
            "involvedObject": pod.object_ref(&()),
            "type": if warning { "Warning" } else { "Normal" },
            "reason": reason,
            "message": message,
            "count": 1,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "source": {"component": "kubelet", "host": context.role.node},
            "reportingComponent": "kubelet",
            "reportingInstance": context.role.node,
        }))?;
        let made = api.create(&PostParams::default(), &event).await?;
        self.said.insert(key, (made.name_any(), 1));
        Ok(())
    }
}
