//! Every label and annotation that the program reads, for the documents.

use super::annotations::{EXPORT_TO, TRAFFIC_DISTRIBUTION};
use super::authorization::DRY_RUN;
use super::mesh::ENTRIES_LEAD;
use super::pod::{
    BYPASS_INBOUND, CONNECT, EXCLUDE_INBOUND_PORTS, EXCLUDE_OUTBOUND_CIDRS, EXCLUDE_OUTBOUND_PORTS, MIRROR, MODE_LABEL,
    NETNS, SIDECAR_STATUS,
};
use super::{controller, namespace, node, slice, workload_entry};

/// A label or an annotation.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// The objects that have it.
    pub object: &'static str,
    /// Whether it is a label or an annotation.
    pub kind: KeyKind,
    /// Its names. The first name that the object has counts.
    pub names: &'static [&'static str],
    /// Its values, in Markdown.
    pub values: &'static str,
    /// The effect of a value, in Markdown.
    pub effect: &'static str,
}

/// The field of an object that holds a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// `metadata.labels`.
    Label,
    /// `metadata.annotations`.
    Annotation,
}

impl KeyKind {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Label => "label",
            Self::Annotation => "annotation",
        }
    }
}

/// Annotation with the codes of findings about the object that are suppressed.
pub const ANALYZE_IGNORE: &str = "traffic.ambient.mesh/analyze-ignore";

macro_rules! keys {
    ($($kind:ident of $object:literal, $names:expr, $values:literal, $effect:literal;)*) => {
        /// All keys, those of pods and their namespaces first.
        pub const KEYS: &[Key] = &[$(
            Key { object: $object, kind: KeyKind::$kind, names: $names, values: $values, effect: $effect },
        )*];
    };
}

keys! {
    Label of "Namespace", &[MODE_LABEL], "`ambient`", "The pods of the namespace are in the mesh.";
    Label of "Pod", &[MODE_LABEL], "`ambient`, `none`", "The pod is in the mesh, or not; overrides the label of the Namespace.";
    Annotation of "Pod", &[NETNS], "an absolute path",
        "The network namespace of the pod on its node. Without it the pod is in the mesh, but its node refuses it.";
    Annotation of "Pod", &[EXCLUDE_OUTBOUND_PORTS], "`\"80,443\"`", "Connections of the pod to these ports are not captured.";
    Annotation of "Pod", &[EXCLUDE_OUTBOUND_CIDRS], "`\"10.0.0.0/8,fd00::/8\"`",
        "Connections of the pod to these IP blocks are not captured.";
    Annotation of "Pod", &[EXCLUDE_INBOUND_PORTS], "`\"9090\"`",
        "Connections to these ports of the pod are not captured, and no policy is enforced at them.";
    Annotation of "Pod", &[CONNECT], "`early`, `held`",
        "When connects of the pod succeed: at once, or when their destination is reached. Overrides `--connect` of the pod's node.";
    Annotation of "Pod", &[BYPASS_INBOUND], "`\"true\"`, `\"false\"`",
        "No plaintext connection to the pod is captured, and no policy is enforced on it. HBONE to the pod ends at the daemon, with policy.";
    Annotation of "Pod", &[SIDECAR_STATUS], "any", "The pod has a sidecar proxy and is not captured.";
    Annotation of "Pod", &[MIRROR], "a UID",
        "The UID of a static pod, by which `--pods kubernetes` finds its processes; the kubelet writes it. Ignored unless the pod is owned by a Node.";
    Annotation of "Namespace", &[namespace::LINKERD_INJECT], "`enabled`, `ingress`",
        "Is reported if the label of the mesh is set as well: pods with a sidecar proxy are not captured.";
    Label of "WorkloadEntry", &[workload_entry::TUNNEL], "`http`", "The host is reached through HBONE; an annotation means the same.";
    Label of "Pod", &controller::CANONICAL_NAME, "a name", "The canonical service of the pod in metrics.";
    Label of "Pod", &controller::CANONICAL_REVISION, "a name", "The canonical revision of the pod in metrics.";
    Label of "Pod", &node::OF_POD, "`REGION.ZONE.SUBZONE`", "The locality of the pod; overrides the labels of its Node.";
    Label of "Node", &[node::REGION], "a name", "The region of the node's pods.";
    Label of "Node", &[node::ZONE], "a name", "The zone of the node's pods.";
    Label of "Node", &[node::SUBZONE], "a name", "The subzone of the node's pods.";
    Annotation of "Service, ServiceEntry, Namespace", &[TRAFFIC_DISTRIBUTION],
        "`PreferSameZone`, `PreferClose`, `PreferSameNode`, `Any`",
        "Which endpoints are preferred; `spec.trafficDistribution` of a Service means the same.";
    Annotation of "any object", &[ANALYZE_IGNORE], "codes, or `*`",
        "Findings of `ztunnel analyze` about the object with these codes are suppressed.";
    Annotation of "Service", &[EXPORT_TO], "`.`, `*`, names of namespaces", "The namespaces whose pods see the service.";
    Label of "EndpointSlice", &[slice::SERVICE_NAME], "a name", "The Service that the endpoints belong to.";
    Annotation of "AuthorizationPolicy", &[DRY_RUN], "`\"true\"`, `\"false\"`", "The policy only reports what it would decide.";
    Annotation of "ConfigMap `istio-system/istio`", &[ENTRIES_LEAD], "`own-namespace`, `exported`",
        "The pods that a ServiceEntry with endpoints applies to.";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::KEYS;

    /// The string literals of a text that look like keys: `domain.tld/name`.
    fn literals(text: &str) -> impl Iterator<Item = &str> {
        let is_key = |text: &&str| {
            text.split_once('/').is_some_and(|(domain, name)| {
                let is_word = |text: &str| {
                    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.')
                };
                domain.contains('.')
                    && is_word(domain)
                    && is_word(name)
                    && !name.starts_with(|c: char| c.is_ascii_digit())
            })
        };
        text.split('"').skip(1).step_by(2).filter(is_key)
    }

    #[test]
    fn every_key_that_is_read_is_in_the_table() {
        let listed: BTreeSet<&str> = KEYS.iter().flat_map(|key| key.names).copied().collect();
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/control/objects");
        let mut read = BTreeSet::new();
        for file in std::fs::read_dir(&folder).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            // Versions of objects have the same form.
            let is_version = |text: &str| {
                text.rsplit('/').next().is_some_and(|name| name.starts_with('v') && name.contains(char::is_numeric))
            };
            for line in code.lines().filter(|line| !line.trim_start().starts_with("//")) {
                read.extend(literals(line).filter(|text| !is_version(text)).map(ToOwned::to_owned));
            }
        }
        assert!(read.iter().any(|key| key == "ambient.mesh/netns"), "the scan finds keys: {read:?}");
        let missing: Vec<_> = read.iter().filter(|key| !listed.contains(key.as_str())).collect();
        assert!(missing.is_empty(), "add these keys to KEYS: {missing:?}");
    }

    #[test]
    fn effects_are_sentences() {
        for key in KEYS {
            assert!(key.effect.ends_with('.') && key.effect.starts_with(char::is_uppercase), "{key:?}");
            assert!(!key.effect.contains('|') && !key.values.contains('|'), "{key:?}");
        }
    }
}
