//! The mesh of a set of files as a whole, read without an earlier state.

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
    /// The facts in each pod's manifest that only the pod's own node needs.
    pub local: LocalPods,
    /// All services: those of Kubernetes by name, then those of service entries by name and host.
    pub services: Vec<Service>,
    /// Connections to unknown destinations are refused (`outboundTrafficPolicy: REGISTRY_ONLY`).
    pub registry_only: bool,
    /// The namespaces for which there is a Namespace object.
    pub namespaces: BTreeSet<Arc<str>>,
    /// The nodes for which there is a Node object.
    pub nodes: BTreeSet<Arc<str>>,
    /// The policies; those that could never be read are not in it.
    pub policies: PolicySet,
    /// The namespace whose policies apply to the whole mesh.
    pub root_namespace: Arc<str>,
    /// All problems, by file and line.
    pub problems: Vec<Problem>,
    /// Where each object comes from, by kind and name.
    pub origins: HashMap<(&'static str, NamespacedName), Origin>,
}

/// Joins files. Of two objects with one name, the one in the first file by name counts. Identities get the given trust
/// domain.
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
            // Nothing existed before, so nothing can be gone.
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
