//! Publication of the local facts about the pods of this node: one publisher, any number of readers.
//!
//! A pod that appears in the mesh must not be seen before its local facts, and a pod that disappears must not lose its local
//! facts before the mesh has dropped it. Otherwise a reader would take the network namespace of the pod as unknown, and close
//! the pod. So a publisher that feeds both calls [`LocalPublisher::extend`], publishes the mesh, and then calls
//! [`LocalPublisher::replace`].

use std::sync::Arc;

use tokio::sync::watch;

use crate::model::local::LocalPods;

/// A publisher and its first reader. Before the first publication there are no facts.
#[must_use]
pub fn channel() -> (LocalPublisher, LocalReader) {
    let (current, reader) = watch::channel(None);
    (LocalPublisher { current }, LocalReader { current: reader })
}

/// The only writer of the local facts; not `Clone` on purpose.
#[derive(Debug)]
pub struct LocalPublisher {
    current: watch::Sender<Option<Arc<LocalPods>>>,
}

impl LocalPublisher {
    /// Adds facts, and replaces the facts of the same pods. The facts of other pods stay.
    pub fn extend(&self, pods: &LocalPods) {
        self.modify(|current| {
            let mut all = current.cloned().unwrap_or_default();
            all.extend(pods.iter().map(|(name, pod)| (name.clone(), pod.clone())));
            all
        });
    }

    /// Replaces all facts.
    pub fn replace(&self, pods: LocalPods) {
        self.modify(|_| pods);
    }

    fn modify(&self, next: impl FnOnce(Option<&LocalPods>) -> LocalPods) {
        self.current.send_if_modified(|current| {
            let next = next(current.as_deref());
            let changed = current.as_deref() != Some(&next);
            if changed {
                *current = Some(Arc::new(next));
            }
            changed
        });
    }
}

/// Reads the newest local facts. Cheap to clone.
#[derive(Debug, Clone)]
pub struct LocalReader {
    current: watch::Receiver<Option<Arc<LocalPods>>>,
}

impl LocalReader {
    /// The newest facts. `None`: nothing has been published yet.
    #[must_use]
    pub fn load(&self) -> Option<Arc<LocalPods>> {
        self.current.borrow().clone()
    }

    /// Waits for facts for which this reader has not been woken yet. `false`: the publisher is gone. Dropping the future loses
    /// nothing.
    pub async fn changed(&mut self) -> bool {
        self.current.changed().await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::model::local::LocalPod;
    use crate::model::workload::NamespacedName;

    fn pods(list: &[(&str, &str)]) -> LocalPods {
        let pod = |netns: &str| LocalPod { netns: Some(netns.into()), ..LocalPod::default() };
        list.iter().map(|(name, netns)| (NamespacedName::new("demo", *name), pod(netns))).collect()
    }

    #[tokio::test]
    async fn a_pod_that_leaves_keeps_its_facts_until_they_are_replaced() {
        let (publisher, mut reader) = channel();
        assert_eq!(reader.load(), None);
        publisher.extend(&pods(&[("a", "/1"), ("b", "/2")]));
        assert!(reader.changed().await);

        publisher.extend(&pods(&[("b", "/3"), ("c", "/4")]));
        assert_eq!(reader.load().as_deref(), Some(&pods(&[("a", "/1"), ("b", "/3"), ("c", "/4")])));
        publisher.replace(pods(&[("b", "/3"), ("c", "/4")]));
        assert_eq!(reader.load().as_deref(), Some(&pods(&[("b", "/3"), ("c", "/4")])));
    }

    #[tokio::test]
    async fn readers_are_woken_by_changes_only() {
        let (publisher, mut reader) = channel();
        publisher.replace(LocalPods::new());
        assert!(reader.changed().await, "that there is no pod is news, the first time");
        publisher.replace(LocalPods::new());
        publisher.extend(&LocalPods::new());
        assert_eq!(reader.changed().now_or_never(), None);
        publisher.extend(&pods(&[("a", "/1")]));
        assert_eq!(reader.changed().now_or_never(), Some(true));
        drop(publisher);
        assert!(!reader.changed().await);
        assert_eq!(reader.load().as_deref(), Some(&pods(&[("a", "/1")])));
    }
}
