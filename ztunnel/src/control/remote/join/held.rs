//! Workloads and services from resources: by Istio's messages, and exactly if the control plane adds the details.

use std::sync::Arc;

use crate::istio::read::{ATTACHED, Exactly, Fronting, ServiceExactly, ServiceFacts, WorkloadFacts};
use crate::model::endpoint_ports::EndpointPorts;
use crate::model::service::{Endpoint, Health, Service, ServicePort, TargetPort};
use crate::model::workload::{Membership, Workload};
use crate::store::change::ServiceKey;

/// The description of the mesh in use. Both are complete: Istio's leads to the same decisions, but with less exact reasons.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::control::remote) enum View {
    /// Istio's messages alone.
    #[default]
    Istio,
    /// The mesh exactly as the control plane has it.
    Exact,
}

/// A workload.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Held {
    /// The exact workload if there are details, otherwise the workload of Istio's message.
    pub(super) workload: Arc<Workload>,
    pub(super) fronting: Box<[Fronting]>,
    pub(super) weight: u32,
    /// The policies that the workload names.
    pub(super) policies: Box<[Arc<str>]>,
    /// Whether the workload is healthy by Istio's message.
    is_healthy: bool,
    detail: Option<Box<Detail>>,
}

#[derive(Debug, PartialEq, Eq)]
struct Detail {
    /// `false`: the resource stands for an endpoint of a service.
    is_workload: bool,
    endpoints: Vec<(ServiceKey, Vec<Endpoint>)>,
    place: u32,
}

impl Held {
    pub(super) fn of(facts: WorkloadFacts) -> Self {
        let WorkloadFacts { workload, fronting, weight, policies, exactly } = facts;
        let is_healthy = workload.ready;
        let (workload, detail) = match exactly.map(|exactly| *exactly) {
            None => (workload, None),
            Some(Exactly { workload: exact, endpoints, place }) => {
                let is_workload = exact.is_some();
                (exact.map_or(workload, Arc::new), Some(Box::new(Detail { is_workload, endpoints, place })))
            }
        };
        let (fronting, policies) = (fronting.into(), policies.into());
        Self { workload, fronting, weight, policies, is_healthy, detail }
    }

    /// Whether the control plane has sent the details.
    pub(super) fn has_detail(&self) -> bool {
        self.detail.is_some()
    }

    /// The workload of Istio's message, with the policies that it names as labels.
    pub(super) fn in_istios_words(&self) -> Arc<Workload> {
        if !self.detail.as_ref().is_some_and(|detail| detail.is_workload) {
            return Arc::clone(&self.workload);
        }
        let attached: Arc<str> = ATTACHED.into();
        Arc::new(Workload {
            uid: "".into(),
            labels: self.policies.iter().map(|policy| (Arc::clone(policy), Arc::clone(&attached))).collect(),
            ports: Vec::new(),
            node_addresses: Vec::new(),
            ready: self.is_healthy,
            is_entry: false,
            leaving: false,
            membership: match self.workload.membership {
                Membership::InMesh => Membership::InMesh,
                Membership::NotLabelled | Membership::OptedOut | Membership::Refused(_) => Membership::NotLabelled,
            },
            ..Workload::clone(&self.workload)
        })
    }

    /// The exact workload; `None`: the resource is no workload.
    pub(super) fn exactly(&self) -> Option<&Arc<Workload>> {
        let is_workload = self.detail.as_ref().is_none_or(|detail| detail.is_workload);
        is_workload.then_some(&self.workload)
    }

    /// The services that may have this workload as an endpoint.
    pub(super) fn services(&self) -> impl Iterator<Item = &ServiceKey> {
        let fronting = self.fronting.iter().map(|fronting| &fronting.service);
        fronting.chain(self.detail.iter().flat_map(|detail| &detail.endpoints).map(|(service, _)| service))
    }

    /// The endpoints of this workload for a service, each with its position among several endpoints at one address.
    fn endpoints(&self, key: &ServiceKey) -> Vec<(u32, Endpoint)> {
        let detail = self.detail.as_deref();
        let place = detail.map_or(0, |detail| detail.place);
        let listed = detail.iter().flat_map(|detail| &detail.endpoints).find(|(service, _)| service == key);
        let endpoints = listed.map(|(_, endpoints)| endpoints.clone()).unwrap_or_else(|| {
            let fronting = self.fronting.iter().find(|fronting| fronting.service == *key);
            let is_workload = detail.is_none_or(|detail| detail.is_workload);
            let standard = |of| Exactly::standard(&self.workload, is_workload, of, self.is_healthy, self.weight);
            fronting.map(standard).unwrap_or_default()
        });
        endpoints.into_iter().map(|endpoint| (place, endpoint)).collect()
    }
}

/// The endpoints of a service by Istio's messages, from the workloads that name the service.
pub(super) fn in_istios_words<'a>(
    key: &ServiceKey,
    facts: &ServiceFacts,
    members: impl Iterator<Item = &'a Held>,
) -> Arc<[Endpoint]> {
    let service = &facts.service;
    let mut endpoints = Vec::new();
    for held in members {
        let fronting = held.fronting.iter().find(|fronting| fronting.service == *key);
        let own = match fronting {
            Some(fronting) => &*fronting.ports,
            // The workload is behind a service that is hidden from clients.
            None if held.has_detail() => continue,
            None => &[],
        };
        let ports: EndpointPorts =
            service.ports.iter().filter_map(|port| Some((port.port, target(port, own)?))).collect();
        let workload = &held.workload;
        let is_healthy = held.is_healthy || facts.every_endpoint_ready;
        let of_family = workload.addresses.iter().filter(|address| service.families.include(**address));
        endpoints.extend(of_family.map(|address| Endpoint {
            address: *address,
            ports: ports.clone(),
            health: if is_healthy { Health::Ready } else { Health::Unready },
            workload: Some(workload.name.clone()),
            weight: held.weight,
            node: workload.node.clone(),
            locality: workload.locality.clone(),
        }));
    }
    endpoints.sort_by_key(|endpoint| endpoint.address);
    endpoints.into()
}

/// An exact service, with its endpoints.
pub(super) fn exactly<'a>(
    key: &ServiceKey,
    exactly: &ServiceExactly,
    members: impl Iterator<Item = &'a Held>,
) -> Service {
    let mut endpoints: Vec<(u32, Endpoint)> = members.flat_map(|held| held.endpoints(key)).collect();
    endpoints.extend(exactly.endpoints.iter().cloned().map(|endpoint| (0, endpoint)));
    endpoints.sort_by_key(|(place, endpoint)| (endpoint.address, *place));
    let endpoints = endpoints.into_iter().map(|(_, endpoint)| endpoint).collect();
    Service { endpoints, ..Service::clone(&exactly.service) }
}

/// The workload's own port for a port of the service, or the service's target port.
fn target(port: &ServicePort, own: &[(u16, u16)]) -> Option<u16> {
    let given = own.iter().find(|(from, _)| *from == port.port).map(|(_, to)| *to);
    given.or(match port.target {
        TargetPort::Number(number) => Some(number),
        TargetPort::Name(_) => None,
    })
}
