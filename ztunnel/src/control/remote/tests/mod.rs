//! Tests of both clients with a scripted control plane: real gRPC over TLS, on loopback.

mod authority;
pub(crate) mod decisions;
mod on_demand;
mod outage;
pub(crate) mod plane;
mod raw;
pub(crate) mod streams;

use std::sync::Arc;

use super::join::Taken as Changed;
use super::plane::{ControlPlane, Keepalive, Token};
use super::resources::{REQUIRED, Resources};
use crate::istio::discovery::{ADDRESS, AUTHORIZATION, DeltaDiscoveryResponse, OBJECT, Resource, SETTINGS};
use crate::istio::security::{Authorization, Clause, Match, MatchType, Rule, StringMatch};
use crate::istio::settings::Settings;
use crate::istio::standard::{Any, Empty};
use crate::istio::workload::{
    Address, AddressType, Destination, GatewayAddress, NamespacedHostname, NetworkAddress, Port, PortList, Service,
    Workload,
};
use crate::model::addr::{OrigDst, PeerAddr};
use crate::model::flow::{Direction, Flow};
use crate::model::workload::NamespacedName;
use crate::route::decide;
use crate::store::change::{Batch, Change, Gaps, Setting};
use crate::store::snapshot::Snapshot;

pub(in crate::control::remote) fn control_plane() -> ControlPlane {
    ControlPlane {
        url: "https://127.0.0.1:1".parse().unwrap(),
        roots: "/nowhere".into(),
        token: Token::IfThere("/nowhere".into()),
        alternative_name: None,
        node: "node-a".into(),
        cluster: "c1".into(),
        network: "".into(),
        keepalive: Keepalive::default(),
    }
}

pub(super) fn resource(type_url: &str, name: &str, version: &str, message: &impl prost::Message) -> Resource {
    let resource = Some(Any { type_url: type_url.into(), value: message.encode_to_vec().into() });
    Resource { name: name.into(), version: version.into(), resource, ..Resource::default() }
}

/// A pod of the mesh behind `demo/web`, at this address.
pub(super) fn pod(name: &str, address: [u8; 4]) -> Workload {
    let ports = PortList { ports: vec![Port { service_port: 80, target_port: 8080, app_protocol: 0 }] };
    Workload {
        name: name.into(),
        namespace: "demo".into(),
        uid: format!("c1//Pod/demo/{name}"),
        cluster_id: "c1".into(),
        node: "node-a".into(),
        addresses: vec![address.to_vec().into()],
        tunnel_protocol: 1,
        services: [("demo/web.demo.svc.cluster.local".into(), ports)].into(),
        ..Workload::default()
    }
}

pub(super) fn workload(version: &str, workload: Workload) -> Resource {
    let uid = workload.uid.clone();
    resource(ADDRESS, &uid, version, &Address { r#type: Some(AddressType::Workload(Box::new(workload))) })
}

/// The service `demo/web` at 10.96.0.1.
pub(super) fn web() -> Service {
    Service {
        name: "web".into(),
        namespace: "demo".into(),
        hostname: "web.demo.svc.cluster.local".into(),
        addresses: vec![NetworkAddress { address: vec![10, 96, 0, 1].into(), ..NetworkAddress::default() }],
        ports: vec![Port { service_port: 80, ..Port::default() }],
        ..Service::default()
    }
}

pub(super) fn service(version: &str, service: Service) -> Resource {
    let name = format!("{}/{}", service.namespace, service.hostname);
    resource(ADDRESS, &name, version, &Address { r#type: Some(AddressType::Service(Box::new(service))) })
}

/// A policy that denies plaintext, as istiod writes STRICT.
pub(super) fn strict(name: &str, scope: i32) -> Authorization {
    let presence = StringMatch { match_type: Some(MatchType::Presence(Empty {})) };
    let matches = vec![Match { not_principals: vec![presence], ..Match::default() }];
    let rules = vec![Rule { clauses: vec![Clause { matches }] }];
    Authorization { name: name.into(), namespace: "demo".into(), scope, action: 1, rules, ..Authorization::default() }
}

pub(super) fn policy(version: &str, policy: &Authorization) -> Resource {
    resource(AUTHORIZATION, &format!("{}/{}", policy.namespace, policy.name), version, policy)
}

pub(super) fn response(
    type_url: &str,
    nonce: &str,
    resources: Vec<Resource>,
    removed: &[&str],
) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: type_url.into(),
        nonce: nonce.into(),
        resources,
        removed_resources: removed.iter().map(ToString::to_string).collect(),
        ..DeltaDiscoveryResponse::default()
    }
}

impl Resources {
    /// The batch that a daemon publishes for the changes.
    fn batch(&mut self) -> Batch {
        let Changed { changes, is_whole } = self.changes();
        let gaps = Some(Gaps { unread: self.unread_policies(), ..Gaps::default() });
        Batch { is_whole, gaps, ..Batch::of(changes) }
    }
}

/// A daemon of a node, and its mesh from resources.
pub(crate) struct Node {
    resources: Resources,
    pub(crate) mesh: Snapshot,
}

impl Node {
    /// A daemon without resources.
    pub(crate) fn new(cluster: &str) -> Self {
        let plane = ControlPlane { cluster: cluster.into(), ..control_plane() };
        Self { resources: Resources::new(Arc::new(plane)), mesh: Snapshot::default() }
    }

    /// Processes a response. Returns why it could not be used.
    pub(crate) fn take(&mut self, response: DeltaDiscoveryResponse) -> Option<String> {
        self.resources.take(response).answer.error_detail.map(|status| status.message)
    }

    /// Publishes the changes. Returns the problems.
    pub(crate) fn publish(&mut self) -> Vec<String> {
        self.mesh = self.mesh.apply(self.resources.batch());
        self.resources.problems().iter().map(ToString::to_string).collect()
    }
}

fn new() -> Resources {
    Resources::new(Arc::new(control_plane()))
}

/// The next state of the mesh, with the changes of a response.
fn next(snapshot: &Snapshot, resources: &mut Resources) -> Snapshot {
    snapshot.apply(resources.batch())
}

/// The destination of a connection of the pod `demo/PODNAME`: the candidates, or the refusal.
fn goes(snapshot: &Snapshot, pod: &str, dst: &str) -> String {
    let pod = NamespacedName::new("demo", pod);
    let own = snapshot.workload(&pod).and_then(|own| own.addresses.first().copied());
    let source = own.unwrap_or_else(|| "10.0.0.9".parse().unwrap());
    let flow = Flow {
        direction: Direction::Outbound,
        peer: PeerAddr::new((source, 40_000).into()),
        dst: OrigDst::new(dst.parse().unwrap()),
    };
    match decide::outbound(snapshot, &flow, &pod, 0) {
        Ok(outbound) => format!("{:?} {}", outbound.candidates[0].hop, outbound.candidates[0].target),
        Err(refusal) => format!("{}: {}", refusal.reason.label(), refusal.detail.unwrap_or_default()),
    }
}

#[test]
fn endpoints_follow_workloads_in_whatever_order_they_come() {
    let (mut resources, mut mesh) = (new(), Snapshot::default());
    resources.take(response(ADDRESS, "1", vec![workload("1", pod("a", [10, 0, 0, 1]))], &[]));
    mesh = next(&mesh, &mut resources);
    resources.take(response(ADDRESS, "2", vec![service("1", web()), workload("1", pod("b", [10, 0, 0, 2]))], &[]));
    mesh = next(&mesh, &mut resources);
    let endpoints = |mesh: &Snapshot| -> Vec<String> {
        let service = &mesh.services_named("web.demo.svc.cluster.local")[0];
        service.endpoints.iter().map(|endpoint| format!("{} {:?}", endpoint.address, endpoint.ports)).collect()
    };
    assert_eq!(endpoints(&mesh), ["10.0.0.1 {80: 8080}", "10.0.0.2 {80: 8080}"]);
    assert!(goes(&mesh, "a", "10.96.0.1:80").ends_with(":8080"));
    resources.take(response(ADDRESS, "3", Vec::new(), &["c1//Pod/demo/a", "never/was"]));
    mesh = next(&mesh, &mut resources);
    assert_eq!(endpoints(&mesh), ["10.0.0.2 {80: 8080}"]);
    // The same resources again are no change.
    resources.take(response(ADDRESS, "4", vec![service("2", web()), workload("2", pod("b", [10, 0, 0, 2]))], &[]));
    assert_eq!(resources.batch().changes, []);
    resources.take(response(ADDRESS, "5", Vec::new(), &["demo/web.demo.svc.cluster.local"]));
    assert_eq!(next(&mesh, &mut resources).counts().services, 0);
}

#[test]
fn the_good_resources_of_a_response_count_and_the_bad_ones_keep_their_last_good_state() {
    let (mut resources, mut mesh) = (new(), Snapshot::default());
    resources.take(response(ADDRESS, "1", vec![workload("1", pod("a", [10, 0, 0, 1]))], &[]));
    mesh = next(&mesh, &mut resources);
    let bad = |name| Workload { tunnel_protocol: 2, ..pod(name, [10, 0, 0, 9]) };
    let all = vec![workload("2", bad("a")), workload("1", bad("c")), workload("1", pod("b", [10, 0, 0, 2]))];
    let taken = resources.take(response(ADDRESS, "n", all, &[]));
    mesh = next(&mesh, &mut resources);
    let nack = taken.answer.error_detail.unwrap();
    assert_eq!((taken.answer.response_nonce.as_str(), nack.code), ("n", 3));
    assert!(
        nack.message.contains("c1//Pod/demo/a: tunnel_protocol") && nack.message.contains("c1//Pod/demo/c"),
        "{nack:?}"
    );
    assert_eq!(
        taken.in_force.resources.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(),
        ["c1//Pod/demo/c", "c1//Pod/demo/b"]
    );
    assert_eq!(mesh.workload_at("10.0.0.1".parse().unwrap()).unwrap().name.to_string(), "demo/a");
    assert_eq!(mesh.counts().workloads, 2);
    assert!(resources.has_unread());
    let problems: Vec<String> = resources.problems().iter().map(ToString::to_string).collect();
    assert!(problems[0].contains("demo/a") && problems[0].contains("last good state"), "{problems:?}");
    assert!(problems[1].contains("demo/c") && problems[1].contains("never been readable"), "{problems:?}");
    // For refused resources, the known version is the one in force.
    let versions = &resources.first_requests(None)[2].initial_resource_versions;
    assert_eq!(
        versions.iter().map(|(name, version)| format!("{name}={version}")).collect::<Vec<_>>(),
        ["c1//Pod/demo/a=1", "c1//Pod/demo/b=1"]
    );
    resources.take(response(ADDRESS, "n2", vec![workload("3", pod("c", [10, 0, 0, 3]))], &["c1//Pod/demo/a"]));
    assert!(!resources.has_unread() && resources.problems().is_empty());
}

#[test]
fn a_policy_that_cannot_be_read_closes_what_it_may_protect() {
    let unread = |message: Authorization| {
        let mut resources = new();
        assert!(
            resources
                .take(response(AUTHORIZATION, "1", vec![policy("1", &message)], &[]))
                .answer
                .error_detail
                .is_some()
        );
        let unread = resources.unread_policies();
        (unread.anywhere.is_some(), unread.namespaces.keys().map(ToString::to_string).collect::<Vec<_>>())
    };
    let bad = |scope| Authorization { action: 9, ..strict("p", scope) };
    assert_eq!(unread(bad(0)), (true, vec![]));
    assert_eq!(unread(bad(1)), (false, vec!["demo".to_owned()]));
    assert_eq!(unread(bad(2)), (false, vec![]), "workloads name it");
    assert_eq!(unread(Authorization { scope: 9, ..strict("p", 0) }), (true, vec![]));
}

#[test]
fn a_workload_that_names_a_missing_policy_is_waited_for_and_then_closed() {
    let (mut resources, mut mesh) = (new(), Snapshot::default());
    let named = Workload { authorization_policies: vec!["demo/p".into()], ..pod("a", [10, 0, 0, 1]) };
    resources.take(response(ADDRESS, "1", vec![workload("1", named)], &[]));
    assert!(resources.waits());
    mesh = next(&mesh, &mut resources);
    assert!(!resources.waits(), "told once");
    let denial = |mesh: &Snapshot, identity: Option<&str>| decisions::verdict(mesh, "demo/a", identity, "10.0.0.2", 80);
    let client = Some("spiffe://cluster.local/ns/demo/sa/client");
    assert!(denial(&mesh, client).unwrap_err().contains("demo/p"));
    assert!(resources.problems()[0].message.contains("names this policy"));
    resources.take(response(AUTHORIZATION, "2", vec![policy("1", &strict("p", 2))], &[]));
    mesh = next(&mesh, &mut resources);
    assert_eq!((denial(&mesh, client), denial(&mesh, None).is_err()), (Ok(()), true));
    // The policy is removed before the workload stops naming it.
    resources.take(response(AUTHORIZATION, "3", Vec::new(), &["demo/p"]));
    assert!(resources.waits());
    resources.take(response(ADDRESS, "4", vec![workload("2", pod("a", [10, 0, 0, 1]))], &[]));
    assert!(!resources.waits());
    mesh = next(&mesh, &mut resources);
    assert_eq!((denial(&mesh, None), resources.problems()), (Ok(()), vec![]));
}

#[test]
fn an_address_that_a_service_entry_lists_is_not_taken_from_a_pod() {
    let entry = |address, tunnel_protocol| {
        let uid = "c1/networking.istio.io/ServiceEntry/demo/entry/x".to_owned();
        workload("1", Workload { uid, tunnel_protocol, services: [].into(), ..pod("entry", address) })
    };
    for tunnel_protocol in [0, 1] {
        for pod_first in [true, false] {
            let (mut resources, mut mesh) = (new(), Snapshot::default());
            let mut all = vec![workload("1", pod("a", [10, 0, 0, 1])), entry([10, 0, 0, 1], tunnel_protocol)];
            if !pod_first {
                all.reverse();
            }
            for one in all {
                resources.take(response(ADDRESS, "1", vec![one], &[]));
                mesh = next(&mesh, &mut resources);
            }
            let owner = mesh.workload_at("10.0.0.1".parse().unwrap()).map(|owner| owner.name.to_string());
            assert_eq!(owner.as_deref(), Some("demo/a"), "{tunnel_protocol} {pod_first}");
            // When the pod is removed, an entry in the mesh is reached through HBONE, and an entry outside of the mesh has no
            // address.
            resources.take(response(ADDRESS, "2", Vec::new(), &["c1//Pod/demo/a"]));
            mesh = next(&mesh, &mut resources);
            let has_owner = mesh.workload_at("10.0.0.1".parse().unwrap()).is_some();
            assert_eq!(has_owner, tunnel_protocol == 1, "{tunnel_protocol} {pod_first}");
        }
    }
}

/// The policies of a waypoint, for example about HTTP requests, must not be bypassed.
#[test]
fn nobody_is_connected_past_a_waypoint() {
    let (mut resources, mut mesh) = (new(), Snapshot::default());
    let hostname = NamespacedHostname { namespace: "demo".into(), hostname: "wp.demo.svc.cluster.local".into() };
    let waypoint = Some(GatewayAddress { destination: Some(Destination::Hostname(hostname)), hbone_mtls_port: 15008 });
    let behind = Workload { waypoint: waypoint.clone(), ..pod("b", [10, 0, 0, 2]) };
    let all = vec![
        service("1", Service { waypoint, ..web() }),
        workload("1", behind),
        workload("1", pod("a", [10, 0, 0, 1])),
    ];
    resources.take(response(ADDRESS, "1", all, &[]));
    mesh = next(&mesh, &mut resources);
    for dst in ["10.96.0.1:80", "10.0.0.2:8080"] {
        let refused = goes(&mesh, "a", dst);
        assert!(refused.starts_with("no_healthy_upstream") && refused.contains("waypoint demo/wp.demo"), "{refused}");
    }
    assert!(goes(&mesh, "b", "10.0.0.1:80").starts_with("Tunnel"));
    assert!(resources.problems()[0].message.starts_with("2 workloads and services have the waypoint demo/wp.demo"));
}

#[test]
fn removal_of_everything_is_obeyed_and_told() {
    let (mut resources, mut mesh) = (new(), Snapshot::default());
    let all = vec![workload("1", pod("a", [10, 0, 0, 1])), service("1", web())];
    resources.take(response(ADDRESS, "1", all, &[]));
    mesh = next(&mesh, &mut resources);
    assert_eq!(mesh.counts().workloads, 1);
    resources.take(response(ADDRESS, "2", Vec::new(), &["c1//Pod/demo/a", "demo/web.demo.svc.cluster.local"]));
    mesh = next(&mesh, &mut resources);
    assert_eq!((mesh.counts().workloads, resources.emptied().len()), (0, 1));
    assert!(resources.problems()[0].message.contains("has removed all resources"));
    resources.take(response(ADDRESS, "3", vec![workload("1", pod("a", [10, 0, 0, 1]))], &[]));
    assert!(resources.problems().is_empty());
}

#[test]
fn a_type_that_nobody_asked_for_is_acknowledged_and_told() {
    let mut resources = new();
    let taken = resources.take(response("type.googleapis.com/x.Y", "n", vec![Resource::default()], &["z"]));
    assert_eq!((taken.kind, taken.answer.error_detail, taken.answer.response_nonce.as_str()), (None, None, "n"));
    assert!(resources.problems()[0].message.contains("x.Y"));
    assert_eq!(resources.batch().changes, []);
}

#[test]
fn requests_name_the_node_and_ask_for_everything() {
    let requests = new().first_requests(None);
    let types: Vec<&str> = requests.iter().map(|request| request.type_url.as_str()).collect();
    assert_eq!(types, [SETTINGS, OBJECT, ADDRESS, AUTHORIZATION]);
    let [_, _, addresses, _] = requests.try_into().unwrap();
    let node = addresses.node.unwrap();
    assert_eq!(node.id, "ztunnel~1.1.1.1~ztunnel-node-a.istio-system~istio-system.svc.cluster.local");
    assert_eq!(node.metadata.unwrap().string("NODE_NAME"), Some("node-a"));
    assert!(addresses.resource_names_subscribe.is_empty() && addresses.resource_names_unsubscribe.is_empty());
}

/// Namespaces and nodes appear with their first workload and disappear with their last one.
#[test]
fn namespaces_and_nodes_are_those_of_workloads() {
    let mut resources = new();
    let named = |changes: &[Change]| -> Vec<String> {
        let name = |change: &Change| match change {
            Change::Namespace(name) | Change::Node(name) => Some(format!("+{name}")),
            Change::NamespaceGone(name) | Change::NodeGone(name) => Some(format!("-{name}")),
            _ => None,
        };
        changes.iter().filter_map(name).collect()
    };
    let pods = || vec![workload("1", pod("a", [10, 0, 0, 1])), workload("1", pod("b", [10, 0, 0, 2]))];
    resources.take(response(ADDRESS, "1", pods(), &[]));
    assert_eq!(named(&resources.batch().changes), ["+demo", "+node-a"]);
    resources.take(response(ADDRESS, "2", Vec::new(), &["c1//Pod/demo/a"]));
    assert_eq!(named(&resources.batch().changes), [""; 0]);
    resources.take(response(ADDRESS, "3", Vec::new(), &["c1//Pod/demo/b"]));
    assert_eq!(named(&resources.batch().changes), ["-demo", "-node-a"]);
}

/// `REGISTRY_ONLY` of the control plane is in force; unreadable settings count as `REGISTRY_ONLY`.
#[test]
fn settings_of_the_mesh() {
    let mut resources = new();
    let of = |version: &str, name: &str, registry_only: bool| {
        resource(SETTINGS, name, version, &Settings { registry_only, ..Settings::default() })
    };
    let broken = |name: &str| Resource {
        resource: Some(Any { type_url: SETTINGS.into(), value: vec![0xFF].into() }),
        ..of("9", name, false)
    };
    let mut take = |resource: Vec<Resource>, removed: &[&str]| {
        let taken = resources.take(response(SETTINGS, "n", resource, removed));
        (resources.batch().changes, taken.answer.error_detail.is_some())
    };
    let set = |registry_only| vec![Change::Setting(Setting::RegistryOnly(registry_only))];
    assert_eq!(take(vec![of("1", "mesh", false)], &[]), (vec![], false));
    assert_eq!(take(vec![of("2", "mesh", true)], &[]), (set(true), false));
    // The last good state stays in force.
    assert_eq!(take(vec![broken("mesh")], &[]), (vec![], true));
    assert_eq!(take(vec![of("3", "mesh", false)], &[]), (set(false), false));
    assert_eq!(take(vec![of("4", "other", true)], &[]), (vec![], true));
    assert_eq!(take(vec![], &["other", "third"]), (vec![], false));
    assert_eq!(take(vec![of("5", "mesh", true)], &["mesh"]), ([set(true), set(false)].concat(), false));
    assert_eq!(take(vec![broken("mesh")], &[]), (set(true), true));
    assert_eq!(take(vec![], &["mesh"]), (set(false), false));
}

/// A control plane without settings counts as having answered.
#[test]
fn settings_are_not_waited_for() {
    let mut resources = new();
    assert_eq!(resources.take(response(SETTINGS, "n", Vec::new(), &[])).kind, Some(2));
    assert!(REQUIRED <= 2 && resources.batch().changes.is_empty() && resources.problems().is_empty());
}

/// Versions have no order: the last response counts, also if a control plane has returned to an older state.
#[test]
fn a_version_that_goes_back_is_obeyed() {
    let (mut resources, mut mesh) = (new(), Snapshot::default());
    for (version, address) in [("8", [10, 0, 0, 8]), ("9", [10, 0, 0, 9]), ("8", [10, 0, 0, 8])] {
        let system_version_info = version.to_owned();
        let said = response(ADDRESS, version, vec![workload(version, pod("a", address))], &[]);
        let taken = resources.take(DeltaDiscoveryResponse { system_version_info, ..said });
        assert_eq!(taken.answer.error_detail, None);
        mesh = next(&mesh, &mut resources);
        assert!(mesh.workload_at(address.into()).is_some() && mesh.counts().workloads == 1);
    }
    let [_, _, addresses, _] = resources.first_requests(None).try_into().unwrap();
    assert_eq!(addresses.initial_resource_versions, [("c1//Pod/demo/a".to_owned(), "8".to_owned())].into());
}
