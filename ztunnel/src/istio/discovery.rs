//! Delta xDS: `envoy.service.discovery.v3` and the messages of `envoy.config.core.v3` in it.

use std::collections::BTreeMap;

use prost::Message;

use super::standard::{Any, Status, Struct};

/// Type of resources that are an [`Address`](super::workload::Address).
pub const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
/// Type of resources that are an [`Authorization`](super::security::Authorization).
pub const AUTHORIZATION: &str = "type.googleapis.com/istio.security.Authorization";
/// Type of the one resource that is a [`Settings`](super::settings::Settings).
pub const SETTINGS: &str = "type.googleapis.com/ambient.mesh.v1.Settings";
/// Type of resources that are an [`Object`](super::object::Object).
pub const OBJECT: &str = "type.googleapis.com/ambient.mesh.v1.Object";

/// A client's request: the resources of one type that it wants, those that it has, and whether it could use the last
/// response.
///
/// The first request of a type on a stream with nothing to subscribe to asks for all resources of the type.
#[derive(Clone, PartialEq, Message)]
pub struct DeltaDiscoveryRequest {
    /// The client: at least in the first request of a stream.
    #[prost(message, optional, tag = "1")]
    pub node: Option<Node>,
    /// Type of the resources.
    #[prost(string, tag = "2")]
    pub type_url: String,
    /// Names that are subscribed from now on; `*` stands for all.
    #[prost(string, repeated, tag = "3")]
    pub resource_names_subscribe: Vec<String>,
    /// Names that are no longer subscribed.
    #[prost(string, repeated, tag = "4")]
    pub resource_names_unsubscribe: Vec<String>,
    /// Versions by name of the resources that the client has from an earlier stream. Only in the first request of a
    /// type on a stream.
    #[prost(btree_map = "string, string", tag = "5")]
    pub initial_resource_versions: BTreeMap<String, String>,
    /// The nonce of the response that this request answers; empty if it answers none.
    #[prost(string, tag = "6")]
    pub response_nonce: String,
    /// Why the response could not be used, as a whole or in part. Without it the request acknowledges the response.
    #[prost(message, optional, tag = "7")]
    pub error_detail: Option<Status>,
}

/// A server's response: resources of one type that are new or different, and names of resources that are gone.
#[derive(Clone, PartialEq, Message)]
pub struct DeltaDiscoveryResponse {
    /// The server's version of its whole state, for people.
    #[prost(string, tag = "1")]
    pub system_version_info: String,
    /// Resources that are new or different.
    #[prost(message, repeated, tag = "2")]
    pub resources: Vec<Resource>,
    /// Type of the resources.
    #[prost(string, tag = "4")]
    pub type_url: String,
    /// Identifies this response in the request that answers it.
    #[prost(string, tag = "5")]
    pub nonce: String,
    /// Names of resources that are gone.
    #[prost(string, repeated, tag = "6")]
    pub removed_resources: Vec<String>,
    /// The server.
    #[prost(message, optional, tag = "7")]
    pub control_plane: Option<ControlPlane>,
}

/// One resource.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Resource {
    /// Its version, which the client sends back in
    /// [`initial_resource_versions`](DeltaDiscoveryRequest::initial_resource_versions).
    #[prost(string, tag = "1")]
    pub version: String,
    /// The resource itself.
    #[prost(message, optional, tag = "2")]
    pub resource: Option<Any>,
    /// Its name, unique for its type.
    #[prost(string, tag = "3")]
    pub name: String,
    /// Other names by which the resource can be requested, such as `network/address`.
    #[prost(string, repeated, tag = "4")]
    pub aliases: Vec<String>,
}

/// The server of a response.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ControlPlane {
    /// Identifies the server, for people. Istio's control plane sends JSON here.
    #[prost(string, tag = "1")]
    pub identifier: String,
}

/// The client of a stream.
#[derive(Clone, PartialEq, Message)]
pub struct Node {
    /// `ztunnel~ADDRESS~POD.NAMESPACE~NAMESPACE.svc.cluster.local`.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Facts about the client, such as `NODE_NAME`.
    #[prost(message, optional, tag = "3")]
    pub metadata: Option<Struct>,
}
