//! The copy chain: the cost of two extra hops through user space by themselves, on this machine.
//!
//! A copier runs on each node, in the place of the daemon: one thread and one loop that copies bytes from one
//! connection to another and does nothing else. No mesh with such hops can cost less, and this cost depends on the
//! machine in the same way as the mesh's.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::task::Poll;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::unistd::gettid;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead as _, AsyncWriteExt as _, ReadBuf};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::{JoinSet, yield_now};

use super::proc;
use crate::netns::{Netns, enter};
use crate::topology::{Family, Topology};

/// The size of a buffer, in bytes.
const BUFFER: usize = 256 << 10;

/// The number of bytes that one direction copies before the others get their turn.
const FAIR_SHARE: usize = 1 << 20;

/// A copier on each node, the client's first.
#[derive(Debug)]
pub(super) struct Chain([Copier; 2]);

impl Chain {
    /// Starts it: a connection to a port of the first node leads to the same port of a pod on the second node.
    ///
    /// # Errors
    /// When a port is not available.
    pub(super) fn start(topology: &Topology, ports: &[u16], server: &str) -> Result<Self> {
        let (near, far) = (topology.node("node-a")?, topology.node("node-b")?);
        let hop = |netns: &Netns, at: IpAddr, to: IpAddr| {
            // Each round uses the same addresses, and copiers connect again and again.
            netns.sysctl("ipv4/tcp_tw_reuse", "1")?;
            let route = |port: &u16| Ok((listen(netns, SocketAddr::new(at, *port))?, SocketAddr::new(to, *port)));
            Copier::start(netns, ports.iter().map(route).collect::<Result<_>>()?)
        };
        let server = topology.pod(server)?.ip(Family::V4);
        let second = hop(&far.netns, far.ip(Family::V4), server)?;
        Ok(Self([hop(&near.netns, near.ip(Family::V4), far.ip(Family::V4))?, second]))
    }

    /// The number of bytes that each copier has carried so far, both ways.
    #[must_use]
    pub(super) fn carried(&self) -> [f64; 2] {
        self.0.each_ref().map(|copier| copier.carried.load(Ordering::Relaxed) as f64)
    }

    /// The CPU time of both copiers, user and system.
    ///
    /// # Errors
    /// When a copier has ended.
    pub(super) fn cpu(&self) -> Result<Duration> {
        let [near, far] = self.0.each_ref().map(|copier| proc::thread_cpu(copier.id));
        Ok(near? + far?)
    }
}

/// One thread in a node's namespace.
#[derive(Debug)]
struct Copier {
    id: i32,
    carried: Arc<AtomicU64>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// A listener, and the address to which its connections are forwarded.
type Route = (std::net::TcpListener, SocketAddr);

impl Copier {
    fn start(netns: &Netns, routes: Vec<Route>) -> Result<Self> {
        let file = netns.open()?;
        let carried = Arc::new(AtomicU64::new(0));
        let (stop, stopped) = oneshot::channel();
        let (begun, begins) = mpsc::channel();
        let counter = Arc::clone(&carried);
        let thread = thread::spawn(move || {
            let runtime = enter(&file)
                .map_err(io::Error::from)
                .and_then(|()| tokio::runtime::Builder::new_current_thread().enable_io().build());
            let id = runtime.as_ref().map(|_| gettid().as_raw()).map_err(ToString::to_string);
            let _ = begun.send(id);
            if let Ok(runtime) = runtime {
                runtime.block_on(copy_until(stopped, routes, &counter));
            }
        });
        let id = begins.recv().context("a copier ended before it began")?;
        let id = id.map_err(|error| anyhow!("a copier in {}: {error}", netns.name()))?;
        Ok(Self { id, carried, stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Copier {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Listens in a namespace.
fn listen(netns: &Netns, address: SocketAddr) -> Result<std::net::TcpListener> {
    let listen = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(4096)?;
        Ok::<_, io::Error>(socket.into())
    };
    netns.run(listen)?.with_context(|| format!("a copier cannot listen on {address}"))
}

/// Ends with the first listener that fails: later clients are then refused, and report it.
async fn copy_until(stopped: oneshot::Receiver<()>, routes: Vec<Route>, carried: &Arc<AtomicU64>) {
    let mut serving = JoinSet::new();
    for (listener, to) in routes {
        serving.spawn(serve(listener, to, Arc::clone(carried)));
    }
    tokio::select! {
        _ = stopped => (),
        _ = serving.join_next() => (),
    }
}

async fn serve(listener: std::net::TcpListener, to: SocketAddr, carried: Arc<AtomicU64>) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                connections.spawn(both(accepted?.0, to, Arc::clone(&carried)));
            }
            Some(_) = connections.join_next() => (),
        }
    }
}

/// Copies both ways until both sides have finished, or one fails; the clients report missing bytes.
async fn both(mut client: TcpStream, to: SocketAddr, carried: Arc<AtomicU64>) -> io::Result<()> {
    let mut server = TcpStream::connect(to).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let ((client_read, client_write), (server_read, server_write)) = (client.split(), server.split());
    tokio::try_join!(one(client_read, server_write, &carried), one(server_read, client_write, &carried))?;
    Ok(())
}

/// Copies one direction. It holds no buffer while it waits for bytes.
async fn one(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, carried: &AtomicU64) -> io::Result<()> {
    let mut share = 0;
    loop {
        from.readable().await?;
        let mut buffer = Buffer::borrow();
        let Some(length) = read(&mut from, &mut buffer.0).await? else {
            // There were no bytes after all, or this task has used its share.
            yield_now().await;
            continue;
        };
        if length == 0 {
            return to.shutdown().await;
        }
        to.write_all(buffer.0.get(..length).unwrap_or_default()).await?;
        carried.fetch_add(length as u64, Ordering::Relaxed);
        share += length;
        if share >= FAIR_SHARE {
            share = 0;
            yield_now().await;
        }
    }
}

/// Reads the available bytes. Unlike `try_read`, a read that does not fill the buffer is known to have taken
/// everything.
async fn read(from: &mut ReadHalf<'_>, into: &mut [u8]) -> io::Result<Option<usize>> {
    let mut buffer = ReadBuf::new(into);
    let is_there = poll_fn(|cx| match Pin::new(&mut *from).poll_read(cx, &mut buffer) {
        Poll::Ready(result) => Poll::Ready(result.map(|()| true)),
        Poll::Pending => Poll::Ready(Ok(false)),
    });
    Ok(is_there.await?.then_some(buffer.filled().len()))
}

/// A buffer of the thread, which returns to the pool when it is dropped.
struct Buffer(Box<[u8]>);

thread_local! {
    static FREE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

impl Buffer {
    fn borrow() -> Self {
        Self(FREE.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; BUFFER].into_boxed_slice()))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.0);
        // While the thread itself ends, the pool no longer exists.
        let _ = FREE.try_with(|free| free.borrow_mut().push(buffer));
    }
}
