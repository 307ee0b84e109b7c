//! Reads the state of a pod's network namespace after changes in it, and repairs rules and routes.

use std::{net::IpAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, sleep},
};

use crate::{
    model::workload::NamespacedName,
    pods::kernel::Link,
    redirect::{NetnsFacts, link::LinkError},
};

/// The shortest pause between two reactions to changes in one pod's namespace, whatever the pod does to it. It doubles
/// up to [`FOLLOW_PAUSE_MOST`] while the changes do not end.
const FOLLOW_PAUSE: Duration = Duration::from_millis(200);
const FOLLOW_PAUSE_MOST: Duration = Duration::from_secs(2);

/// The state of a pod's namespace after a change.
pub(super) struct Found {
    pub(super) pod: NamespacedName,
    /// The cookie of the namespace.
    pub(super) cookie: u64,
    pub(super) looked: Result<Looked, LinkError>,
}

/// The state of a namespace, and the repair of it.
pub(super) struct Looked {
    pub(super) facts: NetnsFacts,
    /// The result for rules and routes.
    pub(super) routes: Result<(), LinkError>,
    /// The addresses of the pod at that time.
    pub(super) addresses: Arc<Vec<IpAddr>>,
}

impl Looked {
    /// Reads the state of the namespace, and repairs rules and routes, unless the namespace may belong to another pod
    /// by now.
    async fn at(link: &impl Link, addresses: Arc<Vec<IpAddr>>, limit: usize) -> Result<Self, LinkError> {
        let facts = link.facts().await?.limited(&addresses, limit);
        let routes = match has_all(&facts, &addresses) {
            true => link.redirect(&facts, &addresses).await,
            false => Ok(()),
        };
        Ok(Self { facts, routes, addresses })
    }
}

pub(super) fn has_all(facts: &NetnsFacts, addresses: &[IpAddr]) -> bool {
    addresses.iter().all(|address| facts.addresses.contains(address))
}

/// Reads the state of a pod's namespace after every change in it, at a pace that the pod cannot increase, repairs
/// rules and routes, and sends the state, until the receiver is gone.
pub(super) struct Watch<L> {
    pub(super) pod: NamespacedName,
    /// The cookie of the namespace.
    pub(super) cookie: u64,
    pub(super) link: L,
    /// The number of facts of the namespace that are read; see [`NetnsFacts::limited`].
    pub(super) limit: usize,
    /// The pod's current addresses.
    pub(super) addresses: Arc<ArcSwap<Vec<IpAddr>>>,
    pub(super) found: mpsc::Sender<Found>,
}

impl<L: Link> Watch<L> {
    pub(super) async fn run(self) {
        let changed: Arc<Notify> = self.link.changed();
        let mut pause = FOLLOW_PAUSE;
        loop {
            let since = Instant::now();
            changed.notified().await;
            let is_quiet = since.elapsed() >= pause;
            pause = if is_quiet { FOLLOW_PAUSE } else { (pause * 2).min(FOLLOW_PAUSE_MOST) };
            let looked = Looked::at(&self.link, self.addresses.load_full(), self.limit).await;
            let found = Found { pod: self.pod.clone(), cookie: self.cookie, looked };
            if self.found.send(found).await.is_err() {
                return;
            }
            sleep(pause).await;
        }
    }
}
