mod modes;
mod soundness;

use std::net::{IpAddr, Ipv4Addr};

use crate::model::identity::{SpiffeId, TrustDomain};
use crate::model::workload::{Membership, NamespacedName, Workload};

/// A pod of the mesh with these labels. All pods have the same address, which no test uses.
fn pod(namespace: &str, name: &str, labels: &[(&str, &str)]) -> Workload {
    Workload {
        addresses: vec![IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1))],
        labels: labels.iter().copied().collect(),
        ports: Vec::new(),
        node_addresses: Vec::new(),
        membership: Membership::InMesh,
        ..Workload::new(NamespacedName::new(namespace, name), SpiffeId::new(TrustDomain::default(), namespace, name))
    }
}
