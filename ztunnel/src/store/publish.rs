//! Publication of snapshots: one publisher replaces the snapshot, and readers load it without a lock.

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::Instant;

use super::change::Batch;
use super::demand::{Demand, Unresolved};
use super::snapshot::Snapshot;

/// A publisher and its first reader, with the empty snapshot of version 0.
pub fn channel() -> (Publisher, Reader) {
    let current = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
    let (changed, changes) = watch::channel(());
    (Publisher { current: Arc::clone(&current), changed }, Reader { current, changes, demand: None })
}

/// The only writer of the snapshot; not `Clone` on purpose.
#[derive(Debug)]
pub struct Publisher {
    current: Arc<ArcSwap<Snapshot>>,
    changed: watch::Sender<()>,
}

impl Publisher {
    /// Makes the next snapshot from the last one and a batch, publishes it and returns it.
    pub fn apply(&self, batch: Batch) -> Arc<Snapshot> {
        let next = Arc::new(self.current.load().apply(batch));
        self.current.store(Arc::clone(&next));
        self.changed.send_replace(());
        next
    }

    /// Replaces the snapshot, then wakes the tasks that wait for a change.
    pub fn publish(&self, snapshot: Snapshot) {
        self.current.store(Arc::new(snapshot));
        self.changed.send_replace(());
    }
}

/// Reads the newest snapshot. Cheap to clone, one clone for each user.
#[derive(Debug, Clone)]
pub struct Reader {
    current: Arc<ArcSwap<Snapshot>>,
    changes: watch::Receiver<()>,
    /// The demand for addresses, if the node does not have the whole mesh.
    demand: Option<Demand>,
}

impl Reader {
    /// Sets that the mesh has only wanted addresses; [`Reader::resolve`] requests an address.
    #[must_use]
    pub fn on_demand(self, demand: Demand) -> Self {
        Self { demand: Some(demand), ..self }
    }

    /// The newest snapshot, once the owner of an address is known. With the whole mesh it returns at once.
    ///
    /// # Errors
    /// The owner does not become known.
    pub async fn resolve(&self, address: IpAddr, now: Instant) -> Result<Arc<Snapshot>, Unresolved> {
        if let Some(demand) = &self.demand {
            demand.known(address, now).await?;
        }
        Ok(self.load())
    }

    /// Whether the mesh has only wanted addresses.
    #[must_use]
    pub fn is_on_demand(&self) -> bool {
        self.demand.is_some()
    }

    /// The newest snapshot. A decision loads it once and uses only that one, so that it never mixes two versions.
    pub fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Follows changes from now on. Subscribe, then [`Reader::load`], then wait: no change is missed.
    pub fn subscribe(&self) -> Changes {
        let mut changes = self.changes.clone();
        changes.mark_unchanged();
        Changes { current: Arc::clone(&self.current), changes }
    }
}

/// Waits for new snapshots.
#[derive(Debug)]
pub struct Changes {
    current: Arc<ArcSwap<Snapshot>>,
    changes: watch::Receiver<()>,
}

impl Changes {
    /// Waits for a snapshot that is newer than the last one from this handle (or than its creation), and returns the newest;
    /// snapshots in between are skipped. `None`: the publisher is gone. Dropping the future loses nothing.
    pub async fn changed(&mut self) -> Option<Arc<Snapshot>> {
        self.changes.changed().await.ok()?;
        Some(self.current.load_full())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(number: u64) -> Snapshot {
        Snapshot::build(number, vec![], vec![], vec![])
    }

    #[tokio::test]
    async fn changes_are_seen_once_and_the_newest_counts() {
        let (publisher, reader) = channel();
        assert_eq!(reader.load().version(), 0);
        publisher.publish(version(1));
        let mut changes = reader.clone().subscribe();
        assert_eq!(reader.load().version(), 1);

        publisher.publish(version(2));
        publisher.publish(version(3));
        assert_eq!(changes.changed().await.unwrap().version(), 3);
        assert_eq!(reader.load().version(), 3);

        drop(publisher);
        assert!(changes.changed().await.is_none());
        assert_eq!(reader.load().version(), 3);
    }

    #[tokio::test]
    async fn a_waiting_reader_is_woken() {
        let (publisher, reader) = channel();
        let mut changes = reader.subscribe();
        let (woken, ()) = tokio::join!(changes.changed(), async {
            tokio::task::yield_now().await;
            publisher.publish(version(1));
        });
        assert_eq!(woken.unwrap().version(), 1);
    }
}
