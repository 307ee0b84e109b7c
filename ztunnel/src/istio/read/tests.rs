//! The result of reading each resource, and the resources that are refused.

use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::{any, prop, prop_assert, proptest};
use prost::Message as _;

use super::{Facts, Flaw, Read, Reader, address, policy};
use crate::istio::discovery::Resource;
use crate::istio::security::{self, Authorization, Clause, Match, Rule, StringMatch};
use crate::istio::standard::Any;
use crate::istio::workload::{
    Address, AddressType, ApplicationTunnel, BalancingScope, GatewayAddress, LoadBalancing, NetworkAddress, Port,
    PortList, Service, TunnelKind, Workload,
};
use crate::istio::write::{self, Writer};
use crate::model::locality::{Distribution, Scope, Scopes};
use crate::model::policy::Part;
use crate::model::service::{ServiceKind, Visibility};
use crate::model::workload::{ControllerKind, Membership};

const WRITER: Writer<'_> = Writer { cluster: "c1", network: "" };

fn read<T>(reading: impl FnOnce(&mut Reader<'_>) -> T) -> T {
    let mut texts = |text: &str| Arc::from(text);
    reading(&mut Reader { cluster: "c1", network: "", texts: &mut texts })
}

fn named(name: &str, content: Bytes) -> Resource {
    let resource = Some(Any { type_url: String::new(), value: content });
    Resource { name: name.into(), resource, ..Resource::default() }
}

/// A pod of this cluster, in the mesh.
fn pod() -> Workload {
    Workload {
        name: "web-1".into(),
        namespace: "demo".into(),
        uid: "c1//Pod/demo/web-1".into(),
        cluster_id: "c1".into(),
        addresses: vec![vec![10, 0, 0, 1].into()],
        tunnel_protocol: 1,
        ..Workload::default()
    }
}

fn service() -> Service {
    Service {
        name: "web".into(),
        namespace: "demo".into(),
        hostname: "web.demo.svc.cluster.local".into(),
        addresses: vec![NetworkAddress { address: vec![10, 96, 0, 1].into(), ..NetworkAddress::default() }],
        ports: vec![Port { service_port: 80, target_port: 8080, app_protocol: 0 }],
        ..Service::default()
    }
}

fn workload(message: Workload) -> Result<Read<super::WorkloadFacts>, Flaw> {
    let name = message.uid.clone();
    let content = Address { r#type: Some(AddressType::Workload(Box::new(message))) }.encode_to_vec();
    read(|reader| address(&named(&name, content.into()), reader)).map(|read| {
        read.map(|facts| match facts {
            Facts::Workload(workload) => workload,
            Facts::Service(_) => panic!("a service"),
        })
    })
}

fn read_service(message: Service) -> Result<Read<super::ServiceFacts>, Flaw> {
    let name = format!("{}/{}", message.namespace, message.hostname);
    let content = Address { r#type: Some(AddressType::Service(Box::new(message))) }.encode_to_vec();
    read(|reader| address(&named(&name, content.into()), reader)).map(|read| {
        read.map(|facts| match facts {
            Facts::Service(service) => service,
            Facts::Workload(_) => panic!("a workload"),
        })
    })
}

fn read_policy(message: &Authorization) -> Result<crate::model::policy::AuthorizationPolicy, Flaw> {
    let name = format!("{}/{}", message.namespace, message.name);
    read(|reader| policy(&named(&name, message.encode_to_vec().into()), reader)).map(|read| read.value)
}

fn field<T>(result: Result<T, Flaw>) -> &'static str {
    match result {
        Err(Flaw::Field { field, .. }) => field,
        Err(other) => panic!("{other}"),
        Ok(_) => "",
    }
}

#[test]
fn a_pod_has_istios_defaults_and_the_policies_that_it_names() {
    let message = Workload { authorization_policies: vec!["demo/a".into(), "istio-system/b".into()], ..pod() };
    let Read { value, remarks } = workload(message).unwrap();
    let workload = &value.workload;
    assert_eq!(remarks, [""; 0]);
    assert_eq!(workload.name.to_string(), "demo/web-1");
    assert_eq!(workload.identity.to_string(), "spiffe://cluster.local/ns/demo/sa/default");
    assert_eq!((workload.membership, workload.ready, value.weight), (Membership::InMesh, true, 1));
    assert_eq!((&*workload.canonical_name, &*workload.canonical_revision), ("web-1", "latest"));
    assert_eq!(workload.controller.kind, ControllerKind::Deployment, "the protocol's 0");
    assert_eq!(workload.labels.to_string(), "demo/a=attached,istio-system/b=attached");
}

#[test]
fn names_that_are_not_unique_are_replaced_by_uids() {
    let name = |message| workload(message).unwrap().value.workload.name.name.to_string();
    let uid = "c1/networking.istio.io/ServiceEntry/demo/entry/10.0.0.1";
    assert_eq!(name(Workload { uid: uid.into(), ..pod() }), uid);
    // A pod of another cluster may have the name of one of this cluster.
    let other = "c2//Pod/demo/web-1";
    assert_eq!(name(Workload { uid: other.into(), cluster_id: "c2".into(), ..pod() }), other);
    // As in istiod, an empty cluster means `Kubernetes`, which is not this cluster.
    assert_eq!(name(Workload { cluster_id: String::new(), ..pod() }), "c1//Pod/demo/web-1");
}

#[test]
fn what_could_open_something_is_refused() {
    assert_eq!(field(workload(Workload { addresses: vec![vec![1, 2, 3].into()], ..pod() })), "addresses");
    assert_eq!(field(workload(Workload { tunnel_protocol: 2, ..pod() })), "tunnel_protocol");
    assert_eq!(field(workload(Workload { tunnel_protocol: 9, ..pod() })), "tunnel_protocol");
    assert_eq!(field(workload(Workload { network_mode: 9, ..pod() })), "network_mode");
    assert_eq!(field(workload(Workload { namespace: "../x".into(), ..pod() })), "namespace");
    assert_eq!(field(workload(Workload { service_account: "a b".into(), ..pod() })), "service_account");
    assert_eq!(field(workload(Workload { trust_domain: "A".into(), ..pod() })), "trust_domain");
    assert_eq!(field(workload(Workload { node: "N".into(), ..pod() })), "node");
    assert_eq!(field(workload(Workload { uid: "a\nb".into(), ..pod() })), "uid");
    assert_eq!(field(workload(Workload { waypoint: Some(GatewayAddress::default()), ..pod() })), "waypoint");
    let services = [("no-slash".to_owned(), PortList::default())].into();
    assert_eq!(field(workload(Workload { services, ..pod() })), "services");
    let range = NetworkAddress { address: vec![10, 0, 0, 0].into(), length: Some(33), ..NetworkAddress::default() };
    assert_eq!(field(read_service(Service { addresses: vec![range], ..service() })), "addresses");
    assert_eq!(field(read_service(Service { hostname: "a/b".into(), ..service() })), "hostname");

    let refused = |name: &str, content: Bytes| read(|reader| address(&named(name, content), reader)).unwrap_err();
    assert!(matches!(refused("x", vec![0xff].into()), Flaw::Undecodable(_)));
    assert_eq!(refused("x", Bytes::new()), Flaw::UnknownKind);
    assert_eq!(read(|reader| address(&Resource::default(), reader)).unwrap_err(), Flaw::Empty);
    let content = Address { r#type: Some(AddressType::Workload(Box::new(pod()))) }.encode_to_vec();
    let other = Flaw::OtherName { resource: "x".into(), content: "c1//Pod/demo/web-1".into() };
    assert_eq!(refused("x", content.into()), other);
}

#[test]
fn what_is_wrong_otherwise_is_left_out_and_told() {
    let odd = Workload {
        addresses: vec![vec![127, 0, 0, 1].into(), vec![10, 0, 0, 1].into()],
        services: [(
            "demo/web".to_owned(),
            PortList {
                ports: vec![
                    Port { service_port: 70_000, ..Port::default() },
                    Port { service_port: 80, ..Port::default() },
                ],
            },
        )]
        .into(),
        workload_type: 9,
        status: 9,
        ..pod()
    };
    let Read { value, remarks } = workload(odd).unwrap();
    assert_eq!(value.workload.addresses, ["10.0.0.1".parse::<std::net::IpAddr>().unwrap()]);
    assert!(!value.workload.ready && value.fronting[0].ports.is_empty());
    assert!(remarks[0].contains("127.0.0.1") && remarks[1].contains("70000"), "{remarks:?}");

    let far = workload(Workload { network: "n2".into(), ..pod() }).unwrap();
    assert!(far.value.workload.addresses.is_empty() && far.remarks[0].contains("network \"n2\""), "{:?}", far.remarks);
    let tunnel = |kind| Some(ApplicationTunnel { protocol: i32::from(kind), port: 15_088 });
    let proxied = workload(Workload { application_tunnel: tunnel(TunnelKind::Proxy), ..pod() }).unwrap();
    assert!(proxied.remarks[0].contains("application_tunnel"), "{:?}", proxied.remarks);
    let plain = workload(Workload { application_tunnel: tunnel(TunnelKind::None), ..pod() }).unwrap();
    assert_eq!(plain.remarks, [""; 0]);
    let named = workload(Workload { addresses: Vec::new(), hostname: "x.example".into(), ..pod() }).unwrap();
    assert!(named.remarks[0].contains("x.example"), "{:?}", named.remarks);

    let odd = Service { visibility: 9, subject_alt_names: vec!["x".into()], ip_families: 9, ..service() };
    let Read { value, remarks } = read_service(odd).unwrap();
    assert_eq!(value.service.visibility, Visibility::Namespaces(vec!["demo".into()]));
    assert!(remarks.iter().any(|remark| remark.contains("visibility: 9")), "{remarks:?}");
    assert!(remarks.iter().any(|remark| remark.contains("subject_alt_names")), "{remarks:?}");
}

#[test]
fn a_service_is_of_kubernetes_by_its_host_name_and_prefers_what_is_near() {
    let kind = |message| read_service(message).unwrap().value.service.kind;
    assert_eq!(kind(service()), ServiceKind::Kubernetes);
    assert_eq!(kind(Service { hostname: "api.example".into(), ..service() }), ServiceKind::Entry);
    let prefer = |mode, scopes: &[BalancingScope]| {
        let routing_preference = scopes.iter().map(|scope| (*scope).into()).collect();
        let load_balancing = Some(LoadBalancing { routing_preference, mode, health_policy: 0 });
        read_service(Service { load_balancing, ..service() }).unwrap().value.service.distribution
    };
    let near = [BalancingScope::Network, BalancingScope::Region, BalancingScope::Zone];
    assert_eq!(prefer(2, &near), Distribution::SAME_ZONE);
    assert_eq!(prefer(1, &[BalancingScope::Node]), Distribution::ONLY_SAME_NODE);
    assert_eq!(prefer(1, &near), Distribution::Require(Scopes::of(&[Scope::Region, Scope::Zone])));
    assert_eq!(prefer(0, &near), Distribution::Any);
}

fn policy_of(m: Match) -> Authorization {
    let rules = vec![Rule { clauses: vec![Clause { matches: vec![m] }] }];
    Authorization { name: "p".into(), namespace: "demo".into(), rules, ..Authorization::default() }
}

/// If a value were left out, a DENY policy could deny nothing.
#[test]
fn a_policy_with_a_value_that_cannot_be_judged_is_refused_as_a_whole() {
    let unset = vec![StringMatch::default()];
    assert_eq!(field(read_policy(&policy_of(Match { principals: unset.clone(), ..Match::default() }))), "principals");
    assert_eq!(field(read_policy(&policy_of(Match { not_namespaces: unset, ..Match::default() }))), "not_namespaces");
    let wide = vec![security::Address { address: vec![10, 0, 0, 0].into(), length: 33 }];
    assert_eq!(field(read_policy(&policy_of(Match { source_ips: wide, ..Match::default() }))), "source_ips");
    let high = policy_of(Match { destination_ports: vec![65_536], ..Match::default() });
    assert_eq!(field(read_policy(&high)), "destination_ports");
    assert_eq!(field(read_policy(&Authorization { scope: 9, ..policy_of(Match::default()) })), "scope");
    assert_eq!(field(read_policy(&Authorization { action: 9, ..policy_of(Match::default()) })), "action");
}

#[test]
fn clauses_are_called_by_what_they_compare() {
    let part = |m| read_policy(&policy_of(m)).unwrap().rules[0].clauses[0].part;
    let range = vec![security::Address { address: vec![10, 0, 0, 0].into(), length: 8 }];
    assert_eq!(part(Match { source_ips: range.clone(), ..Match::default() }), Part::From);
    assert_eq!(part(Match { destination_ports: vec![80], ..Match::default() }), Part::To);
    assert_eq!(part(Match::default()), Part::When(0));
    let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 0].to_vec();
    let m = Match { source_ips: vec![security::Address { address: mapped.into(), length: 104 }], ..Match::default() };
    let read = read_policy(&policy_of(m)).unwrap();
    assert_eq!(read.rules[0].clauses[0].matches[0].source_ips, ["10.0.0.0/8".parse().unwrap()]);
}

/// A resource that was written by this program has the same content when it is read.
#[test]
fn what_is_written_is_read_again() {
    let ports = PortList { ports: vec![Port { service_port: 80, target_port: 8080, app_protocol: 0 }] };
    let facts = workload(Workload {
        services: [("demo/web.demo.svc.cluster.local".to_owned(), ports)].into(),
        authorization_policies: vec!["demo/a".into()],
        capacity: Some(crate::istio::standard::UInt32Value { value: 0 }),
        ..pod()
    });
    let facts = facts.unwrap().value;
    let again = read(|reader| address(&write::workload(&facts, WRITER), reader)).unwrap();
    assert_eq!(again, Read { value: Facts::Workload(facts), remarks: Vec::new() });
    let load_balancing = Some(LoadBalancing { routing_preference: vec![1, 2], mode: 2, health_policy: 1 });
    let facts = read_service(Service { load_balancing, ip_families: 2, ..service() }).unwrap().value;
    let again = read(|reader| address(&write::service(&facts, WRITER), reader)).unwrap();
    assert_eq!(again, Read { value: Facts::Service(facts), remarks: Vec::new() });
}

proptest! {
    /// No bytes cause a panic, and every result is within the bounds on which all other code relies.
    #[test]
    fn no_bytes_make_a_reader_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..64),
        at in any::<prop::sample::Index>(),
        value in any::<u8>(),
        kind in 0..3_usize,
    ) {
        let pod = Address { r#type: Some(AddressType::Workload(Box::new(pod()))) }.encode_to_vec();
        let web = Address { r#type: Some(AddressType::Service(Box::new(service()))) }.encode_to_vec();
        let rule = policy_of(Match { destination_ports: vec![80], ..Match::default() }).encode_to_vec();
        let names = ["c1//Pod/demo/web-1", "demo/web.demo.svc.cluster.local", "demo/p"];
        let mut damaged = [pod, web, rule][kind].clone();
        let place = at.index(damaged.len());
        damaged[place] = value;
        for content in [Bytes::from(bytes), damaged.into()] {
            let resource = named(names[kind], content);
            let read_address = read(|reader| address(&resource, reader));
            let read_policy = read(|reader| policy(&resource, reader));
            if let Ok(Read { value: Facts::Workload(facts), .. }) = read_address {
                prop_assert!(facts.workload.addresses.iter().all(|address| address::is_usable(*address)));
                prop_assert!(!facts.workload.identity.namespace.contains('/'));
            }
            prop_assert!(read_policy.is_err() || kind == 2);
        }
    }
}
