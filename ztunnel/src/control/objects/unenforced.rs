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
    /// Gateways of the Gateway API; their routes are [`Route`](Self::Route).
    KubernetesGateway,
    Route,
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
            ("gateway.networking.k8s.io", "HTTPRoute" | "GRPCRoute" | "TCPRoute" | "TLSRoute") => Self::Route,
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
            Self::Route => "Route",
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
            Self::DestinationRule | Self::VirtualService | Self::Route | Self::EnvoyFilter | Self::WasmPlugin => {
                "a waypoint or a gateway carries it out, for the traffic that goes through it"
            }
            Self::Gateway | Self::KubernetesGateway => "the proxy of the gateway carries it out",
            Self::Telemetry => {
                "a waypoint or a gateway carries it out; the metrics and access log of the daemon are not changed by it"
            }
        }
    }
}
