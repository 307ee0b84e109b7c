//! Where a mesh comes from: one seam for every source.

use std::pin::pin;

use tracing::info;

use crate::store::change::Batch;
use crate::store::publish::Publisher;

/// A source of the mesh. It yields what has changed, in batches that are consistent, and what it knows to be missing; the first
/// batch tells all that there is. Whoever writes one edits nothing below `control`.
///
/// What a source can't read is never a removal: the last good state of the objects concerned stays, and the batch tells of the
/// problem and of the [gaps](crate::store::change::Gaps).
pub trait MeshSource {
    /// Waits for the next batch, which is not empty unless it is the first. `None`: the source is at its end, and what it said
    /// goes on counting.
    fn next(&mut self) -> impl Future<Output = Option<Batch>> + Send;
}

/// Publishes what a source yields, until it is at its end or `shutdown` is over.
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
