//! The local source, from which a node gets the facts of its own pods.
//!
//! The mesh says which pods run on this node and must be reached through HBONE. Whether the node can enrol them depends
//! on facts that the mesh does not have: above all their network namespaces. Neither fact follows from the other. If
//! the source knows no namespace of a pod, the pod is refused, and closed if it was captured before. It is never served
//! in plaintext.
//!
//! A source yields all its facts at once, whenever one has changed. It may know pods that the mesh does not know yet,
//! for example a pod that is about to start: such a pod is enrolled as soon as the mesh has it. There are two sources:
//! [`Annotated`] has the facts from annotations of the pods' manifests, and
//! [`FromCluster`](super::kubernetes::FromCluster) has them from the Kubernetes API and the processes of the machine.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::{
    model::{local::LocalPods, workload::NamespacedName},
    store::{local::LocalReader, publish::Reader},
};

/// A source of local facts.
pub trait LocalSource: Send {
    /// The newest facts. `None`: the source has no facts yet, so the absence of a pod proves nothing.
    fn current(&self) -> Option<Arc<LocalPods>>;

    /// Waits until [`current`](Self::current) has changed since the last call. Never completes if the source has ended.
    /// When the future is dropped, no change is lost.
    fn changed(&mut self) -> BoxFuture<'_, ()>;

    /// Why the network namespace of a pod is not known, and what to do about it: a sentence for people.
    fn missing_netns(&self, pod: &NamespacedName) -> String;

    /// Whether the network namespace of a pod is not known because the pod is starting or ending.
    fn is_passing(&self, _pod: &NamespacedName) -> bool {
        false
    }

    /// Whether the network namespace of each pod has been searched at least once.
    fn is_complete(&self) -> bool {
        true
    }

    /// Why the facts may be outdated: their origin can't be asked. A sentence for people. The facts stay in force.
    fn problem(&self) -> Option<Arc<str>> {
        None
    }
}

/// Waits until the mesh and the local facts are known, and the network namespace of each pod has been searched at least once.
pub async fn known(mesh: &Reader, local: &mut dyn LocalSource) {
    let mut changes = mesh.subscribe();
    while mesh.load().version() == 0 || local.current().is_none() || !local.is_complete() {
        tokio::select! {
            Some(_) = changes.changed() => {}
            () = local.changed() => {}
        }
    }
}

/// The facts in the manifests of the pods: annotations, and the ports of probes.
#[derive(Debug)]
pub struct Annotated(LocalReader);

impl Annotated {
    /// A source with the facts of a folder of manifests.
    #[must_use]
    pub fn new(manifests: LocalReader) -> Self {
        Self(manifests)
    }
}

impl LocalSource for Annotated {
    fn current(&self) -> Option<Arc<LocalPods>> {
        self.0.load()
    }

    fn changed(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            if !self.0.changed().await {
                std::future::pending::<()>().await;
            }
        })
    }

    fn missing_netns(&self, _pod: &NamespacedName) -> String {
        "the pod's network namespace is not known: set the annotation ambient.mesh/netns to its absolute path, for example \
         /run/netns/NAME"
            .to_owned()
    }
}
