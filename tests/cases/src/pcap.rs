//! Reads capture files.

/// The frames of a capture in the classic format, little endian, Ethernet.
///
/// # Errors
/// Says what is wrong with the file.
pub fn frames(file: &[u8]) -> Result<Vec<&[u8]>, String> {
    let word = |at: usize| -> Result<usize, String> {
        let bytes = file.get(at..at + 4).ok_or_else(|| format!("the file ends at byte {at}"))?;
        Ok(u32::from_le_bytes(bytes.try_into().map_err(|_| "four bytes")?) as usize)
    };
    if word(0)? != 0xa1b2_c3d4 || word(20)? != 1 {
        return Err("not a little-endian pcap of Ethernet frames".into());
    }
    let mut frames = vec![];
    let mut at = 24;
    while at < file.len() {
        let len = word(at + 8)?;
        frames.push(file.get(at + 16..at + 16 + len).ok_or_else(|| format!("frame at byte {at} is cut"))?);
        at += 16 + len;
    }
    Ok(frames)
}
