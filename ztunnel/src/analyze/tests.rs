mod modes;
mod soundness;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use crate::model::identity::{SpiffeId, TrustDomain};
use crate::model::locality::Locality;
use crate::model::workload::{Controller, ControllerKind, Exclusions, Membership, NamespacedName, Workload};

/// A pod of the mesh with these labels. All of them have one address, which no test asks for.
fn pod(namespace: &str, name: &str, labels: &[(&str, &str)]) -> Workload {
    Workload {
        name: NamespacedName::new(namespace, name),
        uid: "".into(),
        identity: SpiffeId::new(TrustDomain::default(), namespace, name),
        controller: Controller { kind: ControllerKind::Pod, name: name.into() },
        canonical_name: name.into(),
        canonical_revision: "latest".into(),
        locality: Locality::default(),
        node: None,
        addresses: vec![IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1))],
        host_network: false,
        labels: Arc::new(labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()),
        netns: None,
        ports: Vec::new(),
        probe_ports: Vec::new(),
        node_addresses: Vec::new(),
        ready: true,
        finished: false,
        membership: Membership::InMesh,
        exclusions: Exclusions::default(),
    }
}
