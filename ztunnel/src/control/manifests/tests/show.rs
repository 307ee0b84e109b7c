//! Workloads and services as lines of text.

use std::fmt::Write;

use crate::model::locality::{Distribution, Locality};
use crate::model::service::{Health, Origin, Resolution, Service, TargetPort, Visibility};
use crate::model::workload::{Exclusions, Membership, Workload};

pub(super) fn show_workload(out: &mut String, workload: &Workload) {
    let Workload { name, identity, addresses, exclusions, .. } = workload;
    write!(out, "pod {name} sa={}", identity.service_account).unwrap();
    if let Some(node) = &workload.node {
        write!(out, " node={node}").unwrap();
    }
    for address in addresses {
        write!(out, " {address}").unwrap();
    }
    if let Some(netns) = &workload.netns {
        write!(out, " netns={}", netns.display()).unwrap();
    }
    for port in &workload.ports {
        write!(out, " {}={}", port.name, port.number).unwrap();
    }
    out.push_str(match workload.membership {
        Membership::InMesh => " in mesh",
        Membership::NotLabelled => " not labelled",
        Membership::OptedOut => " opted out",
        Membership::Refused(_) => " refused:",
    });
    if let Membership::Refused(reason) = workload.membership {
        write!(out, " {reason:?}").unwrap();
    }
    if !workload.ready {
        out.push_str(" unready");
    }
    if *exclusions != Exclusions::default() {
        let Exclusions { outbound_ports, outbound_cidrs, inbound_ports } = exclusions;
        write!(out, " exclude out={outbound_ports} {outbound_cidrs:?} in={inbound_ports}").unwrap();
    }
    out.push('\n');
}

pub(super) fn show_service(out: &mut String, service: &Service) {
    write!(out, "{} {}", if service.origin == Origin::Entry { "entry" } else { "service" }, service.name).unwrap();
    if service.origin == Origin::Entry {
        write!(out, " {}", service.hostname).unwrap();
    }
    for vip in &service.vips {
        write!(out, " {vip}").unwrap();
    }
    for port in &service.ports {
        match &port.target {
            TargetPort::Number(number) => write!(out, " {}->{number}", port.port).unwrap(),
            TargetPort::Name(name) => write!(out, " {}->{name}", port.port).unwrap(),
        }
    }
    service.ranges.iter().for_each(|range| write!(out, " {range}").unwrap());
    service.identities.iter().for_each(|identity| write!(out, " {identity}").unwrap());
    if service.resolution == Resolution::Passthrough {
        out.push_str(" passes through");
    }
    match service.distribution {
        Distribution::Any => {}
        Distribution::SameNode => out.push_str(" same node only"),
        Distribution::Prefer(scopes) => write!(out, " prefer {scopes:?}").unwrap(),
    }
    if let Visibility::Namespaces(namespaces) = &service.visibility {
        write!(out, " for [{}]", namespaces.join(" ")).unwrap();
    }
    out.push('\n');
    for endpoint in service.endpoints.iter() {
        write!(out, "  {}", endpoint.address).unwrap();
        for (port, target) in &endpoint.ports {
            write!(out, " {port}->{target}").unwrap();
        }
        out.push_str(match endpoint.health {
            Health::Ready => "",
            Health::Draining => " draining",
            Health::Unready => " unready",
        });
        if endpoint.weight != 1 {
            write!(out, " weight={}", endpoint.weight).unwrap();
        }
        if let (None, Some(node)) = (&endpoint.workload, &endpoint.node) {
            write!(out, " node={node}").unwrap();
        }
        let Locality { region, zone, subzone } = &endpoint.locality;
        if !(region.is_empty() && zone.is_empty()) {
            write!(out, " in {region}/{zone}/{subzone}").unwrap();
        }
        if let Some(workload) = &endpoint.workload {
            write!(out, " {workload}").unwrap();
        }
        out.push('\n');
    }
}
