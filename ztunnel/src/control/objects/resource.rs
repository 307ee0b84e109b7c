//! The kinds of objects that are read, and their types.

use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer};

use super::authorization::AuthorizationPolicy;
use super::entry::ServiceEntry;
use super::peer_authentication::PeerAuthentication;
use super::unenforced::{self, Unenforced};
use super::workload_entry::WorkloadEntry;

/// A kind of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::control) enum Kind {
    Namespace,
    Node,
    Pod,
    Service,
    Slice,
    Entry,
    /// Istio's mesh-wide settings: the ConfigMap with this name. Other ConfigMaps have no meaning here.
    Mesh,
    Authorization,
    PeerAuthentication,
    /// A rule on which users rely and that can't be enforced here.
    RequestAuthentication,
    Endpoints,
    WorkloadEntry,
    /// A kind that others enforce.
    Unenforced(Unenforced),
}

/// An object, parsed as its type.
pub(in crate::control) enum Resource {
    Namespace(Box<Namespace>),
    Node(Box<Node>),
    Pod(Box<Pod>),
    Service(Box<Service>),
    Slice(Box<EndpointSlice>),
    Entry(Box<ServiceEntry>),
    Mesh(Box<ConfigMap>),
    Authorization(Box<AuthorizationPolicy>),
    PeerAuthentication(Box<PeerAuthentication>),
    RequestAuthentication(Box<RequestAuthentication>),
    Endpoints(Box<Endpoints>),
    WorkloadEntry(Box<WorkloadEntry>),
    Unenforced(Unenforced, unenforced::Header),
}

/// The fields that are read of a RequestAuthentication.
#[derive(Deserialize)]
pub(in crate::control) struct RequestAuthentication {
    #[serde(default)]
    metadata: Name,
}

#[derive(Deserialize, Default)]
struct Name {
    name: Option<String>,
    namespace: Option<String>,
}

impl Kind {
    pub(in crate::control) const fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::Slice => "EndpointSlice",
            Self::Entry => "ServiceEntry",
            Self::Mesh => "ConfigMap",
            Self::Authorization => "AuthorizationPolicy",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::RequestAuthentication => "RequestAuthentication",
            Self::Endpoints => "Endpoints",
            Self::WorkloadEntry => "WorkloadEntry",
            Self::Unenforced(kind) => kind.name(),
        }
    }

    pub(in crate::control) const fn is_namespaced(self) -> bool {
        !matches!(self, Self::Namespace | Self::Node)
    }
}

/// Reads an object of this kind.
impl<'de> DeserializeSeed<'de> for Kind {
    type Value = Resource;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Resource, D::Error> {
        Ok(match self {
            Self::Namespace => Resource::Namespace(Box::deserialize(deserializer)?),
            Self::Node => Resource::Node(Box::deserialize(deserializer)?),
            Self::Pod => Resource::Pod(Box::deserialize(deserializer)?),
            Self::Service => Resource::Service(Box::deserialize(deserializer)?),
            Self::Slice => Resource::Slice(Box::deserialize(deserializer)?),
            Self::Entry => Resource::Entry(Box::deserialize(deserializer)?),
            Self::Mesh => Resource::Mesh(Box::deserialize(deserializer)?),
            Self::Authorization => Resource::Authorization(Box::deserialize(deserializer)?),
            Self::PeerAuthentication => Resource::PeerAuthentication(Box::deserialize(deserializer)?),
            Self::RequestAuthentication => Resource::RequestAuthentication(Box::deserialize(deserializer)?),
            Self::Endpoints => Resource::Endpoints(Box::deserialize(deserializer)?),
            Self::WorkloadEntry => Resource::WorkloadEntry(Box::deserialize(deserializer)?),
            Self::Unenforced(kind) => Resource::Unenforced(kind, unenforced::Header::deserialize(deserializer)?),
        })
    }
}

impl Resource {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Namespace(_) => Kind::Namespace,
            Self::Node(_) => Kind::Node,
            Self::Pod(_) => Kind::Pod,
            Self::Service(_) => Kind::Service,
            Self::Slice(_) => Kind::Slice,
            Self::Entry(_) => Kind::Entry,
            Self::Mesh(_) => Kind::Mesh,
            Self::Authorization(_) => Kind::Authorization,
            Self::PeerAuthentication(_) => Kind::PeerAuthentication,
            Self::RequestAuthentication(_) => Kind::RequestAuthentication,
            Self::Endpoints(_) => Kind::Endpoints,
            Self::WorkloadEntry(_) => Kind::WorkloadEntry,
            Self::Unenforced(kind, _) => Kind::Unenforced(*kind),
        }
    }

    /// `metadata.namespace` and `metadata.name`.
    pub(super) fn named(&self) -> (Option<&str>, Option<&str>) {
        fn of(metadata: &ObjectMeta) -> (Option<&str>, Option<&str>) {
            (metadata.namespace.as_deref(), metadata.name.as_deref())
        }
        match self {
            Self::Namespace(object) => of(&object.metadata),
            Self::Node(object) => of(&object.metadata),
            Self::Pod(object) => of(&object.metadata),
            Self::Service(object) => of(&object.metadata),
            Self::Slice(object) => of(&object.metadata),
            Self::Entry(object) => of(&object.metadata),
            Self::Mesh(object) => of(&object.metadata),
            Self::Authorization(object) => object.metadata.named(),
            Self::PeerAuthentication(object) => object.metadata.named(),
            Self::Endpoints(object) => of(&object.metadata),
            Self::WorkloadEntry(object) => of(&object.metadata),
            Self::Unenforced(_, object) => (object.metadata.namespace.as_deref(), object.metadata.name.as_deref()),
            Self::RequestAuthentication(object) => {
                (object.metadata.namespace.as_deref(), object.metadata.name.as_deref())
            }
        }
    }
}
