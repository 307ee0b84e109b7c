//! Reading workloads.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::address::{address, is_usable, port};
use super::detail;
use super::facts::{Fronting, WorkloadFacts};
use super::policy::ATTACHED;
use super::reading::{Flaw, Read, Reader, unknown};
use crate::istio::detail::{Extending as _, WorkloadDetail};
use crate::istio::workload::{
    Destination, GatewayAddress, NetworkMode, PortList, TunnelKind, TunnelProtocol, Workload as Message,
    WorkloadStatus, WorkloadType,
};
use crate::model::gateway::{Gateway, GatewayLocation};
use crate::model::identity::{SpiffeId, TrustDomain};
use crate::model::locality::Locality;
use crate::model::name::check_name;
use crate::model::workload::{Controller, ControllerKind, Membership, NamespacedName, Workload};
use crate::store::change::ServiceKey;

/// The cluster of a workload that names none.
const DEFAULT_CLUSTER: &str = "Kubernetes";

pub(super) fn read(message: &Message, reader: &mut Reader<'_>) -> Result<Read<WorkloadFacts>, Flaw> {
    let mut remarks = Vec::new();
    let cluster = some(&message.cluster_id).unwrap_or(DEFAULT_CLUSTER);
    let name = name(message, cluster, reader)?;
    let identity = identity(message, reader)?;
    let node = match some(&message.node) {
        Some(node) => {
            check_name(node).map_err(|why| Flaw::field("node", why))?;
            Some((reader.texts)(node))
        }
        None => None,
    };
    let host_network = match NetworkMode::try_from(message.network_mode) {
        Ok(mode) => mode == NetworkMode::HostNetwork,
        Err(_) => return Err(unknown("network_mode", message.network_mode)),
    };
    let membership = match TunnelProtocol::try_from(message.tunnel_protocol) {
        Ok(TunnelProtocol::None) => Membership::NotLabelled,
        Ok(TunnelProtocol::Hbone) => Membership::InMesh,
        Ok(TunnelProtocol::LegacyIstioMtls) => {
            let why = "LEGACY_ISTIO_MTLS is not supported: its peers must use HBONE";
            return Err(Flaw::field("tunnel_protocol", why));
        }
        Err(_) => return Err(unknown("tunnel_protocol", message.tunnel_protocol)),
    };
    let addresses = addresses(message, reader, &mut remarks)?;
    let fronting = message.services.iter().map(|(key, ports)| fronting(key, ports, reader, &mut remarks));
    let fronting = fronting.collect::<Result<Vec<_>, _>>()?;
    let policies: Vec<Arc<str>> = message.authorization_policies.iter().map(|name| (reader.texts)(name)).collect();
    let attached = (reader.texts)(ATTACHED);
    let controller = controller(message, &name, reader);
    let workload = Workload {
        controller,
        canonical_name: (reader.texts)(some(&message.canonical_name).unwrap_or(&message.name)),
        canonical_revision: (reader.texts)(some(&message.canonical_revision).unwrap_or("latest")),
        locality: locality(message, reader),
        node,
        addresses,
        host_network,
        labels: policies.iter().map(|policy| (Arc::clone(policy), Arc::clone(&attached))).collect(),
        ready: message.status == i32::from(WorkloadStatus::Healthy),
        waypoint: message.waypoint.as_ref().map(|waypoint| gateway("waypoint", waypoint)).transpose()?.map(Arc::new),
        native_tunnel: message.native_tunnel,
        membership,
        ..Workload::new(name, identity)
    };
    if message.application_tunnel.is_some_and(|tunnel| tunnel.protocol != i32::from(TunnelKind::None)) {
        let remark = "its application expects a header of the PROXY protocol before each connection (application_tunnel), which \
                      this version does not send: connections are delivered without it";
        remarks.push(remark.to_owned());
    }
    let weight = message.capacity.map_or(1, |capacity| capacity.value);
    let mut value = WorkloadFacts { workload: Arc::new(workload), fronting, weight, policies, exactly: None };
    let found = WorkloadDetail::find(&message.extensions).map_err(|error| Flaw::Undecodable(error.to_string()));
    match found.and_then(|found| found.map(|message| detail::workload(message, &value.workload, reader)).transpose()) {
        Ok(exactly) => value.exactly = exactly.map(Box::new),
        Err(flaw) => remarks.push(unused(&flaw)),
    }
    Ok(Read { value, remarks })
}

/// The remark on a detail that is left out.
pub(super) fn unused(flaw: &Flaw) -> String {
    format!("its details are ignored: {flaw}; decisions stay the same, and their reasons are less precise")
}

fn some(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

/// A pod of this cluster has its own name. Names of other workloads are not unique: for example, all addresses of one
/// `ServiceEntry` share a name. These workloads are named by their uid, which cannot be the name of a Kubernetes
/// object.
fn name(message: &Message, cluster: &str, reader: &mut Reader<'_>) -> Result<NamespacedName, Flaw> {
    check_name(&message.namespace).map_err(|why| Flaw::field("namespace", why))?;
    if message.uid.len() > LONGEST_UID || message.uid.chars().any(char::is_control) {
        return Err(Flaw::field("uid", format!("a uid has at most {LONGEST_UID} bytes and no control characters")));
    }
    let namespace = (reader.texts)(&message.namespace);
    let is_own_pod = cluster == reader.cluster
        && message.uid == format!("{cluster}//Pod/{}/{}", message.namespace, message.name)
        && check_name(&message.name).is_ok();
    Ok(NamespacedName::new(namespace, if is_own_pod { message.name.as_str() } else { message.uid.as_str() }))
}

/// Room for the names of an object, a namespace and a cluster, and the separators.
const LONGEST_UID: usize = 1024;

fn identity(message: &Message, reader: &mut Reader<'_>) -> Result<SpiffeId, Flaw> {
    let trust_domain = match some(&message.trust_domain) {
        Some(text) => text.parse().map_err(|error| Flaw::field("trust_domain", format!("{error}")))?,
        None => TrustDomain::default(),
    };
    let account = some(&message.service_account).unwrap_or("default");
    check_name(account).map_err(|why| Flaw::field("service_account", why))?;
    Ok(SpiffeId::new(trust_domain, (reader.texts)(&message.namespace), (reader.texts)(account)))
}

fn controller(message: &Message, name: &NamespacedName, reader: &mut Reader<'_>) -> Controller {
    // Only telemetry uses the kind. The closest match for an unknown kind is a pod of its own.
    let kind = match WorkloadType::try_from(message.workload_type) {
        Ok(WorkloadType::Deployment) => ControllerKind::Deployment,
        Ok(WorkloadType::Cronjob) => ControllerKind::CronJob,
        Ok(WorkloadType::Job) => ControllerKind::Job,
        Ok(WorkloadType::Pod) | Err(_) => ControllerKind::Pod,
    };
    Controller { kind, name: (reader.texts)(some(&message.workload_name).unwrap_or(&name.name)) }
}

fn locality(message: &Message, reader: &mut Reader<'_>) -> Locality {
    message.locality.as_ref().map(|locality| detail::locality(locality, reader)).unwrap_or_default()
}

fn addresses(message: &Message, reader: &Reader<'_>, remarks: &mut Vec<String>) -> Result<Vec<IpAddr>, Flaw> {
    let all = message.addresses.iter().map(|bytes| address(bytes).map_err(|why| Flaw::field("addresses", why)));
    let all = all.collect::<Result<Vec<_>, _>>()?;
    if message.network != reader.network {
        if !all.is_empty() {
            remarks.push(format!(
                "it is on network {:?}, and this node on {:?}: it can be reached through a gateway only, which this version \
                 does not support; connections to it are not made",
                message.network, reader.network
            ));
        }
        return Ok(Vec::new());
    }
    if all.is_empty() && !message.hostname.is_empty() {
        remarks.push(format!(
            "it has the host name {:?} and no address: host names are not resolved; connections to it are not made",
            message.hostname
        ));
    }
    let mut seen = HashSet::new();
    let mut usable = Vec::with_capacity(all.len());
    for address in all {
        if !is_usable(address) {
            remarks.push(format!(
                "addresses: {address} is a loopback, unspecified, multicast or broadcast address; the address is \
                 ignored"
            ));
        } else if seen.insert(address) {
            usable.push(address);
        }
    }
    Ok(usable)
}

fn fronting(key: &str, ports: &PortList, reader: &mut Reader<'_>, remarks: &mut Vec<String>) -> Result<Fronting, Flaw> {
    let no_key = || Flaw::field("services", format!("{key:?} is not NAMESPACE/HOSTNAME"));
    let (namespace, hostname) = key.split_once('/').ok_or_else(no_key)?;
    let service =
        ServiceKey { namespace: (reader.texts)(namespace), hostname: (reader.texts)(&hostname.to_ascii_lowercase()) };
    let mut list = Vec::with_capacity(ports.ports.len());
    for given in &ports.ports {
        match (port(given.service_port), port(given.target_port)) {
            (Ok(from), Ok(to)) => list.push((from, to)),
            // The service gives this port.
            (Ok(_), Err(_)) if given.target_port == 0 => {}
            (Err(why), _) | (_, Err(why)) => remarks.push(format!("services: {key}: {why}; the port is left out")),
        }
    }
    Ok(Fronting { service, ports: list })
}

/// A gateway or waypoint that a field names.
pub(super) fn gateway(field: &'static str, message: &GatewayAddress) -> Result<Gateway, Flaw> {
    let port = port(message.hbone_mtls_port).map_err(|why| Flaw::field(field, why))?;
    let place = match &message.destination {
        Some(Destination::Hostname(name)) => GatewayLocation::Hostname {
            namespace: name.namespace.as_str().into(),
            hostname: name.hostname.as_str().into(),
        },
        Some(Destination::Address(at)) => {
            let address = address(&at.address).map_err(|why| Flaw::field(field, why))?;
            GatewayLocation::Address { network: at.network.as_str().into(), address }
        }
        None => return Err(Flaw::field(field, "it names neither a host nor an address")),
    };
    Ok(Gateway { place, port })
}
