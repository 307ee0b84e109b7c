//! From a source of the mesh to the streams of nodes: the snapshot is published, and the resources that it changes go
//! into the catalogue.

use std::{
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{sync::watch, task::spawn_blocking};
use tracing::{error, info};

use super::{
    catalogue::Catalogue,
    translate::{Touched, Translator},
};
use crate::{
    control::source::MeshSource,
    store::publish::{Publisher, Reader},
};

/// The catalogue that all streams share. Clones share it, too.
#[derive(Clone, Debug)]
pub struct Resources {
    catalogue: Arc<Mutex<Catalogue>>,
    changed: watch::Sender<u64>,
}

impl Default for Resources {
    fn default() -> Self {
        Self { catalogue: Arc::default(), changed: watch::Sender::new(0) }
    }
}

impl Resources {
    /// Locks the catalogue. It does not change until the guard is dropped.
    pub fn catalogue(&self) -> MutexGuard<'_, Catalogue> {
        // A poisoned lock is no problem: the function that changes the catalogue does not panic halfway.
        self.catalogue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A receiver that is notified of changes from now on.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Changes the catalogue, and notifies all streams. Returns the result of `change`.
    pub fn change<T>(&self, change: impl FnOnce(&mut Catalogue) -> T) -> T {
        let (result, version) = {
            let mut catalogue = self.catalogue();
            (change(&mut catalogue), catalogue.version())
        };
        self.changed.send_replace(version);
        result
    }
}

/// Publishes the batches of a source, and serves the resources that they change, until the source ends or `shutdown`
/// completes.
///
/// Nothing is served before the mesh has been complete once. Nodes send in plaintext to every destination that a mesh
/// does not have. So a mesh with gaps would open connections that its missing part may protect.
pub async fn feed(
    mut source: impl MeshSource,
    publisher: Publisher,
    mesh: Reader,
    mut translator: Translator,
    resources: Resources,
    shutdown: impl Future<Output = ()>,
) {
    let mut shutdown = pin!(shutdown);
    loop {
        let batch = tokio::select! {
            () = &mut shutdown => return,
            batch = source.next() => batch,
        };
        let Some(batch) = batch else { return };
        let touched = Touched::by(&batch);
        let before = mesh.load();
        let after = publisher.apply(batch);
        let is_complete = after.version() > 0 && !after.hides_addresses();
        // A mesh of 100,000 workloads takes a second or more, and streams go on meanwhile.
        let work = spawn_blocking({
            let after = Arc::clone(&after);
            move || {
                let changes = translator.translate(&before, &after, touched);
                (translator, changes)
            }
        });
        let Ok((kept, changes)) = work.await else {
            error!(
                "a change of the mesh could not be translated into resources: this is a bug, please report \
                 it; nodes keep the resources that they have"
            );
            return;
        };
        translator = kept;
        let (changed, version) = resources.change(|catalogue| {
            let changed = catalogue.apply(changes, is_complete);
            (changed, catalogue.version())
        });
        let counts = after.counts();
        info!(
            version,
            changed,
            mesh = after.version(),
            workloads = counts.workloads,
            services = counts.services,
            problems = counts.problems,
            served = is_complete,
            "mesh published"
        );
    }
}
