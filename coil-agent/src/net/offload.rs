//! What the kernel leaves to a pod's interface, as `ethtool -K` sets it, over ethtool's netlink family.

use std::{io, sync::OnceLock};

use netlink_packet_generic::{
    GenlFamily, GenlMessage,
    ctrl::{GenlCtrl, GenlCtrlCmd, nlas::GenlCtrlAttrs},
};
use nix::libc;
use rtnetlink::{
    packet_core::{
        DefaultNla, Emitable, NLA_F_NESTED, NLM_F_ACK, NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage,
        NetlinkPayload, NetlinkSerializable,
    },
    sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC},
};

use tracing::warn;

use super::{pod::RoutePolicy, rtnl::RtnlError};

/// A datagram of several segments (`UDP_SEGMENT`, as QUIC sends them) as one packet.
const UDP_SEGMENTATION: &str = "tx-udp-segmentation";
const FAMILY: &str = "ethtool";

// linux/ethtool_netlink.h
const FEATURES_SET: u8 = 12;
const FEATURES_HEADER: u16 = 1;
const FEATURES_WANTED: u16 = 3;
const HEADER_DEV_NAME: u16 = 2;
const HEADER_FLAGS: u16 = 3;
const FLAG_OMIT_REPLY: u32 = 1 << 1;
const BITSET_BITS: u16 = 3;
const BITS_BIT: u16 = 1;
const BIT_NAME: u16 = 2;

/// The kernel's number of [`FAMILY`]: the same in every namespace, for as long as it runs.
static FAMILY_ID: OnceLock<u16> = OnceLock::new();

/// Sets what clients of Egresses need of their interface, which is in the calling thread's namespace. All else works
/// without, so that trouble is only logged.
pub(super) fn follow(ifname: &str, policy: &RoutePolicy) {
    if policy.iter().any(|(_, egress)| *egress)
        && let Err(error) = cut_udp(ifname)
    {
        warn!(%error, "UDP of several segments does not leave by an Egress");
    }
}

/// Makes the kernel cut UDP of several segments up before it leaves: encapsulation takes one datagram at a time.
fn cut_udp(ifname: &str) -> Result<(), RtnlError> {
    let set = || {
        let mut socket = Socket::new(NETLINK_GENERIC)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let family = match FAMILY_ID.get() {
            Some(id) => *id,
            None => {
                let id = family_id(&socket)?;
                *FAMILY_ID.get_or_init(|| id)
            }
        };
        let mut message =
            GenlMessage::from_payload(Off { ifname: ifname.to_owned(), feature: UDP_SEGMENTATION });
        message.set_resolved_family_id(family);
        ask(&socket, message).map(drop)
    };
    set().map_err(|e| RtnlError::new(format!("turn {UDP_SEGMENTATION} of {ifname} off"), e))
}

fn family_id(socket: &Socket) -> io::Result<u16> {
    let wanted =
        GenlCtrl { cmd: GenlCtrlCmd::GetFamily, nlas: vec![GenlCtrlAttrs::FamilyName(FAMILY.to_owned())] };
    let answers = ask(socket, GenlMessage::from_payload(wanted))?;
    let id =
        answers.into_iter().flat_map(|answer| answer.payload.nlas).find_map(|attribute| match attribute {
            GenlCtrlAttrs::FamilyId(id) => Some(id),
            _ => None,
        });
    id.ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, format!("the netlink family {FAMILY} has no number"))
    })
}

/// Sends one request, and reads until the kernel says that it is done.
fn ask<T: NetlinkSerializable>(socket: &Socket, request: T) -> io::Result<Vec<GenlMessage<GenlCtrl>>>
where
    NetlinkMessage<T>: From<T>,
{
    let mut message = NetlinkMessage::from(request);
    message.header.flags = NLM_F_REQUEST | NLM_F_ACK;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let broken = |e| io::Error::new(io::ErrorKind::InvalidData, format!("{e}"));
    let mut answers = Vec::new();
    loop {
        let mut bytes = Vec::with_capacity(1 << 16);
        // The kernel has answered when the system call that asks returns.
        socket.recv(&mut bytes, libc::MSG_DONTWAIT)?;
        let mut rest = bytes.as_slice();
        while rest.len() >= 16 {
            let length = NetlinkBuffer::new_checked(rest).map_err(broken)?.length() as usize;
            let message: NetlinkMessage<GenlMessage<GenlCtrl>> =
                NetlinkMessage::deserialize(&rest[..length]).map_err(broken)?;
            match message.payload {
                NetlinkPayload::Error(e) if e.code.is_some() => return Err(e.to_io()),
                NetlinkPayload::Error(_) => return Ok(answers),
                NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                _ => {}
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// `ETHTOOL_MSG_FEATURES_SET`: a feature that is not wanted.
#[derive(Debug, Clone)]
struct Off {
    ifname: String,
    feature: &'static str,
}

impl Off {
    fn attributes(&self) -> Vec<DefaultNla> {
        let header = [
            DefaultNla::new(HEADER_DEV_NAME, zero_ended(&self.ifname)),
            DefaultNla::new(HEADER_FLAGS, FLAG_OMIT_REPLY.to_ne_bytes().to_vec()),
        ];
        // A bit that is named and has no value is one to be cleared.
        let bit = nested(BITS_BIT, &[DefaultNla::new(BIT_NAME, zero_ended(self.feature))]);
        let wanted = nested(FEATURES_WANTED, &[nested(BITSET_BITS, &[bit])]);
        vec![nested(FEATURES_HEADER, &header), wanted]
    }
}

impl GenlFamily for Off {
    fn family_name() -> &'static str {
        FAMILY
    }

    fn command(&self) -> u8 {
        FEATURES_SET
    }

    fn version(&self) -> u8 {
        1
    }
}

impl Emitable for Off {
    fn buffer_len(&self) -> usize {
        self.attributes().as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.attributes().as_slice().emit(buffer);
    }
}

fn nested(kind: u16, inner: &[DefaultNla]) -> DefaultNla {
    let mut bytes = vec![0; inner.buffer_len()];
    inner.emit(&mut bytes);
    DefaultNla::new(kind | NLA_F_NESTED, bytes)
}

fn zero_ended(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}
