//! An object that has been read but not yet related to others.

use std::sync::Arc;

use super::authorization::AuthorizationManifest;
use super::entry::EntryManifest;
use super::mesh::MeshSettings;
use super::namespace::NamespaceManifest;
use super::node::NodeManifest;
use super::peer_authentication::PeerAuthenticationManifest;
use super::pod::PodManifest;
use super::service::ServiceManifest;
use super::slice::{EndpointsManifest, SliceManifest};
use super::unenforced::Unenforced;
use crate::model::origin::Origin;
use crate::model::workload::NamespacedName;

/// One object of a source. Its kind and its name are its key.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::control) struct Object {
    /// Its name; the namespace is empty if the kind is not namespaced.
    pub(in crate::control) name: NamespacedName,
    /// Where it comes from.
    pub(in crate::control) origin: Origin,
    /// Its content.
    pub(in crate::control) body: Body,
}

/// The content of an object, by its kind. Clones share the content.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::control) enum Body {
    Namespace(NamespaceManifest),
    Node(Arc<NodeManifest>),
    Pod(Arc<PodManifest>),
    Service(Arc<ServiceManifest>),
    Slice(Arc<SliceManifest>),
    Entry(Arc<EntryManifest>),
    Mesh(Arc<MeshSettings>),
    Authorization(Arc<AuthorizationManifest>),
    PeerAuthentication(Arc<PeerAuthenticationManifest>),
    Endpoints(Arc<EndpointsManifest>),
    WorkloadEntry(Arc<PodManifest>),
    Unenforced(Unenforced),
}

impl Body {
    pub(in crate::control) fn kind(&self) -> &'static str {
        match self {
            Self::Namespace(_) => "Namespace",
            Self::Node(_) => "Node",
            Self::Pod(_) => "Pod",
            Self::Service(_) => "Service",
            Self::Slice(_) => "EndpointSlice",
            Self::Entry(_) => "ServiceEntry",
            Self::Mesh(_) => "ConfigMap",
            Self::Authorization(_) => "AuthorizationPolicy",
            Self::PeerAuthentication(_) => "PeerAuthentication",
            Self::Endpoints(_) => "Endpoints",
            Self::WorkloadEntry(_) => "WorkloadEntry",
            Self::Unenforced(kind) => kind.name(),
        }
    }
}

/// `Kind namespace/name`, or `Kind name` for an object that is not namespaced.
pub(in crate::control) fn title(kind: &str, name: &NamespacedName) -> String {
    if name.namespace.is_empty() { format!("{kind} {}", name.name) } else { format!("{kind} {name}") }
}
