//! Services without endpoints, or with endpoints outside the mesh.

use super::code::Code;
use super::finding::Report;
use super::index::Mesh;
use super::pod::Pod;
use crate::model::service::{Health, Resolution, Service, ServiceKind, TargetPort};

pub(super) fn check(mesh: &Mesh<'_>, report: &mut Report<'_>) {
    for service in mesh.snapshot.services() {
        let is_matched = service.selector.is_empty()
            || mesh.selected(Some(&service.name.namespace), &service.selector).next().is_some();
        // A selector that matches nothing is reported by its own check.
        let planned: Vec<Pod<'_>> = mesh.planned(service).collect();
        if service.endpoints.is_empty() && planned.is_empty() && is_matched {
            without_endpoints(service, report);
        }
        if planned.is_empty() && !service.endpoints.is_empty() {
            unready(service, report);
        }
        if !(planned.is_empty() && service.endpoints.is_empty()) {
            ports(mesh, service, &planned, report);
            outside(mesh, service, &planned, report);
        }
    }
}

fn without_endpoints(service: &Service, report: &mut Report<'_>) {
    // A service without address and selector may be an alias in DNS, which needs no endpoints.
    let may_be_alias = service.selector.is_empty() && service.vips.is_empty() && service.ranges.is_empty();
    let is_entry = service.kind == ServiceKind::Entry;
    if may_be_alias || is_entry || service.resolution == Resolution::Passthrough {
        return;
    }
    let (message, remedy) = if service.selector.is_empty() {
        ("has neither a selector nor an EndpointSlice, so it has no endpoints", "add one of them")
    } else {
        ("has no endpoints: none of the pods that it selects has an address of its families", "see the pods' status")
    };
    report.add(Code::ServiceWithoutEndpoints, service, message, remedy);
}

fn unready(service: &Service, report: &mut Report<'_>) {
    if service.endpoints.iter().all(|endpoint| endpoint.health == Health::Unready) {
        let message = "none of its endpoints is ready: connections to it are refused";
        report.add(Code::ServiceNotReady, service, message, "see the pods' status");
    }
}

fn ports(mesh: &Mesh<'_>, service: &Service, planned: &[Pod<'_>], report: &mut Report<'_>) {
    let is_served = |port: u16| service.endpoints.iter().any(|endpoint| endpoint.ports.serves(port));
    let will_be_served = |target: &TargetPort| match target {
        TargetPort::Number(_) => !planned.is_empty(),
        TargetPort::Name(name) => planned.iter().any(|pod| pod.port_named(name).is_some()),
    };
    for port in service.ports.iter().filter(|port| !is_served(port.port) && !will_be_served(&port.target)) {
        let has_target =
            |pod: Pod<'_>| matches!(&port.target, TargetPort::Name(name) if pod.port_named(name).is_some());
        // Endpoints from EndpointSlices and Endpoints have the ports of these objects, by the name of the service's port.
        let is_by_target = !service.selector.is_empty()
            && matches!(port.target, TargetPort::Name(_))
            && !mesh.endpoints(service).any(has_target);
        let (why, remedy) = match (&port.name, is_by_target) {
            (_, true) => (
                "its targetPort is the name of no container port".to_owned(),
                "name a port of the pods' containers, or write its number",
            ),
            (Some(name), false) => (
                format!("no port of its EndpointSlices and Endpoints has the name {name}, which this port has"),
                "give the ports of the Service and of its endpoints the same names",
            ),
            (None, false) => (
                "the ports of its EndpointSlices and Endpoints have names, and this port has none".to_owned(),
                "give the ports of the Service and of its endpoints the same names",
            ),
        };
        let message = format!("none of its endpoints has port {}: {why}", port.port);
        report.add(Code::ServicePortWithoutEndpoint, service, message, remedy);
    }
}

fn outside(mesh: &Mesh<'_>, service: &Service, planned: &[Pod<'_>], report: &mut Report<'_>) {
    let mut pods = mesh.endpoints(service).chain(planned.iter().copied()).peekable();
    let is_of_mesh = || mesh.in_namespace(&service.name.namespace).iter().any(Pod::is_inside);
    if pods.peek().is_some() && !pods.any(|pod| pod.is_inside()) && is_of_mesh() {
        let message = "all of its pods are outside of the mesh, and other pods of its namespace are inside: \
            connections to it use plaintext";
        report.add(Code::ServiceOutsideMesh, service, message, "label its pods, if they are meant to be in the mesh");
    }
}
