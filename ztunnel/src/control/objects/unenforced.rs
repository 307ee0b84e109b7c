//! Kinds that restrict or route connections and are enforced by others: they are reported and have no effect here.

use serde::Deserialize;

/// A kind that has no effect here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::control) enum Unenforced {
    NetworkPolicy,
    Sidecar,
    DestinationRule,
    VirtualService,
    Gateway,
    EnvoyFilter,
    ProxyConfig,
    Telemetry,
    WasmPlugin,
    /// A Gateway of the Gateway API.
    KubernetesGateway,
    HttpRoute,
    GrpcRoute,
    TcpRoute,
    TlsRoute,
}

/// The fields that are read of the object.
#[derive(Deserialize)]
pub(in crate::control) struct Header {
    #[serde(default)]
    pub(super) metadata: Name,
}

#[derive(Deserialize, Default)]
pub(super) struct Name {
    pub(super) name: Option<String>,
    pub(super) namespace: Option<String>,
}

impl Unenforced {
    const ALL: [Self; 14] = [
        Self::NetworkPolicy,
        Self::Sidecar,
        Self::DestinationRule,
        Self::VirtualService,
        Self::Gateway,
        Self::EnvoyFilter,
        Self::ProxyConfig,
        Self::Telemetry,
        Self::WasmPlugin,
        Self::KubernetesGateway,
        Self::HttpRoute,
        Self::GrpcRoute,
        Self::TcpRoute,
        Self::TlsRoute,
    ];

    /// The kinds with this name; kinds of several API groups may share a name.
    pub(in crate::control) fn named(name: &str) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(move |kind| kind.name() == name)
    }

    /// The kind of an object, by group and kind.
    pub(in crate::control) fn of(group: &str, kind: &str) -> Option<Self> {
        Some(match (group, kind) {
            ("networking.k8s.io", "NetworkPolicy") => Self::NetworkPolicy,
            ("networking.istio.io", "Sidecar") => Self::Sidecar,
            ("networking.istio.io", "DestinationRule") => Self::DestinationRule,
            ("networking.istio.io", "VirtualService") => Self::VirtualService,
            ("networking.istio.io", "Gateway") => Self::Gateway,
            ("networking.istio.io", "EnvoyFilter") => Self::EnvoyFilter,
            ("networking.istio.io", "ProxyConfig") => Self::ProxyConfig,
            ("telemetry.istio.io", "Telemetry") => Self::Telemetry,
            ("extensions.istio.io", "WasmPlugin") => Self::WasmPlugin,
            ("gateway.networking.k8s.io", "Gateway") => Self::KubernetesGateway,
            ("gateway.networking.k8s.io", "HTTPRoute") => Self::HttpRoute,
            ("gateway.networking.k8s.io", "GRPCRoute") => Self::GrpcRoute,
            ("gateway.networking.k8s.io", "TCPRoute") => Self::TcpRoute,
            ("gateway.networking.k8s.io", "TLSRoute") => Self::TlsRoute,
            _ => return None,
        })
    }

    pub(in crate::control) const fn name(self) -> &'static str {
        match self {
            Self::NetworkPolicy => "NetworkPolicy",
            Self::Sidecar => "Sidecar",
            Self::DestinationRule => "DestinationRule",
            Self::VirtualService => "VirtualService",
            Self::Gateway | Self::KubernetesGateway => "Gateway",
            Self::EnvoyFilter => "EnvoyFilter",
            Self::ProxyConfig => "ProxyConfig",
            Self::Telemetry => "Telemetry",
            Self::WasmPlugin => "WasmPlugin",
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::TcpRoute => "TCPRoute",
            Self::TlsRoute => "TLSRoute",
        }
    }

    /// The component that enforces the kind, and the consequence.
    pub(in crate::control) const fn by_whom(self) -> &'static str {
        match self {
            Self::NetworkPolicy => {
                "the network plugin of the cluster enforces it; between pods of the mesh it sees connections to port 15008, which \
                 it has to allow, and not those to the pods' own ports"
            }
            Self::Sidecar | Self::ProxyConfig => "it is for sidecar proxies, which pods of the mesh do not have",
            Self::DestinationRule
            | Self::VirtualService
            | Self::HttpRoute
            | Self::GrpcRoute
            | Self::TcpRoute
            | Self::TlsRoute
            | Self::EnvoyFilter
            | Self::WasmPlugin => "a waypoint or a gateway carries it out, for the traffic that goes through it",
            Self::Gateway | Self::KubernetesGateway => "the proxy of the gateway carries it out",
            Self::Telemetry => {
                "a waypoint or a gateway carries it out; the metrics and access log of the daemon are not changed by it"
            }
        }
    }
}
