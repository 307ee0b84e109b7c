//! NetworkPolicies that allow the ports of applications and not the HBONE port: between pods of the mesh all
//! connections use that port.

use std::collections::HashMap;

use ebpf_common::HBONE_PORT;

use super::code::Code;
use super::declared::{LabelSelector, NetworkPolicy, Peer, PortRange, TrafficRule};
use super::finding::{Object, Report};
use super::index::Mesh;
use super::pod::Pod;
use super::ports::targets;
use crate::model::labels::Labels;

/// The direction of connections.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    In,
    Out,
}

pub(super) fn check(mesh: &Mesh<'_>, report: &mut Report<'_>) {
    let policies = &mesh.declared.network_policies;
    let mut by_namespace: HashMap<&str, Vec<&NetworkPolicy>> = HashMap::new();
    for policy in policies {
        by_namespace.entry(&policy.name.namespace).or_default().push(policy);
    }
    for policy in policies {
        let of_namespace = by_namespace.get(&*policy.name.namespace).map(Vec::as_slice).unwrap_or_default();
        for way in [Way::In, Way::Out] {
            check_way(mesh, policy, of_namespace, way, report);
        }
    }
}

fn check_way(
    mesh: &Mesh<'_>,
    policy: &NetworkPolicy,
    of_namespace: &[&NetworkPolicy],
    way: Way,
    report: &mut Report<'_>,
) {
    for (index, rule) in rules(policy, way).iter().enumerate() {
        let Some(ports) = rule.ports.as_ref().filter(|ports| !ports.is_empty()) else { continue };
        if ports.iter().any(|range| range.includes(HBONE_PORT)) {
            continue;
        }
        let pods = mesh.in_namespace(&policy.name.namespace).iter();
        let concerned = pods.filter(|pod| pod.is_inside() && policy.pods.matches(&pod.labels)).find(|pod| {
            let is_open = |other: &&NetworkPolicy| {
                other.pods.matches(&pod.labels) && rules(other, way).iter().any(|other| opens(other, rule))
            };
            is_of_mesh(mesh, policy, rule, way) && !of_namespace.iter().any(is_open)
        });
        if let Some(pod) = concerned {
            blocked(policy, (way, index), ports, pod, report);
        }
    }
}

fn rules(policy: &NetworkPolicy, way: Way) -> &[TrafficRule] {
    let rules = match way {
        Way::In => &policy.ingress,
        Way::Out => &policy.egress,
    };
    rules.as_deref().unwrap_or_default()
}

/// Whether a rule allows HBONE connections for the peers of another rule.
fn opens(rule: &TrafficRule, other: &TrafficRule) -> bool {
    let has_port = rule.ports.as_ref().is_none_or(|ports| ports.iter().any(|range| range.includes(HBONE_PORT)));
    has_port && (rule.peers.is_empty() || rule.text == other.text)
}

/// Whether the peer of such connections may be a pod of the mesh. For outgoing connections the pod has to listen at a
/// port of the rule.
fn is_of_mesh(mesh: &Mesh<'_>, policy: &NetworkPolicy, rule: &TrafficRule, way: Way) -> bool {
    if rule.peers.is_empty() {
        // Any peer: for outgoing connections some pod of the mesh must be known to listen there.
        return way == Way::In || mesh.pods().iter().any(|pod| pod.is_inside() && listens(mesh, pod, rule));
    }
    rule.peers.iter().any(|peer| {
        let Peer::Pods { namespaces, pods } = peer else { return false };
        let meant = |pod: &&Pod<'_>| {
            pods.matches(&pod.labels) && in_namespaces(mesh, policy, namespaces.as_ref(), &pod.name.namespace)
        };
        let mut known = mesh.pods().iter().filter(meant).peekable();
        // Unknown clients are probably in the mesh as well.
        (way == Way::In && known.peek().is_none())
            || known.any(|pod| pod.is_inside() && (way == Way::In || listens(mesh, pod, rule)))
    })
}

fn in_namespaces(mesh: &Mesh<'_>, policy: &NetworkPolicy, wanted: Option<&LabelSelector>, namespace: &str) -> bool {
    let Some(wanted) = wanted else { return *policy.name.namespace == *namespace };
    match mesh.declared.namespaces.get(namespace) {
        Some(known) => wanted.matches(&known.labels),
        None => wanted.matches(&Labels::from([("kubernetes.io/metadata.name", namespace)])),
    }
}

/// Whether a pod is known to listen at a port of a rule.
fn listens(mesh: &Mesh<'_>, pod: &Pod<'_>, rule: &TrafficRule) -> bool {
    let ports = rule.ports.as_deref().unwrap_or_default();
    let has = |port: u16| ports.iter().any(|range| range.includes(port));
    let named = |name: &str| ports.iter().any(|range| matches!(range, PortRange::Named(wanted) if **wanted == *name));
    pod.ports.iter().any(|port| has(port.number) || named(&port.name))
        || mesh.services_of(pod).iter().any(|service| targets(service, pod).any(|(_, target)| has(target)))
}

fn blocked(
    policy: &NetworkPolicy,
    (way, index): (Way, usize),
    ports: &[PortRange],
    pod: &Pod<'_>,
    report: &mut Report<'_>,
) {
    let (list, peers, what) = match way {
        Way::In => ("ingress", "from", "connections from pods of the mesh"),
        Way::Out => ("egress", "to", "connections to pods of the mesh"),
    };
    let shown: Vec<String> = ports.iter().map(ToString::to_string).collect();
    let message = format!(
        "spec.{list}[{index}] lets port {} through and not port {HBONE_PORT}: {what} arrive at port {HBONE_PORT}, so they fail for {} {}, \
         which it selects",
        shown.join(", "),
        pod.kind(),
        pod.name
    );
    let remedy = format!(
        "add {{port: {HBONE_PORT}, protocol: TCP}} to spec.{list}[{index}].ports, or a rule with it and the same {peers}"
    );
    let subject = Object { title: format!("NetworkPolicy {}", policy.name), origin: &policy.origin };
    report.add(Code::NetworkPolicyBlocksHbone, &subject, message, remedy);
}
