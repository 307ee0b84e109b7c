//! One connection of a pool, and the right to a stream on it.

use std::{
    cell::Cell,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};

use super::counts::Counted;
use crate::{
    hbone::{client::Client, settings::Settings},
    identity::clock,
    model::identity::SpiffeId,
};

/// One connection.
pub(super) struct Connection {
    /// Increases with each new connection.
    pub(super) id: u64,
    pub(super) client: Client,
    pub(super) identity: SpiffeId,
    pub(super) local: Option<SocketAddr>,
    pub(super) usage: Rc<Usage>,
}

/// The number of users of a connection, and its expiry. It is separate from [`Connection`], because the connection's task holds
/// it too and must not keep the connection open.
pub(super) struct Usage {
    streams: Cell<usize>,
    ever: Cell<bool>,
    changed: Notify,
    expires: SystemTime,
    /// The same time on the clock of timers. This clock does not jump, but it may stop while the machine sleeps.
    expires_at: Instant,
}

impl Usage {
    pub(super) fn new(expires: SystemTime) -> Self {
        // Replaces an expiry that `Instant` can't represent.
        const FAR: Duration = Duration::from_secs(365 * 24 * 3600);
        let left = expires.duration_since(clock::now()).unwrap_or_default().min(FAR);
        let expires_at = Instant::now() + left;
        Self { streams: Cell::new(0), ever: Cell::new(false), changed: Notify::new(), expires, expires_at }
    }

    fn has_expired(&self) -> bool {
        Instant::now() >= self.expires_at || clock::now() >= self.expires
    }

    /// Waits until there has been no stream for this long, or the peer's certificate has expired.
    pub(super) async fn unused(&self, release: Duration) {
        loop {
            let idle = async {
                match self.streams.get() {
                    0 => sleep(release).await,
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.changed.notified() => {}
                () = sleep_until(self.expires_at) => return,
                () = idle => return,
            }
        }
    }

    fn add(&self) {
        self.ever.set(true);
        let before = self.streams.replace(self.streams.get() + 1);
        if before == 0 {
            self.changed.notify_one();
        }
    }

    fn subtract(&self) {
        let left = self.streams.get().saturating_sub(1);
        self.streams.set(left);
        if left == 0 {
            self.changed.notify_one();
        }
    }
}

impl Connection {
    /// Whether streams may be opened on the connection, now or later.
    pub(super) fn is_usable(&self) -> bool {
        !self.usage.has_expired() && self.client.is_usable()
    }

    /// Whether so many streams are stalled that they may soon block the other streams of the connection.
    pub(super) fn is_congested(&self, settings: &Settings) -> bool {
        self.client.stalled() >= settings.stalls()
    }

    /// Whether one more stream can be opened on the connection now.
    pub(super) fn has_slot(&self, settings: &Settings) -> bool {
        let streams = self.usage.streams.get();
        streams < settings.slots() && streams < self.client.max_streams()
    }
}

/// The right to one stream. When it ends, a waiting stream gets the right.
pub(super) struct Lease {
    connection: Rc<Connection>,
    was_used_before: bool,
    released: Option<Box<dyn FnOnce()>>,
    _counted: Counted,
}

impl Lease {
    /// `released` is called when the lease ends.
    pub(super) fn new(connection: &Rc<Connection>, counted: Counted, released: impl FnOnce() + 'static) -> Self {
        let was_used_before = connection.usage.ever.get();
        connection.usage.add();
        let connection = Rc::clone(connection);
        Self { connection, was_used_before, released: Some(Box::new(released)), _counted: counted }
    }

    /// Ends the lease without a call of `released`; the caller is the pool itself.
    pub(super) fn end_quietly(mut self) {
        self.released = None;
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Whether the connection had an earlier lease.
    pub(super) fn was_used_before(&self) -> bool {
        self.was_used_before
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.connection.usage.subtract();
        if let Some(released) = self.released.take() {
            released();
        }
    }
}
