//! The fields of Kubernetes' own objects that this program uses. Any other field can't make its object unreadable,
//! whatever its type is: the API server and its clients check those fields.

use serde::de::DeserializeSeed as _;

use crate::control::field::{FieldPath, Step};
use crate::control::objects::{Kind, Resource};
use crate::control::yaml::{self, Node, NodeDeserializer};

/// The most fields with a wrong type in one object that are unused and removed.
const MOST_UNUSED: usize = 256;

/// Reads an object as the type of its kind. Fields that have a wrong type and that this program does not use are
/// removed.
///
/// # Errors
/// A used field is missing, or has a wrong type.
pub(in crate::control) fn typed(kind: Kind, node: &mut Node<'_>) -> Result<Resource, yaml::Error> {
    for _ in 0..MOST_UNUSED {
        let fault = match kind.deserialize(NodeDeserializer::new(node)) {
            Ok(resource) => return Ok(resource),
            Err(fault) => fault,
        };
        let removed = unused(kind, &fault.path()).is_some_and(|path| node.remove(path.steps()));
        if !removed {
            return Err(fault.into_error(node));
        }
    }
    let message = "too many fields are of a wrong type: correct them".to_owned();
    Err(yaml::Error { place: Some(node.place), field: None, message, is_syntax: false })
}

const METADATA: [&str; 7] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.labels",
    "metadata.annotations",
    "metadata.uid",
    "metadata.ownerReferences",
    "metadata.deletionTimestamp",
];

const POD: [&str; 44] = [
    "spec.nodeName",
    "spec.hostNetwork",
    "spec.serviceAccountName",
    "spec.serviceAccount",
    "spec.containers[].name",
    "spec.containers[].restartPolicy",
    "spec.containers[].ports",
    "spec.containers[].livenessProbe.httpGet.host",
    "spec.containers[].livenessProbe.httpGet.port",
    "spec.containers[].livenessProbe.tcpSocket",
    "spec.containers[].livenessProbe.grpc",
    "spec.containers[].readinessProbe.httpGet.host",
    "spec.containers[].readinessProbe.httpGet.port",
    "spec.containers[].readinessProbe.tcpSocket",
    "spec.containers[].readinessProbe.grpc",
    "spec.containers[].startupProbe.httpGet.host",
    "spec.containers[].startupProbe.httpGet.port",
    "spec.containers[].startupProbe.tcpSocket",
    "spec.containers[].startupProbe.grpc",
    "spec.containers[].lifecycle",
    "spec.initContainers[].name",
    "spec.initContainers[].restartPolicy",
    "spec.initContainers[].ports",
    "spec.initContainers[].livenessProbe.httpGet.host",
    "spec.initContainers[].livenessProbe.httpGet.port",
    "spec.initContainers[].livenessProbe.tcpSocket",
    "spec.initContainers[].livenessProbe.grpc",
    "spec.initContainers[].readinessProbe.httpGet.host",
    "spec.initContainers[].readinessProbe.httpGet.port",
    "spec.initContainers[].readinessProbe.tcpSocket",
    "spec.initContainers[].readinessProbe.grpc",
    "spec.initContainers[].startupProbe.httpGet.host",
    "spec.initContainers[].startupProbe.httpGet.port",
    "spec.initContainers[].startupProbe.tcpSocket",
    "spec.initContainers[].startupProbe.grpc",
    "spec.initContainers[].lifecycle",
    "status.phase",
    "status.reason",
    "status.podIP",
    "status.podIPs",
    "status.hostIP",
    "status.hostIPs",
    "status.conditions[].type",
    "status.conditions[].status",
];

const SERVICE: [&str; 2] = ["spec", "status.loadBalancer"];
const SLICE: [&str; 3] = ["addressType", "ports", "endpoints"];
const ENDPOINTS: [&str; 1] = ["subsets"];
const NODE: [&str; 1] = ["status.addresses"];
const CONFIG_MAP: [&str; 1] = ["data.mesh"];

/// The field to remove so that an unused field is gone: the outermost unused field around it, or the field itself.
/// `None`: the field is used, or the program uses all fields of the kind.
fn unused(kind: Kind, field: &FieldPath) -> Option<FieldPath> {
    let used: &[&str] = match kind {
        Kind::Namespace => &[],
        Kind::Node => &NODE,
        Kind::Pod => &POD,
        Kind::Service => &SERVICE,
        Kind::Slice => &SLICE,
        Kind::Endpoints => &ENDPOINTS,
        Kind::Mesh => &CONFIG_MAP,
        _ => return None,
    };
    let steps = field.steps();
    (1..=steps.len()).find_map(|length| {
        let path = steps.get(..length)?;
        let is_used = ["apiVersion", "kind"].iter().chain(&METADATA).chain(used).any(|used| meets(used, path));
        (!is_used).then(|| FieldPath::from_steps(path))
    })
}

/// Whether a path is the used field, contains it, or is inside it.
fn meets(used: &str, path: &[Step]) -> bool {
    let used = used.split('.').flat_map(|key| {
        let (name, is_list) = key.strip_suffix("[]").map_or((key, false), |name| (name, true));
        std::iter::once(Some(name)).chain(is_list.then_some(None))
    });
    used.zip(path).all(|(used, step)| match (used, step) {
        (Some(name), Step::Key(key)) => **key == *name,
        (None, Step::Index(_)) => true,
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::{FieldPath, Kind, unused};

    #[test]
    fn only_fields_that_nobody_uses_are_left_out() {
        let container = || FieldPath::of("spec.containers").index(1);
        let volume = FieldPath::of("spec.volumes").index(0).key("secret").key("defaultMode");
        let table = [
            (volume, Some("spec.volumes")),
            (container().key("env").index(3).key("value"), Some("spec.containers[1].env")),
            (
                container().key("livenessProbe").key("periodSeconds"),
                Some("spec.containers[1].livenessProbe.periodSeconds"),
            ),
            (container().key("livenessProbe").key("httpGet").key("port"), None),
            (container().key("ports").index(0).key("hostIP"), None),
            (container(), None),
            (FieldPath::of("spec.hostNetwork"), None),
            (FieldPath::of("metadata.creationTimestamp"), Some("metadata.creationTimestamp")),
            (FieldPath::of("metadata.labels").key("app"), None),
            (
                FieldPath::of("status.conditions").index(0).key("lastProbeTime"),
                Some("status.conditions[0].lastProbeTime"),
            ),
            (FieldPath::of("apiVersion"), None),
            (FieldPath::default(), None),
        ];
        for (field, expected) in table {
            assert_eq!(unused(Kind::Pod, &field).map(|path| path.to_string()).as_deref(), expected, "{field}");
        }
        assert_eq!(unused(Kind::Authorization, &FieldPath::of("spec.x")), None);
    }
}
