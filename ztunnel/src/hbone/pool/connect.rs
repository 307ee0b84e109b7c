//! What a pool is given: how a connection is made, and by what two are told apart.

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

/// What makes two connections the same. The pod that connects is the same for all of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The node's HBONE port at the pod's address, or wherever else the tunnel ends.
    pub to: SocketAddr,
    /// Who may be there.
    pub expected: Arc<[SpiffeId]>,
    /// The address to connect from, when it must be a certain one.
    pub from: Option<IpAddr>,
}

/// Makes connections: TCP and TLS.
pub trait Connect: 'static {
    /// What HTTP/2 is spoken on.
    type Io: AsyncRead + AsyncWrite + Unpin + 'static;
    /// Why there is none.
    type Error: Error + 'static;

    /// Connects. It should have its own deadlines; the pool's is the last resort.
    fn connect(&self, key: &Key) -> impl Future<Output = Result<Connected<Self::Io>, Self::Error>>;

    /// Is told how a connection to a key has ended.
    fn ended(&self, key: &Key, end: &End) {
        let _unused = (key, end);
    }
}

/// A connection with a proven peer.
pub struct Connected<Io> {
    /// The bytes.
    pub io: Io,
    /// Who the peer is.
    pub identity: SpiffeId,
    /// When that is no longer proven: no new streams after it.
    pub expires: SystemTime,
    /// The connection's own address.
    pub local: Option<SocketAddr>,
    /// When the peer was last heard of.
    pub activity: Activity,
    /// What the peer may send before somebody reads it.
    pub windows: Windows,
    /// Comes when no new streams should be opened on it any more.
    pub outdated: LocalBoxFuture<'static, ()>,
    /// Comes when it is to be broken, with all its streams.
    pub cut: LocalBoxFuture<'static, Cut>,
    /// Kept for as long as the connection.
    pub guard: Box<dyn Any>,
}
