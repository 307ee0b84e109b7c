//! `ambient.mesh.v1`: settings for which Istio has no resource. Only control planes and daemons of this project know
//! this type. A control plane that does not know it does not answer, and then Istio's defaults apply.

use std::collections::BTreeMap;

use prost::Message;

/// The name of the one resource of this type.
pub const NAME: &str = "mesh";

/// A resource of the type [`SETTINGS`](super::discovery::SETTINGS): settings of the whole mesh.
#[derive(Clone, PartialEq, Message)]
pub struct Settings {
    /// Whether pods of the mesh may connect only to destinations that the mesh knows (`outboundTrafficPolicy: REGISTRY_ONLY`).
    #[prost(bool, tag = "1")]
    pub registry_only: bool,
    /// The [format](super::detail::FORMAT) of the details that the control plane sends; 0: it sends none.
    #[prost(uint32, tag = "2")]
    pub detail: u32,
    /// A place where there may be policies for any workload that could never be read.
    #[prost(string, optional, tag = "3")]
    pub unread_anywhere: Option<String>,
    /// Places where there may be policies for the workloads of a namespace that could never be read, by namespace.
    #[prost(btree_map = "string, string", tag = "4")]
    pub unread_namespaces: BTreeMap<String, String>,
}
