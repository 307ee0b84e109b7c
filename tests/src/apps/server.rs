//! Servers in threads: they record the addresses of clients, and count failures.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::Result;
use nix::sys::socket::{Shutdown as Half, shutdown};
use std::os::fd::AsRawFd;

use crate::topology::{Pod, SOCKET_DEADLINE};

/// The stack of a connection's thread. Thousands are open at once.
const STACK: usize = 128 * 1024;

/// A server in a pod, stopped when dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    listener: Arc<TcpListener>,
    seen: Arc<Seen>,
    thread: Option<JoinHandle<()>>,
}

/// The observations of a server.
#[derive(Debug, Default)]
struct Seen {
    peers: Mutex<Vec<SocketAddr>>,
    open: AtomicUsize,
    resets: AtomicUsize,
    failures: Mutex<Vec<String>>,
}

impl Server {
    /// Sends back all bytes, until the client ends its sending half.
    ///
    /// # Errors
    /// When the address is not available.
    pub fn echo(pod: &Pod, address: SocketAddr) -> Result<Self> {
        Self::start(pod, address, |mut stream, _| {
            let mut buffer = [0; 16 * 1024];
            loop {
                match stream.read(&mut buffer)? {
                    0 => return Ok(()),
                    length => stream.write_all(buffer.get(..length).unwrap_or_default())?,
                }
            }
        })
    }

    /// Sends each client its address as the server sees it, in one line, and closes.
    ///
    /// # Errors
    /// When the address is not available.
    pub fn whoami(pod: &Pod, address: SocketAddr) -> Result<Self> {
        Self::start(pod, address, |mut stream, peer| writeln!(stream, "{peer}"))
    }

    /// Hands each connection to `serve`, on a thread of its own.
    ///
    /// # Errors
    /// When the address is not available.
    pub fn start(
        pod: &Pod,
        address: SocketAddr,
        serve: impl Fn(TcpStream, SocketAddr) -> io::Result<()> + Send + Sync + 'static,
    ) -> Result<Self> {
        let listener = Arc::new(pod.listen(address)?);
        let address = listener.local_addr()?;
        let seen = Arc::new(Seen::default());
        let (accepting, recording) = (Arc::clone(&listener), Arc::clone(&seen));
        let thread = thread::spawn(move || accept(&accepting, &recording, &Arc::new(serve)));
        Ok(Self { address, listener, seen, thread: Some(thread) })
    }

    /// The address at which it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The addresses of all clients so far, in order.
    #[must_use]
    pub fn peers(&self) -> Vec<SocketAddr> {
        self.seen.peers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many connected so far.
    #[must_use]
    pub fn accepted(&self) -> usize {
        self.seen.peers.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// How many connections are open.
    #[must_use]
    pub fn open(&self) -> usize {
        self.seen.open.load(Ordering::SeqCst)
    }

    /// How many connections ended with a reset.
    #[must_use]
    pub fn resets(&self) -> usize {
        self.seen.resets.load(Ordering::SeqCst)
    }

    /// All failures, resets included.
    #[must_use]
    pub fn failures(&self) -> Vec<String> {
        self.seen.failures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The shutdown makes the accept fail; a plain close would not.
        let _ = shutdown(self.listener.as_raw_fd(), Half::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn accept<S>(listener: &TcpListener, seen: &Arc<Seen>, serve: &Arc<S>)
where
    S: Fn(TcpStream, SocketAddr) -> io::Result<()> + Send + Sync + 'static,
{
    loop {
        let (stream, peer) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
            Err(error) if error.kind() == ErrorKind::InvalidInput => return,
            Err(error) => return seen.failed(&error),
        };
        seen.peers.lock().unwrap_or_else(PoisonError::into_inner).push(peer);
        seen.open.fetch_add(1, Ordering::SeqCst);
        let (recording, serving) = (Arc::clone(seen), Arc::clone(serve));
        let work = move || {
            if let Err(error) = serving(stream, peer) {
                recording.failed(&error);
            }
            recording.open.fetch_sub(1, Ordering::SeqCst);
        };
        if let Err(error) = thread::Builder::new().stack_size(STACK).spawn(work) {
            seen.failed(&error);
        }
    }
}

impl Seen {
    fn failed(&self, error: &io::Error) {
        if is_reset(error) {
            self.resets.fetch_add(1, Ordering::SeqCst);
        }
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).push(error.to_string());
    }
}

/// Whether an error is the result of a received reset.
#[must_use]
pub fn is_reset(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}

/// Closes a connection with a reset.
///
/// # Errors
/// When the socket refuses the option.
pub fn reset(stream: TcpStream) -> io::Result<()> {
    socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO))?;
    drop(stream);
    Ok(())
}

/// Reads to the end with a deadline.
///
/// # Errors
/// As the socket's reads.
pub fn read_all(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(SOCKET_DEADLINE))?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Ends the sending half.
///
/// # Errors
/// As the socket's shutdown.
pub fn finish_sending(stream: &TcpStream) -> io::Result<()> {
    stream.shutdown(Shutdown::Write)
}
