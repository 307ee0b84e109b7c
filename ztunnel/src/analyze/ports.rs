//! Ports in policies at which no pod is known to listen: policies use the pods' ports, not those of services.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::code::Code;
use super::finding::Report;
use super::index::{Mesh, list};
use super::path::{Field, entries};
use super::pod::Pod;
use crate::model::labels::Labels;
use crate::model::policy::{AuthorizationPolicy, Scope};
use crate::model::service::{Service, ServiceKind, TargetPort};
use crate::model::workload::{NamespacedName, Workload};

/// Namespace and labels of a policy's selector.
type Selector<'p> = (&'p Option<Arc<str>>, &'p Labels);

/// What is known about the ports of some pods.
#[derive(Default)]
struct Known<'a> {
    /// The ports at which the pods listen, according to the manifests of the pods or of services.
    listening: BTreeSet<u16>,
    /// Ports of services that lead to another port of these pods: the service, and that port.
    of_services: BTreeMap<u16, (&'a NamespacedName, u16)>,
    /// All of these pods declare ports.
    is_complete: bool,
    has_pods: bool,
}

pub(super) fn check(mesh: &Mesh<'_>, report: &mut Report<'_>) {
    let mut by_namespace: HashMap<&str, Known<'_>> = HashMap::new();
    let mut by_selector: HashMap<Selector<'_>, Known<'_>> = HashMap::new();
    let mut of_mesh = None;
    for policy in mesh.snapshot.policies().authorization() {
        let mut ports = BTreeMap::new();
        for (entry, found) in entries(policy) {
            for (values, negative) in [(&found.destination_ports, false), (&found.not_destination_ports, true)] {
                for port in values {
                    ports.entry(*port).or_insert_with(|| entry.field(Field::Ports, negative));
                }
            }
        }
        service_addresses(mesh, policy, report);
        if ports.is_empty() {
            continue;
        }
        let own;
        let known = match &policy.scope {
            Scope::Mesh => &*of_mesh.get_or_insert_with(|| known(mesh, mesh.pods().iter().copied())),
            Scope::Namespace(namespace) => &*by_namespace
                .entry(namespace)
                .or_insert_with(|| known(mesh, mesh.in_namespace(namespace).iter().copied())),
            Scope::Selector { namespace, labels } => {
                &*by_selector.entry((namespace, labels)).or_insert_with(|| known(mesh, mesh.protected(policy)))
            }
            Scope::Services(_) => {
                own = known(mesh, mesh.protected(policy));
                &own
            }
        };
        for (port, place) in ports {
            check_port(policy, port, &place, known, report);
        }
    }
    of_authentication(mesh, report);
}

fn check_port(policy: &AuthorizationPolicy, port: u16, place: &str, known: &Known<'_>, report: &mut Report<'_>) {
    if known.listening.contains(&port) || !known.has_pods {
        return;
    }
    if let Some((service, target)) = known.of_services.get(&port) {
        let message = format!(
            "{place}: {port} is the port of Service {service}, which leads to port {target} of the pods; policies \
             are compared with the pod's port"
        );
        report.add(Code::ServicePort, policy, message, format!("write {target}"));
    } else if known.is_complete {
        let message = format!("{place}: no pod that the policy selects declares port {port}");
        report.add(Code::UndeclaredPort, policy, message, "correct the port, if another one is meant");
    }
}

/// What is known about the ports of these pods.
fn known<'a>(mesh: &Mesh<'a>, pods: impl Iterator<Item = Pod<'a>>) -> Known<'a> {
    let mut known = Known { is_complete: true, ..Known::default() };
    for pod in pods.filter(|pod| !pod.finished) {
        known.has_pods = true;
        let before = known.listening.len();
        known.listening.extend(pod.ports.iter().map(|port| port.number));
        let probes = pod.local.map(|local| &*local.probe_ports).unwrap_or_default();
        known.listening.extend(probes);
        let mut says_something = known.listening.len() > before || !pod.ports.is_empty() || !probes.is_empty();
        for service in mesh.services_of(&pod).into_iter().filter(|one| one.kind == ServiceKind::Kubernetes) {
            for (port, target) in targets(service, &pod) {
                says_something = true;
                known.listening.insert(target);
                if port != target {
                    known.of_services.insert(port, (&service.name, target));
                }
            }
        }
        known.is_complete &= says_something;
    }
    known
}

/// The ports of a service, and the port of a pod to which each leads.
pub(super) fn targets<'s>(service: &'s Service, pod: &'s Workload) -> impl Iterator<Item = (u16, u16)> + 's {
    service.ports.iter().filter_map(|port| {
        let target = match &port.target {
            TargetPort::Number(number) => *number,
            TargetPort::Name(name) => pod.port_named(name)?,
        };
        Some((port.port, target))
    })
}

/// The same check for PeerAuthentications: their ports are the pods' too.
fn of_authentication(mesh: &Mesh<'_>, report: &mut Report<'_>) {
    for policy in mesh.snapshot.policies().authentication().iter().filter(|policy| !policy.ports.is_empty()) {
        let Scope::Selector { namespace: Some(namespace), labels } = &policy.scope else { continue };
        let known = known(mesh, mesh.selected(Some(namespace), labels));
        for port in policy.ports.keys().filter(|port| !known.listening.contains(port)) {
            let place = format!("spec.portLevelMtls[{port}]");
            if let Some((service, target)) = known.of_services.get(port) {
                let message = format!(
                    "{place}: {port} is the port of Service {service}, which leads to port {target} of the pods; here the \
                     pod's port is meant"
                );
                report.add(Code::ServicePort, &**policy, message, format!("write {target}"));
            } else if known.is_complete && known.has_pods {
                let message = format!("{place}: no pod that the policy selects declares this port");
                report.add(Code::UndeclaredPort, &**policy, message, "correct the port, if another one is meant");
            }
        }
    }
}

/// Addresses of services in a policy, where only pods' addresses can match.
fn service_addresses(mesh: &Mesh<'_>, policy: &AuthorizationPolicy, report: &mut Report<'_>) {
    for (entry, found) in entries(policy) {
        for range in found.destination_ips.iter().chain(&found.not_destination_ips) {
            if range.prefix_len() != range.max_prefix_len() {
                continue;
            }
            let Some(service) = mesh.snapshot.cluster_ip(range.addr()) else { continue };
            let message = format!(
                "{entry}: {} is the address of Service {}; policies are compared with the address of the pod behind it",
                range.addr(),
                service.name
            );
            let pods: BTreeSet<_> = mesh.behind(&service.name).map(|pod| &pod.workload.name).collect();
            let pods = list(pods.into_iter());
            let remedy = format!("write the addresses of the pods ({pods}), or use spec.targetRefs");
            report.add(Code::ServiceAddress, policy, message, remedy);
        }
    }
}
