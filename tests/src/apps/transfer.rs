//! Large transfers in which every byte is checked: each side knows the bytes that the other sends.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Result, anyhow};

use crate::topology::SOCKET_DEADLINE;
use crate::wait;

/// A sequence of bytes with a very long period (splitmix64).
#[derive(Debug, Clone)]
pub struct Pattern(u64);

impl Pattern {
    /// The sequence of a number.
    #[must_use]
    pub fn new(number: u64) -> Self {
        Self(number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// The next bytes of the sequence. The length must be a multiple of eight.
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

/// Sends `chunks` chunks of 64 KiB of one pattern and ends its sending half, while it expects as many of another
/// pattern and the end.
///
/// # Errors
/// When other bytes arrive, or fewer, or more.
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

/// Exchanges bytes with an echo server continuously and checks every byte, until it is stopped.
#[derive(Debug)]
pub struct Pump {
    shared: Arc<Pumped>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

#[derive(Debug, Default)]
struct Pumped {
    stop: AtomicBool,
    chunks: AtomicU64,
    ended: AtomicBool,
}

/// The number of bytes in flight.
const GULP: usize = 8 * 1024;

impl Pump {
    /// Starts exchanging on a connection.
    ///
    /// # Errors
    /// When the socket refuses a deadline.
    pub fn start(stream: TcpStream, number: u64) -> Result<Self> {
        stream.set_read_timeout(Some(SOCKET_DEADLINE))?;
        let shared = Arc::new(Pumped::default());
        let counting = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            let ended = pump(stream, number, &counting);
            counting.ended.store(true, Ordering::SeqCst);
            ended
        });
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Waits for `count` more exchanges.
    ///
    /// # Errors
    /// When they do not happen in time.
    pub fn more(&self, count: u64) -> Result<()> {
        let enough = self.shared.chunks.load(Ordering::SeqCst) + count;
        wait::until_true(&format!("{count} more exchanges"), wait::PATIENCE, || {
            let chunks = self.shared.chunks.load(Ordering::SeqCst);
            anyhow::ensure!(chunks >= enough || !self.shared.ended.load(Ordering::SeqCst), "the connection ended");
            Ok(chunks >= enough)
        })
    }

    /// Stops exchanging.
    ///
    /// # Errors
    /// As the connection's; also when other bytes came back.
    pub fn finish(mut self) -> Result<()> {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.join()
    }

    /// Waits until something else ends the connection.
    ///
    /// # Errors
    /// When the connection does not end, or with the connection's error.
    pub fn ended(mut self) -> Result<()> {
        let ended = || Ok(self.shared.ended.load(Ordering::SeqCst));
        wait::until_true("the end of the connection", wait::PATIENCE, ended)?;
        self.join()
    }

    fn join(&mut self) -> Result<()> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        Ok(thread.join().map_err(|_| anyhow!("an exchange panicked"))??)
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        let _ = self.join();
    }
}

fn pump(mut stream: TcpStream, number: u64, pumped: &Pumped) -> io::Result<()> {
    let (mut pattern, mut sent, mut back) = (Pattern::new(number), vec![0; GULP], vec![0; GULP]);
    while !pumped.stop.load(Ordering::SeqCst) {
        pattern.fill(&mut sent);
        stream.write_all(&sent)?;
        stream.read_exact(&mut back)?;
        if back != sent {
            return Err(io::Error::other("other bytes came back"));
        }
        pumped.chunks.fetch_add(1, Ordering::SeqCst);
    }
    Ok(())
}
