//! The trait of all mesh sources.

use std::pin::pin;

use tracing::info;

use crate::store::change::Batch;
use crate::store::publish::Publisher;

/// A source of the mesh. It yields the changes, in consistent batches, and what it knows to be missing; the first batch
/// contains everything. A new source needs no changes below `control`.
///
/// An object that can't be read is never a removal: the last valid version of the object stays in force, and the batch
/// has the problem and the [gaps](crate::store::change::Gaps).
pub trait MeshSource {
    /// Waits for the next batch, which is not empty unless it is the first. `None`: the source has ended, and its
    /// content stays in force.
    fn next(&mut self) -> impl Future<Output = Option<Batch>> + Send;
}

/// Publishes the batches of a source, until the source ends or `shutdown` completes.
pub async fn feed(mut source: impl MeshSource, publisher: Publisher, shutdown: impl Future<Output = ()>) {
    let mut shutdown = pin!(shutdown);
    loop {
        let batch = tokio::select! {
            () = &mut shutdown => return,
            batch = source.next() => batch,
        };
        let Some(batch) = batch else { return };
        let changes = batch.changes.len();
        let snapshot = publisher.apply(batch);
        let counts = snapshot.counts();
        info!(
            version = snapshot.version(),
            changes,
            workloads = counts.workloads,
            in_mesh = counts.in_mesh,
            services = counts.services,
            registry_only = snapshot.is_registry_only(),
            problems = counts.problems,
            "mesh published"
        );
    }
}
