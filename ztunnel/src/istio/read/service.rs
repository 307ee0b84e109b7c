//! Reading services.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::address::{address, is_usable, port, range};
use super::detail;
use super::facts::ServiceFacts;
use super::reading::{Flaw, Read, Reader};
use super::workload::{gateway, unused};
use crate::istio::detail::{Extending as _, ServiceDetail};
use crate::istio::workload::{
    BalancingMode, BalancingScope, HealthPolicy, IpFamilies, LoadBalancing, Service as Message, Visibility as Seen,
};
use crate::model::gateway::Gateway;
use crate::model::identity::SpiffeId;
use crate::model::locality::{Distribution, Scope, Scopes};
use crate::model::name::check_name;
use crate::model::service::{
    Addressing, Families, Resolution, Service, ServiceKind, ServicePort, TargetPort, Visibility,
};
use crate::model::workload::NamespacedName;

pub(super) fn read(message: &Message, reader: &mut Reader<'_>) -> Result<Read<ServiceFacts>, Flaw> {
    let mut remarks = Vec::new();
    check_name(&message.namespace).map_err(|why| Flaw::field("namespace", why))?;
    let hostname = message.hostname.as_str();
    if hostname.is_empty() || hostname.len() > LONGEST_HOSTNAME || hostname.chars().any(|c| c.is_control() || c == '/')
    {
        let why = format!("{:?} is not a host name of at most {LONGEST_HOSTNAME} bytes", excerpt(hostname));
        return Err(Flaw::field("hostname", why));
    }
    let name = if message.name.is_empty() { hostname } else { &message.name };
    let name = NamespacedName::new((reader.texts)(&message.namespace), (reader.texts)(name));
    let own = format!("{}.{}.svc.", name.name, name.namespace);
    let kind = if hostname.starts_with(&own) { ServiceKind::Kubernetes } else { ServiceKind::Entry };
    let (vips, ranges) = addresses(message, reader, &mut remarks)?;
    let balancing = message.load_balancing.clone().unwrap_or_default();
    let mode = BalancingMode::try_from(balancing.mode);
    let has_addresses = !(vips.is_empty() && ranges.is_empty());
    let service = Service {
        kind,
        addressing: if has_addresses { Addressing::Given } else { Addressing::Headless },
        vips,
        ranges,
        ports: ports(message, &mut remarks).into(),
        resolution: match mode {
            Ok(BalancingMode::Passthrough) => Resolution::Passthrough,
            _ => Resolution::Endpoints,
        },
        families: match IpFamilies::try_from(message.ip_families) {
            Ok(IpFamilies::Ipv4Only) => Families { v4: true, v6: false },
            Ok(IpFamilies::Ipv6Only) => Families { v4: false, v6: true },
            Ok(IpFamilies::Automatic | IpFamilies::Dual) | Err(_) => Families::default(),
        },
        distribution: distribution(&balancing, mode.ok(), &mut remarks),
        visibility: visibility(message, &name, &mut remarks),
        identities: identities(message, &mut remarks).into(),
        waypoint: waypoint(message)?.map(Arc::new),
        ..Service::new(name, (reader.texts)(&hostname.to_ascii_lowercase()))
    };
    let every_endpoint_ready = balancing.health_policy == i32::from(HealthPolicy::AllowAll);
    let mut value = ServiceFacts { service: Arc::new(service), every_endpoint_ready, exactly: None };
    let found = ServiceDetail::find(&message.extensions).map_err(|error| Flaw::Undecodable(error.to_string()));
    match found.and_then(|found| found.map(|message| detail::service(&message, &value.service, reader)).transpose()) {
        Ok(exactly) => value.exactly = exactly.map(Box::new),
        Err(flaw) => remarks.push(unused(&flaw)),
    }
    Ok(Read { value, remarks })
}

/// The longest name in DNS, and the `*.` of a wildcard.
const LONGEST_HOSTNAME: usize = 255;

fn excerpt(text: &str) -> String {
    text.chars().take(64).collect()
}

fn addresses(
    message: &Message,
    reader: &Reader<'_>,
    remarks: &mut Vec<String>,
) -> Result<(Vec<IpAddr>, Vec<IpNet>), Flaw> {
    let (mut vips, mut ranges) = (Vec::new(), Vec::new());
    let wrong = |why| Flaw::field("addresses", why);
    for given in &message.addresses {
        let single = address(&given.address).map_err(wrong)?;
        let whole = u32::try_from(given.address.len().saturating_mul(8)).unwrap_or(u32::MAX);
        let net = given.length.filter(|length| *length != whole).map(|length| range(&given.address, length));
        let net = net.transpose().map_err(wrong)?;
        match net {
            // On another network the address is that of another host.
            _ if given.network != reader.network => {}
            Some(net) if !ranges.contains(&net) => ranges.push(net),
            None if !is_usable(single) => remarks.push(format!(
                "addresses: {single} is a loopback, unspecified, multicast or broadcast address; the address is ignored"
            )),
            None if !vips.contains(&single) => vips.push(single),
            Some(_) | None => {}
        }
    }
    Ok((vips, ranges))
}

fn ports(message: &Message, remarks: &mut Vec<String>) -> Vec<ServicePort> {
    let mut ports: Vec<ServicePort> = Vec::with_capacity(message.ports.len());
    for given in &message.ports {
        let target = match given.target_port {
            0 => Ok(TargetPort::Name("".into())),
            number => port(number).map(TargetPort::Number),
        };
        match (port(given.service_port), target) {
            (Ok(number), Ok(target)) => ports.push(ServicePort { name: None, port: number, target }),
            (Err(why), _) | (_, Err(why)) => remarks.push(format!("ports: {why}; the port is left out")),
        }
    }
    ports
}

fn distribution(balancing: &LoadBalancing, mode: Option<BalancingMode>, remarks: &mut Vec<String>) -> Distribution {
    let mut scopes = Vec::new();
    for preference in &balancing.routing_preference {
        match BalancingScope::try_from(*preference) {
            Ok(BalancingScope::Region) => scopes.push(Scope::Region),
            Ok(BalancingScope::Zone) => scopes.push(Scope::Zone),
            Ok(BalancingScope::Subzone) => scopes.push(Scope::Subzone),
            Ok(BalancingScope::Node) => scopes.push(Scope::Node),
            // Endpoints on other networks are never used, and endpoints in other clusters have no address of their own
            // here.
            Ok(BalancingScope::Network | BalancingScope::Cluster) => {}
            Ok(BalancingScope::Unspecified) | Err(_) => remarks.push(format!(
                "load_balancing.routing_preference: {preference} is not a scope that this version knows; it is left out"
            )),
        }
    }
    match mode {
        Some(BalancingMode::Failover) => Distribution::Prefer(Scopes::of(&scopes)),
        Some(BalancingMode::Strict) => Distribution::Require(Scopes::of(&scopes)),
        Some(BalancingMode::Unspecified | BalancingMode::Passthrough) => Distribution::Any,
        None => {
            let mode = balancing.mode;
            remarks.push(format!(
                "load_balancing.mode: {mode} is not a mode that this version knows; no endpoint is preferred"
            ));
            Distribution::Any
        }
    }
}

/// An unknown value makes the service visible to its own namespace only: a pod that cannot see a service never reaches
/// its address in plaintext.
fn visibility(message: &Message, name: &NamespacedName, remarks: &mut Vec<String>) -> Visibility {
    let own = || Visibility::Namespaces(vec![Arc::clone(&name.namespace)]);
    match Seen::try_from(message.visibility) {
        Ok(Seen::Public) => Visibility::Everyone,
        Ok(Seen::Namespace) => own(),
        Err(_) => {
            let given = message.visibility;
            remarks.push(format!(
                "visibility: {given} is not a value that this version knows; only pods of namespace {} see the service",
                name.namespace
            ));
            own()
        }
    }
}

fn identities(message: &Message, remarks: &mut Vec<String>) -> Vec<SpiffeId> {
    let mut identities = Vec::with_capacity(message.subject_alt_names.len());
    for name in &message.subject_alt_names {
        match name.parse() {
            Ok(identity) => identities.push(identity),
            Err(error) => remarks.push(format!("subject_alt_names: {error}; the name is left out")),
        }
    }
    identities
}

/// The waypoint. If several waypoints share the connections, the first with a weight above 0.
fn waypoint(message: &Message) -> Result<Option<Gateway>, Flaw> {
    let some = message.weighted_waypoints.iter().find(|waypoint| waypoint.weight > 0);
    let weighted = some.map(|waypoint| {
        let destination = waypoint.destination.as_ref();
        destination.ok_or_else(|| Flaw::field("weighted_waypoints", "an entry has no destination"))
    });
    let waypoint = weighted.transpose()?.or(message.waypoint.as_ref());
    waypoint.map(|waypoint| gateway("waypoint", waypoint)).transpose()
}
