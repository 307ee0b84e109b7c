//! A reader of the resources makes the same decisions as a holder of the mesh. The reader uses Istio's messages only,
//! as Istio's ztunnel does.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use proptest::prelude::{ProptestConfig, prop, proptest};
use prost::Message as _;

use super::following::Following;
use crate::{
    control::manifests::tests::changes::{any_file, say},
    istio::{
        discovery::DeltaDiscoveryResponse,
        read::{Facts, Reader, address, policy, settings},
    },
    model::{identity::SpiffeId, local::LocalPod, workload::Workload},
    plane::catalogue::Kind,
    policy::{Connection, PodPolicies, Principal},
    store::{
        change::{Batch, Change, Setting},
        snapshot::Snapshot,
    },
};

/// The mesh that a node makes from the resources, and its workloads by UID.
fn read(following: &Following) -> (Snapshot, BTreeMap<String, Arc<Workload>>) {
    let mut texts = |text: &str| Arc::from(text);
    let mut reader = Reader { cluster: "Kubernetes", network: "", texts: &mut texts };
    let (mut changes, mut workloads) = (Vec::new(), BTreeMap::new());
    for kind in Kind::ALL {
        for (name, resource) in following.catalogue.shelf(kind).all() {
            let mut response = DeltaDiscoveryResponse::decode(resource.encoded.clone()).unwrap();
            let resource = response.resources.pop().unwrap();
            changes.push(match kind {
                Kind::Object => continue,
                Kind::Authorization => Change::Authorization(Arc::new(policy(&resource, &mut reader).unwrap().value)),
                Kind::Settings => {
                    Change::Setting(Setting::RegistryOnly(settings(&resource).unwrap().value.registry_only))
                }
                Kind::Address => match address(&resource, &mut reader).unwrap().value {
                    Facts::Workload(facts) => {
                        workloads.insert(name.to_string(), Arc::clone(&facts.workload));
                        Change::Workload(facts.workload)
                    }
                    Facts::Service(facts) => Change::Service(facts.service),
                },
            });
        }
    }
    (Snapshot::default().apply(Batch::of(changes)), workloads)
}

/// Clients of each kind: with and without an identity.
fn sources() -> Vec<Option<Principal>> {
    let identities = ["demo/sa/default", "evil/sa/default", "istio-system/sa/default"];
    let principal =
        |text: &str| Principal::new(format!("spiffe://cluster.local/ns/{text}").parse::<SpiffeId>().unwrap());
    identities.into_iter().map(|text| Some(principal(text))).chain([None]).collect()
}

fn is_allowed(mesh: &Snapshot, workload: &Workload, connection: &Connection) -> bool {
    PodPolicies::of(mesh, workload, &LocalPod::default()).judge(connection).is_ok()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn nodes_that_read_the_resources_decide_as_if_they_had_the_mesh(files in prop::collection::vec(any_file(), 1..4)) {
        let mut following = Following::new();
        for (name, text) in ["a", "b", "c"].into_iter().zip(files) {
            say(&mut following.joiner, name, &text);
        }
        following.follow();
        let (mesh, workloads) = read(&following);
        for workload in following.mesh.workloads() {
            let Some(written) = workloads.get(&format!("Kubernetes//Pod/{}", workload.name)) else { continue };
            let Some(ip) = workload.addresses.first() else { continue };
            for port in [80, 443, 800, 801, 802, 8080, 8081, 8082, 9090] {
                for source in sources() {
                    let destination = SocketAddr::new(*ip, port);
                    let connection = Connection { source, source_ip: "10.9.9.9".parse().unwrap(), destination };
                    assert_eq!(
                        is_allowed(&mesh, written, &connection),
                        is_allowed(&following.mesh, workload, &connection),
                        "{} {connection:?}\n{written:#?}\n{:#?}",
                        workload.name,
                        mesh.policies().authorization()
                    );
                }
            }
        }
    }
}
