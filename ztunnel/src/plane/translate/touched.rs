//! The names of the objects that a batch changes.

use std::collections::BTreeSet;

use crate::{
    model::workload::NamespacedName,
    store::{
        change::{Batch, Change, ServiceKey},
        snapshot::Snapshot,
    },
};

/// The objects that a batch changes, without their new state.
#[derive(Clone, Debug, Default)]
pub struct Touched {
    pub(super) workloads: BTreeSet<NamespacedName>,
    pub(super) services: BTreeSet<ServiceKey>,
    pub(super) authorization: BTreeSet<NamespacedName>,
    pub(super) authentication: BTreeSet<NamespacedName>,
    pub(super) is_whole: bool,
}

impl Touched {
    /// The objects that this batch changes.
    #[must_use]
    pub fn by(batch: &Batch) -> Self {
        let mut touched = Self { is_whole: batch.is_whole, ..Self::default() };
        for change in &batch.changes {
            match change {
                Change::Workload(workload) => drop(touched.workloads.insert(workload.name.clone())),
                Change::WorkloadGone(name) => drop(touched.workloads.insert(name.clone())),
                Change::Service(service) => drop(touched.services.insert(ServiceKey::of(service))),
                Change::ServiceGone(key) => drop(touched.services.insert(key.clone())),
                Change::Authorization(policy) => drop(touched.authorization.insert(policy.name.clone())),
                Change::AuthorizationGone(name) => drop(touched.authorization.insert(name.clone())),
                Change::Authentication(policy) => drop(touched.authentication.insert(policy.name.clone())),
                Change::AuthenticationGone(name) => drop(touched.authentication.insert(name.clone())),
                // No message depends on them.
                Change::Namespace(_) | Change::NamespaceGone(_) | Change::Node(_) | Change::NodeGone(_) => {}
                // The message of the settings is compared after every batch.
                Change::Setting(_) => {}
            }
        }
        touched
    }

    /// All objects of two states.
    pub(super) fn everything(before: &Snapshot, after: &Snapshot) -> Self {
        let both = [before, after];
        Self {
            workloads: both.iter().flat_map(|mesh| mesh.workloads()).map(|workload| workload.name.clone()).collect(),
            services: both.iter().flat_map(|mesh| mesh.services()).map(|service| ServiceKey::of(service)).collect(),
            authorization: both.iter().flat_map(|it| it.policies().authorization()).map(|it| it.name.clone()).collect(),
            authentication: both
                .iter()
                .flat_map(|mesh| mesh.policies().authentication())
                .map(|policy| policy.name.clone())
                .collect(),
            is_whole: true,
        }
    }
}
