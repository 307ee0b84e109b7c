//! Changes from a source of the mesh, in consistent batches.

use std::sync::Arc;

use ipnet::IpNet;

use crate::model::policy::{AuthorizationPolicy, PeerAuthentication, UnreadPolicies};
use crate::model::problem::Problem;
use crate::model::service::Service;
use crate::model::workload::{NamespacedName, Workload};

/// The key of a service: a namespace has at most one service with a host name.
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

/// One change. An upserted object replaces the object with the same key. The removal of an object that does not exist changes
/// nothing, so a change may arrive twice.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// A workload was added or changed.
    Workload(Arc<Workload>),
    /// A workload was removed.
    WorkloadGone(NamespacedName),
    /// A service was added or changed.
    Service(Arc<Service>),
    /// A service was removed.
    ServiceGone(ServiceKey),
    /// An AuthorizationPolicy was added or changed.
    Authorization(Arc<AuthorizationPolicy>),
    /// An AuthorizationPolicy was removed.
    AuthorizationGone(NamespacedName),
    /// A PeerAuthentication was added or changed.
    Authentication(Arc<PeerAuthentication>),
    /// A PeerAuthentication was removed.
    AuthenticationGone(NamespacedName),
    /// A source describes a namespace.
    Namespace(Arc<str>),
    /// No source describes a namespace any more.
    NamespaceGone(Arc<str>),
    /// A source describes a Node.
    Node(Arc<str>),
    /// No source describes a Node any more.
    NodeGone(Arc<str>),
    /// A setting of the whole mesh was changed.
    Setting(Setting),
}

/// Settings of the whole mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// Whether only known destinations are allowed (`outboundTrafficPolicy: REGISTRY_ONLY`).
    RegistryOnly(bool),
}

/// The parts of the mesh that a source knows to be missing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Gaps {
    /// Some part could never be read. An object that is absent from the mesh may then exist, so pods that an earlier daemon
    /// captured are not released because of its absence.
    pub partial: bool,
    /// There has never been a complete state. An unknown destination may be in the mesh, so nothing is sent to it in plaintext.
    /// If a part becomes unreadable later, the source is not blind: the last valid state stays in force.
    pub blind: bool,
    /// Addresses that objects that could never be read may have. Nothing is sent to them in plaintext.
    pub addresses: Arc<[IpNet]>,
    /// Policies that may exist and could never be read. The workloads that they may protect accept no connections.
    pub unread: UnreadPolicies,
}

/// Changes that belong together. The mesh is consistent before the first and after the last of them, but not necessarily
/// between them.
///
/// The order matters only among changes of one key.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Batch {
    /// The changes.
    pub changes: Vec<Change>,
    /// The changes describe the whole mesh: objects that no change names are removed. For a source that has lost its state, or
    /// has received everything anew.
    pub is_whole: bool,
    /// The new gaps. `None`: unchanged.
    pub gaps: Option<Gaps>,
    /// The new list of all problems of the sources, in order. `None`: unchanged.
    pub problems: Option<Arc<[Problem]>>,
    /// The sources have been read at least once. Until then a snapshot has version 0.
    pub is_read: bool,
}

impl Batch {
    /// Changes from a source that has been read.
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
