//! Connect, request, response, close: the cost of a new connection.
//!
//! The server answers and closes first, so that TIME-WAIT is never at the client, whose ports would run out.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use super::servers::BODY;
use crate::netns::enter;
use crate::topology::{Pod, SOCKET_DEADLINE};

/// Bytes of a request, and of its response.
pub(super) const MESSAGE: usize = 128;

/// A server that answers one request on each connection, until it is dropped.
#[derive(Debug)]
pub(super) struct Server {
    address: SocketAddr,
    netns: std::fs::File,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// Starts a server in a pod.
    ///
    /// # Errors
    /// When the address is not available.
    pub(super) fn start(pod: &Pod, address: SocketAddr, threads: usize) -> Result<Self> {
        let listener = Arc::new(pod.listen(address)?);
        let stop = Arc::new(AtomicBool::new(false));
        let serve = |_| {
            let (listener, stop) = (Arc::clone(&listener), Arc::clone(&stop));
            thread::spawn(move || serve(&listener, &stop))
        };
        Ok(Self {
            address,
            netns: pod.netns.open()?,
            stop: Arc::clone(&stop),
            threads: (0..threads).map(serve).collect(),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Each thread waits in accept; one connection wakes one thread.
        for _ in 0..self.threads.len() {
            let (netns, address) = (self.netns.try_clone(), self.address);
            let _ = thread::spawn(move || {
                netns.is_ok_and(|netns| enter(&netns).is_ok() && TcpStream::connect(address).is_ok())
            })
            .join();
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve(listener: &TcpListener, stop: &AtomicBool) {
    while let Ok((mut stream, _)) = listener.accept() {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        let mut message = [0; MESSAGE];
        // A client that disappears is detected by the client itself.
        if stream.read_exact(&mut message).is_ok() {
            let _ = stream.write_all(&message);
        }
    }
}

/// The results of the clients.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// The duration of each exchange, ascending.
    pub(super) latencies: Vec<Duration>,
    /// The duration of the whole run.
    pub(super) elapsed: Duration,
}

impl Report {
    /// Exchanges per second.
    #[must_use]
    pub(super) fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.elapsed.as_secs_f64()
    }

    /// The latency that `permille` of a thousand exchanges did not exceed, in microseconds.
    #[must_use]
    pub(super) fn permille_us(&self, permille: usize) -> Option<f64> {
        let index = (self.latencies.len() * permille / 1000).min(self.latencies.len().checked_sub(1)?);
        self.latencies.get(index).map(|latency| latency.as_secs_f64() * 1e6)
    }
}

/// Runs `clients` clients at once in a pod, for `duration`.
///
/// # Errors
/// The first exchange that fails: figures of a broken path are meaningless.
pub(super) fn run(pod: &Pod, target: SocketAddr, clients: usize, duration: Duration) -> Result<Report> {
    let begun = Instant::now();
    let client = |_| {
        let netns = pod.netns.open()?;
        Ok(thread::spawn(move || exchange_for(&netns, target, begun + duration)))
    };
    let threads = (0..clients).map(client).collect::<Result<Vec<_>>>()?;
    let mut latencies = Vec::new();
    for thread in threads {
        latencies.extend(thread.join().map_err(|_| anyhow!("a client panicked"))??);
    }
    let elapsed = begun.elapsed();
    ensure!(!latencies.is_empty(), "not one exchange with {target} was done in {duration:?}");
    latencies.sort_unstable();
    Ok(Report { latencies, elapsed })
}

fn exchange_for(netns: &std::fs::File, target: SocketAddr, end: Instant) -> Result<Vec<Duration>> {
    enter(netns)?;
    let mut latencies = Vec::new();
    loop {
        let begun = Instant::now();
        if begun >= end {
            return Ok(latencies);
        }
        exchange(target).with_context(|| format!("exchange {} with {target}", latencies.len() + 1))?;
        latencies.push(begun.elapsed());
    }
}

fn exchange(target: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_read_timeout(Some(SOCKET_DEADLINE))?;
    socket.set_write_timeout(Some(SOCKET_DEADLINE))?;
    socket.connect(&target.into())?;
    let mut stream = TcpStream::from(socket);
    stream.write_all(&[b'q'; MESSAGE])?;
    let mut answer = Vec::with_capacity(MESSAGE);
    stream.read_to_end(&mut answer)?;
    if answer.len() == MESSAGE { Ok(()) } else { Err(io::Error::other(format!("{} bytes came back", answer.len()))) }
}

/// Connections that are open and idle. Their other ends are in nginx: one process cannot have enough open files for
/// both.
#[derive(Debug)]
pub(super) struct Idle(Vec<TcpStream>);

impl Idle {
    /// Opens `count` connections from a pod to an nginx, one after the other. A request has gone over each.
    ///
    /// # Errors
    /// When one fails.
    pub(super) fn open(from: &Pod, target: SocketAddr, count: usize) -> Result<Self> {
        let open = |number| {
            let mut stream = from.connect(target)?;
            ask(&mut stream).with_context(|| format!("connection {number} of {count} to {target}"))?;
            Ok(stream)
        };
        Ok(Self((1..=count).map(open).collect::<Result<_>>()?))
    }

    /// A lower bound for the number of bytes that have gone over all of them.
    #[must_use]
    pub(super) fn payload(&self) -> f64 {
        (self.0.len() * (QUESTION.len() + BODY.len())) as f64
    }

    /// Ends all connections, and waits until they have ended.
    ///
    /// # Errors
    /// When a connection was no longer alive.
    pub(super) fn close(mut self) -> Result<()> {
        for stream in &self.0 {
            stream.shutdown(Shutdown::Write).context("an idle connection was broken")?;
        }
        for stream in &mut self.0 {
            let end = stream.read(&mut [0]).context("an idle connection was broken")?;
            ensure!(end == 0, "an idle connection said something");
        }
        Ok(())
    }
}

const QUESTION: &[u8] = b"GET / HTTP/1.1\r\nHost: web\r\n\r\n";

fn ask(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(QUESTION)?;
    let mut answer = Vec::with_capacity(512);
    while !answer.ends_with(&BODY) {
        let mut part = [0; 512];
        let read = stream.read(&mut part)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        answer.extend(part.iter().take(read));
    }
    Ok(())
}
