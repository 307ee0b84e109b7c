//! The objects that have a message of Istio.

use crate::model::{
    service::{Service, Visibility},
    workload::Workload,
};

/// Whether a workload has a message. It has one if it can be reached.
pub(super) fn workload(workload: &Workload) -> bool {
    !workload.finished && !workload.addresses.is_empty()
}

/// Whether a service has a message. Clients must not find a service that is visible in no namespace.
pub(super) fn service(service: &Service) -> bool {
    service.visibility != Visibility::Namespaces(Vec::new())
}
