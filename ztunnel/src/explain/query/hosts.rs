//! Host names as a pod's resolver would resolve them: services of Kubernetes, pods of headless services, hosts of
//! ServiceEntries.

use std::sync::Arc;

use super::meaning::{Meant, QueryError};
use crate::model::service::{Service, ServiceKind};
use crate::model::workload::{NamespacedName, Workload};
use crate::store::snapshot::Snapshot;

/// The suffixes of services' names in the cluster.
const SUFFIX: [&str; 2] = [".svc.cluster.local", ".svc"];

/// Resolves a host name for a client of a namespace, or of an unknown namespace.
pub(super) fn find<'a>(
    snapshot: &'a Snapshot,
    host: &str,
    namespace: Option<&str>,
    side: &'static str,
) -> Result<Meant<'a>, QueryError> {
    let full = SUFFIX.iter().find_map(|suffix| host.strip_suffix(suffix));
    let bare = full.unwrap_or(host);
    if let Some(meant) = of_cluster(snapshot, bare, namespace) {
        return Ok(meant);
    }
    if full.is_none() {
        if let Some(service) = of_entry(snapshot, host, namespace) {
            return Ok(Meant::Service(service));
        }
        if namespace.is_none() && !host.contains('.') {
            return anywhere(snapshot, host, side);
        }
    }
    let known = match (full.is_some(), host.split_once('.')) {
        (false, Some(_)) => ": give the address to which the client's resolver resolves it".to_owned(),
        _ => match namespace {
            Some(namespace) => format!(" for a client of namespace {namespace}"),
            None => String::new(),
        },
    };
    Err(QueryError::Host { side, host: host.to_owned(), known })
}

/// Resolves `SERVICE`, `SERVICE.NAMESPACE`, or `POD.SERVICE.NAMESPACE` of a headless service.
fn of_cluster<'a>(snapshot: &'a Snapshot, bare: &str, namespace: Option<&str>) -> Option<Meant<'a>> {
    let service = |namespace: &str, name: &str| snapshot.kubernetes_service(&NamespacedName::new(namespace, name));
    let labels: Vec<&str> = bare.split('.').collect();
    match (labels.as_slice(), namespace) {
        ([name], Some(namespace)) => service(namespace, name).map(Meant::Service),
        ([name, of], own) => {
            let named = service(of, name).map(Meant::Service);
            named.or_else(|| pod(snapshot, name, service(own?, of)?).map(Meant::Pod))
        }
        ([name, of, namespace], _) => pod(snapshot, name, service(namespace, of)?).map(Meant::Pod),
        _ => None,
    }
}

/// A pod behind a service without an address.
fn pod<'a>(snapshot: &'a Snapshot, name: &str, service: &Service) -> Option<&'a Arc<Workload>> {
    let name = NamespacedName::new(Arc::clone(&service.name.namespace), name);
    let is_behind = service.endpoints.iter().any(|endpoint| endpoint.workload.as_ref() == Some(&name));
    snapshot.workload(&name).filter(|_| is_behind && service.vips.is_empty())
}

/// The ServiceEntry with a host, or with a wildcard that matches it.
fn of_entry<'a>(snapshot: &'a Snapshot, host: &str, namespace: Option<&str>) -> Option<&'a Arc<Service>> {
    let wildcards = host.match_indices('.').map(|(at, _)| format!("*{}", host.get(at..).unwrap_or_default()));
    std::iter::once(host.to_owned()).chain(wildcards).find_map(|host| {
        let visible = |service: &&Arc<Service>| namespace.is_none_or(|namespace| service.is_visible_to(namespace));
        let named = snapshot.services_named(&host).iter();
        let mut named = named.filter(|service| service.kind == ServiceKind::Entry).filter(visible).peekable();
        let first = named.peek().copied();
        named.find(|service| namespace.is_some_and(|namespace| *service.name.namespace == *namespace)).or(first)
    })
}

/// The only service with this name in any namespace.
fn anywhere<'a>(snapshot: &'a Snapshot, host: &str, side: &'static str) -> Result<Meant<'a>, QueryError> {
    let is_it = |service: &&Arc<Service>| service.kind == ServiceKind::Kubernetes && *service.name.name == *host;
    let mut named = snapshot.services().filter(is_it);
    match (named.next(), named.next()) {
        (Some(service), None) => Ok(Meant::Service(service)),
        (Some(first), Some(other)) => Err(QueryError::AmbiguousHost {
            side,
            host: host.to_owned(),
            first: first.name.clone(),
            other: other.name.clone(),
        }),
        (None, _) => Err(QueryError::Host { side, host: host.to_owned(), known: String::new() }),
    }
}

/// The possible clients behind a host name: the pods behind its service, those of the mesh first.
pub(in crate::explain) fn behind<'a>(
    snapshot: &'a Snapshot,
    host: &str,
) -> Result<(NamespacedName, Vec<&'a Arc<Workload>>), QueryError> {
    let service = match find(snapshot, host, None, "from")? {
        Meant::Service(service) => service,
        Meant::Pod(pod) => return Ok((pod.name.clone(), vec![pod])),
        Meant::Address(_) => return Err(QueryError::From { text: host.to_owned() }),
    };
    let named = service.endpoints.iter().filter_map(|endpoint| endpoint.workload.as_ref());
    let mut pods: Vec<&Arc<Workload>> = named.filter_map(|name| snapshot.workload(name)).collect();
    pods.sort_by_key(|pod| (!snapshot.may_be_in_mesh(pod), &pod.name));
    pods.dedup_by(|one, other| one.name == other.name);
    if pods.is_empty() {
        let what = format!("{} {} has no pod that the mesh knows", service.kind.name(), service.name);
        return Err(QueryError::NoAddress { side: "from", what });
    }
    Ok((service.name.clone(), pods))
}
