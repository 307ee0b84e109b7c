//! `ambient.mesh.v1`: what Istio's resources have no room for. Only control planes and daemons of this project know this type;
//! a control plane that does not know it gives no answer, and then Istio's defaults hold.

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
    /// Where there may be policies for any workload that could never be read.
    #[prost(string, optional, tag = "3")]
    pub unread_anywhere: Option<String>,
    /// The same, for the workloads of a namespace.
    #[prost(btree_map = "string, string", tag = "4")]
    pub unread_namespaces: BTreeMap<String, String>,
}
