//! The bytes of the messages are pinned. The golden files were written field by field from the messages' definitions,
//! not by prost.

use std::fmt::Debug;

use bytes::Bytes;
use prost::Message;

use super::certificate::{IMPERSONATED_IDENTITY, IstioCertificateRequest, IstioCertificateResponse};
use super::discovery::{
    ADDRESS, AUTHORIZATION, ControlPlane, DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource,
};
use super::security::{self, Authorization, Clause, Match, MatchType, Rule, ServiceAccountMatch, StringMatch};
use super::standard::{Any, Empty, Status, Struct, UInt32Value};
use super::workload::{
    Address, AddressType, AppProtocol, ApplicationTunnel, BalancingMode, BalancingScope, Destination, Extension,
    GatewayAddress, HealthPolicy, IpFamilies, LoadBalancing, Locality, NamespacedHostname, NetworkAddress, NetworkMode,
    Port, PortList, Service, TunnelKind, TunnelProtocol, Visibility, WeightedWaypoint, Workload, WorkloadStatus,
    WorkloadType,
};

/// The bytes of a golden file: hexadecimal, `#` begins a comment.
fn bytes(golden: &str) -> Bytes {
    let code = golden.lines().map(|line| line.split('#').next().unwrap_or_default());
    code.flat_map(str::split_whitespace).map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

/// Checks that a message is encoded as exactly these bytes, and decoded from them.
fn check<M: Message + Default + PartialEq + Debug>(golden: &str, message: &M) {
    let golden = bytes(golden);
    assert_eq!(M::decode(golden.clone()).unwrap(), *message);
    assert_eq!(Bytes::from(message.encode_to_vec()), golden);
}

fn waypoint() -> GatewayAddress {
    let hostname = NamespacedHostname { namespace: "demo".into(), hostname: "wp.demo.svc.cluster.local".into() };
    GatewayAddress { destination: Some(Destination::Hostname(hostname)), hbone_mtls_port: 15008 }
}

fn at(network: &str, address: [u8; 4]) -> NetworkAddress {
    NetworkAddress { network: network.into(), address: address.to_vec().into(), length: None }
}

fn gateway(network: &str, address: [u8; 4]) -> GatewayAddress {
    GatewayAddress { destination: Some(Destination::Address(at(network, address))), hbone_mtls_port: 15008 }
}

fn v6(first: u8, last: u8) -> Bytes {
    let mut address = [0; 16];
    (address[0], address[15]) = (first, last);
    address.to_vec().into()
}

#[test]
fn workloads_have_the_bytes_of_their_golden_file() {
    let port = Port { service_port: 80, target_port: 8080, app_protocol: AppProtocol::Http2.into() };
    let config = Any { type_url: "type.googleapis.com/a.B".into(), value: vec![8, 1].into() };
    let workload = Workload {
        name: "web-1".into(),
        namespace: "demo".into(),
        addresses: vec![vec![10, 0, 0, 1].into(), v6(0xfd, 1)],
        network: "n1".into(),
        tunnel_protocol: TunnelProtocol::Hbone.into(),
        trust_domain: "td.example".into(),
        service_account: "web".into(),
        waypoint: Some(waypoint()),
        node: "node-a".into(),
        canonical_name: "web".into(),
        canonical_revision: "v1".into(),
        workload_type: WorkloadType::Pod.into(),
        workload_name: "web-1".into(),
        native_tunnel: true,
        authorization_policies: vec!["demo/deny-all".into()],
        status: WorkloadStatus::Unhealthy.into(),
        cluster_id: "c1".into(),
        network_gateway: Some(gateway("n2", [192, 0, 2, 1])),
        uid: "c1//Pod/demo/web-1".into(),
        hostname: "web.example".into(),
        services: [("demo/web.demo.svc.cluster.local".into(), PortList { ports: vec![port] })].into(),
        application_tunnel: Some(ApplicationTunnel { protocol: TunnelKind::Proxy.into(), port: 15088 }),
        locality: Some(Locality { region: "r".into(), zone: "z".into(), subzone: "s".into() }),
        network_mode: NetworkMode::HostNetwork.into(),
        extensions: vec![Extension { name: "x".into(), config: Some(config) }],
        capacity: Some(UInt32Value { value: 3 }),
    };
    let address = Address { r#type: Some(AddressType::Workload(Box::new(workload))) };
    check(include_str!("golden/address-workload.txt"), &address);
}

#[test]
fn services_have_the_bytes_of_their_golden_file() {
    let preference = [BalancingScope::Network, BalancingScope::Region, BalancingScope::Zone];
    let service = Service {
        name: "web".into(),
        namespace: "demo".into(),
        hostname: "web.demo.svc.cluster.local".into(),
        addresses: vec![at("n1", [10, 96, 0, 1]), NetworkAddress { length: Some(16), ..at("", [10, 97, 0, 0]) }],
        ports: vec![Port { service_port: 80, target_port: 8080, app_protocol: 0 }],
        subject_alt_names: vec!["spiffe://td.example/ns/demo/sa/other".into()],
        waypoint: Some(waypoint()),
        load_balancing: Some(LoadBalancing {
            routing_preference: preference.map(i32::from).to_vec(),
            mode: BalancingMode::Failover.into(),
            health_policy: HealthPolicy::AllowAll.into(),
        }),
        ip_families: IpFamilies::Ipv4Only.into(),
        extensions: Vec::new(),
        canonical: true,
        ingress_use_waypoint: true,
        weighted_waypoints: vec![WeightedWaypoint { destination: Some(gateway("", [192, 0, 2, 2])), weight: 5 }],
        visibility: Visibility::Namespace.into(),
    };
    let address = Address { r#type: Some(AddressType::Service(Box::new(service))) };
    check(include_str!("golden/address-service.txt"), &address);
}

#[test]
fn policies_have_the_bytes_of_their_golden_file() {
    let text = |match_type| vec![StringMatch { match_type: Some(match_type) }];
    let range = |address: Bytes, length| vec![security::Address { address, length }];
    let account = |namespace: &str, name: &str| {
        vec![ServiceAccountMatch { namespace: namespace.into(), service_account: name.into() }]
    };
    let every_field = Match {
        namespaces: text(MatchType::Exact("a".into())),
        not_namespaces: text(MatchType::Prefix("b".into())),
        principals: text(MatchType::Suffix("/sa/c".into())),
        not_principals: text(MatchType::Presence(Empty {})),
        source_ips: range(vec![10, 0, 0, 0].into(), 8),
        not_source_ips: range(vec![10, 1, 0, 0].into(), 16),
        destination_ips: range(v6(0xfd, 0), 8),
        not_destination_ips: range(v6(0xfd, 9), 128),
        destination_ports: vec![80, 8443],
        not_destination_ports: vec![81],
        service_accounts: account("d", "e"),
        not_service_accounts: account("f", "g"),
        extensions: Vec::new(),
    };
    let clauses = vec![Clause { matches: vec![every_field] }, Clause::default()];
    let policy = Authorization {
        name: "strict".into(),
        namespace: "istio-system".into(),
        scope: security::Scope::WorkloadSelector.into(),
        action: security::Action::Deny.into(),
        rules: vec![Rule { clauses }],
        dry_run: true,
        extensions: Vec::new(),
    };
    check(include_str!("golden/authorization.txt"), &policy);
}

#[test]
fn delta_requests_and_responses_have_the_bytes_of_their_golden_files() {
    let id = "ztunnel~10.0.0.9~zt-1.istio-system~istio-system.svc.cluster.local".into();
    let first = DeltaDiscoveryRequest {
        node: Some(Node { id, metadata: Some(Struct::of_strings([("NODE_NAME", "node-a")])) }),
        type_url: ADDRESS.into(),
        resource_names_subscribe: vec!["*".into()],
        resource_names_unsubscribe: vec!["*".into()],
        initial_resource_versions: [("c1//Pod/demo/web-1".into(), "7".into())].into(),
        ..DeltaDiscoveryRequest::default()
    };
    check(include_str!("golden/delta-request-first.txt"), &first);
    let nack = DeltaDiscoveryRequest {
        type_url: AUTHORIZATION.into(),
        response_nonce: "n-1".into(),
        error_detail: Some(Status { code: 3, message: "demo/x: why".into() }),
        ..DeltaDiscoveryRequest::default()
    };
    check(include_str!("golden/delta-request-nack.txt"), &nack);
    let policy = Authorization { name: "p".into(), namespace: "demo".into(), ..Authorization::default() };
    let response = DeltaDiscoveryResponse {
        system_version_info: "v9".into(),
        resources: vec![Resource {
            version: "7".into(),
            resource: Some(Any { type_url: AUTHORIZATION.into(), value: policy.encode_to_vec().into() }),
            name: "demo/p".into(),
            aliases: vec!["other".into()],
        }],
        type_url: AUTHORIZATION.into(),
        nonce: "n-1".into(),
        removed_resources: vec!["demo/q".into()],
        control_plane: Some(ControlPlane { identifier: "istiod".into() }),
    };
    check(include_str!("golden/delta-response.txt"), &response);
}

#[test]
fn certificate_requests_and_responses_have_the_bytes_of_their_golden_files() {
    let identity = "spiffe://td.example/ns/demo/sa/web";
    let metadata = Struct::of_strings([(IMPERSONATED_IDENTITY, identity)]);
    assert_eq!(metadata.string(IMPERSONATED_IDENTITY), Some(identity));
    let request =
        IstioCertificateRequest { csr: "-----BEGIN".into(), validity_duration: 86_400, metadata: Some(metadata) };
    check(include_str!("golden/certificate-request.txt"), &request);
    let response = IstioCertificateResponse { cert_chain: vec!["leaf".into(), "roots".into()] };
    check(include_str!("golden/certificate-response.txt"), &response);
}

/// A newer control plane may send fields and kinds that this program does not know.
#[test]
fn unknown_fields_are_skipped_and_unknown_values_kept() {
    // 99: "new", then 1 workload with 5 tunnel_protocol: 9.
    let address = Address::decode(bytes("9a 06 03 6e 65 77  0a 02 28 09")).unwrap();
    let Some(AddressType::Workload(workload)) = address.r#type else { panic!("{address:?}") };
    assert_eq!(workload.tunnel_protocol, 9);
    assert!(TunnelProtocol::try_from(workload.tunnel_protocol).is_err());
    assert_eq!(Address::decode(bytes("1a 00")).unwrap().r#type, None);
}

#[test]
fn every_seed_of_the_fuzz_targets_holds() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    let seeds = |target: &str| -> Vec<(String, Vec<u8>)> {
        let files = std::fs::read_dir(folder.join(target)).unwrap().map(|file| file.unwrap());
        let mut seeds: Vec<_> =
            files.map(|file| (file.file_name().into_string().unwrap(), std::fs::read(file.path()).unwrap())).collect();
        assert!(seeds.len() >= 6, "{target} has {} seeds", seeds.len());
        seeds.sort();
        seeds
    };
    seeds("resources").iter().for_each(|(_, seed)| super::check::resources(seed));
    let mut reports = seeds("pod_report");
    reports.retain(|(_, seed)| super::check::pod_report(seed));
    let accepted: Vec<_> = reports.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(accepted, ["empty", "enrolled", "most", "refused", "without_uid"]);
}
