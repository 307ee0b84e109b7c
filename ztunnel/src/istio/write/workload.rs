//! Writing workloads.

use super::{Writer, bytes, detail, gateway, resource};
use crate::istio::detail::Extending as _;
use crate::istio::discovery::{ADDRESS, Resource};
use crate::istio::read::{Fronting, WorkloadFacts};
use crate::istio::standard::UInt32Value;
use crate::istio::workload::{
    Address, AddressType, NetworkMode, Port, PortList, TunnelProtocol, Workload as Message, WorkloadStatus,
    WorkloadType,
};
use crate::model::workload::{ControllerKind, Membership, NamespacedName};

/// The uid of a pod.
#[must_use]
pub fn uid(cluster: &str, pod: &NamespacedName) -> String {
    format!("{cluster}//Pod/{}/{}", pod.namespace, pod.name)
}

/// The resource of a pod.
#[must_use]
pub fn workload(facts: &WorkloadFacts, writer: Writer<'_>) -> Resource {
    workload_as(uid(writer.cluster, &facts.workload.name), facts, writer)
}

/// The resource of a workload with another uid than a pod of its name.
#[must_use]
pub fn workload_as(uid: String, facts: &WorkloadFacts, writer: Writer<'_>) -> Resource {
    let workload = &facts.workload;
    let tunnel = match workload.membership {
        Membership::InMesh => TunnelProtocol::Hbone,
        Membership::NotLabelled | Membership::OptedOut | Membership::Refused(_) => TunnelProtocol::None,
    };
    let kind = match workload.controller.kind {
        ControllerKind::Deployment => WorkloadType::Deployment,
        ControllerKind::CronJob => WorkloadType::Cronjob,
        ControllerKind::Job => WorkloadType::Job,
        ControllerKind::Pod => WorkloadType::Pod,
    };
    let network_mode = if workload.host_network { NetworkMode::HostNetwork } else { NetworkMode::Standard };
    let message = Message {
        name: workload.name.name.to_string(),
        namespace: workload.name.namespace.to_string(),
        addresses: workload.addresses.iter().copied().map(bytes).collect(),
        network: writer.network.to_owned(),
        tunnel_protocol: tunnel.into(),
        trust_domain: workload.identity.trust_domain.to_string(),
        service_account: workload.identity.service_account.to_string(),
        waypoint: workload.waypoint.as_deref().map(gateway),
        node: workload.node.as_deref().unwrap_or_default().to_owned(),
        canonical_name: workload.canonical_name.to_string(),
        canonical_revision: workload.canonical_revision.to_string(),
        workload_type: kind.into(),
        workload_name: workload.controller.name.to_string(),
        native_tunnel: workload.native_tunnel,
        authorization_policies: facts.policies.iter().map(ToString::to_string).collect(),
        status: if workload.ready { WorkloadStatus::Healthy } else { WorkloadStatus::Unhealthy }.into(),
        cluster_id: writer.cluster.to_owned(),
        uid: uid.clone(),
        services: facts.fronting.iter().map(fronting).collect(),
        locality: detail::locality(&workload.locality),
        network_mode: network_mode.into(),
        extensions: facts.exactly.iter().map(|exactly| detail::workload(exactly, facts).extension()).collect(),
        capacity: (facts.weight != 1).then_some(UInt32Value { value: facts.weight }),
        ..Message::default()
    };
    resource(uid, ADDRESS, &Address { r#type: Some(AddressType::Workload(Box::new(message))) })
}

fn fronting(fronting: &Fronting) -> (String, PortList) {
    let port =
        |(from, to): &(u16, u16)| Port { service_port: (*from).into(), target_port: (*to).into(), app_protocol: 0 };
    let key = format!("{}/{}", fronting.service.namespace, fronting.service.hostname);
    (key, PortList { ports: fronting.ports.iter().map(port).collect() })
}
