//! The dump has the shape that Istio's tools read: decoders with the field names and types of `istioctl ztunnel-config` and of Kiali read
//! it, and its text stays the same.

use std::{collections::BTreeMap, sync::Arc};

use clap::Parser as _;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{ConfigInfo, Dump, Section, Sections};
use crate::{
    config::{Args, Command},
    control::manifests::{assemble, parse},
    model::{identity::TrustDomain, local::LocalPods, workload::NamespacedName},
    pods::describe::{ConnectionInfo, Description, PodInfo, PodState, PoliciesInfo},
    store::snapshot::Snapshot,
};

const MESH: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: demo, labels: {istio.io/dataplane-mode: ambient}}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: demo, name: web, labels: {app: web}}, spec: {nodeName: node-a, serviceAccountName: web, containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}, status: {podIPs: [{ip: 10.0.0.2}, {ip: 'fd00::2'}], conditions: [{type: Ready, status: 'True'}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: demo, name: client}, spec: {nodeName: node-a, serviceAccountName: client, containers: []}, status: {podIP: 10.0.0.1}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: demo, name: web}, spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80, targetPort: http}, {port: 81, targetPort: 9000}]}}
---
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {namespace: demo, name: allow}, spec: {selector: {matchLabels: {app: web}}, rules: [{from: [{source: {principals: ['cluster.local/ns/demo/sa/client'], notNamespaces: ['x*']}}, {source: {ipBlocks: [10.0.0.0/8], serviceAccounts: [demo/batch]}}], to: [{operation: {ports: ['8080']}}]}]}}
---
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {namespace: demo, name: log}, spec: {action: AUDIT, rules: [{}]}}
---
{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {namespace: demo, name: strict}, spec: {mtls: {mode: STRICT}}}
---
{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {namespace: demo, name: ports}, spec: {selector: {matchLabels: {app: web}}, mtls: {mode: PERMISSIVE}, portLevelMtls: {'8080': {mode: STRICT}}}}
";

fn config(words: &[&str]) -> Arc<ConfigInfo> {
    let start = ["ztunnel", "run", "--node", "node-a", "--mesh", "/mesh", "--workers", "2"];
    let Command::Run(args) = Args::try_parse_from(start.iter().chain(words)).unwrap().command else {
        panic!("not run")
    };
    Arc::new(ConfigInfo::of(&args))
}

fn snapshot() -> Arc<Snapshot> {
    let file: Arc<str> = "mesh.yaml".into();
    let assembled = assemble([(&file, &parse(&file, MESH).unwrap())], &TrustDomain::default());
    assert_eq!(assembled.problems, []);
    Arc::new(Snapshot::build(1, assembled.workloads, assembled.services, Vec::new()).with_policies(assembled.policies))
}

fn connection(direction: &'static str, protocol: &'static str, identity: Option<&str>) -> ConnectionInfo {
    let (src, dst, actual) = match direction {
        "outbound" => ("10.0.0.1:4000", "10.96.0.1:80", "10.0.0.2:8080"),
        _ => ("10.0.0.1:4000", "10.0.0.2:8080", "10.0.0.2:8080"),
    };
    ConnectionInfo {
        direction: direction.into(),
        src: src.to_owned(),
        dst: dst.to_owned(),
        actual_dst: Some(actual.to_owned()),
        protocol: protocol.into(),
        service: None,
        peer_identity: identity.map(str::to_owned),
        peer: None,
        bytes_received: 1,
        bytes_sent: 2,
        duration_ms: 3,
        allowed_by: None,
    }
}

fn description() -> Description {
    let pod = |name: &str, connections| PodInfo {
        connections,
        ..PodInfo::new(&NamespacedName::new("demo", name), PodState::Enrolled)
    };
    let client = Some("spiffe://cluster.local/ns/demo/sa/client");
    Description {
        version: "0.1.0",
        node: "node-a".to_owned(),
        policies: PoliciesInfo::of(snapshot()),
        pods: vec![
            pod("client", vec![connection("outbound", "HBONE", None)]),
            pod("web", vec![connection("inbound", "HBONE", client), connection("inbound", "TCP", None)]),
            PodInfo {
                reason: Some("hostNetwork".to_owned()),
                ..PodInfo::new(&NamespacedName::new("demo", "gone"), PodState::Refused)
            },
        ],
        ..Description::default()
    }
}

fn dump_of(query: &str) -> Value {
    let sections = Sections::read(query).unwrap();
    serde_json::to_value(Dump::new(description(), config(&[]), &LocalPods::default(), sections)).unwrap()
}

/// Reads a value as Go's decoder does: with these types, and without the fields that it does not know.
fn read<T: DeserializeOwned>(dump: &Value, key: &str) -> T {
    serde_json::from_value(dump[key].clone()).unwrap_or_else(|error| panic!("{key}: {error}: {:#}", dump[key]))
}

/// The types of `istioctl` and Kiali for workloads. A field that is missing has Go's empty value, which no test here expects.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Workload {
    uid: String,
    workload_ips: Vec<String>,
    waypoint: Option<Waypoint>,
    protocol: String,
    name: String,
    namespace: String,
    service_account: String,
    workload_name: String,
    workload_type: String,
    canonical_name: String,
    canonical_revision: String,
    cluster_id: String,
    trust_domain: String,
    locality: BTreeMap<String, String>,
    node: String,
    network: String,
    network_mode: String,
    status: String,
    hostname: String,
    capacity: u32,
    #[serde(default)]
    authorization_policies: Vec<String>,
    #[serde(default)]
    services: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(dead_code, reason = "the types are what counts")]
struct Waypoint {
    destination: String,
    hbone_mtls_port: i64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Service {
    name: String,
    namespace: String,
    hostname: String,
    vips: Vec<String>,
    ports: BTreeMap<String, i64>,
    endpoints: BTreeMap<String, Endpoint>,
    subject_alt_names: Vec<String>,
    ip_families: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    workload_uid: String,
    service: String,
    port: BTreeMap<u16, u16>,
    status: String,
}

#[derive(Debug, Deserialize)]
struct Policy {
    name: String,
    namespace: String,
    scope: String,
    action: String,
    rules: Vec<Vec<Vec<BTreeMap<String, Value>>>>,
}

#[derive(Debug, Deserialize)]
struct State {
    state: String,
    info: BTreeMap<String, String>,
    connections: Connections,
}

#[derive(Debug, Deserialize)]
struct Connections {
    inbound: Vec<Connection>,
    outbound: Vec<Connection>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Connection {
    src: String,
    original_dst: Option<String>,
    actual_dst: String,
    protocol: String,
}

#[test]
fn istios_tools_read_workloads() {
    let workloads: Vec<Workload> = read(&dump_of("only=workloads"), "workloads");
    let [client, web] = &workloads[..] else { panic!("{workloads:?}") };
    assert_eq!(web.uid, "Kubernetes//Pod/demo/web");
    assert_eq!(web.workload_ips, ["10.0.0.2", "fd00::2"]);
    assert_eq!((&*web.protocol, &*web.status, &*web.network_mode), ("HBONE", "Healthy", "Standard"));
    assert_eq!((&*web.name, &*web.namespace, &*web.service_account, &*web.node), ("web", "demo", "web", "node-a"));
    assert_eq!((&*web.workload_name, &*web.workload_type, &*web.cluster_id), ("web", "pod", "Kubernetes"));
    assert_eq!(
        (&*web.trust_domain, &*web.canonical_name, &*web.canonical_revision),
        ("cluster.local", "web", "latest")
    );
    assert_eq!((&*web.network, &*web.hostname, web.capacity, web.locality.len()), ("", "", 1, 3));
    assert_eq!(web.authorization_policies, ["demo/allow"]);
    assert_eq!(web.services, ["demo/web.demo.svc.cluster.local"]);
    assert!(web.waypoint.is_none() && client.services.is_empty() && client.authorization_policies.is_empty());
}

#[test]
fn istios_tools_read_services_and_find_their_endpoints() {
    let dump = dump_of("only=services,workloads");
    let services: Vec<Service> = read(&dump, "services");
    let [web] = &services[..] else { panic!("{services:?}") };
    assert_eq!((&*web.name, &*web.namespace, &*web.hostname), ("web", "demo", "web.demo.svc.cluster.local"));
    assert_eq!((&web.vips[..], &*web.ip_families), (&["/10.96.0.1".to_owned()][..], "IPv4"));
    assert_eq!(web.ports, [("80".to_owned(), 0), ("81".to_owned(), 9000)].into());
    assert!(web.subject_alt_names.is_empty());
    let workloads: Vec<Workload> = read(&dump, "workloads");
    let (key, endpoint) = web.endpoints.first_key_value().unwrap();
    assert_eq!(*key, endpoint.workload_uid);
    assert!(workloads.iter().any(|workload| workload.uid == endpoint.workload_uid));
    assert_eq!((&*endpoint.service, &*endpoint.status), ("demo/web.demo.svc.cluster.local", "Healthy"));
    assert_eq!(endpoint.port, [(80, 8080), (81, 9000)].into());
}

#[test]
fn istios_tools_read_policies() {
    let dump = dump_of("only=policies");
    let policies: Vec<Policy> = read(&dump, "policies");
    let listed: Vec<String> = policies
        .iter()
        .map(|policy| format!("{}/{} {} {}", policy.namespace, policy.name, policy.action, policy.scope))
        .collect();
    assert_eq!(
        listed,
        [
            "demo/allow Allow WorkloadSelector",
            "demo/converted_peer_authentication_ports Deny WorkloadSelector",
            "demo/converted_peer_authentication_strict Deny Namespace",
            "demo/log Audit Namespace",
        ]
    );
    // Rules have clauses, of which each must match; clauses have matches, of which one must match.
    assert_eq!(policies[0].rules.iter().map(Vec::len).collect::<Vec<_>>(), [2]);
    assert_eq!(
        dump["policies"][0]["rules"],
        json!([[
            [
                {"principals": [{"Exact": "cluster.local/ns/demo/sa/client"}], "notNamespaces": [{"Prefix": "x"}]},
                {"sourceIps": ["10.0.0.0/8"], "serviceAccounts": [{"namespace": "demo", "serviceAccount": "batch"}]},
            ],
            [{"destinationPorts": [8080]}],
        ]])
    );
    let anonymous = json!([{"notPrincipals": [{"Presence": {}}]}]);
    assert_eq!(dump["policies"][1]["rules"], json!([[anonymous, [{"destinationPorts": [8080]}]]]));
    assert_eq!(dump["policies"][2]["rules"], json!([[anonymous]]));
    assert_eq!(dump["policies"][3]["rules"], json!([[]]));
}

#[test]
fn istios_tools_read_the_connections_of_each_pod() {
    let states: BTreeMap<String, State> = read(&dump_of("only=workloadState"), "workloadState");
    assert_eq!(states.len(), 3);
    let client = &states["Kubernetes//Pod/demo/client"];
    assert_eq!((&*client.state, &*client.info["name"], &*client.info["serviceAccount"]), ("Up", "client", "client"));
    let [out] = &client.connections.outbound[..] else { panic!("{client:?}") };
    assert_eq!((&*out.src, out.original_dst.as_deref()), ("10.0.0.1:4000", Some("10.96.0.1:80")));
    assert_eq!((&*out.actual_dst, &*out.protocol), ("10.0.0.2:15008", "HBONE"));
    let web = &states["Kubernetes//Pod/demo/web"];
    let [carried, plain] = &web.connections.inbound[..] else { panic!("{web:?}") };
    assert_eq!((&*carried.actual_dst, &*carried.protocol, &carried.original_dst), ("10.0.0.2:8080", "HBONE", &None));
    assert_eq!(&*plain.protocol, "TCP");
    assert_eq!(states["Kubernetes//Pod/demo/gone"].state, "Pending");
}

#[test]
fn settings_have_the_types_that_kiali_expects() {
    let text = |words: &[&str]| serde_json::to_value(&*config(words)).unwrap();
    let local = text(&["--cert-ttl", "2h"]);
    assert_eq!(
        local,
        json!({
            "clusterId": "Kubernetes", "localNode": "node-a", "proxyMode": "Shared", "proxy": true, "dnsProxy": false,
            "network": "", "numWorkerThreads": 2, "adminAddr": {"Localhost": [false, 15000]},
            "statsAddr": {"SocketAddr": "[::]:15020"}, "readinessAddr": {"SocketAddr": "[::]:15021"},
            "inboundAddr": "[::]:15008", "xdsAddress": null, "caAddress": null, "xdsOnDemand": false,
            "secretTtl": {"secs": 7200, "nanos": 0}, "selfTerminationDeadline": local["selfTerminationDeadline"],
        })
    );
    let open = text(&["--admin", "10.0.0.1:15000"]);
    assert_eq!(open["adminAddr"], json!({"SocketAddr": "10.0.0.1:15000"}));
}

#[test]
fn connections_to_pods_tell_what_allows_them() {
    let dump = dump_of("only=pods");
    let pods: Vec<PodInfo> = read(&dump, "pods");
    let reasons: Vec<Option<&str>> =
        pods[1].connections.iter().map(|connection| connection.allowed_by.as_deref()).collect();
    let denied = "denied by the policies in force now: the connection is being cut";
    assert_eq!(reasons, [Some("AuthorizationPolicy demo/allow rules[0]"), Some(denied)]);
    assert_eq!(pods[0].connections[0].allowed_by, None, "the other node decides");
}

#[test]
fn sections_are_chosen_by_name() {
    let keys = |query: &str| -> Vec<String> { dump_of(query).as_object().unwrap().keys().cloned().collect() };
    let whole = keys("");
    for section in Section::ALL {
        assert!(whole.iter().any(|key| key == section.name()), "{section:?}");
    }
    let some = keys("only=pods%2Cmaps&only=problems");
    let chosen = Section::ALL.iter().filter(|section| some.iter().any(|key| key == section.name()));
    assert_eq!(chosen.collect::<Vec<_>>(), [&Section::Pods, &Section::Maps, &Section::Problems]);
    for wrong in ["only=", "only=pod", "pods", "only=pods,", "limit=3"] {
        let error = Sections::read(wrong).unwrap_err();
        assert!(error.contains("workloadState"), "{wrong}: {error}");
    }
}
