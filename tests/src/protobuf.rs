//! The part of protobuf that the calls of a node need: fields that have a length, and numbers.

/// Appends a field that has a length.
pub(crate) fn put(message: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    message.push(number << 3 | 2);
    let mut length = bytes.len();
    while length > 0x7f {
        message.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    message.push(length as u8);
    message.extend_from_slice(bytes);
}

/// A message of one field that has a length.
pub(crate) fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    put(&mut message, number, bytes);
    message
}

/// The fields of a message that have a length, in their order: number and content. Ends where something cannot be read.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (first, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(first & 0x7f) << shift;
            if first & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = (u64, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let key = self.varint()?;
            match key & 7 {
                0 => drop(self.varint()?),
                1 => self.0 = self.0.get(8..)?,
                2 => {
                    let length = usize::try_from(self.varint()?).ok()?;
                    let (content, rest) = self.0.split_at_checked(length)?;
                    self.0 = rest;
                    return Some((key >> 3, content));
                }
                5 => self.0 = self.0.get(4..)?,
                _ => return None,
            }
        }
    }
}
