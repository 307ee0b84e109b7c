//! The fields of objects that this program uses. Any other known field can't make its object unreadable, whatever its
//! type is: the API server and its clients check those fields.

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

const METADATA: [&str; 4] = ["metadata.name", "metadata.namespace", "metadata.labels", "metadata.annotations"];

const POD: [&str; 16] = [
    "metadata.uid",
    "metadata.ownerReferences",
    "metadata.deletionTimestamp",
    "spec.nodeName",
    "spec.hostNetwork",
    "spec.serviceAccountName",
    "spec.serviceAccount",
    "spec.runtimeClassName",
    "status.phase",
    "status.reason",
    "status.podIP",
    "status.podIPs",
    "status.hostIP",
    "status.hostIPs",
    "status.conditions[].type",
    "status.conditions[].status",
];

/// Lists of containers.
const CONTAINERS: [&str; 2] = ["spec.containers[]", "spec.initContainers[]"];
const CONTAINER: [&str; 6] =
    ["name", "restartPolicy", "ports[].name", "ports[].containerPort", "ports[].protocol", "ports[].hostPort"];
/// Fields of a container with an action.
const CALLS: [&str; 5] =
    ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle.postStart", "lifecycle.preStop"];
const CALL: [&str; 5] = ["httpGet.host", "httpGet.port", "tcpSocket.host", "tcpSocket.port", "grpc.port"];

const SERVICE: [&str; 19] = [
    "spec.type",
    "spec.clusterIP",
    "spec.clusterIPs",
    "spec.externalIPs",
    "spec.externalName",
    "spec.loadBalancerSourceRanges",
    "spec.ports[].name",
    "spec.ports[].port",
    "spec.ports[].protocol",
    "spec.ports[].targetPort",
    "spec.ports[].nodePort",
    "spec.selector",
    "spec.sessionAffinity",
    "spec.internalTrafficPolicy",
    "spec.trafficDistribution",
    "spec.ipFamilies",
    "spec.publishNotReadyAddresses",
    "status.loadBalancer.ingress[].ip",
    "status.loadBalancer.ingress[].ipMode",
];
const SLICE: [&str; 13] = [
    "addressType",
    "ports[].name",
    "ports[].port",
    "ports[].protocol",
    "endpoints[].addresses",
    "endpoints[].conditions.ready",
    "endpoints[].conditions.serving",
    "endpoints[].conditions.terminating",
    "endpoints[].targetRef.kind",
    "endpoints[].targetRef.name",
    "endpoints[].targetRef.namespace",
    "endpoints[].nodeName",
    "endpoints[].zone",
];
const ENDPOINTS: [&str; 3] = ["subsets[].ports[].name", "subsets[].ports[].port", "subsets[].ports[].protocol"];
/// Lists of addresses in Endpoints.
const ADDRESSES: [&str; 2] = ["subsets[].addresses[]", "subsets[].notReadyAddresses[]"];
const ADDRESS: [&str; 5] = ["ip", "nodeName", "targetRef.kind", "targetRef.name", "targetRef.namespace"];
const NODE: [&str; 1] = ["status.addresses"];
const CONFIG_MAP: [&str; 1] = ["data.mesh"];
const WORKLOAD_ENTRY: [&str; 1] = ["metadata.uid"];

/// The fields of policies that are not used. Any other field is used, or unknown: then its meaning would be lost.
const UNUSED_OF_POLICY: [&str; 13] = [
    "status",
    "metadata.labels",
    "metadata.clusterName",
    "metadata.deletionGracePeriodSeconds",
    "metadata.deletionTimestamp",
    "metadata.finalizers",
    "metadata.generateName",
    "metadata.generation",
    "metadata.managedFields",
    "metadata.ownerReferences",
    "metadata.resourceVersion",
    "metadata.selfLink",
    "metadata.uid",
];
/// The oldest of several PeerAuthentications takes precedence. Other policies have no order.
const CREATED: &str = "metadata.creationTimestamp";

/// The paths of the fields of some parts.
fn each(parts: &'static [&str], fields: &'static [&str]) -> impl Iterator<Item = String> {
    parts.iter().flat_map(|part| fields.iter().map(move |field| format!("{part}.{field}")))
}

/// The paths of the used fields of a kind, without those of every kind, and whether the list is complete. Otherwise it
/// is complete for the metadata, and all other fields are used, or unknown: then their meaning would be lost.
fn used(kind: Kind) -> (Vec<String>, bool) {
    let own = |fields: &[&str]| fields.iter().map(|field| (*field).to_owned()).collect::<Vec<_>>();
    let is_complete = !matches!(kind, Kind::Entry | Kind::WorkloadEntry);
    let fields = match kind {
        Kind::Pod => {
            let calls = || each(&CALLS, &CALL);
            let of_container = CONTAINERS.iter().flat_map(|list| calls().map(move |call| format!("{list}.{call}")));
            own(&POD).into_iter().chain(each(&CONTAINERS, &CONTAINER)).chain(of_container).collect()
        }
        Kind::Node => own(&NODE),
        Kind::Service => own(&SERVICE),
        Kind::Slice => own(&SLICE),
        Kind::Endpoints => own(&ENDPOINTS).into_iter().chain(each(&ADDRESSES, &ADDRESS)).collect(),
        Kind::Mesh => own(&CONFIG_MAP),
        Kind::WorkloadEntry => own(&WORKLOAD_ENTRY),
        _ => Vec::new(),
    };
    (fields, is_complete)
}

/// The field to remove so that an unused field is gone: the outermost unused field around it, or the field itself.
/// `None`: the field is used.
fn unused(kind: Kind, field: &FieldPath) -> Option<FieldPath> {
    let steps = field.steps();
    let prefixes = || (1..=steps.len()).filter_map(|length| steps.get(..length));
    let found = match kind {
        Kind::Authorization | Kind::PeerAuthentication | Kind::RequestAuthentication => {
            let created = (!matches!(kind, Kind::PeerAuthentication)).then_some(&CREATED);
            prefixes().find(|path| UNUSED_OF_POLICY.iter().chain(created).any(|unused| is(unused, path)))
        }
        Kind::Unenforced(_) => None,
        _ => {
            let (fields, is_complete) = used(kind);
            let is_used = |path: &&[Step]| {
                let all =
                    ["apiVersion", "kind"].iter().chain(&METADATA).copied().chain(fields.iter().map(String::as_str));
                let is_of_metadata = matches!(path.first(), Some(Step::Key(key)) if **key == *"metadata");
                all.into_iter().any(|used| meets(used, path)) || !(is_complete || is_of_metadata)
            };
            prefixes().find(|path| !is_used(path))
        }
    };
    found.map(FieldPath::from_steps)
}

/// Whether a path is this field.
fn is(field: &str, path: &[Step]) -> bool {
    field.split('.').count() == path.len() && meets(field, path)
}

/// Whether this program uses a field of a kind. A field that is merged into a map (`<<`) may be any field of the map.
pub(super) fn is_used(kind: Kind, field: &FieldPath) -> bool {
    let steps = field.steps();
    let is_merge = |step: &Step| matches!(step, Step::Key(key) if **key == *"<<");
    let merged_into = steps.iter().position(is_merge).and_then(|index| steps.get(..index));
    unused(kind, &FieldPath::from_steps(merged_into.unwrap_or(steps))).is_none()
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
    use super::{FieldPath, Kind, is_used, unused};

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
            (container().key("ports").index(0).key("hostPort"), None),
            (container().key("ports").index(0).key("hostIP"), Some("spec.containers[1].ports[0].hostIP")),
            (
                container().key("lifecycle").key("preStop").key("exec"),
                Some("spec.containers[1].lifecycle.preStop.exec"),
            ),
            (container().key("lifecycle").key("preStop").key("httpGet").key("port"), None),
            (FieldPath::of("spec.runtimeClassName"), None),
            (FieldPath::of("metadata.ownerReferences"), None),
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
        for (field, expected) in [
            (container().key("image"), false),
            (container().key("name"), true),
            (container().key("<<"), true),
            (container().key("resources").key("<<").key("cpu"), false),
            (FieldPath::of("spec.<<"), true),
        ] {
            assert_eq!(is_used(Kind::Pod, &field), expected, "{field}");
        }
        let slice = || FieldPath::of("endpoints").index(0);
        let table = [
            (Kind::Service, FieldPath::of("spec.healthCheckNodePort"), true),
            (Kind::Service, FieldPath::of("spec.ports").index(0).key("port"), false),
            (Kind::Service, FieldPath::of("spec.selector").key("app"), false),
            (Kind::Service, FieldPath::of("metadata.ownerReferences"), true),
            (Kind::Slice, slice().key("hints").key("forZones"), true),
            (Kind::Slice, slice().key("addresses").index(0), false),
            (Kind::Slice, slice().key("conditions").key("ready"), false),
            (Kind::Endpoints, FieldPath::of("subsets").index(0).key("addresses").index(0).key("hostname"), true),
            (Kind::Endpoints, FieldPath::of("subsets").index(0).key("addresses").index(0).key("ip"), false),
            (Kind::Entry, FieldPath::of("metadata.generation"), true),
            (Kind::Entry, FieldPath::of("metadata.annotations"), false),
            // An unknown field would lose its meaning.
            (Kind::Entry, FieldPath::of("spec.x"), false),
            (Kind::Entry, FieldPath::of("sepc"), false),
            (Kind::WorkloadEntry, FieldPath::of("metadata.uid"), false),
            (Kind::Authorization, FieldPath::of("spec.x"), false),
            (Kind::Authorization, FieldPath::of("metadata.namepsace"), false),
            (Kind::Authorization, FieldPath::of("metadata.creationTimestamp"), true),
            (Kind::Authorization, FieldPath::of("metadata.labels").key("app"), true),
            (Kind::PeerAuthentication, FieldPath::of("metadata.creationTimestamp"), false),
        ];
        for (kind, field, expected) in table {
            assert_eq!(unused(kind, &field).is_some(), expected, "{kind:?} {field}");
        }
    }
}
