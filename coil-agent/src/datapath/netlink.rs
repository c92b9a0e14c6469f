//! Netlink by bytes, for what no crate here speaks: connection tracking, nftables, XFRM, queues.

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};
use nix::sys::socket::{setsockopt, sockopt};

pub(crate) const REQUEST: u16 = 1;
pub(crate) const ACK: u16 = 4;
pub(crate) const DUMP: u16 = 0x300;
/// Make it; it must not exist.
pub(crate) const CREATE: u16 = 0x600;

/// The flag of an attribute that holds attributes.
pub(crate) const NESTED: u16 = 0x8000;

/// Of an answer: the list changed while the kernel wrote it.
const INTERRUPTED: u16 = 0x10;
/// How often such a list is asked for again.
const ATTEMPTS: u32 = 10;

/// Requests up to this size every socket takes.
const LARGE: usize = 1 << 16;

/// Types of `NLMSG_ERROR` and `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// Looks again while what it looks at changes under its hands.
pub(crate) fn consistent<T>(mut look: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 1..ATTEMPTS {
        match look() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
    look()
}

/// Sends a request in this thread's network namespace, and hands the body of each answer to `take`. A list that changed
/// meanwhile ends with [`io::ErrorKind::Interrupted`]: what was handed over is neither the old one nor the new one.
pub(crate) fn exchange(protocol: isize, request: &[u8], mut take: impl FnMut(&[u8])) -> io::Result<()> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    if request.len() > LARGE {
        // The kernel refuses what is larger than the socket's buffer.
        setsockopt(&socket, sockopt::SndBufForce, &request.len().saturating_mul(2))?;
    }
    socket.send(request, 0)?;
    let mut buffer = Vec::with_capacity(1 << 16);
    let mut interrupted = false;
    loop {
        buffer.clear();
        socket.recv(&mut buffer, 0)?;
        let mut rest = &buffer[..];
        while let Some((kind, flags, body, next)) = split(rest) {
            rest = next;
            interrupted |= flags & INTERRUPTED != 0;
            match kind {
                DONE if interrupted => return Err(io::ErrorKind::Interrupted.into()),
                DONE => return Ok(()),
                ERROR => {
                    let code = body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                    return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) };
                }
                _ => take(body),
            }
        }
    }
}

/// The number of a generic netlink family. The kernel loads the module that has it, if there is one.
pub(crate) fn generic_family(name: &str) -> io::Result<u16> {
    // Numbers of linux/genetlink.h: the controller, CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_ID and _NAME.
    const CONTROL: u16 = 16;
    const GET_FAMILY: u8 = 3;
    const FAMILY_ID: u16 = 1;
    const FAMILY_NAME: u16 = 2;
    let mut id = None;
    let name = pack(FAMILY_NAME, &[name.as_bytes(), &[0]].concat());
    let request = message(CONTROL, REQUEST | ACK, &[GET_FAMILY, 1, 0, 0], &name);
    exchange(NETLINK_GENERIC, &request, |body| {
        let list = body.get(4..).unwrap_or_default();
        id = find(list, FAMILY_ID).and_then(<[u8]>::first_chunk).map(|id| u16::from_ne_bytes(*id));
    })?;
    id.ok_or_else(|| io::Error::from_raw_os_error(nix::libc::ENOENT))
}

/// The first message of a buffer: its type, its flags, its body, and what follows.
fn split(buffer: &[u8]) -> Option<(u16, u16, &[u8], &[u8])> {
    let len = u32::from_ne_bytes(*buffer.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes([*buffer.get(4)?, *buffer.get(5)?]);
    let flags = u16::from_ne_bytes([*buffer.get(6)?, *buffer.get(7)?]);
    let body = buffer.get(16..len)?;
    Some((kind, flags, body, buffer.get(len.next_multiple_of(4)..).unwrap_or_default()))
}

/// The attributes of a list.
pub(crate) fn attributes(mut list: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_ne_bytes(*list.first_chunk()?));
        let kind = u16::from_ne_bytes([*list.get(2)?, *list.get(3)?]) & !NESTED;
        let value = list.get(4..len)?;
        list = list.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// An attribute's value.
pub(crate) fn find(list: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(list).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

/// A string, which ends with a zero byte.
pub(crate) fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()
}

/// A message: the protocol's own header, then attributes.
pub(crate) fn message(kind: u16, flags: u16, header: &[u8], attributes: &[u8]) -> Vec<u8> {
    let len = u32::try_from(16 + header.len() + attributes.len()).unwrap_or(u32::MAX);
    let mut message = len.to_ne_bytes().to_vec();
    message.extend([kind.to_ne_bytes(), flags.to_ne_bytes()].concat());
    // Sequence number and port.
    message.extend([0; 8]);
    message.extend(header);
    message.extend(attributes);
    message
}

pub(crate) fn pack(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut packed = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
    packed.extend(value);
    packed.resize(packed.len().next_multiple_of(4), 0);
    packed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_ends_a_list() {
        assert_eq!(attributes(&[0, 0, 1, 0, 1]).count(), 0);
        assert_eq!(attributes(&[9, 0, 1, 0, 1]).count(), 0);
        assert_eq!(split(&[1, 0, 0, 0]), None);
        let mut looks = 0;
        let looked = consistent(|| {
            looks += 1;
            if looks < 3 { Err(io::ErrorKind::Interrupted.into()) } else { Ok(looks) }
        });
        assert_eq!(looked.unwrap(), 3, "a list that changes is looked at again");
        let list = [pack(1, b"a\0"), pack(2 | NESTED, b"long")].concat();
        assert_eq!(find(&list, 2), Some(&b"long"[..]));
        assert_eq!(find(&list, 1).map(text), Some("a".to_owned()));
    }
}
