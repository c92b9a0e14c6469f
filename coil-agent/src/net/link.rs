//! Links: veth pairs, their alias, and finding them.

use std::fmt;

use coil_api::names;
use coil_netns::NetNs;
use nix::libc;
use rtnetlink::{
    LinkMessageBuilder, LinkUnspec, LinkVeth,
    packet_core::DefaultNla,
    packet_route::{
        RouteNetlinkMessage,
        link::{
            AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoVeth, LinkAttribute, LinkLayerType,
            LinkMessage, Prop, State,
        },
    },
};
use std::os::fd::AsRawFd;

use super::{
    rtnl::{Mode, Rtnl, RtnlError},
    wire::{Answer, Request},
};
use crate::ipam::AttachmentId;

/// Room for a link's name (IFNAMSIZ of linux/if.h), the final zero counted.
const IFNAME_SIZE: usize = 16;

/// A link's hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// A random, locally administered unicast address.
    ///
    /// # Errors
    /// When the kernel has no random numbers.
    pub fn random() -> Result<Self, RtnlError> {
        let mut mac = random()?;
        mac[0] = mac[0] & 0xfc | 0x02;
        Ok(Self(mac))
    }

    /// The link-local address that a link with this hardware address has (RFC 4291, appendix A).
    #[must_use]
    pub fn link_local(self) -> std::net::Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f].into()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(out, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

/// Random bytes from the kernel.
pub(super) fn random<const N: usize>() -> Result<[u8; N], RtnlError> {
    let mut bytes = [0; N];
    let failed = |e| RtnlError::new("get random numbers", e);
    let mut file = std::fs::File::open("/dev/urandom").map_err(failed)?;
    std::io::Read::read_exact(&mut file, &mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// What the alias of a pod's host link says: `COIL:<pool>:<container id>:<ifname>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alias {
    /// The AddressPool.
    pub pool: String,
    /// The attachment.
    pub owner: AttachmentId,
}

impl fmt::Display for Alias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&names::link_alias(&self.pool, &self.owner.container_id, &self.owner.ifname))
    }
}

impl Alias {
    /// Reads an alias; none when it is not one of Coil's.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (pool, container_id, ifname) = names::parse_link_alias(text)?;
        let owner = AttachmentId { container_id: container_id.to_owned(), ifname: ifname.to_owned() };
        Some(Self { pool: pool.to_owned(), owner })
    }
}

/// What Coil reads of a link.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Alternative names.
    pub altnames: Vec<String>,
    /// Alias.
    pub alias: Option<Alias>,
    /// Hardware address of an Ethernet link.
    pub mac: Mac,
    /// MTU.
    pub mtu: u32,
    /// Whether the link carries packets: it is up, and so is its other end.
    pub running: bool,
    /// True for a link that is not made by software: it has no kind.
    pub physical: bool,
    /// Its frames have MAC addresses.
    pub ethernet: bool,
    /// Of a veth: this namespace's id for the one that the peer is in.
    pub peer_nsid: Option<i32>,
    /// Index of the lower link or of the veth's peer.
    pub lower: Option<u32>,
    /// Index of the bridge or bond that the link belongs to.
    pub master: Option<u32>,
}

impl Link {
    /// Whether it may be the link of an attachment that has its name: it is, or it has no alias yet.
    pub(super) fn is_of(&self, owner: &AttachmentId) -> bool {
        self.alias.as_ref().is_none_or(|alias| alias.owner == *owner)
    }

    fn parse(message: &LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            physical: true,
            ethernet: message.header.link_layer_type == LinkLayerType::Ether,
            ..Self::default()
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::IfAlias(alias) => link.alias = Alias::parse(alias),
                LinkAttribute::Address(mac) => link.mac = Mac(mac.as_slice().try_into().unwrap_or_default()),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::OperState(state) => link.running = *state == State::Up,
                LinkAttribute::LinkInfo(_) => link.physical = false,
                LinkAttribute::LinkNetNsId(id) => link.peer_nsid = Some(*id),
                LinkAttribute::Link(index) => link.lower = Some(*index),
                LinkAttribute::Controller(index) => link.master = Some(*index),
                LinkAttribute::PropList(properties) => {
                    link.altnames.extend(properties.iter().filter_map(|p| match p {
                        Prop::AltIfName(name) => Some(name.clone()),
                        _ => None,
                    }));
                }
                _ => {}
            }
        }
        link
    }
}

/// A veth pair that is to be made.
#[derive(Debug)]
pub(super) struct Veth<'a> {
    pub(super) name: &'a str,
    pub(super) mac: Mac,
    pub(super) peer: &'a str,
    pub(super) peer_mac: Mac,
    pub(super) mtu: u32,
}

/// Makes both ends in one message, the peer in another namespace from the start.
pub(super) fn add_veth(veth: &Veth<'_>, peer_ns: &NetNs) -> Request {
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(veth.peer)
        .address(veth.peer_mac.0.to_vec())
        .mtu(veth.mtu)
        .setns_by_fd(peer_ns.as_raw_fd())
        .build();
    let pair = LinkMessageBuilder::<LinkVeth>::new(veth.name, veth.peer)
        .address(veth.mac.0.to_vec())
        .mtu(veth.mtu)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .build();
    let doing = format!("make the veth pair {} and {}", veth.name, veth.peer);
    Request::change(RouteNetlinkMessage::NewLink(pair), Mode::Create, doing)
}

/// Gives a link its alias, and keeps the kernel from giving it a link-local address when it comes up:
/// that would wait for duplicates. `ipv6`: the kernel has IPv6 at all.
pub(super) fn describe(index: u32, alias: Option<&Alias>, ipv6: bool) -> Request {
    let mut link = LinkUnspec::new_with_index(index).build();
    link.attributes.extend(alias.map(|alias| LinkAttribute::IfAlias(alias.to_string())));
    if ipv6 {
        let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        link.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])]));
    }
    let doing = format!("give link {index} its alias and settings");
    Request::change(RouteNetlinkMessage::SetLink(link), Mode::Change, doing)
}

/// Sets a link up.
pub(super) fn set_up(index: u32) -> Request {
    let message = RouteNetlinkMessage::SetLink(LinkUnspec::new_with_index(index).up().build());
    Request::change(message, Mode::Change, format!("set up link {index}"))
}

/// Gives a link further names.
pub(super) fn add_altnames(index: u32, names: &[String]) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    let names: Vec<Prop> = names.iter().cloned().map(Prop::AltIfName).collect();
    let doing = format!("give link {index} the alternative names {names:?}");
    message.attributes.push(LinkAttribute::PropList(names));
    Request::change(RouteNetlinkMessage::NewLinkProp(message), Mode::Create, doing)
}

/// Removes a link.
pub(super) fn delete_link(index: u32) -> Request {
    let message = RouteNetlinkMessage::DelLink(LinkUnspec::new_with_index(index).build());
    Request::change(message, Mode::Change, format!("remove link {index}"))
}

/// Asks for a link by its name or an alternative one.
pub(super) fn get_by_name(name: &str) -> Request {
    Request::get(RouteNetlinkMessage::GetLink(named(name)), format!("look for link {name}"))
}

/// Asks for a link by its index.
pub(super) fn get_by_index(index: u32) -> Request {
    let message = LinkUnspec::new_with_index(index).build();
    Request::get(RouteNetlinkMessage::GetLink(message), format!("look for link {index}"))
}

/// The link that was asked for; none when there is none.
pub(super) fn found(answer: Answer) -> Result<Option<Link>, RtnlError> {
    match answer {
        Ok(Some(RouteNetlinkMessage::NewLink(link))) => Ok(Some(Link::parse(&link))),
        Ok(_) => Ok(None),
        Err(e) if e.is_absent() => Ok(None),
        Err(e) => Err(e),
    }
}

/// A message about the link with a name: an alternative one has room for more.
fn named(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(if name.len() < IFNAME_SIZE {
        LinkAttribute::IfName(name.to_owned())
    } else {
        LinkAttribute::Other(DefaultNla::new(libc::IFLA_ALT_IFNAME, [name.as_bytes(), &[0]].concat()))
    });
    message
}

impl Rtnl {
    /// Gives a link one more name.
    pub(super) async fn add_altname(&self, index: u32, name: &str) -> Result<(), RtnlError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::PropList(vec![Prop::AltIfName(name.to_owned())]));
        let doing = || format!("give link {index} the alternative name {name}");
        self.change(RouteNetlinkMessage::NewLinkProp(message), Mode::Create, doing).await
    }

    /// The link with this name, or this alternative name; none when there is none.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn link_by_name(&self, name: &str) -> Result<Option<Link>, RtnlError> {
        self.link(named(name), || format!("look for link {name}")).await
    }

    /// The link with this index; none when there is none.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn link_by_index(&self, index: u32) -> Result<Option<Link>, RtnlError> {
        self.link(LinkUnspec::new_with_index(index).build(), || format!("look for link {index}")).await
    }

    async fn link(
        &self,
        message: LinkMessage,
        doing: impl FnOnce() -> String,
    ) -> Result<Option<Link>, RtnlError> {
        match self.get(RouteNetlinkMessage::GetLink(message)).await {
            Ok(RouteNetlinkMessage::NewLink(link)) => Ok(Some(Link::parse(&link))),
            Ok(_) => Ok(None),
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(e) => Err(RtnlError::new(doing(), e)),
        }
    }

    /// Removes a link; one that is not there is as good as removed.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn delete_link(&self, index: u32) -> Result<(), RtnlError> {
        let message = RouteNetlinkMessage::DelLink(LinkUnspec::new_with_index(index).build());
        match self.change(message, Mode::Change, || format!("remove link {index}")).await {
            Err(e) if !e.is_absent() => Err(e),
            _ => Ok(()),
        }
    }

    /// Gives a link another name.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn rename_link(&self, index: u32, name: &str) -> Result<(), RtnlError> {
        let link = LinkUnspec::new_with_index(index).name(name.to_owned()).build();
        self.change(RouteNetlinkMessage::SetLink(link), Mode::Change, || {
            format!("rename link {index} to {name}")
        })
        .await
    }

    /// All links of the namespace.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn links(&self) -> Result<Vec<Link>, RtnlError> {
        self.links_of(LinkMessage::default(), "the links").await
    }

    /// All links of another namespace, by this one's id for it: no path leads there, and none is needed.
    ///
    /// # Errors
    /// When the kernel cannot be asked, or has no such id.
    pub async fn links_in(&self, nsid: i32) -> Result<Vec<Link>, RtnlError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfNetnsId(nsid));
        self.links_of(message, &format!("the links of the namespace with the id {nsid}")).await
    }

    async fn links_of(&self, filter: LinkMessage, what: &str) -> Result<Vec<Link>, RtnlError> {
        let all = self.dump(RouteNetlinkMessage::GetLink(filter), what).await?;
        Ok(all
            .iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewLink(link) => Some(Link::parse(link)),
                _ => None,
            })
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases() {
        let text = "COIL:default:0123abcd:eth0";
        let alias = Alias::parse(text).unwrap();
        assert_eq!((alias.pool.as_str(), alias.owner.ifname.as_str()), ("default", "eth0"));
        assert_eq!(alias.to_string(), text);
        for other in ["", "COIL", "COIL:a:b", "COIL:a:b:c:d", "CALI:a:b:c"] {
            assert_eq!(Alias::parse(other), None, "{other}");
        }
    }

    #[test]
    fn hardware_addresses() {
        let mac = Mac([0x02, 0x42, 0xac, 0x11, 0, 0x02]);
        assert_eq!(mac.to_string(), "02:42:ac:11:00:02");
        assert_eq!(mac.link_local().to_string(), "fe80::42:acff:fe11:2");
        let random = Mac::random().unwrap();
        assert_eq!(random.0[0] & 3, 2, "unicast, locally administered: {random}");
        assert_ne!(random, Mac::random().unwrap());
    }
}
