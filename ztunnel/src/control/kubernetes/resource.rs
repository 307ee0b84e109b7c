//! The types of objects that are requested.

use std::fmt;

/// A type of objects, as the API server has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResourceType {
    /// The API group; empty for the core group.
    pub group: &'static str,
    /// The accepted versions, which have the same meaning. The first one that the API server has is used.
    pub versions: &'static [&'static str],
    /// The kind of the objects.
    pub kind: &'static str,
    /// The name in paths and in RBAC rules.
    pub plural: &'static str,
}

const fn core(kind: &'static str, plural: &'static str) -> ResourceType {
    ResourceType { group: "", versions: &["v1"], kind, plural }
}

/// Pods.
pub const PODS: ResourceType = core("Pod", "pods");
/// Namespaces.
pub const NAMESPACES: ResourceType = core("Namespace", "namespaces");
/// Nodes.
pub const NODES: ResourceType = core("Node", "nodes");
/// Services.
pub const SERVICES: ResourceType = core("Service", "services");
/// ConfigMaps.
pub const CONFIG_MAPS: ResourceType = core("ConfigMap", "configmaps");
/// Secrets.
pub const SECRETS: ResourceType = core("Secret", "secrets");
/// DaemonSets.
pub const DAEMON_SETS: ResourceType =
    ResourceType { group: "apps", versions: &["v1"], kind: "DaemonSet", plural: "daemonsets" };
/// The endpoints of services.
pub const ENDPOINT_SLICES: ResourceType =
    ResourceType { group: "discovery.k8s.io", versions: &["v1"], kind: "EndpointSlice", plural: "endpointslices" };
/// Events.
pub const EVENTS: ResourceType =
    ResourceType { group: "events.k8s.io", versions: &["v1"], kind: "Event", plural: "events" };
/// Istio's ServiceEntries: services outside of the cluster.
pub const SERVICE_ENTRIES: ResourceType = networking("ServiceEntry", "serviceentries");
/// Istio's WorkloadEntries: workloads outside of the cluster.
pub const WORKLOAD_ENTRIES: ResourceType = networking("WorkloadEntry", "workloadentries");
/// Istio's AuthorizationPolicies.
pub const AUTHORIZATION_POLICIES: ResourceType = security("AuthorizationPolicy", "authorizationpolicies");
/// Istio's PeerAuthentications.
pub const PEER_AUTHENTICATIONS: ResourceType = security("PeerAuthentication", "peerauthentications");

const fn networking(kind: &'static str, plural: &'static str) -> ResourceType {
    ResourceType { group: "networking.istio.io", versions: &["v1", "v1beta1", "v1alpha3"], kind, plural }
}

const fn security(kind: &'static str, plural: &'static str) -> ResourceType {
    ResourceType { group: "security.istio.io", versions: &["v1", "v1beta1"], kind, plural }
}

impl ResourceType {
    /// The `apiVersion` of the objects in this version.
    #[must_use]
    pub fn api_version(&self, version: &str) -> String {
        if self.group.is_empty() { version.to_owned() } else { format!("{}/{version}", self.group) }
    }

    /// The path of the objects, in one namespace or in all.
    pub(super) fn path(&self, version: &str, namespace: Option<&str>) -> String {
        let root = if self.group.is_empty() { "api" } else { "apis" };
        let (version, plural) = (self.api_version(version), self.plural);
        match namespace {
            Some(namespace) => format!("/{root}/{version}/namespaces/{namespace}/{plural}"),
            None => format!("/{root}/{version}/{plural}"),
        }
    }
}

/// The name for `kubectl`: `pods`, `serviceentries.networking.istio.io`.
impl fmt::Display for ResourceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.plural)?;
        if self.group.is_empty() { Ok(()) } else { write!(f, ".{}", self.group) }
    }
}

#[cfg(test)]
mod tests {
    use super::{PODS, SERVICE_ENTRIES};

    #[test]
    fn paths_are_those_of_the_api() {
        assert_eq!(PODS.path("v1", None), "/api/v1/pods");
        assert_eq!(PODS.path("v1", Some("demo")), "/api/v1/namespaces/demo/pods");
        assert_eq!(SERVICE_ENTRIES.path("v1beta1", None), "/apis/networking.istio.io/v1beta1/serviceentries");
        assert_eq!(
            (PODS.to_string(), SERVICE_ENTRIES.to_string().as_str()),
            ("pods".into(), "serviceentries.networking.istio.io")
        );
    }
}
