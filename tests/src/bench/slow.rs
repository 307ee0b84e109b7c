//! Clients that send as fast as they can to a server that does not read: the memory that the daemons need for it.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use crate::topology::Pod;
use crate::wait;

/// The sent bytes repeat with this period: a prime number, so that a lost or duplicated piece is detected.
const PERIOD: usize = 251;

/// The size of one write.
const PIECE: usize = 64 << 10;

/// A transfer that has not moved for this time counts as stopped.
const STILL: Duration = Duration::from_secs(1);

/// Both ends of connections whose servers have not read a byte.
#[derive(Debug)]
pub(super) struct Stuck {
    clients: Vec<(TcpStream, usize)>,
    servers: Vec<TcpStream>,
}

impl Stuck {
    /// Opens `count` connections from one pod to another.
    ///
    /// # Errors
    /// When a connection can't be made.
    pub(super) fn open(from: &Pod, to: &Pod, target: SocketAddr, count: usize) -> Result<Self> {
        let listener = to.listen(target)?;
        listener.set_nonblocking(true)?;
        let (mut clients, mut servers) = (Vec::new(), Vec::new());
        for number in 1..=count {
            let client = from.connect(target)?;
            client.set_nonblocking(true)?;
            clients.push((client, 0));
            let what = format!("connection {number} of {count} to arrive at {target}");
            servers.push(wait::until(&what, wait::PATIENCE, || accepted(&listener))?);
        }
        Ok(Self { clients, servers })
    }

    /// Sends on all connections until nothing moves any more, neither here nor in the figures of the daemons
    /// (`carried`).
    ///
    /// # Errors
    /// When a connection breaks, or they can't be filled.
    pub(super) fn fill<T: PartialEq>(&mut self, carried: impl Fn() -> Result<T>) -> Result<()> {
        let pattern = pattern();
        let (mut last, mut since) = (None, Instant::now());
        wait::until_true("clients of a slow reader to be held up", wait::PATIENCE * 4, || {
            for (client, sent) in &mut self.clients {
                fill_one(client, sent, &pattern).context("a connection to a slow reader broke")?;
            }
            let now = Some((self.taken(), carried()?));
            if now != last {
                (last, since) = (now, Instant::now());
            }
            Ok(since.elapsed() >= STILL)
        })
    }

    /// The number of bytes that all clients together could send.
    #[must_use]
    pub(super) fn taken(&self) -> usize {
        self.clients.iter().map(|(_, sent)| *sent).sum()
    }

    /// Reads everything at last: all bytes must arrive as they were sent.
    ///
    /// # Errors
    /// When bytes are missing or wrong.
    pub(super) fn drain(self) -> Result<()> {
        let Self { clients, servers } = self;
        for (client, _) in &clients {
            client.shutdown(Shutdown::Write).context("a connection to a slow reader was broken")?;
        }
        // All servers read at once: the streams share a window, so that one alone would wait for the others.
        let reader = |server| thread::spawn(move || verify(server));
        let readers: Vec<_> = servers.into_iter().map(reader).collect();
        for (reader, (_, sent)) in readers.into_iter().zip(&clients) {
            let arrived = reader.join().map_err(|_| anyhow!("a reader panicked"))??;
            ensure!(arrived == *sent, "{sent} bytes were sent to a slow reader, {arrived} arrived");
        }
        Ok(())
    }
}

fn accepted(listener: &TcpListener) -> Result<Option<TcpStream>> {
    match listener.accept() {
        Ok((stream, _)) => Ok(Some(stream)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error).context("a slow reader cannot accept"),
    }
}

/// A buffer with a full piece at each offset of the period.
fn pattern() -> Vec<u8> {
    (0..PERIOD + PIECE).map(|place| (place % PERIOD) as u8).collect()
}

fn piece(pattern: &[u8], from: usize, length: usize) -> &[u8] {
    let start = from % PERIOD;
    pattern.get(start..start + length.min(PIECE)).unwrap_or_default()
}

/// Sends until the socket takes no more.
fn fill_one(client: &mut TcpStream, sent: &mut usize, pattern: &[u8]) -> io::Result<()> {
    loop {
        match client.write(piece(pattern, *sent, PIECE)) {
            Ok(written) => *sent += written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// Reads and checks everything, and returns the number of bytes.
fn verify(mut server: TcpStream) -> Result<usize> {
    server.set_nonblocking(false)?;
    server.set_read_timeout(Some(wait::PATIENCE))?;
    let (pattern, mut buffer, mut read) = (pattern(), vec![0; PIECE], 0);
    loop {
        let length = server.read(&mut buffer).with_context(|| format!("a slow reader, after {read} bytes"))?;
        if length == 0 {
            return Ok(read);
        }
        let is_right = buffer.get(..length) == Some(piece(&pattern, read, length));
        ensure!(is_right, "a slow reader got other bytes than were sent, after {read}");
        read += length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_go_on_where_the_last_ended() {
        let pattern = pattern();
        let all: Vec<u8> = (0..3 * PIECE).map(|place| (place % PERIOD) as u8).collect();
        for (from, length) in [(0, PIECE), (250, 1), (251, 2), (70_000, PIECE), (100_000, 0)] {
            assert_eq!(piece(&pattern, from, length), &all[from..from + length]);
        }
        assert_eq!(piece(&pattern, 5, PIECE + 1).len(), PIECE, "never more than there is");
    }
}
