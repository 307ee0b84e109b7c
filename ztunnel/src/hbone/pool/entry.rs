//! The connections, the waiting streams and the dial of one key.

use std::{cell::Cell, collections::VecDeque, rc::Rc};

use tokio::sync::oneshot;

use super::{
    connect::Key,
    connection::{Connection, Lease},
    error::DialFailure,
};
use crate::{hbone::settings::Settings, model::identity::SpiffeId};

/// A request that waits for a stream.
pub(super) struct Waiter<E> {
    pub(super) lease: oneshot::Sender<Result<Lease, DialFailure<E>>>,
    /// The lowest acceptable number of a connection.
    pub(super) newer_than: u64,
}

/// A dial in progress.
#[derive(Debug, Default)]
pub(super) struct Dial {
    /// The identity or certificate that the dial uses is out of date. Only the requests that already wait may use its
    /// connection.
    stale: Cell<bool>,
}

/// The connections, the waiting streams and the dial of one key.
pub(super) struct PoolEntry<E> {
    /// Oldest first. The first connection with a free slot takes a stream, so that the newest connections become idle.
    live: Vec<Rc<Connection>>,
    waiters: VecDeque<Waiter<E>>,
    dial: Option<Rc<Dial>>,
}

impl<E> Default for PoolEntry<E> {
    fn default() -> Self {
        Self { live: Vec::new(), waiters: VecDeque::new(), dial: None }
    }
}

impl<E> PoolEntry<E> {
    /// A connection that can take a stream now.
    pub(super) fn pick(&mut self, newer_than: u64, settings: &Settings) -> Option<Rc<Connection>> {
        let fits = |connection: &&Rc<Connection>| connection.id >= newer_than && connection.has_slot(settings);
        let free = |connection: &&Rc<Connection>| fits(connection) && !connection.is_congested(settings);
        // There may be a hundred connections, most of them full; `is_usable` is the expensive check, so it comes last.
        if let Some(found) = self.live.iter().find(|connection| free(connection) && connection.is_usable()) {
            return Some(Rc::clone(found));
        }
        self.live.retain(|connection| connection.is_usable());
        let found = self.live.iter().find(free);
        // If the number of connections is at its limit, a congested connection is better than none.
        let full = self.live.len() >= settings.connections_per_key.max(1);
        found.or_else(|| self.live.iter().find(|connection| full && fits(connection))).map(Rc::clone)
    }

    pub(super) fn wait(&mut self, waiter: Waiter<E>) {
        self.waiters.push_back(waiter);
    }

    /// The first request that can get a stream now, and the connection for it.
    pub(super) fn next_grant(&mut self, settings: &Settings) -> Option<(Waiter<E>, Rc<Connection>)> {
        if self.waiters.is_empty() {
            return None;
        }
        // Dead connections are removed first. Otherwise a dead one could be the newest, and no request would get a stream.
        self.live.retain(|connection| connection.is_usable());
        let newest =
            self.live.iter().filter(|connection| connection.has_slot(settings)).map(|connection| connection.id);
        let newest = newest.max()?;
        let index = self.waiters.iter().position(|waiter| waiter.newer_than <= newest)?;
        let newer_than = self.waiters.get(index)?.newer_than;
        let connection = self.pick(newer_than, settings)?;
        Some((self.waiters.remove(index)?, connection))
    }

    /// Begins a dial, if a request needs one.
    pub(super) fn begin_dial(&mut self, settings: &Settings) -> Option<Rc<Dial>> {
        self.live.retain(|connection| connection.is_usable());
        self.waiters.retain(|waiter| !waiter.lease.is_closed());
        let wanted = self.dial.is_none() && !self.waiters.is_empty();
        if !wanted || self.live.len() >= settings.connections_per_key.max(1) {
            return None;
        }
        let dial = Rc::new(Dial::default());
        self.dial = Some(Rc::clone(&dial));
        Some(dial)
    }

    /// Adds the connection that the dial has made.
    pub(super) fn dialled(&mut self, connection: Rc<Connection>) {
        self.dial = None;
        self.live.push(connection);
    }

    /// Ends a dial that failed, and returns all waiting requests.
    pub(super) fn dial_failed(&mut self) -> VecDeque<Waiter<E>> {
        self.dial = None;
        std::mem::take(&mut self.waiters)
    }

    pub(super) fn take_out(&mut self, id: u64) {
        self.live.retain(|connection| connection.id != id);
    }

    pub(super) fn retain(&mut self, key: &Key, keep: &impl Fn(&Key, &SpiffeId) -> bool) {
        self.live.retain(|connection| keep(key, &connection.identity));
        // The identity of the peer is not known during the dial: it is one of the expected identities.
        if let Some(dial) = &self.dial
            && !key.expected.is_empty()
            && !key.expected.iter().any(|identity| keep(key, identity))
        {
            dial.stale.set(true);
        }
    }

    pub(super) fn retire_all(&mut self) {
        self.live.clear();
        if let Some(dial) = &self.dial {
            dial.stale.set(true);
        }
    }

    pub(super) fn is_dialling(&self) -> bool {
        self.dial.is_some()
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiters.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.live.is_empty() && self.waiters.is_empty() && self.dial.is_none()
    }
}

impl Dial {
    pub(super) fn is_stale(&self) -> bool {
        self.stale.get()
    }
}
