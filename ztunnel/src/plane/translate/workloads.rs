//! Workloads as resources, and endpoints of services that are no workloads of the mesh.

use std::{collections::BTreeMap, sync::Arc};

use super::{encode, exact, served, services};
use crate::{
    istio::{
        read::{Exactly, Fronting, WorkloadFacts},
        write::{self, Writer},
    },
    model::{
        identity::{SpiffeId, TrustDomain},
        service::{Endpoint, Health, Service, ServiceKind},
        workload::Workload,
    },
    plane::catalogue::Resource,
    store::{change::ServiceKey, snapshot::Snapshot},
};

/// The resource of a pod. `policies`: the names of the policies that select it.
pub(super) fn resource(
    workload: &Arc<Workload>,
    mesh: &Snapshot,
    policies: Vec<Arc<str>>,
    writer: Writer<'_>,
) -> Resource {
    let behind = mesh.services_of(&workload.name).filter(|service| served::service(service));
    let mut fronting: Vec<Fronting> = behind.filter_map(|service| fronting(service, workload)).collect();
    fronting.sort_by(|one, other| one.service.cmp(&other.service));
    let aliases = workload.own_addresses().iter().map(|address| services::alias(writer.network, *address)).collect();
    let names = fronting.iter().map(|fronting| services::name(&fronting.service).into()).collect();
    let shown = with_status(workload, mesh);
    let exactly = exact::workload(workload, &fronting, shown.ready, mesh);
    let facts = WorkloadFacts { workload: shown, fronting, weight: 1, policies, exactly: Some(Box::new(exactly)) };
    encode::resource(write::workload(&facts, writer), aliases, names)
}

/// The message of a pod has one status for all services. If the endpoints of the services differ, the pod is ready as
/// long as one endpoint is ready.
fn with_status(workload: &Arc<Workload>, mesh: &Snapshot) -> Arc<Workload> {
    let mut endpoints =
        mesh.services_of(&workload.name).flat_map(|service| exact::endpoints(service, workload)).peekable();
    let is_listed = endpoints.peek().is_some();
    let is_ready = workload.ready && (!is_listed || endpoints.any(|endpoint| endpoint.health == Health::Ready));
    if is_ready == workload.ready {
        return Arc::clone(workload);
    }
    Arc::new(Workload { ready: is_ready, ..Workload::clone(workload) })
}

/// The ports of this workload to which a service leads; `None`: the workload is no endpoint of the service.
fn fronting(service: &Service, workload: &Workload) -> Option<Fronting> {
    let mut ports: BTreeMap<u16, u16> = BTreeMap::new();
    let mut is_behind = false;
    for endpoint in exact::endpoints(service, workload) {
        is_behind = true;
        for (from, to) in &endpoint.ports {
            ports.entry(from).or_insert(to);
        }
    }
    is_behind.then(|| Fronting { service: ServiceKey::of(service), ports: ports.into_iter().collect() })
}

/// The resources of endpoints that are no workloads of the mesh, by name. Connections to them use plaintext, so an
/// address of a pod is never among them.
pub(super) fn outside(service: &Service, mesh: &Snapshot, writer: Writer<'_>) -> BTreeMap<Arc<str>, Resource> {
    let mut resources = BTreeMap::new();
    for endpoint in service.endpoints.iter() {
        if endpoint.workload.is_some() || exact::is_of_pods(endpoint.address, mesh) {
            continue;
        }
        let (group, kind) = match service.kind {
            ServiceKind::Kubernetes => ("discovery.k8s.io", "EndpointSlice"),
            ServiceKind::Entry => ("networking.istio.io", "ServiceEntry"),
        };
        let (cluster, object, hostname, address) = (writer.cluster, &service.name, &service.hostname, endpoint.address);
        let mut uid = format!("{cluster}/{group}/{kind}/{object}/{hostname}/{address}");
        // A ServiceEntry may name an address twice, with different ports.
        let mut place = 0;
        for number in 2.. {
            if !resources.contains_key(uid.as_str()) {
                break;
            }
            place = number - 1;
            uid = format!("{cluster}/{group}/{kind}/{object}/{hostname}/{address}/{number}");
        }
        let resource = outside_resource(&uid, service, (endpoint, place), writer);
        resources.insert(Arc::from(uid), resource);
    }
    resources
}

fn outside_resource(uid: &str, service: &Service, (endpoint, place): (&Endpoint, u32), writer: Writer<'_>) -> Resource {
    let identity = SpiffeId::new(TrustDomain::default(), Arc::clone(&service.name.namespace), "default");
    let workload = Workload {
        addresses: vec![endpoint.address],
        node: endpoint.node.clone(),
        locality: endpoint.locality.clone(),
        ready: endpoint.health == Health::Ready,
        ..Workload::new(service.name.clone(), identity)
    };
    let key = ServiceKey::of(service);
    let name = services::name(&key).into();
    let ports = endpoint.ports.iter().collect();
    let fronting = Fronting { service: key.clone(), ports };
    let said = Exactly::standard(&workload, false, &fronting, workload.ready, endpoint.weight);
    let others = if said == [endpoint.clone()] { Vec::new() } else { vec![(key, vec![endpoint.clone()])] };
    let facts = WorkloadFacts {
        workload: Arc::new(workload),
        fronting: vec![fronting],
        weight: endpoint.weight,
        policies: Vec::new(),
        exactly: Some(Box::new(Exactly { workload: None, endpoints: others, place })),
    };
    let aliases = vec![services::alias(writer.network, endpoint.address)];
    encode::resource(write::workload_as(uid.to_owned(), &facts, writer), aliases, vec![name])
}
