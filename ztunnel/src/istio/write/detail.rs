//! Details of workloads and services that Istio's messages lack.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::bytes;
use crate::istio::detail::{
    Addressing as AddressingMessage, Distribution as DistributionMessage, Endpoint as EndpointMessage, Endpoints,
    ExternalAddress, Health as HealthMessage, Membership as MembershipMessage, Name, NamedPort, Namespaces,
    ServiceDetail, ServiceKind as KindMessage, ServicePort, WorkloadDetail,
};
use crate::istio::read::{Exactly, ServiceExactly, WorkloadFacts};
use crate::istio::workload::{BalancingScope, Locality as LocalityMessage};
use crate::model::labels::Labels;
use crate::model::locality::{Distribution, Locality, Scope, Scopes};
use crate::model::service::{
    Addressing, Endpoint, Health, Resolution, ServiceKind, ServicePort as Port, TargetPort, Visibility,
};
use crate::model::workload::{Membership, NamespacedName, RefuseReason, Sidecar};

/// The details of a workload that Istio's message lacks.
pub(super) fn workload(exactly: &Exactly, facts: &WorkloadFacts) -> WorkloadDetail {
    let Exactly { workload, endpoints, place } = exactly;
    let endpoints = endpoints.iter().map(|(service, endpoints)| Endpoints {
        service: format!("{}/{}", service.namespace, service.hostname),
        endpoints: endpoints.iter().map(endpoint).collect(),
    });
    let (own, is_endpoint) = (workload.as_ref().unwrap_or(&facts.workload), workload.is_none());
    let port = |port: &crate::model::workload::NamedPort| NamedPort {
        name: port.name.to_string(),
        number: port.number.into(),
    };
    WorkloadDetail {
        uid: own.uid.to_string(),
        labels: labels(&own.labels),
        ports: own.ports.iter().map(port).collect(),
        node_addresses: own.node_addresses.iter().copied().map(bytes).collect(),
        membership: membership(own.membership).into(),
        is_entry: own.is_entry,
        leaving: own.leaving,
        ready: own.ready,
        is_endpoint,
        place: *place,
        endpoints: endpoints.collect(),
    }
}

/// The details of a service that Istio's message lacks.
pub(super) fn service(exactly: &ServiceExactly) -> ServiceDetail {
    let ServiceExactly { service, endpoints } = exactly;
    let (addressing, alias) = match &service.addressing {
        Addressing::Given => (AddressingMessage::Given, ""),
        Addressing::Headless => (AddressingMessage::Headless, ""),
        Addressing::Unknown => (AddressingMessage::Unknown, ""),
        Addressing::Alias(host) => (AddressingMessage::Alias, &**host),
    };
    let (distribution, scopes) = match service.distribution {
        Distribution::Any => (DistributionMessage::Any, Scopes::of(&[])),
        Distribution::Prefer(scopes) => (DistributionMessage::Prefer, scopes),
        Distribution::Require(scopes) => (DistributionMessage::Require, scopes),
    };
    let visible_to = match &service.visibility {
        Visibility::Everyone => None,
        Visibility::Namespaces(names) => Some(Namespaces { names: names.iter().map(ToString::to_string).collect() }),
    };
    let external = service
        .external
        .iter()
        .map(|external| ExternalAddress { address: bytes(external.address), leads_everyone: external.leads_everyone });
    ServiceDetail {
        kind: match service.kind {
            ServiceKind::Kubernetes => KindMessage::Kubernetes,
            ServiceKind::Entry => KindMessage::Entry,
        }
        .into(),
        addressing: addressing.into(),
        alias: alias.to_owned(),
        external: external.collect(),
        ports: service.ports.iter().map(port).collect(),
        selector: labels(&service.selector),
        v4: service.families.v4,
        v6: service.families.v6,
        is_sticky: service.is_sticky,
        visible_to,
        distribution: distribution.into(),
        scopes: scopes.iter().map(|one| scope(one).into()).collect(),
        passthrough: service.resolution == Resolution::Passthrough,
        endpoints: endpoints.iter().map(endpoint).collect(),
    }
}

pub(super) fn labels(labels: &Labels) -> BTreeMap<String, String> {
    labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

pub(super) fn name(name: &NamespacedName) -> Name {
    Name { namespace: name.namespace.to_string(), name: name.name.to_string() }
}

fn membership(membership: Membership) -> MembershipMessage {
    match membership {
        Membership::InMesh => MembershipMessage::InMesh,
        Membership::NotLabelled => MembershipMessage::NotLabelled,
        Membership::OptedOut => MembershipMessage::OptedOut,
        Membership::Refused(RefuseReason::Finished) => MembershipMessage::Finished,
        Membership::Refused(RefuseReason::HostNetwork) => MembershipMessage::HostNetwork,
        Membership::Refused(RefuseReason::NoAddress) => MembershipMessage::NoAddress,
        Membership::Refused(RefuseReason::Sidecar(Sidecar::Istio)) => MembershipMessage::SidecarIstio,
        Membership::Refused(RefuseReason::Sidecar(Sidecar::Linkerd)) => MembershipMessage::SidecarLinkerd,
        Membership::Refused(RefuseReason::Sidecar(Sidecar::Kuma)) => MembershipMessage::SidecarKuma,
        Membership::Refused(RefuseReason::Sidecar(Sidecar::Consul)) => MembershipMessage::SidecarConsul,
    }
}

fn endpoint(endpoint: &Endpoint) -> EndpointMessage {
    EndpointMessage {
        address: bytes(endpoint.address),
        ports: endpoint.ports.iter().map(|(from, to)| (from.into(), to.into())).collect(),
        health: match endpoint.health {
            Health::Ready => HealthMessage::Ready,
            Health::Draining => HealthMessage::Draining,
            Health::Unready => HealthMessage::Unready,
        }
        .into(),
        weight: endpoint.weight,
        node: text(endpoint.node.as_ref()),
        locality: locality(&endpoint.locality),
        workload: endpoint.workload.as_ref().map(name),
    }
}

fn text(text: Option<&Arc<str>>) -> String {
    text.map(ToString::to_string).unwrap_or_default()
}

/// A locality, if any part of it is known.
pub(super) fn locality(locality: &Locality) -> Option<LocalityMessage> {
    let Locality { region, zone, subzone } = locality;
    let is_known = [region, zone, subzone].iter().any(|part| !part.is_empty());
    is_known.then(|| LocalityMessage {
        region: region.to_string(),
        zone: zone.to_string(),
        subzone: subzone.to_string(),
    })
}

fn port(port: &Port) -> ServicePort {
    let (target_port, target_name) = match &port.target {
        TargetPort::Number(number) => (u32::from(*number), String::new()),
        TargetPort::Name(name) => (0, name.to_string()),
    };
    ServicePort { name: port.name.as_ref().map(ToString::to_string), port: port.port.into(), target_port, target_name }
}

pub(super) fn scope(scope: Scope) -> BalancingScope {
    match scope {
        Scope::Region => BalancingScope::Region,
        Scope::Zone => BalancingScope::Zone,
        Scope::Subzone => BalancingScope::Subzone,
        Scope::Node => BalancingScope::Node,
    }
}
