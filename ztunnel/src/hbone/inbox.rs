//! Bytes that have arrived on a stream and have not been passed on.

use std::{collections::VecDeque, io::IoSlice};

use bytes::{Buf as _, Bytes, BytesMut};

/// Pieces below this size are merged: h2 needs some 256 bytes for each piece that it keeps, and writing many pieces costs more
/// than copying a few bytes.
const SMALL: usize = 4 << 10;
/// Pieces are merged up to this size.
const LARGE: usize = 64 << 10;
/// When more than this waits, all pieces below [`LARGE`] are merged. A piece keeps the whole read buffer in which it arrived.
/// The buffer may be as large as a frame, and a peer can send small pieces on purpose.
const BACKLOG: usize = 64 << 10;
/// The number of pieces in one write.
const AT_ONCE: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Inbox {
    pieces: VecDeque<Bytes>,
    /// Merged small pieces, which follow `pieces`.
    tail: BytesMut,
    length: usize,
}

impl Inbox {
    pub(super) fn len(&self) -> usize {
        self.length
    }

    pub(super) fn is_empty(&self) -> bool {
        self.length == 0
    }

    pub(super) fn push(&mut self, piece: Bytes) {
        if piece.is_empty() {
            return;
        }
        let small = if self.length > BACKLOG { LARGE } else { SMALL };
        let copy = !self.is_empty() && piece.len() < small;
        self.length += piece.len();
        if copy {
            self.tail.extend_from_slice(&piece);
            if self.tail.len() >= LARGE {
                self.pieces.push_back(self.tail.split().freeze());
            }
            return;
        }
        if !self.tail.is_empty() {
            self.pieces.push_back(self.tail.split().freeze());
        }
        self.pieces.push_back(piece);
    }

    /// Passes the first pieces to `write`, and removes the bytes that it has written.
    pub(super) fn write<E>(&mut self, write: impl FnOnce(&[IoSlice<'_>]) -> Result<usize, E>) -> Result<usize, E> {
        let (front, back) = self.pieces.as_slices();
        if let ([piece], [], []) = (front, back, &self.tail[..]) {
            // A short message, most times.
            let written = write(&[IoSlice::new(piece)])?.min(self.length);
            self.advance(written);
            return Ok(written);
        }
        let tail = (!self.tail.is_empty()).then_some(&self.tail[..]);
        let mut slices = [IoSlice::new(&[]); AT_ONCE];
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(self.pieces.iter().map(|piece| &piece[..]).chain(tail)) {
            *slice = IoSlice::new(piece);
            count += 1;
        }
        let written = write(slices.get(..count).unwrap_or_default())?.min(self.length);
        self.advance(written);
        Ok(written)
    }

    fn advance(&mut self, mut count: usize) {
        self.length -= count;
        while let Some(piece) = self.pieces.front_mut() {
            if count < piece.len() {
                piece.advance(count);
                return;
            }
            count -= piece.len();
            self.pieces.pop_front();
        }
        // The rest of the count is in the tail: the count was not larger than the inbox.
        self.tail.advance(count.min(self.tail.len()));
    }
}

#[cfg(test)]
mod tests {
    use super::Inbox;
    use bytes::Bytes;
    use std::convert::Infallible;

    fn written(inbox: &mut Inbox, at_most: usize) -> Vec<u8> {
        let mut heard = Vec::new();
        let count = inbox.write(|slices| {
            heard = slices.iter().flat_map(|slice| slice.to_vec()).take(at_most).collect();
            Ok::<_, Infallible>(heard.len())
        });
        assert_eq!(count, Ok(heard.len()));
        heard
    }

    #[test]
    fn bytes_leave_in_the_order_of_their_arrival_however_they_are_cut() {
        for step in [1, 7, 1000, 1 << 20] {
            let mut inbox = Inbox::default();
            let (mut expected, mut heard) = (Vec::new(), Vec::new());
            for (index, size) in
                [1usize, 2, 3000, 5, 0, 1023, 1024, 70_000, 9].into_iter().cycle().take(200).enumerate()
            {
                let piece = vec![u8::try_from(index % 251).unwrap(); size];
                expected.extend_from_slice(&piece);
                inbox.push(Bytes::from(piece));
                heard.extend(written(&mut inbox, step));
                assert_eq!(inbox.len(), expected.len() - heard.len());
            }
            while !inbox.is_empty() {
                heard.extend(written(&mut inbox, step.max(100)));
            }
            assert!(heard == expected, "step {step}");
        }
    }

    #[test]
    fn small_pieces_are_put_together() {
        let mut inbox = Inbox::default();
        for _ in 0..100_000 {
            inbox.push(Bytes::from_static(b"x"));
        }
        assert_eq!(inbox.len(), 100_000);
        assert!(inbox.pieces.len() < 4, "{}", inbox.pieces.len());
    }
}
