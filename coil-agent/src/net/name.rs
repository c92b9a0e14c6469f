//! Names of a pod's host link: how it is found again, in one step.
//!
//! ```text
//! veth1a2b3c4d5e6                      its name: from the attachment; with --compat-calico from the pod
//!   coil.CONTAINER.eth0                alternative name: the attachment, for DEL and CHECK
//!   coil-UID.SUFFIX                    alternative name: the pod, for an agent that was restarted
//!   coil_NETWORK_SUFFIX                alternative name: the network, for GC
//! ```
//!
//! A name can be given once on a node, and a pod can have several attachments: SUFFIX is of the attachment.
//!
//! `ip link show coil.CONTAINER.eth0` shows the link of a container.

use sha1::{Digest as _, Sha1};

use super::{link::random, rtnl::RtnlError};
use crate::ipam::AttachmentId;

/// Begins the alternative name by which the pod is known.
const OF_POD: &str = "coil-";
/// Begins the alternative name by which the attachment is found.
const OF_ATTACHMENT: &str = "coil.";
/// Begins the alternative name that says which network the attachment belongs to.
const OF_NETWORK: &str = "coil_";
/// Hex digits of a network's number, and of what makes an attachment's names its own.
const DIGITS: usize = 8;
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
    /// Name of the CNI network that it is attached to; empty when the runtime did not tell.
    pub network: String,
}

impl PodIdentity {
    /// The name of the host link that Calico would give: Calico's policies then find it.
    #[must_use]
    pub fn calico_name(&self) -> String {
        format!("veth{}", &hex(&format!("{}.{}", self.namespace, self.name))[..11])
    }

    /// The alternative names of the link of one of its attachments.
    #[must_use]
    pub fn altnames(&self, owner: &AttachmentId) -> Vec<String> {
        let attachment = of_attachment(owner);
        let suffix = number(&attachment);
        let pod = format!("{OF_POD}{}.{suffix}", self.uid);
        let network = format!("{OF_NETWORK}{}_{suffix}", network_number(&self.network));
        let all = [Some(attachment), Some(pod), Some(network).filter(|_| !self.network.is_empty())];
        all.into_iter().flatten().filter(|name| name.len() <= ALTNAME_MAX).collect()
    }
}

/// The UID of the pod that alternative names state.
#[must_use]
pub fn uid_of(altnames: &[String]) -> Option<&str> {
    let name = altnames.iter().find_map(|name| name.strip_prefix(OF_POD))?;
    match name.rsplit_once('.') {
        Some((uid, suffix)) if is_number(suffix) => Some(uid),
        _ => Some(name),
    }
}

/// The number of the network that alternative names state; see [`network_number`].
#[must_use]
pub fn network_of(altnames: &[String]) -> Option<&str> {
    altnames.iter().find_map(|name| name.strip_prefix(OF_NETWORK)?.split_once('_')).map(|(number, _)| number)
}

/// The alternative name of the attachment among a link's; see [`of_attachment`].
#[must_use]
pub fn attachment_of(altnames: &[String]) -> Option<&String> {
    altnames.iter().find(|name| name.starts_with(OF_ATTACHMENT))
}

/// Whether an alternative name is one of Coil's.
#[must_use]
pub fn is_ours(altname: &str) -> bool {
    [OF_POD, OF_ATTACHMENT, OF_NETWORK].iter().any(|prefix| altname.starts_with(prefix))
}

/// A network's number in alternative names.
#[must_use]
pub fn network_number(network: &str) -> String {
    number(network)
}

fn number(text: &str) -> String {
    hex(text)[..DIGITS].to_owned()
}

fn is_number(text: &str) -> bool {
    text.len() == DIGITS && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
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

    fn pod(network: &str) -> PodIdentity {
        let (namespace, name) = ("default".into(), "pod1".into());
        PodIdentity { namespace, name, uid: "1-2".into(), network: network.into() }
    }

    #[test]
    fn calico_finds_its_names() {
        // printf default.pod1 | sha1sum
        assert_eq!(pod("").calico_name(), "vethce0906292e2");
    }

    #[test]
    fn names_tell_attachment_pod_and_network() {
        let names = pod("k8s-pod-network").altnames(&owner("uid".into()));
        assert_eq!(names.len(), 3);
        assert_eq!(attachment_of(&names).unwrap(), "coil.uid.eth0");
        assert_eq!(uid_of(&names), Some("1-2"));
        assert_eq!(network_of(&names), Some(network_number("k8s-pod-network").as_str()));
        assert_ne!(network_of(&names), Some(network_number("storage").as_str()));
        assert!(names.iter().all(|name| is_ours(name)) && !is_ours("veth0"));
        let others =
            pod("k8s-pod-network").altnames(&AttachmentId { ifname: "net1".into(), ..owner("uid".into()) });
        assert!(names.iter().all(|name| !others.contains(name)), "no two links can have one name");
        let unknown = pod("").altnames(&owner("uid".into()));
        assert_eq!((unknown.len(), network_of(&unknown)), (2, None));
        assert_eq!(uid_of(&["coil-7".to_owned()]), Some("7"), "as the first releases wrote it");
        assert_eq!(uid_of(&unknown[..1]), None);
    }

    #[test]
    fn a_long_container_id_has_a_name_too() {
        assert_eq!(of_attachment(&owner("abc".into())), "coil.abc.eth0");
        let (long, other) = (owner("x".repeat(200)), owner("x".repeat(201)));
        assert!(of_attachment(&long).len() <= ALTNAME_MAX);
        assert_ne!(of_attachment(&long), of_attachment(&other));
    }
}
