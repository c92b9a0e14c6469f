//! SCTP packets (RFC 9260) with one chunk, which opens an association.

/// Chunk types.
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
/// Verification tags of both ends.
const CLIENT_TAG: u32 = 0x1122_3344;
const SERVER_TAG: u32 = 0x5566_7788;

/// What of a packet tells it from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) source: u16,
    pub(crate) destination: u16,
    /// The tag in its header, its chunk's type, and the tag in that.
    pub(crate) chunk: (u32, u8, u32),
}

/// Asks for an association.
pub(crate) const OPENS: (u32, u8, u32) = (0, INIT, CLIENT_TAG);
/// Answers that: its header has the tag which the other end asked for.
pub(crate) const ANSWERS: (u32, u8, u32) = (CLIENT_TAG, INIT_ACK, SERVER_TAG);

impl Packet {
    /// Its bytes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let (tag, kind, own_tag) = self.chunk;
        // A receive window, one stream each way, and the first number; an answer has a cookie.
        let mut chunk = [&[0, 0, 0xff, 0xff, 0, 1, 0, 1], &own_tag.to_be_bytes()[..]].concat();
        if kind == INIT_ACK {
            chunk.extend([0, 7, 0, 8, 1, 2, 3, 4]);
        }
        let len = u16::try_from(8 + chunk.len()).unwrap_or_default();
        let mut packet = [self.source.to_be_bytes(), self.destination.to_be_bytes()].concat();
        packet.extend(tag.to_be_bytes());
        packet.extend([0; 4]);
        packet.extend([kind, 0]);
        packet.extend(len.to_be_bytes());
        packet.extend(own_tag.to_be_bytes());
        packet.extend(chunk);
        let sum = crc32c(&packet);
        packet[8..12].copy_from_slice(&sum.to_le_bytes());
        packet
    }

    /// Reads one; none when it is cut short or its checksum is wrong.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let number = |at: usize| Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?));
        let ports = number(0)?.to_be_bytes();
        let mut summed = bytes.to_vec();
        summed.get_mut(8..12)?.fill(0);
        if bytes.get(8..12)? != crc32c(&summed).to_le_bytes() {
            return None;
        }
        Some(Self {
            source: u16::from_be_bytes([ports[0], ports[1]]),
            destination: u16::from_be_bytes([ports[2], ports[3]]),
            chunk: (number(4)?, *bytes.get(12)?, number(16)?),
        })
    }
}

/// The checksum of RFC 9260, appendix A.
fn crc32c(bytes: &[u8]) -> u32 {
    /// Castagnoli's polynomial, reflected.
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 };
        }
    }
    !crc
}
