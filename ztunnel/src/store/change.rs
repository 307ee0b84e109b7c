//! What a source of the mesh says: changes, in batches that are consistent.

use std::sync::Arc;

use crate::model::policy::{AuthorizationPolicy, PeerAuthentication, UnreadPolicies};
use crate::model::problem::Problem;
use crate::model::service::Service;
use crate::model::workload::{NamespacedName, Workload};

/// What a service is known by: in a namespace there is one service of a host name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// Namespace of the object.
    pub namespace: Arc<str>,
    /// Host name.
    pub hostname: Arc<str>,
}

impl ServiceKey {
    /// The key of a service.
    #[must_use]
    pub fn of(service: &Service) -> Self {
        Self { namespace: Arc::clone(&service.name.namespace), hostname: Arc::clone(&service.hostname) }
    }
}

/// One change. An object that is upserted replaces the one of its key; removing what is not there changes nothing, so that a
/// change may come twice.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// A workload is there, or is another.
    Workload(Arc<Workload>),
    /// A workload is gone.
    WorkloadGone(NamespacedName),
    /// A service is there, or is another.
    Service(Arc<Service>),
    /// A service is gone.
    ServiceGone(ServiceKey),
    /// An AuthorizationPolicy is there, or is another.
    Authorization(Arc<AuthorizationPolicy>),
    /// An AuthorizationPolicy is gone.
    AuthorizationGone(NamespacedName),
    /// A PeerAuthentication is there, or is another.
    Authentication(Arc<PeerAuthentication>),
    /// A PeerAuthentication is gone.
    AuthenticationGone(NamespacedName),
    /// A namespace is described.
    Namespace(Arc<str>),
    /// A namespace is described no more.
    NamespaceGone(Arc<str>),
    /// A Node is described.
    Node(Arc<str>),
    /// A Node is described no more.
    NodeGone(Arc<str>),
    /// A setting of the whole mesh.
    Setting(Setting),
}

/// Settings of the whole mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// Whether only known destinations may be reached (`outboundTrafficPolicy: REGISTRY_ONLY`).
    RegistryOnly(bool),
}

/// What a source knows that it does not know.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Gaps {
    /// Something exists that could never be read: absence from the mesh is then no proof of absence, and what an earlier daemon
    /// captured is not released because of it.
    pub partial: bool,
    /// There has never been a state in which nothing was missing: what the mesh does not know may well be in the mesh, and nothing
    /// is sent there in plaintext. What goes missing later does not blind: the last good state counts then.
    pub blind: bool,
    /// Policies that may exist and could never be read: the workloads that they may protect accept nobody.
    pub unread: UnreadPolicies,
}

/// Changes that belong together: the mesh before the first and after the last of them is consistent, between them it may not be.
///
/// The order counts only among changes of one key.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Batch {
    /// The changes.
    pub changes: Vec<Change>,
    /// The changes say all that there is: what none of them names is gone. For a source that has lost its memory, or has been told
    /// everything anew.
    pub is_whole: bool,
    /// What is missing from now on; `None`: as before.
    pub gaps: Option<Gaps>,
    /// All that is wrong with the sources from now on, in order; `None`: as before.
    pub problems: Option<Arc<[Problem]>>,
    /// The sources have been read at least once; until then a snapshot has version 0.
    pub is_read: bool,
}

impl Batch {
    /// Changes of a source that has been read.
    #[must_use]
    pub fn of(changes: Vec<Change>) -> Self {
        Self { changes, is_read: true, ..Self::default() }
    }

    /// Whether it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && !self.is_whole && self.gaps.is_none() && self.problems.is_none()
    }
}
