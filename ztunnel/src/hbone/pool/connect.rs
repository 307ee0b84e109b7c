//! The interface by which a pool makes connections, and the key by which it shares them.

use std::{
    any::Any,
    error::Error,
    future::Future,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::SystemTime,
};

use futures_util::future::LocalBoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    hbone::{Windows, client::End, stream::Cut},
    model::identity::SpiffeId,
    net::activity::Activity,
};

/// Streams with the same key share connections. The source pod is not part of the key: each pool belongs to one pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The address and port of the connection's other end: the HBONE port at the pod's address, for example.
    pub to: SocketAddr,
    /// The identities that the peer may have.
    pub expected: Arc<[SpiffeId]>,
    /// The source address. `None`: the kernel chooses it.
    pub from: Option<IpAddr>,
}

/// Makes connections: TCP and TLS.
pub trait Connect: 'static {
    /// The transport below HTTP/2.
    type Io: AsyncRead + AsyncWrite + Unpin + 'static;
    /// Why a connection could not be made.
    type Error: Error + 'static;

    /// Connects. The implementation should have its own deadlines; the pool's deadline is the last resort.
    fn connect(&self, key: &Key) -> impl Future<Output = Result<Connected<Self::Io>, Self::Error>>;

    /// Called when a connection of a key has ended.
    fn ended(&self, key: &Key, end: &End) {
        let _unused = (key, end);
    }
}

/// A connection to an authenticated peer.
pub struct Connected<Io> {
    /// The transport below HTTP/2.
    pub io: Io,
    /// The identity of the peer.
    pub identity: SpiffeId,
    /// The expiry of the peer's certificate. No new streams are opened after it.
    pub expires: SystemTime,
    /// The local address of the connection.
    pub local: Option<SocketAddr>,
    /// When the peer last sent bytes.
    pub activity: Activity,
    /// The number of bytes that the peer may send before they are read.
    pub windows: Windows,
    /// Ready when no new streams should be opened on the connection.
    pub outdated: LocalBoxFuture<'static, ()>,
    /// Ready when the connection is to be broken, with all its streams.
    pub cut: LocalBoxFuture<'static, Cut>,
    /// Kept until the connection ends.
    pub guard: Box<dyn Any>,
}
