//! The protobuf wire format.

use super::DecodeError;

/// A field's value as it stands on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    /// Fixed-width numbers, which no Kubernetes type that we read has.
    Fixed,
}

/// Reads field after field: number and value.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn varint(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(taken)
    }

    fn field(&mut self) -> Option<(u32, Token<'a>)> {
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).ok()?;
        let token = match tag & 7 {
            0 => Token::Varint(self.varint()?),
            1 => self.take(8).map(|_| Token::Fixed)?,
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Token::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Token::Fixed)?,
            _ => return None,
        };
        Some((number, token))
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = Result<(u32, Token<'a>), DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.rest = &[];
        }
        Some(field.ok_or(DecodeError::Truncated))
    }
}
