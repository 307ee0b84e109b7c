//! A daemon of this project has exactly the mesh of the control plane: the same objects, and so the same decisions for
//! the same reasons.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use proptest::prelude::{ProptestConfig, any, prop, proptest};
use prost::Message as _;

use super::following::Following;
use crate::{
    control::{
        manifests::tests::{
            changes::{any_file, say},
            routing::{MESH, mesh},
        },
        remote::tests::Node,
    },
    istio::{
        discovery::{ADDRESS, AUTHORIZATION, DeltaDiscoveryResponse, OBJECT, Resource, SETTINGS},
        settings::Settings,
        standard::Any,
        workload::{Address, AddressType},
    },
    model::{
        identity::SpiffeId,
        local::LocalPod,
        policy::UnreadPolicies,
        workload::{NamespacedName, Workload},
    },
    plane::{
        catalogue::{Catalogue, Kind},
        translate::{Touched, Translator, served},
    },
    policy::{Connection, PodPolicies, Principal, UnenforcedMatch, authentication},
    store::{
        change::{Batch, Gaps},
        snapshot::Snapshot,
    },
};

const CLUSTER: &str = "Kubernetes";

fn type_url(kind: Kind) -> &'static str {
    match kind {
        Kind::Address => ADDRESS,
        Kind::Authorization => AUTHORIZATION,
        Kind::Settings => SETTINGS,
        Kind::Object => OBJECT,
    }
}

/// The resources of a type, by name.
fn resources(catalogue: &Catalogue, kind: Kind) -> BTreeMap<String, Resource> {
    let all = catalogue.shelf(kind).all().map(|(name, resource)| {
        let mut response = DeltaDiscoveryResponse::decode(resource.encoded.clone()).unwrap();
        (name.to_string(), response.resources.pop().unwrap())
    });
    all.collect()
}

/// A node, and the last resources that were sent to it.
struct Followed {
    node: Node,
    sent: BTreeMap<(Kind, String), Resource>,
}

impl Followed {
    fn new() -> Self {
        Self { node: Node::new(CLUSTER), sent: BTreeMap::new() }
    }

    /// Sends the changes of these types in the order of a stream: policies first, removals of policies last.
    fn follow(&mut self, catalogue: &Catalogue, kinds: &[Kind]) {
        for kind in kinds {
            let now = resources(catalogue, *kind);
            let news = now.iter().filter(|(name, it)| self.sent.get(&(*kind, (*name).clone())) != Some(*it));
            let news: Vec<Resource> = news.map(|(_, it)| it.clone()).collect();
            let gone: Vec<String> = self
                .sent
                .keys()
                .filter(|(of, name)| of == kind && !now.contains_key(name))
                .map(|(_, name)| name.clone())
                .collect();
            let removed_resources = gone.clone();
            let response = DeltaDiscoveryResponse {
                type_url: type_url(*kind).into(),
                resources: news.clone(),
                removed_resources,
                ..DeltaDiscoveryResponse::default()
            };
            assert_eq!(self.node.take(response), None);
            gone.into_iter().for_each(|name| drop(self.sent.remove(&(*kind, name))));
            self.sent.extend(news.into_iter().map(|it| ((*kind, it.name.clone()), it)));
        }
        let problems = self.node.publish();
        assert!(!problems.iter().any(|problem| problem.contains("detail")), "{problems:?}");
    }
}

const ALL: [Kind; 4] = [Kind::Settings, Kind::Object, Kind::Authorization, Kind::Address];

/// Checks that the node has the mesh of the control plane.
#[track_caller]
fn assert_same(node: &Snapshot, plane: &Snapshot) {
    let workloads = |mesh: &Snapshot| -> BTreeMap<NamespacedName, Workload> {
        let served = mesh.workloads().filter(|workload| served::workload(workload));
        served.map(|workload| (workload.name.clone(), Workload::clone(workload))).collect()
    };
    assert_eq!(workloads(node), workloads(plane));
    assert_eq!(node.workloads().len(), workloads(plane).len(), "there is nothing else");
    let services = |mesh: &Snapshot| mesh.services().map(|it| (it.hostname.clone(), it.clone())).collect::<Vec<_>>();
    let sorted = |mut all: Vec<_>| {
        all.sort_by(|(one, a): &(Arc<str>, Arc<crate::model::service::Service>), (other, b)| {
            (&a.name.namespace, one).cmp(&(&b.name.namespace, other))
        });
        all
    };
    assert_eq!(sorted(services(node)), sorted(services(plane)));
    assert_eq!(node.policies().authorization(), plane.policies().authorization());
    assert_eq!(node.policies().authentication(), plane.policies().authentication());
    assert_eq!(node.policies().unread(), plane.policies().unread());
    assert_eq!(node.is_registry_only(), plane.is_registry_only());
}

/// Clients of each kind: with and without an identity.
fn sources() -> Vec<Option<Principal>> {
    let identities = ["demo/sa/default", "evil/sa/default", "istio-system/sa/default"];
    let principal =
        |text: &str| Principal::new(format!("spiffe://cluster.local/ns/{text}").parse::<SpiffeId>().unwrap());
    identities.into_iter().map(|text| Some(principal(text))).chain([None]).collect()
}

/// The decision about a connection, and all texts about it.
fn words(mesh: &Snapshot, workload: &Workload, connection: &Connection) -> String {
    let guard = PodPolicies::of(mesh, workload, &LocalPod::default());
    let mut text = match guard.judge(connection) {
        Ok(permit) => format!("{:?}", permit.basis()),
        Err(denied) => denied.told(connection).to_string(),
    };
    guard.unenforced(connection, |UnenforcedMatch { policy, action, dry_run, rule }| {
        text += &format!("; {policy} {action:?} {dry_run} {rule:?}");
    });
    text + &format!("; {:?}", authentication(mesh, workload, connection.destination.port()))
}

/// Checks that decisions and texts are the same. Returns the number of compared connections.
#[track_caller]
fn assert_same_words(node: &Snapshot, plane: &Snapshot) -> usize {
    let mut compared = 0;
    for workload in plane.workloads().filter(|workload| served::workload(workload)) {
        let own = node.workload(&workload.name).unwrap();
        for port in [80, 443, 801, 802, 8080, 8081, 9090] {
            for source in sources() {
                let destination = SocketAddr::new(workload.addresses[0], port);
                let connection = Connection { source, source_ip: "10.9.9.9".parse().unwrap(), destination };
                assert_eq!(words(node, own, &connection), words(plane, workload, &connection), "{}", workload.name);
                compared += 1;
            }
        }
    }
    compared
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn a_node_has_the_mesh_of_the_control_plane_with_every_reason(
        steps in prop::collection::vec((0usize..3, any_file(), any::<bool>()), 1..8)
    ) {
        let (mut following, mut followed) = (Following::new(), Followed::new());
        for (file, text, together) in steps {
            say(&mut following.joiner, ["a", "b", "c"][file], &text);
            if !together {
                following.follow();
                followed.follow(&following.catalogue, &ALL);
                assert_same(&followed.node.mesh, &following.mesh);
            }
        }
        following.follow();
        followed.follow(&following.catalogue, &ALL);
        assert_same(&followed.node.mesh, &following.mesh);
        assert_same_words(&followed.node.mesh, &following.mesh);
    }
}

/// The catalogue of a mesh.
fn catalogue(mesh: &Snapshot) -> Catalogue {
    let touched = Touched { is_whole: true, ..Touched::default() };
    let mut catalogue = Catalogue::default();
    catalogue.apply(Translator::new(CLUSTER).translate(&Snapshot::default(), mesh, touched), true);
    catalogue
}

const POLICIES: &str = "
    AuthorizationPolicy istio-system/everywhere | spec: {action: DENY, rules: [{from: [{source: {namespaces: [evil]}}]}]}
    AuthorizationPolicy demo/allow | spec: {rules: [{from: [{source: {ipBlocks: [10.9.9.0/24]}}], to: [{operation: {ports: ['80']}}]}, {when: [{key: source.principal, values: ['*/sa/admin']}]}]}
    AuthorizationPolicy demo/audit | spec: {action: AUDIT, rules: [{}]}
    AuthorizationPolicy demo/custom | spec: {selector: {matchLabels: {app: open}}, action: CUSTOM, provider: {name: x}, rules: [{to: [{operation: {ports: ['9090']}}]}]}
    AuthorizationPolicy demo/http | spec: {action: DENY, rules: [{to: [{operation: {methods: [GET], ports: ['8081']}}]}]}
    AuthorizationPolicy demo/web | spec: {targetRefs: [{kind: Service, group: '', name: web}], action: DENY, rules: [{from: [{source: {notPrincipals: ['*']}}]}]}
    PeerAuthentication demo/strict | spec: {mtls: {mode: STRICT}}
    PeerAuthentication demo/ports | spec: {selector: {matchLabels: {app: web}}, mtls: {mode: PERMISSIVE}, portLevelMtls: {8080: {mode: STRICT}}}
";

#[test]
fn every_object_of_a_mesh_arrives_as_it_is() {
    let before = mesh(&format!("{MESH}{POLICIES}"));
    let mut followed = Followed::new();
    followed.follow(&catalogue(&before), &ALL);
    assert_same(&followed.node.mesh, &before);
    assert!(assert_same_words(&followed.node.mesh, &before) > 100);
    // With Istio's messages only, the decisions are the same, but the reasons differ.
    let mut istio = Followed::new();
    istio.follow(&catalogue(&before), &[Kind::Authorization, Kind::Address]);
    let all = |mesh: &Snapshot| -> Vec<String> {
        let workload = mesh.workload(&NamespacedName::new("demo", "web-a")).unwrap();
        let connections = sources().into_iter().map(|source| Connection {
            source,
            source_ip: "10.9.9.9".parse().unwrap(),
            destination: SocketAddr::new(workload.addresses[0], 8080),
        });
        connections.map(|connection| words(mesh, workload, &connection)).collect()
    };
    let (exactly, istio) = (all(&followed.node.mesh), all(&istio.node.mesh));
    assert!(exactly[3].contains("PeerAuthentication demo/ports, portLevelMtls[8080]: STRICT"), "{exactly:?}");
    assert!(!istio[3].contains("PeerAuthentication demo/ports,") && istio[3].contains("DENY"), "{istio:?}");
}

/// Policies that could never be read are named by their source, and close the same workloads as in the control plane.
#[test]
fn policies_that_were_never_readable_are_told_with_their_source() {
    let unread =
        UnreadPolicies { namespaces: [("demo".into(), "policies.yaml".into())].into(), ..UnreadPolicies::default() };
    let gaps = Some(Gaps { partial: true, unread, ..Gaps::default() });
    let before = mesh(MESH).apply(Batch { gaps, ..Batch::of(Vec::new()) });
    let mut followed = Followed::new();
    followed.follow(&catalogue(&before), &ALL);
    assert_same(&followed.node.mesh, &before);
    let workload = before.workload(&NamespacedName::new("demo", "web-a")).unwrap();
    let destination = SocketAddr::new(workload.addresses[0], 80);
    let connection = Connection { source: sources().remove(0), source_ip: "10.9.9.9".parse().unwrap(), destination };
    let told = words(&followed.node.mesh, workload, &connection);
    assert!(told.starts_with("policies of policies.yaml are not known"), "{told}");
}

/// A daemon ignores details that it cannot read. It then decides by Istio's messages, and says so.
#[test]
fn details_that_cannot_be_used_cost_the_reasons_and_not_the_judgement() {
    let before = mesh(&format!("{MESH}{POLICIES}"));
    let served = catalogue(&before);
    let name = NamespacedName::new("demo", "web-a");
    let one = |change: &dyn Fn(Kind, &mut Resource)| -> (String, Vec<String>) {
        let mut node = Node::new(CLUSTER);
        for kind in ALL {
            let mut resources: Vec<Resource> = resources(&served, kind).into_values().collect();
            resources.iter_mut().for_each(|resource| change(kind, resource));
            let type_url = type_url(kind).into();
            node.take(DeltaDiscoveryResponse { type_url, resources, ..DeltaDiscoveryResponse::default() });
        }
        let problems = node.publish();
        let workload = node.mesh.workload(&name).unwrap();
        let destination = SocketAddr::new(workload.addresses[0], 8080);
        let connection = Connection { source: None, source_ip: "10.9.9.9".parse().unwrap(), destination };
        (words(&node.mesh, workload, &connection), problems)
    };
    let rewrite = |resource: &mut Resource, value: Vec<u8>| {
        let type_url = resource.resource.as_ref().unwrap().type_url.clone();
        resource.resource = Some(Any { type_url, value: value.into() });
    };
    let value = |resource: &Resource| resource.resource.as_ref().unwrap().value.clone();
    let (told, problems) = one(&|_, _| {});
    assert!(told.starts_with("PeerAuthentication demo/ports") && problems.is_empty(), "{told} {problems:?}");
    // The details have the format of a later version.
    let later = one(&|kind, resource| {
        if kind == Kind::Settings {
            let settings = Settings::decode(value(resource)).unwrap();
            rewrite(resource, Settings { detail: settings.detail + 1, ..settings }.encode_to_vec());
        }
    });
    // A policy that this version cannot read.
    let broken = one(&|kind, resource| {
        if kind == Kind::Object && resource.name == "AuthorizationPolicy/demo/audit" {
            rewrite(resource, vec![0xFF]);
        }
    });
    // A pod whose detail this version cannot read, and a pod without detail.
    let pod = |extension: &'static dyn Fn(&mut crate::istio::workload::Workload)| {
        one(&move |kind, resource| {
            if kind == Kind::Address && resource.name == format!("{CLUSTER}//Pod/demo/web-a") {
                let mut address = Address::decode(value(resource)).unwrap();
                let Some(AddressType::Workload(workload)) = &mut address.r#type else { panic!("{address:?}") };
                extension(workload);
                rewrite(resource, address.encode_to_vec());
            }
        })
    };
    let unreadable = pod(&|workload| workload.extensions[0].config.as_mut().unwrap().value = vec![0xFF].into());
    let missing = pod(&|workload| workload.extensions.clear());
    for (told, problems) in [later, broken, unreadable, missing] {
        assert!(told.starts_with("AuthorizationPolicy demo/converted_peer_authentication_ports (DENY)"), "{told}");
        assert!(
            problems.iter().any(|problem| problem.contains("details of the control plane are not used")),
            "{problems:?}"
        );
    }
}

/// A node changes from a control plane without details to one with details, and back, as when replicas of two versions
/// run side by side.
#[test]
fn a_node_goes_from_one_description_to_the_other() {
    let before = mesh(&format!("{MESH}{POLICIES}"));
    let served = catalogue(&before);
    let mut followed = Followed::new();
    followed.follow(&served, &[Kind::Authorization, Kind::Address]);
    assert!(followed.node.mesh.policies().authentication().is_empty());
    let in_istios_words = followed.node.mesh.policies().authorization().to_vec();
    followed.follow(&served, &ALL);
    assert_same(&followed.node.mesh, &before);
    // The settings of a control plane that sends no details.
    let settings = Any { type_url: SETTINGS.into(), value: Settings::default().encode_to_vec().into() };
    let settings = Resource { name: "mesh".into(), resource: Some(settings), ..Resource::default() };
    let response = DeltaDiscoveryResponse {
        type_url: SETTINGS.into(),
        resources: vec![settings],
        ..DeltaDiscoveryResponse::default()
    };
    assert_eq!((followed.node.take(response), followed.node.publish().len()), (None, 0));
    assert_eq!(followed.node.mesh.policies().authorization(), in_istios_words);
    assert!(followed.node.mesh.policies().authentication().is_empty());
    assert_eq!(followed.node.mesh.workload(&NamespacedName::new("demo", "web-a")).unwrap().uid.len(), 0);
}
