//! The mesh of a set of files as a whole, joined from nothing.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::parse::FileContent;
use crate::control::join::{Joiner, Voice};
use crate::model::identity::TrustDomain;
use crate::model::local::LocalPods;
use crate::model::origin::Origin;
use crate::model::policy::PolicySet;
use crate::model::problem::Problem;
use crate::model::service::Service;
use crate::model::workload::{NamespacedName, Workload};
use crate::store::change::{Change, Setting};

/// The mesh that a set of files describes.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Assembled {
    /// All pods, by name.
    pub workloads: Vec<Workload>,
    /// What the manifest of each pod says for the pod's own node.
    pub local: LocalPods,
    /// All services: those of Kubernetes by name, then those of service entries by name and host.
    pub services: Vec<Service>,
    /// Destinations that are nobody's are not to be reached (`outboundTrafficPolicy: REGISTRY_ONLY`).
    pub registry_only: bool,
    /// The namespaces that are described.
    pub namespaces: BTreeSet<Arc<str>>,
    /// The Nodes that are described.
    pub nodes: BTreeSet<Arc<str>>,
    /// Who may connect to whom; what could never be read is not in it.
    pub policies: PolicySet,
    /// The namespace whose policies are for the whole mesh.
    pub root_namespace: Arc<str>,
    /// What is wrong, by file and line.
    pub problems: Vec<Problem>,
    /// Where each object comes from, by kind and name.
    pub origins: HashMap<(&'static str, NamespacedName), Origin>,
}

/// Joins files: of two objects with one name that of the first file by name stays. Identities are of the given trust domain.
pub fn assemble<'a>(
    files: impl IntoIterator<Item = (&'a Arc<str>, &'a FileContent)>,
    trust_domain: &TrustDomain,
) -> Assembled {
    let mut joiner = Joiner::new(trust_domain.clone(), None);
    for (name, content) in files {
        joiner.say(&Voice::of(Arc::clone(name)), content.objects.clone(), content.problems.clone());
    }
    let mut mesh = Assembled { root_namespace: joiner.root_namespace(), ..Assembled::default() };
    for change in joiner.take().changes {
        match change {
            Change::Workload(workload) => mesh.workloads.push(Arc::unwrap_or_clone(workload)),
            Change::Service(service) => mesh.services.push(Arc::unwrap_or_clone(service)),
            Change::Authorization(policy) => mesh.policies.authorization.push(Arc::unwrap_or_clone(policy)),
            Change::Authentication(policy) => mesh.policies.authentication.push(Arc::unwrap_or_clone(policy)),
            Change::Namespace(name) => drop(mesh.namespaces.insert(name)),
            Change::Node(name) => drop(mesh.nodes.insert(name)),
            Change::Setting(Setting::RegistryOnly(registry_only)) => mesh.registry_only = registry_only,
            // Nothing was there before.
            Change::WorkloadGone(_)
            | Change::ServiceGone(_)
            | Change::AuthorizationGone(_)
            | Change::AuthenticationGone(_)
            | Change::NamespaceGone(_)
            | Change::NodeGone(_) => {}
        }
    }
    mesh.workloads.sort_by(|one, other| one.name.cmp(&other.name));
    let rank = |service: &Service| (service.kind, service.name.clone(), Arc::clone(&service.hostname));
    mesh.services.sort_by_cached_key(rank);
    mesh.local = joiner.local().clone();
    mesh.problems = joiner.problems();
    mesh.origins = joiner.origins();
    mesh
}
