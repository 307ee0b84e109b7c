//! Large transfers whose every byte is checked: each side knows what the other sends.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;

/// A stream of bytes that never repeats soon (splitmix64).
#[derive(Debug, Clone)]
pub struct Pattern(u64);

impl Pattern {
    /// The stream of a number.
    #[must_use]
    pub fn new(number: u64) -> Self {
        Self(number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// Its next bytes. All calls must ask for whole eights.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for eight in bytes.chunks_mut(8) {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).to_le_bytes();
            eight.copy_from_slice(mixed.get(..eight.len()).unwrap_or_default());
        }
    }
}

const CHUNK: usize = 64 * 1024;

/// Sends so many chunks of 64 KiB of one pattern and ends its half, while it expects as many of another and the end.
///
/// # Errors
/// When other bytes come, or fewer, or more.
pub fn both_ways(stream: &TcpStream, chunks: usize, own: u64, other: u64) -> io::Result<()> {
    thread::scope(|scope| {
        let sending = scope.spawn(move || send(stream, chunks, own));
        let received = receive(stream, chunks, other);
        sending.join().map_err(|_| io::Error::other("the sender panicked"))?.and(received)
    })
}

fn send(mut stream: &TcpStream, chunks: usize, number: u64) -> io::Result<()> {
    let (mut pattern, mut chunk) = (Pattern::new(number), vec![0; CHUNK]);
    for _ in 0..chunks {
        pattern.fill(&mut chunk);
        stream.write_all(&chunk)?;
    }
    stream.shutdown(Shutdown::Write)
}

fn receive(mut stream: &TcpStream, chunks: usize, number: u64) -> io::Result<()> {
    let (mut pattern, mut wanted, mut chunk) = (Pattern::new(number), vec![0; CHUNK], vec![0; CHUNK]);
    for count in 0..chunks {
        pattern.fill(&mut wanted);
        stream.read_exact(&mut chunk)?;
        if chunk != wanted {
            return Err(io::Error::other(format!("chunk {count} of pattern {number} is damaged")));
        }
    }
    match stream.read(&mut chunk)? {
        0 => Ok(()),
        more => Err(io::Error::other(format!("{more} bytes more than were sent"))),
    }
}
