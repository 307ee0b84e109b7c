//! Details of workloads and services that Istio's messages lack.
//!
//! A detail that is not valid is left out: the decisions are the same with Istio's message alone, and a remark is
//! reported.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::address::{address, port};
use super::facts::{Exactly, ServiceExactly};
use super::reading::{Flaw, Reader, unknown};
use crate::istio::detail::{
    Addressing as AddressingMessage, Distribution as DistributionMessage, Endpoint as EndpointMessage,
    Health as HealthMessage, Membership as MembershipMessage, Name, ServiceDetail, ServiceKind as KindMessage,
    ServicePort as PortMessage, WorkloadDetail,
};
use crate::istio::workload::{BalancingScope, Locality as LocalityMessage};
use crate::model::labels::Labels;
use crate::model::locality::{Distribution, Locality, Scope, Scopes};
use crate::model::name::check_name;
use crate::model::service::{
    Addressing, Endpoint, ExternalAddress, Families, Health, Resolution, Service, ServiceKind, ServicePort, TargetPort,
    Visibility,
};
use crate::model::workload::{Membership, NamedPort, NamespacedName, RefuseReason, Sidecar, Workload};
use crate::store::change::ServiceKey;

pub(super) fn workload(message: WorkloadDetail, told: &Workload, reader: &mut Reader<'_>) -> Result<Exactly, Flaw> {
    let membership = membership(message.membership)?;
    if (membership == Membership::InMesh) != (told.membership == Membership::InMesh) {
        return Err(Flaw::field("membership", "it contradicts tunnel_protocol"));
    }
    let mut ports = Vec::with_capacity(message.ports.len());
    for named in &message.ports {
        let number = port(named.number).map_err(|why| Flaw::field("ports", why))?;
        ports.push(NamedPort { name: (reader.texts)(&named.name), number });
    }
    let node_addresses = message.node_addresses.iter().map(|bytes| address(bytes));
    let node_addresses = node_addresses.collect::<Result<_, _>>().map_err(|why| Flaw::field("node_addresses", why))?;
    let own = Workload {
        uid: message.uid.into(),
        labels: labels(&message.labels, reader),
        ports,
        node_addresses,
        membership,
        is_entry: message.is_entry,
        leaving: message.leaving,
        ready: message.ready,
        ..told.clone()
    };
    let mut endpoints = Vec::with_capacity(message.endpoints.len());
    for of_service in &message.endpoints {
        let no_key = || Flaw::field("endpoints", format!("{:?} is not NAMESPACE/HOSTNAME", of_service.service));
        let (namespace, hostname) = of_service.service.split_once('/').ok_or_else(no_key)?;
        let key = ServiceKey { namespace: (reader.texts)(namespace), hostname: (reader.texts)(hostname) };
        let all = of_service.endpoints.iter().map(|one| endpoint(one, reader)).collect::<Result<_, _>>()?;
        endpoints.push((key, all));
    }
    Ok(Exactly { workload: (!message.is_endpoint).then_some(own), endpoints, place: message.place })
}

pub(super) fn service(
    message: &ServiceDetail,
    told: &Service,
    reader: &mut Reader<'_>,
) -> Result<ServiceExactly, Flaw> {
    let mut external = Vec::with_capacity(message.external.len());
    for one in &message.external {
        let address = address(&one.address).map_err(|why| Flaw::field("external", why))?;
        external.push(ExternalAddress { address, leads_everyone: one.leads_everyone });
    }
    let visibility = match &message.visible_to {
        None => Visibility::Everyone,
        Some(namespaces) => Visibility::Namespaces(namespaces.names.iter().map(|name| (reader.texts)(name)).collect()),
    };
    let service = Service {
        kind: match KindMessage::try_from(message.kind) {
            Ok(KindMessage::Kubernetes) => ServiceKind::Kubernetes,
            Ok(KindMessage::Entry) => ServiceKind::Entry,
            Err(_) => return Err(unknown("kind", message.kind)),
        },
        addressing: match AddressingMessage::try_from(message.addressing) {
            Ok(AddressingMessage::Given) => Addressing::Given,
            Ok(AddressingMessage::Headless) => Addressing::Headless,
            Ok(AddressingMessage::Unknown) => Addressing::Unknown,
            Ok(AddressingMessage::Alias) => Addressing::Alias(message.alias.as_str().into()),
            Err(_) => return Err(unknown("addressing", message.addressing)),
        },
        external,
        ports: message.ports.iter().map(|port| service_port(port, reader)).collect::<Result<_, _>>()?,
        selector: labels(&message.selector, reader),
        families: Families { v4: message.v4, v6: message.v6 },
        is_sticky: message.is_sticky,
        visibility,
        distribution: distribution(message)?,
        resolution: if message.passthrough { Resolution::Passthrough } else { Resolution::Endpoints },
        ..told.clone()
    };
    let endpoints = message.endpoints.iter().map(|one| endpoint(one, reader)).collect::<Result<_, _>>()?;
    Ok(ServiceExactly { service, endpoints })
}

pub(super) fn labels(labels: &BTreeMap<String, String>, reader: &mut Reader<'_>) -> Labels {
    let pairs = labels.iter().map(|(key, value)| ((reader.texts)(key), (reader.texts)(value)));
    pairs.collect::<Vec<(Arc<str>, Arc<str>)>>().into_iter().collect()
}

/// Namespace and name of an object.
pub(super) fn named(field: &'static str, name: &Name, reader: &mut Reader<'_>) -> Result<NamespacedName, Flaw> {
    check_name(&name.namespace).map_err(|why| Flaw::field(field, why))?;
    Ok(NamespacedName::new((reader.texts)(&name.namespace), (reader.texts)(&name.name)))
}

fn membership(value: i32) -> Result<Membership, Flaw> {
    let sidecar = |sidecar| Membership::Refused(RefuseReason::Sidecar(sidecar));
    Ok(match MembershipMessage::try_from(value) {
        Ok(MembershipMessage::InMesh) => Membership::InMesh,
        Ok(MembershipMessage::NotLabelled) => Membership::NotLabelled,
        Ok(MembershipMessage::OptedOut) => Membership::OptedOut,
        Ok(MembershipMessage::Finished) => Membership::Refused(RefuseReason::Finished),
        Ok(MembershipMessage::HostNetwork) => Membership::Refused(RefuseReason::HostNetwork),
        Ok(MembershipMessage::NoAddress) => Membership::Refused(RefuseReason::NoAddress),
        Ok(MembershipMessage::SidecarIstio) => sidecar(Sidecar::Istio),
        Ok(MembershipMessage::SidecarLinkerd) => sidecar(Sidecar::Linkerd),
        Ok(MembershipMessage::SidecarKuma) => sidecar(Sidecar::Kuma),
        Ok(MembershipMessage::SidecarConsul) => sidecar(Sidecar::Consul),
        Err(_) => return Err(unknown("membership", value)),
    })
}

fn endpoint(message: &EndpointMessage, reader: &mut Reader<'_>) -> Result<Endpoint, Flaw> {
    let wrong = |why| Flaw::field("endpoints", why);
    let ports = message.ports.iter().map(|(from, to)| Ok((port(*from).map_err(wrong)?, port(*to).map_err(wrong)?)));
    let ports = ports.collect::<Result<_, Flaw>>()?;
    let workload = message.workload.as_ref().map(|name| named("endpoints", name, reader)).transpose()?;
    Ok(Endpoint {
        address: address(&message.address).map_err(wrong)?,
        ports,
        health: match HealthMessage::try_from(message.health) {
            Ok(HealthMessage::Ready) => Health::Ready,
            Ok(HealthMessage::Draining) => Health::Draining,
            Ok(HealthMessage::Unready) => Health::Unready,
            Err(_) => return Err(unknown("endpoints", message.health)),
        },
        workload,
        weight: message.weight,
        node: (!message.node.is_empty()).then(|| (reader.texts)(&message.node)),
        locality: message.locality.as_ref().map(|of| locality(of, reader)).unwrap_or_default(),
    })
}

/// The locality of a workload or an endpoint.
pub(super) fn locality(locality: &LocalityMessage, reader: &mut Reader<'_>) -> Locality {
    Locality {
        region: (reader.texts)(&locality.region),
        zone: (reader.texts)(&locality.zone),
        subzone: (reader.texts)(&locality.subzone),
    }
}

fn service_port(message: &PortMessage, reader: &mut Reader<'_>) -> Result<ServicePort, Flaw> {
    let wrong = |why| Flaw::field("ports", why);
    let target = match message.target_port {
        0 => TargetPort::Name((reader.texts)(&message.target_name)),
        number => TargetPort::Number(port(number).map_err(wrong)?),
    };
    let name = message.name.as_ref().map(|name| (reader.texts)(name));
    Ok(ServicePort { name, port: port(message.port).map_err(wrong)?, target })
}

fn distribution(message: &ServiceDetail) -> Result<Distribution, Flaw> {
    let scope = |value: &i32| match BalancingScope::try_from(*value) {
        Ok(BalancingScope::Region) => Ok(Scope::Region),
        Ok(BalancingScope::Zone) => Ok(Scope::Zone),
        Ok(BalancingScope::Subzone) => Ok(Scope::Subzone),
        Ok(BalancingScope::Node) => Ok(Scope::Node),
        Ok(BalancingScope::Network | BalancingScope::Cluster | BalancingScope::Unspecified) | Err(_) => {
            Err(unknown("scopes", *value))
        }
    };
    let scopes = Scopes::of(&message.scopes.iter().map(scope).collect::<Result<Vec<_>, _>>()?);
    match DistributionMessage::try_from(message.distribution) {
        Ok(DistributionMessage::Any) => Ok(Distribution::Any),
        Ok(DistributionMessage::Prefer) => Ok(Distribution::Prefer(scopes)),
        Ok(DistributionMessage::Require) => Ok(Distribution::Require(scopes)),
        Err(_) => Err(unknown("distribution", message.distribution)),
    }
}
