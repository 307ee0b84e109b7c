//! A client's connections, shared by all its streams to one place. One pool per pod and worker.
//!
//! - Connections are told apart by their whole [`Key`]; dials to different keys know nothing of each other.
//! - To one key there is one dial at a time. When it fails, everyone who waits for that key fails with it, at once; when it
//!   succeeds they share the connection as far as its streams go, and one more dial begins for the others.
//! - A connection whose streams are all taken is in use again when one ends.
//! - A connection may be outdated before its streams have ended: then it takes no more. One that is cut ends with them.
//! - A stream that the peer has not looked at is opened once more, on a connection newer than the failure. So is one that
//!   has no answer a while after the peer said goodbye; whichever is answered first is taken.

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

/// How long an answer is waited for from a peer that has said goodbye, before another connection is tried as well.
const FORSAKEN: Duration = Duration::from_secs(1);

/// A stream that the peer has connected to its destination.
#[derive(Debug)]
pub struct Opened {
    /// The stream.
    pub tunnel: HboneStream,
    /// What the peer said.
    pub response: ConnectResponse,
    /// Who the peer is.
    pub identity: SpiffeId,
    /// The connection's own address.
    pub local: Option<SocketAddr>,
}

/// How much there is of what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Connections that live, pooled or not.
    pub connections: usize,
    /// Streams open or being opened.
    pub streams: usize,
    /// Dials under way.
    pub dials: usize,
    /// Streams that wait for a connection.
    pub waiting: usize,
}

/// The connections of one pod on one worker. Dropping it breaks them all.
pub struct Pool<C: Connect>(Rc<Inner<C>>);

impl<C: Connect> Pool<C> {
    /// An empty pool. Its tasks run in the `LocalSet` it is used in.
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

    /// Opens a stream, on a connection that is there or on a new one. Dropping the future gives the stream up; a dial that
    /// it has begun goes on, for others.
    ///
    /// # Errors
    /// When there is no connection, or the peer does not connect the stream.
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
                        // It may still come on the old one.
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

    /// Once more: whatever is older than a failure is as likely to be stale.
    async fn open_again(&self, key: &Key, request: &ConnectRequest) -> Result<Opened, OpenError<C::Error>> {
        let lease = self.lease(key, self.0.next_id.get()).await?;
        let opened = self.open_on(lease, key, request).await;
        opened.map_err(|failure| match failure {
            Failure::Final(error) | Failure::Retry(error) => error,
        })
    }

    /// Takes connections out of use whose workload has left: streams on them go on, but no more are opened, and each ends
    /// with its last stream. `keep` must not use the pool.
    pub fn retain(&self, keep: impl Fn(&Key, &SpiffeId) -> bool) {
        let keys = self.0.retain(|key, entry| entry.retain(key, &keep));
        self.0.settle(keys);
    }

    /// Takes all connections out of use, as [`Self::retain`]: the pod's own identity or certificate has changed.
    pub fn retire_all(&self) {
        let keys = self.0.retain(|_, entry| entry.retire_all());
        self.0.settle(keys);
    }

    /// Breaks all connections, as dropping the pool does; no more are made.
    pub fn close(&self) {
        // Not within the borrow: the end of a task uses the pool.
        let tasks = self.0.tasks.take();
        drop(tasks);
    }

    /// Lets all connections end in order, with their last bytes and a goodbye to their peers; no more are made. Dropping the
    /// future breaks those that have not.
    pub async fn finish(&self) {
        self.retire_all();
        // Not within the borrow, as above.
        let tasks = self.0.tasks.take();
        if let Some(mut tasks) = tasks {
            tasks.join_all().await;
        }
    }

    /// How much there is.
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
            // Its dial has ended without a result, or it was too long.
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
            // A connection that breaks before its first stream leads to a peer that refuses us, or has no sense: another
            // one would fare no better.
            client::OpenError::Unprocessed(error) if !error.is_remote() && !lease.was_used_before() => {
                Failure::Final(OpenError::Lost {
                    to,
                    why: connection.client.end().unwrap_or_else(|| error.to_string()),
                })
            }
            client::OpenError::Unprocessed(error) => {
                Failure::Retry(OpenError::Lost { to, why: format!("the CONNECT was not taken: {error}") })
            }
            client::OpenError::Reset(error) => Failure::Final(OpenError::Lost { to, why: error.to_string() }),
            // A connection that has been idle may lead to a peer that is no more. No byte of the application's has been
            // sent, so that at worst the destination sees a connection that says nothing.
            client::OpenError::Lost { why } if lease.was_used_before() => Failure::Retry(OpenError::Lost { to, why }),
            client::OpenError::Lost { why } => Failure::Final(OpenError::Lost { to, why }),
        })
    }
}

/// Whether an error may be tried to be overcome.
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
