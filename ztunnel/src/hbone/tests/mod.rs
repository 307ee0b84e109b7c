//! Both ends of HBONE connections in memory; hostile peers write their frames by hand.

mod hostile;
mod keepalive;
mod raw;
mod relay;
mod tunnels;
mod windows;

use std::{
    cell::RefCell,
    future::{Future, pending, poll_fn},
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf},
    net::{TcpListener, TcpStream},
    task::LocalSet,
};

use super::{
    Settings, Windows, client,
    server::{self, Incoming},
    stream::{self, HboneStream},
};
use crate::{
    lifecycle::{
        drain::{self, DrainTrigger},
        tasks::TaskSet,
    },
    net::{
        activity::Activity,
        buffer::{BufferPool, Size},
        memory::Budget,
    },
    wire::connect::{ConnectRequest, ConnectResponse},
};

/// Runs a test that can spawn local tasks.
pub(crate) async fn local<T>(test: impl Future<Output = T>) -> T {
    LocalSet::new().run_until(test).await
}

/// The windows of the settings.
pub(crate) fn plenty(settings: &Settings) -> Windows {
    Windows::claim(settings, &Budget::default().pod()).unwrap()
}

/// Records when bytes arrive, as the TLS stream does.
pub(crate) struct Watched<S> {
    io: S,
    activity: Activity,
}

impl<S> Watched<S> {
    pub(crate) fn new(io: S) -> (Self, Activity) {
        let activity = Activity::new();
        (Self { io, activity: activity.clone() }, activity)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let result = Pin::new(&mut self.io).poll_read(cx, into);
        if into.filled().len() > before {
            self.activity.touch();
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// A served connection; the test is its client.
pub(crate) struct Served {
    pub(crate) far: DuplexStream,
    pub(crate) drain: DrainTrigger,
    pub(crate) end: Rc<RefCell<Option<server::End>>>,
    /// Dropping it breaks the connection.
    pub(crate) tasks: TaskSet,
}

pub(crate) fn serve(settings: &Settings, on_request: impl FnMut(Incoming) + 'static) -> Served {
    serve_within(settings, plenty(settings), on_request)
}

/// The same, with windows from a given budget.
pub(crate) fn serve_within(
    settings: &Settings,
    windows: Windows,
    on_request: impl FnMut(Incoming) + 'static,
) -> Served {
    let (near, far) = tokio::io::duplex(64 << 10);
    let (drain, watch) = drain::channel();
    let (end, settings) = (Rc::new(RefCell::new(None)), settings.clone());
    let mut tasks = TaskSet::default();
    let told = Rc::clone(&end);
    tasks.spawn_local(async move {
        let (io, activity) = Watched::new(near);
        let end = server::serve(io, activity, (&settings, windows), watch, pending(), on_request).await;
        told.replace(Some(end));
    });
    Served { far, drain, end, tasks }
}

/// A client on a connection; its driver is one of the tasks.
pub(crate) async fn client(io: DuplexStream, settings: &Settings, tasks: &mut TaskSet) -> client::Client {
    let (io, activity) = Watched::new(io);
    let (client, driver) = client::handshake(io, activity, settings, plenty(settings)).await.unwrap();
    tasks.spawn_local(async move {
        driver.run().await;
    });
    client
}

pub(crate) fn to(authority: &str) -> ConnectRequest {
    ConnectRequest::to(authority.parse().unwrap())
}

pub(crate) fn ok() -> ConnectResponse {
    ConnectResponse::ok(None)
}

/// The client's and the server's end of one stream.
pub(crate) struct Pair {
    pub(crate) near: HboneStream,
    pub(crate) far: HboneStream,
    pub(crate) served: Served,
    pub(crate) client: client::Client,
}

pub(crate) async fn pair(settings: &Settings) -> Pair {
    pair_within(settings, plenty(settings)).await
}

/// The same, with windows of the server from a given budget.
pub(crate) async fn pair_within(settings: &Settings, windows: Windows) -> Pair {
    let tunnels: Rc<RefCell<Vec<HboneStream>>> = Rc::default();
    let accepted = Rc::clone(&tunnels);
    let mut served = serve_within(settings, windows, move |incoming| {
        accepted.borrow_mut().push(incoming.responder.accept(&ok()).unwrap());
    });
    let (far_io, _closed) = tokio::io::duplex(1);
    let io = std::mem::replace(&mut served.far, far_io);
    let client = client(io, settings, &mut served.tasks).await;
    let (near, _) = client.connect(&to("10.0.0.1:80"), settings.response_timeout).await.unwrap();
    let far = tunnels.borrow_mut().pop().unwrap();
    Pair { near, far, served, client }
}

/// The far end and the near end of a connection.
pub(crate) async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let near = listener.accept().await.unwrap().0;
    near.set_nodelay(true).unwrap();
    far.set_nodelay(true).unwrap();
    (far, near)
}

pub(crate) fn buffers() -> BufferPool {
    BufferPool::new(64 << 10, 32)
}

/// Sends all bytes.
pub(crate) async fn say(tunnel: &mut HboneStream, pool: &BufferPool, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let room = poll_fn(|cx| tunnel.poll_room(cx, pool.bytes(Size::Large))).await.expect("the tunnel takes no more");
        let mut buffer = pool.borrow(Size::Large);
        let length = room.min(bytes.len()).min(buffer.bytes().len());
        buffer.bytes_mut()[..length].copy_from_slice(&bytes[..length]);
        assert!(tunnel.send(buffer, length), "the tunnel takes no more");
        bytes = &bytes[length..];
    }
    tunnel.release_room();
}

/// Ends the sending direction.
pub(crate) fn finish(tunnel: &mut HboneStream) {
    assert!(tunnel.finish(), "the tunnel takes no more");
}

/// Waits for bytes and returns them; empty at the end.
pub(crate) async fn hear(tunnel: &mut HboneStream) -> io::Result<Vec<u8>> {
    poll_fn(|cx| {
        let incoming = tunnel.gather(cx, 1).clone();
        if tunnel.inbox.is_empty() {
            return match incoming {
                stream::Incoming::Open => Poll::Pending,
                stream::Incoming::Ended => Poll::Ready(Ok(Vec::new())),
                stream::Incoming::Failed(fault) => Poll::Ready(Err(fault.into())),
            };
        }
        let mut heard = Vec::new();
        let written = tunnel.inbox.write(|pieces| {
            heard = pieces.iter().flat_map(|piece| piece.to_vec()).collect();
            Ok::<_, io::Error>(heard.len())
        })?;
        tunnel.release(written);
        Poll::Ready(Ok(heard))
    })
    .await
}

/// Returns all bytes until the end.
pub(crate) async fn hear_all(tunnel: &mut HboneStream) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        match hear(tunnel).await? {
            more if more.is_empty() => return Ok(all),
            more => all.extend(more),
        }
    }
}
