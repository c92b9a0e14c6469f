//! Bytes that look like nothing, and a checksum over them.

/// A checksum that sees every byte's value and place (FNV-1a, 64 bits).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Checksum(u64);

impl Default for Checksum {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Checksum {
    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
    }
}

impl std::fmt::Display for Checksum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Bytes without a pattern (xorshift), others for another seed.
pub(super) fn bytes(count: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(count + 8);
    while out.len() < count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(count);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_swapped_byte_is_seen() {
        let mut data = bytes(1000, 1);
        assert_eq!(data.len(), 1000);
        assert_ne!(data, bytes(1000, 2));
        let sum = |data: &[u8]| {
            let mut sum = Checksum::default();
            sum.add(data);
            sum
        };
        let before = sum(&data);
        data.swap(1, 2);
        assert_ne!(before, sum(&data));
    }
}
