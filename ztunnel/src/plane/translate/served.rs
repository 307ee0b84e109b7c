//! What Istio's messages can tell of.

use crate::model::{
    service::{Service, Visibility},
    workload::Workload,
};

/// Whether there is a message of a workload: whether there is anything to be reached.
pub(super) fn workload(workload: &Workload) -> bool {
    !workload.finished && !workload.addresses.is_empty()
}

/// Whether there is a message of a service. A service that no namespace knows is one that clients are not to find.
pub(super) fn service(service: &Service) -> bool {
    service.visibility != Visibility::Namespaces(Vec::new())
}
