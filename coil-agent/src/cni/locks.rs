//! One request at a time for each attachment; others do not wait.
//!
//! A request locks the runtime's name of the attachment. Who changes what the node knows of a pod locks the name
//! that the node knows it by, too: behind other plugins that is another one, and GC has it alone.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::OwnedMutexGuard;

use crate::ipam::AttachmentId;

/// Locks by attachment, made when needed.
#[derive(Debug, Default)]
pub(super) struct Locks {
    locks: Mutex<HashMap<AttachmentId, Arc<tokio::sync::Mutex<()>>>>,
}

impl Locks {
    /// A second one, for who has that of `held`: what a runtime names by its container, the node may know by
    /// something else. None when both are one.
    pub(super) async fn lock_too(
        &self,
        held: &AttachmentId,
        owner: &AttachmentId,
    ) -> Option<OwnedMutexGuard<()>> {
        if held == owner { None } else { Some(self.lock(owner).await) }
    }

    pub(super) async fn lock(&self, owner: &AttachmentId) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            // What nobody holds or waits for goes.
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            locks.entry(owner.clone()).or_default().clone()
        };
        lock.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_waits_for_himself() {
        let locks = Locks::default();
        let id = |id: &str| AttachmentId { container_id: id.into(), ifname: "eth0".into() };
        let _held = locks.lock(&id("container")).await;
        assert!(locks.lock_too(&id("container"), &id("container")).await.is_none());
        let _second = locks.lock_too(&id("container"), &id("uid")).await.unwrap();
        let by_uid = id("uid");
        assert!(futures::poll!(Box::pin(locks.lock(&by_uid))).is_pending());
    }

    #[tokio::test]
    async fn one_attachment_waits_and_another_does_not() {
        let locks = Locks::default();
        let id = |id: &str| AttachmentId { container_id: id.into(), ifname: "eth0".into() };
        let held = locks.lock(&id("a")).await;
        let _other = locks.lock(&id("b")).await;
        let waiting = id("a");
        let mut second = Box::pin(locks.lock(&waiting));
        assert!(futures::poll!(&mut second).is_pending());
        drop(held);
        let held = second.await;
        assert_eq!(locks.locks.lock().unwrap().len(), 2);
        drop(held);
        let _third = locks.lock(&id("c")).await;
        assert!(!locks.locks.lock().unwrap().contains_key(&id("a")));
    }
}
