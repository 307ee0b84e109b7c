//! The task of one connection: it dials, hands out streams, and runs the connection until its end.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
};

use futures_util::future::LocalBoxFuture;
use tokio::time::timeout;
use tracing::debug;

use super::{
    connect::{Connect, Connected, Key},
    connection::{Connection, Lease, Usage},
    counts::{Counted, Counts},
    entry::{Dial, PoolEntry},
    error::{DialFailure, Shared},
};
use crate::{
    hbone::{
        client::{self, Driver},
        settings::Settings,
        stream::Cut,
    },
    lifecycle::{poll_when_woken, tasks::TaskSet},
};

/// The state that a pool and the tasks of its connections share.
pub(super) struct Inner<C: Connect> {
    pub(super) connect: C,
    pub(super) settings: Settings,
    pub(super) entries: RefCell<HashMap<Rc<Key>, PoolEntry<C::Error>>>,
    /// `None`: the pool is dropped. The tasks hold this state, so they can't be ended by the drop of its fields.
    pub(super) tasks: RefCell<Option<TaskSet>>,
    pub(super) next_id: Cell<u64>,
    pub(super) counts: Counts,
}

impl<C: Connect> Inner<C> {
    /// The right to a stream on a connection.
    pub(super) fn lease(self: &Rc<Self>, connection: &Rc<Connection>, key: &Rc<Key>) -> Lease {
        let (pool, key) = (Rc::downgrade(self), Rc::clone(key));
        let released = move || {
            if let Some(pool) = pool.upgrade() {
                pool.settle([key]);
            }
        };
        Lease::new(connection, Counted::new(&self.counts.streams), released)
    }

    /// Applies the changes of these keys: hands out free streams to those who wait, and starts a dial where one is needed.
    pub(super) fn settle(self: &Rc<Self>, keys: impl IntoIterator<Item = Rc<Key>>) {
        for key in keys {
            while let Some((waiter, connection)) = self.with(&key, |entry| entry.next_grant(&self.settings)).flatten() {
                let lease = self.lease(&connection, &key);
                if let Err(Ok(lease)) = waiter.lease.send(Ok(lease)) {
                    // The waiter was dropped meanwhile.
                    lease.end_quietly();
                }
            }
            if let Some(dial) = self.with(&key, |entry| entry.begin_dial(&self.settings)).flatten() {
                let task = Task { pool: Rc::clone(self), key: Rc::clone(&key), dialling: true };
                if let Some(tasks) = self.tasks.borrow_mut().as_mut() {
                    tasks.spawn_local(task.run(dial));
                }
            }
            let mut entries = self.entries.borrow_mut();
            if entries.get(&key).is_some_and(PoolEntry::is_empty) {
                entries.remove(&key);
            }
        }
    }

    /// Changes every entry, and returns all keys, for [`Self::settle`].
    pub(super) fn retain(&self, mut change: impl FnMut(&Key, &mut PoolEntry<C::Error>)) -> Vec<Rc<Key>> {
        let mut entries = self.entries.borrow_mut();
        entries.iter_mut().for_each(|(key, entry)| change(key, entry));
        entries.keys().cloned().collect()
    }

    fn with<T>(&self, key: &Rc<Key>, change: impl FnOnce(&mut PoolEntry<C::Error>) -> T) -> Option<T> {
        self.entries.borrow_mut().get_mut(key).map(change)
    }
}

struct Task<C: Connect> {
    pool: Rc<Inner<C>>,
    key: Rc<Key>,
    dialling: bool,
}

struct Made<Io> {
    connection: Rc<Connection>,
    usage: Rc<Usage>,
    driver: Driver<Io>,
    outdated: LocalBoxFuture<'static, ()>,
    cut: LocalBoxFuture<'static, Cut>,
    guard: Box<dyn std::any::Any>,
}

impl<C: Connect> Task<C> {
    async fn run(mut self, dial: Rc<Dial>) {
        let made = match timeout(self.pool.settings.dial_timeout, self.dial()).await {
            Ok(Ok(made)) => made,
            Ok(Err(failure)) => return self.failed(&failure),
            Err(_elapsed) => return self.failed(&DialFailure::TimedOut),
        };
        let Made { connection, usage, driver, outdated, cut, guard: _guard } = made;
        let _counted = Counted::new(&self.pool.counts.connections);
        let (id, outgrown) = (connection.id, connection.client.outgrown());
        self.dialling = false;
        self.pool.with(&self.key, |entry| entry.dialled(connection));
        self.pool.settle([Rc::clone(&self.key)]);
        if dial.is_stale() {
            self.take_out(id);
        }
        let unused = async {
            tokio::select! {
                () = usage.unused(self.pool.settings.idle_release) => {}
                () = outdated => {}
                () = outgrown => {}
            }
            // The connection closes with its last stream, or at once if there is none. That ends the driver.
            self.take_out(id);
            std::future::pending().await
        };
        let end = tokio::select! {
            end = driver.run_until(cut) => end,
            end = poll_when_woken(unused) => end,
        };
        self.pool.connect.ended(&self.key, &end);
        debug!(to = %self.key.to, %end, "an HBONE connection ended");
        self.take_out(id);
    }

    async fn dial(&self) -> Result<Made<C::Io>, DialFailure<C::Error>> {
        let pool = &self.pool;
        let connected = pool.connect.connect(&self.key).await;
        let Connected { io, identity, expires, local, activity, windows, outdated, cut, guard } =
            connected.map_err(|error| DialFailure::Connect(Shared::new(error)))?;
        let (client, driver) = client::handshake(io, activity, &pool.settings, windows)
            .await
            .map_err(|error| DialFailure::Handshake(error.to_string().into()))?;
        let id = pool.next_id.get();
        pool.next_id.set(id + 1);
        let usage = Rc::new(Usage::new(expires));
        let connection = Rc::new(Connection { id, client, identity, local, usage: Rc::clone(&usage) });
        Ok(Made { connection, usage, driver, outdated, cut, guard })
    }

    fn failed(&mut self, failure: &DialFailure<C::Error>) {
        self.dialling = false;
        for waiter in self.pool.with(&self.key, PoolEntry::dial_failed).unwrap_or_default() {
            // A waiter that was dropped meanwhile needs no answer.
            let _given_up = waiter.lease.send(Err(failure.clone()));
        }
        self.pool.settle([Rc::clone(&self.key)]);
    }

    fn take_out(&self, id: u64) {
        self.pool.with(&self.key, |entry| entry.take_out(id));
        self.pool.settle([Rc::clone(&self.key)]);
    }
}

impl<C: Connect> Drop for Task<C> {
    /// A task that is ended while it dials, or that panics, must not block further dials of its key.
    fn drop(&mut self) {
        if self.dialling {
            self.failed(&DialFailure::TimedOut);
        }
    }
}
