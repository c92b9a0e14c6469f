//! Names of a pod's host link: how it is found again, in one step.
//!
//! ```text
//! veth1a2b3c4d5e6                      its name: from the attachment; with --compat-calico from the pod
//!   coil.CONTAINER.eth0                alternative name: the attachment, for DEL and CHECK
//!   coil-UID                           alternative name: the pod, for an agent that was restarted
//! ```
//!
//! `ip link show coil.CONTAINER.eth0` shows the link of a container.

use sha1::{Digest as _, Sha1};

use super::{link::random, rtnl::RtnlError};
use crate::ipam::AttachmentId;

/// Begins the alternative name by which the pod is known.
const OF_POD: &str = "coil-";
/// Begins the alternative name by which the attachment is found.
const OF_ATTACHMENT: &str = "coil.";
/// Longest alternative name (ALTIFNAMSIZ of linux/if.h counts the final zero).
const ALTNAME_MAX: usize = 127;

/// The pod of a link.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodIdentity {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

impl PodIdentity {
    /// The name of the host link that Calico would give: Calico's policies then find it.
    #[must_use]
    pub fn calico_name(&self) -> String {
        format!("veth{}", &hex(&format!("{}.{}", self.namespace, self.name))[..11])
    }

    /// The alternative name that says whose link it is.
    #[must_use]
    pub fn altname(&self) -> String {
        format!("{OF_POD}{}", self.uid)
    }
}

/// The UID of the pod that alternative names state.
#[must_use]
pub fn uid_of(altnames: &[String]) -> Option<&str> {
    altnames.iter().find_map(|name| name.strip_prefix(OF_POD))
}

/// The alternative name by which an attachment is found.
#[must_use]
pub fn of_attachment(owner: &AttachmentId) -> String {
    let name = format!("{OF_ATTACHMENT}{}.{}", owner.container_id, owner.ifname);
    if name.len() <= ALTNAME_MAX { name } else { format!("{OF_ATTACHMENT}{}", hex(&name)) }
}

/// The name of the host link of an attachment: what an agent that was killed right after making it left
/// behind is found by the name alone.
pub(super) fn of_link(owner: &AttachmentId) -> String {
    format!("veth{}", &hex(&of_attachment(owner))[..11])
}

/// A name that no other link has, most likely.
pub(super) fn random_name() -> Result<String, RtnlError> {
    Ok(format!("veth{:08x}", u32::from_ne_bytes(random()?)))
}

fn hex(text: &str) -> String {
    Sha1::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(container_id: String) -> AttachmentId {
        AttachmentId { container_id, ifname: "eth0".into() }
    }

    #[test]
    fn calico_finds_its_names() {
        let pod = PodIdentity { namespace: "default".into(), name: "pod1".into(), uid: "1-2".into() };
        // printf default.pod1 | sha1sum
        assert_eq!(pod.calico_name(), "vethce0906292e2");
        assert_eq!(pod.altname(), "coil-1-2");
    }

    #[test]
    fn a_pods_name_and_an_attachments_are_not_mixed_up() {
        let names = [of_attachment(&owner("uid".into())), "coil-7".to_owned()];
        assert_eq!(uid_of(&names), Some("7"));
        assert_eq!(uid_of(&names[..1]), None);
    }

    #[test]
    fn a_long_container_id_has_a_name_too() {
        assert_eq!(of_attachment(&owner("abc".into())), "coil.abc.eth0");
        let (long, other) = (owner("x".repeat(200)), owner("x".repeat(201)));
        assert!(of_attachment(&long).len() <= ALTNAME_MAX);
        assert_ne!(of_attachment(&long), of_attachment(&other));
    }
}
