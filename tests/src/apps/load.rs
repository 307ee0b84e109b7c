//! A load: clients of one pod that connect, exchange and close in a loop.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Result, anyhow};
use socket2::{Domain, Protocol, Socket, Type};

use crate::netns::enter;
use crate::topology::{Pod, SOCKET_DEADLINE};

/// Failures whose text is kept.
const SAMPLES: usize = 10;

/// A running load, stopped when dropped.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    done: AtomicU64,
    failed: AtomicU64,
    samples: Mutex<Vec<String>>,
}

/// The result of a load so far.
#[derive(Debug, Clone)]
pub struct Report {
    /// Exchanges that succeeded from connect to close.
    pub done: u64,
    /// Exchanges that failed.
    pub failed: u64,
    /// The first failures.
    pub samples: Vec<String>,
}

/// The client's action after it has received the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Closes first, so that TIME-WAIT is at the client.
    Closes,
    /// Ends its sending half and waits for the server's end.
    WaitsForEnd,
}

impl Load {
    /// Starts clients in a pod; the target echoes.
    ///
    /// # Errors
    /// When the pod can't be entered.
    pub fn start(pod: &Pod, target: SocketAddr, clients: usize, ending: Ending) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut threads = Vec::new();
        for _ in 0..clients {
            let (netns, shared) = (pod.netns.open()?, Arc::clone(&shared));
            threads.push(thread::spawn(move || {
                if let Err(error) = enter(&netns) {
                    return shared.fail("entering the pod", &error.into());
                }
                while !shared.stop.load(Ordering::SeqCst) {
                    shared.once(target, ending);
                }
            }));
        }
        Ok(Self { shared, threads })
    }

    /// The result so far.
    #[must_use]
    pub fn report(&self) -> Report {
        let samples = self.shared.samples.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (done, failed) = (&self.shared.done, &self.shared.failed);
        Report { done: done.load(Ordering::SeqCst), failed: failed.load(Ordering::SeqCst), samples }
    }

    /// Stops the clients and returns the result.
    ///
    /// # Errors
    /// When a client panicked.
    pub fn stop(mut self) -> Result<Report> {
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| anyhow!("a client panicked"))?;
        }
        Ok(self.report())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn once(&self, target: SocketAddr, ending: Ending) {
        let mut stream = match connect(target) {
            Ok(stream) => stream,
            Err(error) => return self.fail("connect", &error),
        };
        match talk(&mut stream, ending) {
            Ok(()) => _ = self.done.fetch_add(1, Ordering::SeqCst),
            Err(error) => self.fail("exchange", &error),
        }
    }

    fn fail(&self, what: &str, error: &io::Error) {
        self.failed.fetch_add(1, Ordering::SeqCst);
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        if samples.len() < SAMPLES {
            samples.push(format!("{what}: {error}"));
        }
    }
}

fn connect(target: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_read_timeout(Some(SOCKET_DEADLINE))?;
    socket.set_write_timeout(Some(SOCKET_DEADLINE))?;
    socket.connect(&target.into())?;
    Ok(socket.into())
}

fn talk(stream: &mut TcpStream, ending: Ending) -> io::Result<()> {
    stream.write_all(b"a request")?;
    stream.read_exact(&mut [0; 9])?;
    if ending == Ending::WaitsForEnd {
        stream.shutdown(Shutdown::Write)?;
        if stream.read(&mut [0; 1])? != 0 {
            return Err(io::Error::other("more than the answer came"));
        }
    }
    Ok(())
}
