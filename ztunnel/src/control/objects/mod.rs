//! From typed Kubernetes objects to the content of each: parts of the model, before objects are joined.
//!
//! Every source of Kubernetes objects uses this module: the types are deserialized by `serde` from the source's format,
//! and nothing here knows files, lines or YAML. A fault is reported with the path of the field in its object, which the
//! source turns into an [`Origin`](crate::model::origin::Origin).

mod address;
mod annotations;
mod authorization;
mod body;
mod bounded;
mod controller;
mod entry;
mod intern;
mod keys;
mod mesh;
mod name;
mod namespace;
mod node;
mod peer_authentication;
mod pod;
mod port;
mod probe;
mod read;
mod report;
mod resource;
mod security;
mod service;
mod slice;
mod unenforced;
mod workload_entry;

pub(in crate::control) use self::annotations::visibility;
pub use self::annotations::{EXPORT_TO, TRAFFIC_DISTRIBUTION};
pub use self::authorization::DRY_RUN;
pub(in crate::control) use self::authorization::{AuthorizationManifest, Target};
pub(in crate::control) use self::body::{Body, Object, title};
pub(in crate::control) use self::entry::EntryManifest;
pub(in crate::control) use self::intern::Interner;
pub use self::keys::{ANALYZE_IGNORE, KEYS, Key, KeyKind};
pub(in crate::control) use self::mesh::ENTRIES_LEAD;
pub(in crate::control) use self::mesh::MeshSettings;
pub use self::mesh::{MESH_CONFIG, ROOT_NAMESPACE};
pub(in crate::control) use self::name::check_name;
pub(in crate::control) use self::namespace::NamespaceManifest;
pub(in crate::control) use self::node::NodeManifest;
pub(in crate::control) use self::peer_authentication::PeerAuthenticationManifest;
pub(in crate::control) use self::pod::PodManifest;
pub use self::pod::{
    BYPASS_INBOUND, EXCLUDE_INBOUND_PORTS, EXCLUDE_OUTBOUND_CIDRS, EXCLUDE_OUTBOUND_PORTS, MODE_LABEL, NETNS,
};
pub(in crate::control) use self::read::{Said, read};
pub(in crate::control) use self::report::Remark;
pub(in crate::control) use self::resource::{Kind, Resource};
pub(in crate::control) use self::service::{External, ServiceManifest};
pub(in crate::control) use self::slice::{EndpointsManifest, SliceEndpoint, SliceManifest};
pub(in crate::control) use self::unenforced::Unenforced;
