//! What is known of one connected pod follows the index.

use std::net::IpAddr;

use tracing::warn;

use super::Entry;
use crate::watch::index::PodInfo;

impl Entry {
    /// Takes over what the index knows of the pod. A pod that the index does not have (any more)
    /// stays as it was until DEL: its containers may still run.
    pub(super) fn follow(&mut self, known: Option<&PodInfo>) {
        let Some(known) = known else { return };
        let mut now = known.clone();
        if let (Err(e), Some(PodInfo { egresses: Ok(before), .. })) = (&known.egresses, &self.attached.pod) {
            // An annotation that became wrong must not let a client's packets out without a gateway.
            if self.complaint.as_ref() != Some(e) {
                warn!(pod = %known.key, error = %e, "the pod's Egresses stay as they were");
                self.complaint = Some(e.clone());
            }
            now.egresses = Ok(before.clone());
        } else {
            self.complaint = None;
        }
        if self.attached.link.addresses().is_empty() {
            // Of a pod that another plugin connected, and whose namespace was not found.
            for address in &now.addresses {
                match address {
                    IpAddr::V4(a) => self.attached.link.ipv4 = Some(*a),
                    IpAddr::V6(a) => self.attached.link.ipv6 = Some(*a),
                }
            }
        }
        self.attached.pod = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::Arc};

    use coil_api::annotation::{AnnotationError, EgressRef};
    use tokio::time::Instant;

    use super::*;
    use crate::{
        egress::plan::{self, Attached},
        net::{Link, Mac, pod::PodLink},
        node::Attachment,
        watch::index::ObjectKey,
    };

    fn pod(egresses: Result<Vec<EgressRef>, AnnotationError>) -> PodInfo {
        PodInfo {
            key: ObjectKey::new("a", "p"),
            uid: "1".into(),
            egresses,
            gateway_of: None,
            shaped: false,
            addresses: Vec::new(),
            ports: BTreeSet::new(),
        }
    }

    #[test]
    fn a_pod_follows_its_annotations_but_not_into_the_open() {
        let link = PodLink { host: Link::default(), mac: Mac::default(), ipv4: None, ipv6: None };
        let mut entry = Entry {
            attached: Attached { link, pod: None, kernel_client: false, kernel_gateway: false },
            uid: None,
            attachment: Attachment { name: String::new(), network: None },
            since: Instant::now(),
            netns: None,
            routes: None,
            segments_udp: None,
            gateway: None,
            complaint: None,
            kernel: None,
            kernel_trouble: None,
            trouble_as_client: None,
            inside: Arc::default(),
        };
        let egresses = |entry: &Entry| plan::egresses_of(entry.attached.pod.as_ref().unwrap()).to_vec();
        let nat = EgressRef { namespace: "internet".into(), name: "nat".into() };
        let wrong = AnnotationError::Name { key: "egress.coil.cybozu.com/internet".into(), name: ",".into() };
        entry.follow(Some(&pod(Ok(vec![nat.clone()]))));
        assert_eq!(egresses(&entry), std::slice::from_ref(&nat));
        entry.follow(Some(&pod(Err(wrong.clone()))));
        assert_eq!((egresses(&entry), entry.complaint.as_ref()), (vec![nat.clone()], Some(&wrong)));
        entry.follow(None);
        assert_eq!(egresses(&entry), [nat], "a pod that is deleted in the API runs on for a while");
        entry.follow(Some(&pod(Ok(Vec::new()))));
        assert_eq!((egresses(&entry).len(), &entry.complaint), (0, &None));
    }
}
