//! A frame in memory, with the BPF helpers that the programs use.

use coil_packet::{Fault, Room, Skb, wire::fold};

/// A frame in memory.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    pub(crate) bytes: Vec<u8>,
    pub(crate) gso_size: u32,
}

impl Memory {
    fn range(&self, at: u32, len: usize) -> Result<std::ops::Range<usize>, Fault> {
        let at = at as usize;
        if at + len <= self.bytes.len() { Ok(at..at + len) } else { Err(Fault) }
    }

    fn fix(&mut self, at: u32, diff: u32) -> Result<(), Fault> {
        let range = self.range(at, 2)?;
        let old = u16::from_ne_bytes(self.bytes[range.clone()].try_into().map_err(|_| Fault)?);
        let sum = u32::from(!old) + u32::from(fold(diff));
        self.bytes[range].copy_from_slice(&(!fold(sum)).to_ne_bytes());
        Ok(())
    }
}

impl Skb for Memory {
    fn frame_len(&self) -> u32 {
        u32::try_from(self.bytes.len()).expect("short frames")
    }

    fn gso_size(&self) -> u32 {
        self.gso_size
    }

    fn load<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        self.bytes[self.range(at, N).ok()?].try_into().ok()
    }

    fn store<const N: usize>(&mut self, at: u32, bytes: &[u8; N]) -> Result<(), Fault> {
        let range = self.range(at, N)?;
        self.bytes[range].copy_from_slice(bytes);
        Ok(())
    }

    fn store_summed<const N: usize>(&mut self, at: u32, bytes: &[u8; N]) -> Result<(), Fault> {
        self.store(at, bytes)
    }

    fn fix_l3_sum(&mut self, at: u32, diff: u32) -> Result<(), Fault> {
        self.fix(at, diff)
    }

    fn fix_l4_sum(&mut self, at: u32, diff: u32, _pseudo: bool, optional: bool) -> Result<(), Fault> {
        if optional && self.load(at) == Some([0, 0]) {
            return Ok(());
        }
        self.fix(at, diff)?;
        if optional && self.load(at) == Some([0, 0]) {
            self.store(at, &[0xff, 0xff])?;
        }
        Ok(())
    }

    fn grow(&mut self, room: Room) -> Result<(), Fault> {
        self.range(0, 14)?;
        self.bytes.splice(14..14, std::iter::repeat_n(0, room.bytes() as usize));
        Ok(())
    }

    fn shrink(&mut self, bytes: u32) -> Result<(), Fault> {
        let range = self.range(14, bytes as usize)?;
        self.bytes.drain(range);
        Ok(())
    }

    fn truncate(&mut self, len: u32) -> Result<(), Fault> {
        self.range(0, len as usize)?;
        self.bytes.truncate(len as usize);
        self.gso_size = 0;
        Ok(())
    }
}
