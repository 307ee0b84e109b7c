//! The HBONE connections of one pod on one worker, shared by all streams to the same destination.
//!
//! - Streams share a connection only if their whole [`Key`] is equal; dials to different keys are independent.
//! - For each key there is one dial at a time. If it fails, all streams that wait for this key fail at once. If it succeeds,
//!   they share the connection up to its number of streams, and one more dial begins for the others.
//! - A connection that has its maximum of streams takes a new one when a stream ends.
//! - An outdated connection takes no new streams; its open streams continue. A connection that is cut ends with its streams.
//! - A stream that the peer has not processed is opened once more, on a connection that is newer than the failure. The same
//!   holds for a stream without an answer some time after the peer's GOAWAY; the first answer counts.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    time::Duration,
};

use tokio::{sync::oneshot, time::timeout};

use super::{client, settings::Settings, stream::HboneStream};
use crate::{
    lifecycle::tasks::{TaskCount, TaskSet},
    model::identity::SpiffeId,
    wire::connect::{ConnectRequest, ConnectResponse},
};

mod connect;
mod connection;
mod counts;
mod dial;
mod entry;
mod error;

pub use connect::{Connect, Connected, Key};
use connection::Lease;
use counts::Counts;
use dial::Inner;
use entry::{PoolEntry, Waiter};
pub use error::{OpenError, Shared};

/// A stream waits this long for the answer of a peer that has sent a GOAWAY, before another connection is tried as well.
const FORSAKEN: Duration = Duration::from_secs(1);

/// A stream that the peer has connected to its destination.
#[derive(Debug)]
pub struct Opened {
    /// The stream.
    pub tunnel: HboneStream,
    /// The peer's answer.
    pub response: ConnectResponse,
    /// The identity of the peer.
    pub identity: SpiffeId,
    /// The local address of the connection.
    pub local: Option<SocketAddr>,
}

/// The numbers of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Open connections, including those that take no new streams.
    pub connections: usize,
    /// Streams that are open or being opened.
    pub streams: usize,
    /// Dials in progress.
    pub dials: usize,
    /// Streams that wait for a connection.
    pub waiting: usize,
}

/// The connections of one pod on one worker. Dropping the pool breaks all of them.
pub struct Pool<C: Connect>(Rc<Inner<C>>);

impl<C: Connect> Pool<C> {
    /// An empty pool. Its tasks run in the `LocalSet` in which it is used.
    #[must_use]
    pub fn new(connect: C, settings: Settings, tasks: TaskCount) -> Self {
        Self(Rc::new(Inner {
            connect,
            settings,
            entries: RefCell::default(),
            tasks: RefCell::new(Some(TaskSet::new(tasks))),
            next_id: Cell::new(0),
            counts: Counts::default(),
        }))
    }

    /// Opens a stream on an existing connection or on a new one. Dropping the future cancels the stream; a dial that it has
    /// begun continues for other streams.
    ///
    /// # Errors
    /// If there is no connection, or the peer does not accept the stream.
    pub async fn open(&self, key: &Key, request: &ConnectRequest) -> Result<Opened, OpenError<C::Error>> {
        let lease = self.lease(key, 0).await?;
        let deserted = lease.connection().client.deserted(FORSAKEN);
        let mut first = pin!(self.open_on(lease, key, request));
        let done = tokio::select! {
            biased;
            done = &mut first => done,
            () = deserted => {
                let mut second = pin!(self.open_again(key, request));
                tokio::select! {
                    biased;
                    done = &mut first => done,
                    done = &mut second => match done {
                        Ok(opened) => return Ok(opened),
                        // The answer may still come on the old connection.
                        Err(_) => first.await,
                    },
                }
            }
        };
        match done {
            Ok(opened) => Ok(opened),
            Err(Failure::Final(error)) => Err(error),
            Err(Failure::Retry(_)) => self.open_again(key, request).await,
        }
    }

    /// Opens the stream once more. Connections older than the failure are not used, because they are probably stale as well.
    async fn open_again(&self, key: &Key, request: &ConnectRequest) -> Result<Opened, OpenError<C::Error>> {
        let lease = self.lease(key, self.0.next_id.get()).await?;
        let opened = self.open_on(lease, key, request).await;
        opened.map_err(|failure| match failure {
            Failure::Final(error) | Failure::Retry(error) => error,
        })
    }

    /// Retires the connections for which `keep` returns `false`, because their workload has left: no new streams are opened on
    /// them, open streams continue, and each connection ends with its last stream. `keep` must not use the pool.
    pub fn retain(&self, keep: impl Fn(&Key, &SpiffeId) -> bool) {
        let keys = self.0.retain(|key, entry| entry.retain(key, &keep));
        self.0.settle(keys);
    }

    /// Retires all connections, as [`Self::retain`] does: the pod's own identity or certificate has changed.
    pub fn retire_all(&self) {
        let keys = self.0.retain(|_, entry| entry.retire_all());
        self.0.settle(keys);
    }

    /// Breaks all connections, as dropping the pool does; no new ones are made.
    pub fn close(&self) {
        // Dropped after the borrow has ended, because the end of a task uses the pool.
        let tasks = self.0.tasks.take();
        drop(tasks);
    }

    /// Ends all connections in order, with their last bytes and a GOAWAY to their peers; no new ones are made. Dropping the
    /// future breaks the connections that have not ended.
    pub async fn finish(&self) {
        self.retire_all();
        // Joined after the borrow has ended, as above.
        let tasks = self.0.tasks.take();
        if let Some(mut tasks) = tasks {
            tasks.join_all().await;
        }
    }

    /// The current numbers.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let entries = self.0.entries.borrow();
        Stats {
            connections: self.0.counts.connections.get(),
            streams: self.0.counts.streams.get(),
            dials: entries.values().filter(|entry| entry.is_dialling()).count(),
            waiting: entries.values().map(PoolEntry::waiting).sum(),
        }
    }

    async fn lease(&self, key: &Key, newer_than: u64) -> Result<Lease, OpenError<C::Error>> {
        let pool = &self.0;
        let to = key.to;
        let (key, waiting) = {
            let mut entries = pool.entries.borrow_mut();
            let key = entries.get_key_value(key).map_or_else(|| Rc::new(key.clone()), |(key, _)| Rc::clone(key));
            let entry = entries.entry(Rc::clone(&key)).or_default();
            if let Some(connection) = entry.pick(newer_than, &pool.settings) {
                return Ok(pool.lease(&connection, &key));
            }
            let (lease, waiting) = oneshot::channel();
            entry.wait(Waiter { lease, newer_than });
            (key, waiting)
        };
        pool.settle([key]);
        let after = pool.settings.dial_timeout;
        match timeout(after, waiting).await {
            Ok(Ok(result)) => result.map_err(|failure| failure.into_error(to, after)),
            // The dial has ended without a result, or the wait took too long.
            Ok(Err(_)) | Err(_) => Err(OpenError::NoConnection { to, after }),
        }
    }

    async fn open_on(
        &self,
        lease: Lease,
        key: &Key,
        request: &ConnectRequest,
    ) -> Result<Opened, Failure<OpenError<C::Error>>> {
        let (to, connection) = (key.to, lease.connection());
        let deadline = self.0.settings.response_timeout;
        let failure = match connection.client.connect(request, deadline).await {
            Ok((mut tunnel, response)) => {
                let (identity, local) = (connection.identity.clone(), connection.local);
                tunnel.hold(lease);
                return Ok(Opened { tunnel, response, identity, local });
            }
            Err(error) => error,
        };
        Err(match failure {
            client::OpenError::Refused(response) => Failure::Final(OpenError::Refused { to, response }),
            client::OpenError::TimedOut(after) => Failure::Final(OpenError::TimedOut { to, after }),
            client::OpenError::Protocol(error) => Failure::Final(OpenError::Handshake { to, why: error.to_string() }),
            // A connection that breaks before its first stream leads to a peer that refuses this client or does not work.
            // Another connection would break as well.
            client::OpenError::Unprocessed(error) if !error.is_remote() && !lease.was_used_before() => {
                Failure::Final(OpenError::Lost {
                    to,
                    why: connection.client.end().unwrap_or_else(|| error.to_string()),
                })
            }
            client::OpenError::Unprocessed(error) => {
                Failure::Retry(OpenError::Lost { to, why: format!("the peer did not process the CONNECT: {error}") })
            }
            client::OpenError::Reset(error) => Failure::Final(OpenError::Lost { to, why: error.to_string() }),
            // The peer of an idle connection may be gone. No byte of the application has been sent yet, so the worst effect of
            // a second try is a connection to the destination without bytes.
            client::OpenError::Lost { why } if lease.was_used_before() => Failure::Retry(OpenError::Lost { to, why }),
            client::OpenError::Lost { why } => Failure::Final(OpenError::Lost { to, why }),
        })
    }
}

/// An error, and whether the stream may be tried again.
enum Failure<E> {
    Final(E),
    Retry(E),
}

impl<C: Connect> Drop for Pool<C> {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests;
