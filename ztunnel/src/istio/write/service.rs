//! Writing services.

use super::{Writer, bytes, detail, gateway, range, resource};
use crate::istio::detail::Extending as _;
use crate::istio::discovery::{ADDRESS, Resource};
use crate::istio::read::ServiceFacts;
use crate::istio::workload::{
    Address, AddressType, BalancingMode, HealthPolicy, IpFamilies, LoadBalancing, NetworkAddress, Port,
    Service as Message, Visibility as Seen,
};
use crate::model::locality::{Distribution, Scopes};
use crate::model::service::{Families, Resolution, Service, ServiceKind, ServicePort, TargetPort, Visibility};

/// The resource of a service. The protocol can make a service visible to its own namespace or to all namespaces. A
/// service that is visible to several namespaces is made visible to all. Visibility does not decide who may connect to
/// its pods; and for a namespace that cannot see the service, a node may pass connections to its address on in
/// plaintext.
#[must_use]
pub fn service(facts: &ServiceFacts, writer: Writer<'_>) -> Resource {
    let service = &facts.service;
    let name = format!("{}/{}", service.name.namespace, service.hostname);
    resource(name, ADDRESS, &Address { r#type: Some(AddressType::Service(Box::new(message(facts, writer)))) })
}

pub(super) fn message(facts: &ServiceFacts, writer: Writer<'_>) -> Message {
    let service = &facts.service;
    let vip = |address| NetworkAddress { network: writer.network.to_owned(), address: bytes(address), length: None };
    let ranges = service.ranges.iter().map(|net| range(writer.network, net));
    let families = match service.families {
        Families { v4: true, v6: false } => IpFamilies::Ipv4Only,
        Families { v4: false, v6: true } => IpFamilies::Ipv6Only,
        Families { v4: true, v6: true } | Families { v4: false, v6: false } => IpFamilies::Automatic,
    };
    let visibility = match &service.visibility {
        Visibility::Namespaces(known) if known.iter().all(|namespace| *namespace == service.name.namespace) => {
            Seen::Namespace
        }
        Visibility::Namespaces(_) | Visibility::Everyone => Seen::Public,
    };
    Message {
        name: service.name.name.to_string(),
        namespace: service.name.namespace.to_string(),
        hostname: service.hostname.to_string(),
        addresses: service.vips.iter().copied().map(vip).chain(ranges).collect(),
        ports: service.ports.iter().map(port).collect(),
        subject_alt_names: service.identities.iter().map(ToString::to_string).collect(),
        waypoint: service.waypoint.as_deref().map(gateway),
        load_balancing: balancing(service, facts.every_endpoint_ready),
        ip_families: families.into(),
        canonical: service.kind == ServiceKind::Kubernetes,
        visibility: visibility.into(),
        extensions: facts.exactly.iter().map(|exactly| detail::service(exactly).extension()).collect(),
        ..Message::default()
    }
}

fn port(port: &ServicePort) -> Port {
    let target_port = match port.target {
        TargetPort::Number(number) => number.into(),
        // Each workload gives its own number.
        TargetPort::Name(_) => 0,
    };
    Port { service_port: port.port.into(), target_port, app_protocol: 0 }
}

fn balancing(service: &Service, every_endpoint_ready: bool) -> Option<LoadBalancing> {
    let none = || Scopes::of(&[]);
    let (mode, scopes) = match (service.resolution, service.distribution) {
        (Resolution::Passthrough, _) => (BalancingMode::Passthrough, none()),
        (Resolution::Endpoints, Distribution::Any) => (BalancingMode::Unspecified, none()),
        (Resolution::Endpoints, Distribution::Prefer(scopes)) => (BalancingMode::Failover, scopes),
        (Resolution::Endpoints, Distribution::Require(scopes)) => (BalancingMode::Strict, scopes),
    };
    let health = if every_endpoint_ready { HealthPolicy::AllowAll } else { HealthPolicy::OnlyHealthy };
    let balancing = LoadBalancing {
        routing_preference: scopes.iter().map(|one| detail::scope(one).into()).collect(),
        mode: mode.into(),
        health_policy: health.into(),
    };
    (balancing != LoadBalancing::default()).then_some(balancing)
}
