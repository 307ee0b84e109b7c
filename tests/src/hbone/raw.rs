//! A peer that writes its HTTP/2 frames itself, valid or not.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustls::{ClientConnection, StreamOwned};

use super::{Caller, Ending};
use crate::topology::Pod;

/// The first bytes of every HTTP/2 client.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Types of frames (RFC 9113, section 6).
pub mod kind {
    /// DATA.
    pub const DATA: u8 = 0;
    /// HEADERS.
    pub const HEADERS: u8 = 1;
    /// `RST_STREAM`.
    pub const RST_STREAM: u8 = 3;
    /// SETTINGS.
    pub const SETTINGS: u8 = 4;
    /// PING.
    pub const PING: u8 = 6;
    /// GOAWAY.
    pub const GOAWAY: u8 = 7;
    /// `WINDOW_UPDATE`.
    pub const WINDOW_UPDATE: u8 = 8;
    /// CONTINUATION.
    pub const CONTINUATION: u8 = 9;
}

/// Flag: the last HEADERS or CONTINUATION of a block.
pub const END_HEADERS: u8 = 4;

/// Flag of SETTINGS and PING.
pub const ACK: u8 = 1;

/// `SETTINGS_INITIAL_WINDOW_SIZE`.
pub const INITIAL_WINDOW_SIZE: u16 = 4;

/// Error code `REFUSED_STREAM`.
pub const REFUSED_STREAM: u32 = 7;

/// The byte of HPACK that stands for `:status: 200`.
pub const STATUS_200: u8 = 0x88;

/// The byte of HPACK that stands for `:status: 400`.
pub const STATUS_400: u8 = 0x8c;

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its type.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// Its stream.
    pub stream: u32,
    /// Its content.
    pub payload: Vec<u8>,
}

/// The bytes of a frame.
#[must_use]
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, length @ ..] = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    let mut bytes = length.to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// The simplest HPACK: each field is a literal that is never indexed.
#[must_use]
pub fn fields(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            length(&mut block, text.len());
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// An integer with a prefix of seven bits (RFC 7541, section 5.1).
fn length(block: &mut Vec<u8>, value: usize) {
    let byte = |value: usize| u8::try_from(value & 0x7f).unwrap_or(0);
    if value < 127 {
        return block.push(byte(value));
    }
    block.push(127);
    let mut rest = value - 127;
    while rest >= 128 {
        block.push(byte(rest) | 0x80);
        rest >>= 7;
    }
    block.push(byte(rest));
}

/// A complete CONNECT request.
#[must_use]
pub fn connect(stream: u32, authority: &str) -> Vec<u8> {
    frame(kind::HEADERS, END_HEADERS, stream, &fields(&[(":method", "CONNECT"), (":authority", authority)]))
}

/// A connection whose frames the test writes.
#[derive(Debug)]
pub struct RawPeer {
    stream: StreamOwned<ClientConnection, TcpStream>,
    unread: Vec<u8>,
}

/// All frames until the connection ended, or until nothing came for a while.
#[derive(Debug)]
pub struct Seen {
    /// All frames.
    pub frames: Vec<Frame>,
    /// How the connection ended; [`Ending::Silent`] when it did not.
    pub ending: Ending,
}

impl RawPeer {
    /// Connects from a pod; writes nothing after the TLS handshake.
    ///
    /// # Errors
    /// When TCP or TLS fail.
    pub fn silent(caller: &Caller, pod: &Pod, target: SocketAddr) -> Result<Self> {
        Ok(Self { stream: caller.secured(pod, target)?, unread: Vec::new() })
    }

    /// Connects from a pod and sends preface and settings.
    ///
    /// # Errors
    /// When TCP or TLS fail.
    pub fn connect(caller: &Caller, pod: &Pod, target: SocketAddr, settings: &[(u16, u32)]) -> Result<Self> {
        let mut peer = Self::silent(caller, pod, target)?;
        let mut payload = Vec::new();
        for (name, value) in settings {
            payload.extend(name.to_be_bytes());
            payload.extend(value.to_be_bytes());
        }
        peer.send(&[PREFACE, &frame(kind::SETTINGS, 0, 0, &payload)].concat()).context("the preface")?;
        Ok(peer)
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// When the other side is gone, or accepts nothing any more.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    /// Sends the bytes of each number up to `times` times, or until the other side accepts nothing more. Returns how
    /// often.
    pub fn flood(&mut self, times: usize, mut bytes: impl FnMut(usize) -> Vec<u8>) -> usize {
        (0..times).take_while(|number| self.send(&bytes(*number)).is_ok()).count()
    }

    /// Reads frames until the connection ends, or nothing comes for `patience`, or four times `patience` has passed.
    ///
    /// # Errors
    /// When the socket refuses a deadline.
    pub fn read(&mut self, patience: Duration) -> Result<Seen> {
        self.stream.sock.set_read_timeout(Some(patience))?;
        let (mut frames, begin) = (Vec::new(), Instant::now());
        let mut chunk = vec![0; 16 * 1024];
        let ending = loop {
            while let Some(frame) = self.take() {
                frames.push(frame);
            }
            match self.stream.read(&mut chunk) {
                Ok(0) => break Ending::Closed,
                Ok(length) => self.unread.extend_from_slice(chunk.get(..length).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::Interrupted => (),
                Err(error) => break Ending::of(&error),
            }
            if begin.elapsed() > patience * 4 {
                break Ending::Silent;
            }
        };
        Ok(Seen { frames, ending })
    }

    /// The next complete frame of the bytes read so far.
    fn take(&mut self) -> Option<Frame> {
        let [a, b, c, kind, flags, s0, s1, s2, s3] = *self.unread.first_chunk()?;
        let end = 9 + usize::try_from(u32::from_be_bytes([0, a, b, c])).ok()?;
        let payload = self.unread.get(9..end)?.to_vec();
        self.unread.drain(..end);
        Some(Frame { kind, flags, stream: u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]), payload })
    }
}

impl Seen {
    /// The error code of a GOAWAY, if one came.
    #[must_use]
    pub fn goaway(&self) -> Option<u32> {
        let frame = self.frames.iter().find(|frame| frame.kind == kind::GOAWAY)?;
        Some(u32::from_be_bytes(*frame.payload.get(4..)?.first_chunk()?))
    }

    /// The error codes of all `RST_STREAM`.
    #[must_use]
    pub fn resets(&self) -> Vec<u32> {
        let resets = self.frames.iter().filter(|frame| frame.kind == kind::RST_STREAM);
        resets.filter_map(|frame| Some(u32::from_be_bytes(*frame.payload.first_chunk()?))).collect()
    }

    /// The number of header blocks that begin with this byte, which stands for a status.
    #[must_use]
    pub fn statuses(&self, byte: u8) -> usize {
        let blocks = self.frames.iter().filter(|frame| frame.kind == kind::HEADERS);
        blocks.filter(|frame| frame.payload.first() == Some(&byte)).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_and_fields_are_as_the_rfcs_say() {
        assert_eq!(frame(kind::PING, 0, 0, &[1; 8]), [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]);
        assert_eq!(fields(&[("a", "bc")]), [0, 1, b'a', 2, b'b', b'c']);
        let mut block = Vec::new();
        length(&mut block, 1337 + 96);
        // 127 + 1306, which is 26 + 10 * 128.
        assert_eq!(block, [127, 0x9a, 10]);
    }
}
