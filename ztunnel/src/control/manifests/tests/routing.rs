//! From manifests to decisions: the routes of connections in a mesh. The tests are here because `route` is a layer
//! below `control`.

pub(crate) mod claims;
mod kinds;
mod unclear;

use std::collections::{BTreeSet, VecDeque};
use std::future::pending;
use std::iter;
use std::net::IpAddr;
use std::sync::Arc;

use super::changes::{assert_same, seen};
use crate::control::join::{Joiner, Voice};
use crate::control::manifests::{FileContent, assemble, parse};
use crate::control::source::{MeshSource, feed};
use crate::model::addr::{OrigDst, PeerAddr};
use crate::model::flow::{Direction, Flow};
use crate::model::identity::TrustDomain;
use crate::model::local::LocalPods;
use crate::model::workload::NamespacedName;
use crate::route::decide::{self, Candidate, Hop, Outbound, RouteRefusal};
use crate::route::target::{Target, TargetError, target};
use crate::store::change::Batch;
use crate::store::publish;
use crate::store::snapshot::Snapshot;
use crate::wire::connect::Authority;

/// A mesh of lines `KIND namespace/name METADATA | FIELDS`, the latter two in YAML's flow style. A pod has a network
/// namespace unless it has annotations of its own.
pub(crate) fn mesh(lines: &str) -> Snapshot {
    mesh_and_local(lines).0
}

/// The mesh that these lines describe, and the local facts of its pods.
pub(crate) fn mesh_and_local(lines: &str) -> (Snapshot, LocalPods) {
    let mut text = String::new();
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (head, fields) = line.split_once('|').unwrap_or((line, ""));
        let mut head = head.trim().splitn(3, ' ');
        let (kind, name, metadata) = (head.next().unwrap(), head.next().unwrap(), head.next().unwrap_or_default());
        let version = match kind {
            "AuthorizationPolicy" | "PeerAuthentication" => "security.istio.io/v1",
            "ServiceEntry" | "WorkloadEntry" => "networking.istio.io/v1",
            "EndpointSlice" => "discovery.k8s.io/v1",
            _ => "v1",
        };
        let name = match name.split_once('/') {
            Some((namespace, name)) => format!("namespace: {namespace}, name: {name}"),
            None => format!("name: {name}"),
        };
        let netns = if kind == "Pod" && !metadata.contains("annotations") {
            ", annotations: {ambient.mesh/netns: /n}"
        } else {
            ""
        };
        let metadata = if metadata.is_empty() { String::new() } else { format!(", {metadata}") };
        let fields = if fields.is_empty() { String::new() } else { format!(", {fields}") };
        text +=
            &format!("---\n{{apiVersion: {version}, kind: {kind}, metadata: {{{name}{metadata}{netns}}}{fields}}}\n");
    }
    let file: Arc<str> = "mesh.yaml".into();
    let content = parse(&file, &text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let assembled = assemble([(&file, &content)], &TrustDomain::default());
    let snapshot = scripted(content);
    let from_nothing = Snapshot::build(1, assembled.workloads, assembled.services, assembled.problems)
        .with_registry_only(assembled.registry_only)
        .with_namespaces(assembled.namespaces)
        .with_policies(assembled.policies);
    assert_same(&seen(&snapshot, &assembled.local), &seen(&from_nothing, &assembled.local), "another source");
    (snapshot, assembled.local)
}

/// A source that yields the given batches, one after the other.
struct Scripted(VecDeque<Batch>);

impl MeshSource for Scripted {
    async fn next(&mut self) -> Option<Batch> {
        self.0.pop_front()
    }
}

/// The mesh of a source that behaves as badly as a source may: it first yields half of the mesh, then everything one by
/// one from the end to the beginning, each change twice. All tests of decisions use this mesh.
fn scripted(content: FileContent) -> Snapshot {
    let mut joiner = Joiner::new(TrustDomain::default(), None);
    joiner.say(&Voice::of("mesh.yaml"), content.objects, content.problems);
    let changes = joiner.take().changes;
    let half = Batch::of(changes.iter().step_by(2).cloned().collect());
    let problems = Batch { problems: Some(joiner.problems().into()), ..Batch::of(Vec::new()) };
    let singly =
        changes.into_iter().rev().flat_map(|change| [Batch::of(vec![change.clone()]), Batch::of(vec![change])]);
    let batches = iter::once(half).chain(singly).chain([problems]).collect();
    let (publisher, mesh) = publish::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(feed(Scripted(batches), publisher, pending()));
    Snapshot::clone(&mesh.load())
}

/// The mesh of most tests: two nodes in two zones, `demo` in the mesh, `plain` outside.
pub(crate) const MESH: &str = "
    Namespace demo labels: {istio.io/dataplane-mode: ambient}
    Node a labels: {topology.kubernetes.io/region: r, topology.kubernetes.io/zone: a}
    Node b labels: {topology.kubernetes.io/region: r, topology.kubernetes.io/zone: b}
    Pod demo/client | spec: {nodeName: a, serviceAccountName: client, containers: []}, status: {podIPs: [{ip: 10.0.1.1}, {ip: 'fd00:1::1'}]}
    Pod demo/web-a labels: {app: web} | spec: {nodeName: a, serviceAccountName: web, containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}, status: {podIPs: [{ip: 10.0.1.2}, {ip: 'fd00:1::2'}]}
    Pod demo/web-b labels: {app: web} | spec: {nodeName: b, serviceAccountName: web, containers: [{name: c, ports: [{name: http, containerPort: 80}]}]}, status: {podIPs: [{ip: 10.0.2.2}, {ip: 'fd00:2::2'}]}
    Pod plain/old labels: {app: old} | spec: {nodeName: b, containers: []}, status: {podIPs: [{ip: 10.0.2.3}]}
    Pod demo/open labels: {app: open}, annotations: {ambient.mesh/netns: /n, traffic.ambient.mesh/exclude-inbound-ports: '9090,15008'} | spec: {nodeName: b, containers: []}, status: {podIPs: [{ip: 10.0.2.4}]}
    Pod demo/host labels: {app: host} | spec: {nodeName: b, hostNetwork: true, containers: []}, status: {podIPs: [{ip: 192.168.0.2}]}
    Service demo/web | spec: {selector: {app: web}, clusterIPs: [10.96.0.1, 'fd00:96::1'], ports: [{port: 80, targetPort: http}]}
    Service demo/headless | spec: {selector: {app: web}, clusterIP: None, ports: [{port: 80, targetPort: http}]}
    Service demo/open | spec: {selector: {app: open}, clusterIP: 10.96.0.4, ports: [{port: 80}, {port: 90, targetPort: 9090}, {port: 15008}]}
    Service demo/host | spec: {selector: {app: host}, clusterIP: 10.96.0.5, ports: [{port: 80}]}
    Service plain/old | spec: {selector: {app: old}, clusterIP: 10.96.0.3, ports: [{port: 80}]}
";

fn name(text: &str) -> NamespacedName {
    let (namespace, name) = text.split_once('/').unwrap();
    NamespacedName::new(namespace, name)
}

fn decide(snapshot: &Snapshot, pod: &str, dst: &str, draw: u64) -> Result<Outbound, RouteRefusal> {
    let own = snapshot.workload(&name(pod)).and_then(|own| own.addresses.first().copied());
    let source = own.unwrap_or_else(|| "10.0.1.1".parse().unwrap());
    decide_from(snapshot, pod, source, dst, draw)
}

fn decide_from(snapshot: &Snapshot, pod: &str, source: IpAddr, dst: &str, draw: u64) -> Result<Outbound, RouteRefusal> {
    let flow = Flow {
        direction: Direction::Outbound,
        peer: PeerAddr::new((source, 40_000).into()),
        dst: OrigDst::new(dst.parse().unwrap()),
    };
    decide::outbound(snapshot, &flow, &name(pod), draw)
}

fn show(candidate: &Candidate) -> String {
    match &candidate.hop {
        Hop::Plain => format!("plain {}", candidate.target),
        Hop::Tunnel { to, expected } => {
            assert_eq!((to.ip(), to.port()), (candidate.target.ip(), 15008));
            let expected: Vec<&str> = expected.iter().map(|identity| &*identity.service_account).collect();
            format!("tunnel {} to {}", candidate.target, expected.join("+"))
        }
    }
}

/// The decision for `pod -> address` in this mesh: the service, then all candidates that may be tried first, then,
/// after `then`, the candidates that are only tried later.
fn check(mesh: &Snapshot, flow: &str, expected: &str) {
    let (pod, dst) = flow.split_once(" -> ").unwrap();
    let (mut first, mut later, mut head) = (BTreeSet::new(), BTreeSet::new(), String::new());
    for draw in 0..100 {
        match decide(mesh, pod, dst, draw) {
            Ok(outbound) => {
                assert_eq!(outbound.source.as_ref().unwrap().name.to_string(), pod);
                head = outbound.service.map(|service| format!("{}: ", service.name)).unwrap_or_default();
                first.insert(show(&outbound.candidates[0]));
                later.extend(outbound.candidates[1..].iter().map(show));
            }
            Err(RouteRefusal { reason, detail }) => {
                head = format!("{}: {}", reason.label(), detail.unwrap_or_default());
            }
        }
    }
    let join = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>().join(" or ");
    let later: BTreeSet<String> = later.difference(&first).cloned().collect();
    let then = if later.is_empty() { String::new() } else { format!(" then {}", join(&later)) };
    assert_eq!(format!("{head}{}{then}", join(&first)), expected, "{flow}");
}

#[test]
fn a_pod_that_the_mesh_does_not_know_yet_goes_the_way_of_others_and_from_no_address_of_theirs() {
    let mesh = mesh(MESH);
    let of_new = |source: &str, dst: &str| {
        let flow = Flow {
            direction: Direction::Outbound,
            peer: PeerAddr::new((source.parse::<IpAddr>().unwrap(), 40_000).into()),
            dst: OrigDst::new(dst.parse().unwrap()),
        };
        match decide::outbound_of_new(&mesh, &flow, &name("demo/new"), 0) {
            Ok(outbound) => {
                assert_eq!(outbound.source, None);
                show(&outbound.candidates[0])
            }
            Err(refusal) => format!("{}: {}", refusal.reason.label(), refusal.detail.unwrap_or_default()),
        }
    };
    assert_eq!(of_new("10.0.1.9", "10.0.2.2:80"), "tunnel 10.0.2.2:80 to web");
    assert_eq!(of_new("10.0.1.9", "10.96.0.4:80"), "tunnel 10.0.2.4:80 to default");
    assert_eq!(of_new("10.0.1.9", "10.0.2.3:80"), "plain 10.0.2.3:80");
    assert_eq!(of_new("10.0.1.9", "127.0.0.1:80"), "recursive: ");
    let refused = of_new("10.0.1.1", "10.0.2.2:80");
    assert!(
        refused.contains("Pod demo/new connects from 10.0.1.1, which is an address of Pod demo/client"),
        "{refused}"
    );
}

/// The application of one pod binds the address of another pod: its connection would be made in the other pod's name.
#[test]
fn connect_from_the_address_of_another() {
    let mesh = mesh(MESH);
    let from = |source: &str| {
        let decided = decide_from(&mesh, "demo/client", source.parse().unwrap(), "10.0.2.2:80", 0);
        decided.map_or_else(
            |refusal| format!("{}: {}", refusal.reason.label(), refusal.detail.unwrap_or_default()),
            |outbound| show(&outbound.candidates[0]),
        )
    };
    let goes = "tunnel 10.0.2.2:80 to web";
    for (source, expected) in [
        ("10.0.1.1", goes),
        ("fd00:1::1", goes),
        // An address that no status lists, for example of a second interface.
        ("10.77.0.1", goes),
        ("10.0.1.2", "foreign_source: Pod demo/client connects from 10.0.1.2, which is an address of Pod demo/web-a"),
        ("10.0.2.3", "foreign_source: Pod demo/client connects from 10.0.2.3, which is an address of Pod plain/old"),
        ("fd00:2::2", "foreign_source: Pod demo/client connects from fd00:2::2, which is an address of Pod demo/web-b"),
        (
            "10.96.0.1",
            "foreign_source: Pod demo/client connects from 10.96.0.1, which is an address of Service demo/web",
        ),
        ("127.0.0.1", "foreign_source: Pod demo/client connects from 127.0.0.1, which is an address of no pod"),
        ("fe80::1", "link_local_source: "),
    ] {
        assert_eq!(from(source), expected, "from {source}");
    }
}

#[test]
fn services_and_pods_of_the_mesh_are_reached_through_tunnels() {
    let mesh = mesh(MESH);
    let both = "demo/web: tunnel 10.0.1.2:8080 to web or tunnel 10.0.2.2:80 to web";
    check(&mesh, "demo/client -> 10.96.0.1:80", both);
    check(&mesh, "demo/client -> [::ffff:10.96.0.1]:80", both);
    check(
        &mesh,
        "demo/client -> [fd00:96::1]:80",
        "demo/web: tunnel [fd00:1::2]:8080 to web or tunnel [fd00:2::2]:80 to web",
    );
    check(&mesh, "demo/client -> 10.0.2.2:1234", "tunnel 10.0.2.2:1234 to web");
    check(&mesh, "demo/client -> [fd00:2::2]:80", "tunnel [fd00:2::2]:80 to web");
    check(&mesh, "demo/client -> 10.96.0.1:81", "no_healthy_upstream: Service demo/web has no TCP port 81");
    check(&mesh, "demo/client -> 10.0.2.2:15008", "recursive: port 15008 of Pod demo/web-b is reserved for HBONE");
}

#[test]
fn what_is_not_in_the_mesh_gets_plaintext() {
    let mesh = mesh(MESH);
    check(&mesh, "demo/client -> 10.96.0.3:80", "plain/old: plain 10.0.2.3:80");
    check(&mesh, "demo/client -> 10.0.2.3:7", "plain 10.0.2.3:7");
    check(&mesh, "demo/client -> 10.0.2.3:15008", "plain 10.0.2.3:15008");
    check(&mesh, "demo/client -> 10.96.0.5:80", "demo/host: plain 192.168.0.2:80");
    check(&mesh, "demo/client -> 192.168.0.2:80", "plain 192.168.0.2:80");
    check(&mesh, "demo/client -> 203.0.113.1:443", "plain 203.0.113.1:443");
    // Ports that the destination's node does not capture make no difference at other nodes.
    check(&mesh, "demo/client -> 10.96.0.4:90", "demo/open: tunnel 10.0.2.4:9090 to default");
    check(&mesh, "demo/client -> 10.0.2.4:9090", "tunnel 10.0.2.4:9090 to default");
    check(&mesh, "demo/client -> 10.96.0.4:80", "demo/open: tunnel 10.0.2.4:80 to default");
    check(
        &mesh,
        "demo/client -> 10.96.0.4:15008",
        "no_healthy_upstream: demo/open:15008: 1 of 1 endpoints ready, and none that this pod may use",
    );
    check(&mesh, "demo/client -> 10.0.2.4:15008", "recursive: port 15008 of Pod demo/open is reserved for HBONE");
    // The pod connects to itself.
    check(&mesh, "demo/web-a -> 10.96.0.1:80", "demo/web: plain 10.0.1.2:8080 or tunnel 10.0.2.2:80 to web");
    check(&mesh, "demo/web-a -> 10.0.1.2:7", "plain 10.0.1.2:7");
}

#[test]
fn what_is_not_clear_is_refused() {
    let more = "
        Pod demo/twin-1 labels: {app: twin} | status: {podIPs: [{ip: 10.0.9.1}]}
        Pod plain/twin-2 | status: {podIPs: [{ip: 10.0.9.1}]}
        Service demo/twin | spec: {selector: {app: twin}, clusterIP: 10.96.0.9, ports: [{port: 80}]}
        Service demo/private annotations: {networking.istio.io/exportTo: .} | spec: {clusterIP: 10.96.0.8, ports: [{port: 80}]}
        ServiceEntry plain/grab | spec: {hosts: [grab.example], addresses: [10.96.0.1, 10.96.0.8], ports: [{number: 80}, {number: 81}]}
        Service demo/loop | spec: {clusterIP: 10.96.0.7, ports: [{port: 80}]}
        EndpointSlice demo/loop labels: {kubernetes.io/service-name: loop} | addressType: IPv4, ports: [{port: 80}], endpoints: [{addresses: [10.96.0.1]}, {addresses: [10.0.9.1]}]
    ";
    let mesh = mesh(&format!("{MESH}{more}"));
    let contested = "no_healthy_upstream: 10.0.9.1 is claimed by Pod demo/twin-1, Pod plain/twin-2: the address \
        belongs to no pod until only one of them claims it";
    check(&mesh, "demo/client -> 10.0.9.1:80", contested);
    check(
        &mesh,
        "demo/client -> 10.96.0.9:80",
        "no_healthy_upstream: demo/twin:80: 1 of 1 endpoints ready, and none that this pod may use",
    );
    check(
        &mesh,
        "demo/client -> 10.96.0.7:80",
        "no_healthy_upstream: demo/loop:80: 2 of 2 endpoints ready, and none that this pod may use",
    );
    check(&mesh, "demo/client -> 10.96.0.8:80", "no_healthy_upstream: demo/private:80: 0 of 0 endpoints ready");
    // An entry with resolution NONE cannot bypass a service that has the same address.
    check(
        &mesh,
        "plain/old -> 10.96.0.8:80",
        "no_healthy_upstream: 10.96.0.8 is the address of Service demo/private: no connection is passed through to it",
    );
    check(
        &mesh,
        "plain/old -> 10.96.0.1:81",
        "no_healthy_upstream: 10.96.0.1 is the address of Service demo/web: no connection is passed through to it",
    );
    check(&mesh, "plain/old -> 10.96.0.1:80", "demo/web: tunnel 10.0.1.2:8080 to web or tunnel 10.0.2.2:80 to web");
    check(&mesh, "demo/gone -> 10.96.0.1:80", "local_fault: the mesh has no Pod demo/gone (any more)");
    for nowhere in
        ["127.0.0.1:80", "0.0.0.0:80", "224.0.0.1:80", "[fe80::1]:80", "[::1]:80", "192.0.0.8:1", "[100::1]:1"]
    {
        check(&mesh, &format!("demo/client -> {nowhere}"), "recursive: ");
    }
    let hidden = self::mesh(&format!("{MESH}
        Service demo/private annotations: {{networking.istio.io/exportTo: .}} | spec: {{clusterIP: 10.96.0.8, ports: [{{port: 80}}]}}"));
    check(
        &hidden,
        "plain/old -> 10.96.0.8:80",
        "no_healthy_upstream: Service demo/private is not exported to namespace plain",
    );
}

#[test]
fn health_decides_before_distance_and_distance_before_chance() {
    let service = |spec: &str, conditions: [&str; 3]| {
        let endpoint = |number: usize, node: &str, conditions: &str| {
            format!("{{addresses: [203.0.113.{number}], nodeName: {node}, conditions: {{{conditions}}}}}")
        };
        let [one, two, three] = conditions;
        mesh(&format!(
            "{MESH}
            Service demo/s | spec: {{clusterIP: 10.96.1.1, ports: [{{port: 80}}]{spec}}}
            EndpointSlice demo/s labels: {{kubernetes.io/service-name: s}} | addressType: IPv4, ports: [{{port: 80}}], \
             endpoints: [{}, {}, {}]",
            endpoint(1, "a", one),
            endpoint(2, "a", two),
            endpoint(3, "b", three)
        ))
    };
    let draining = "ready: false, serving: true, terminating: true";
    let to = "demo/client -> 10.96.1.1:80";
    let (one, two, three) = ("plain 203.0.113.1:80", "plain 203.0.113.2:80", "plain 203.0.113.3:80");
    check(&service("", ["", "", ""]), to, &format!("demo/s: {one} or {two} or {three}"));
    check(&service("", ["", "ready: false", draining]), to, &format!("demo/s: {one}"));
    check(&service("", ["ready: false", "ready: false", draining]), to, &format!("demo/s: {three}"));
    check(
        &service("", ["ready: false", "ready: false", "ready: false"]),
        to,
        "no_healthy_upstream: demo/s:80: 0 of 3 endpoints ready",
    );
    let near = ", trafficDistribution: PreferSameZone";
    check(&service(near, ["", "", ""]), to, &format!("demo/s: {one} or {two} then {three}"));
    check(&service(near, [draining, "ready: false", ""]), to, &format!("demo/s: {three}"));
    let local = ", internalTrafficPolicy: Local";
    check(&service(local, ["", "", ""]), to, &format!("demo/s: {one} or {two}"));
    check(&service(local, ["ready: false", draining, ""]), to, &format!("demo/s: {two}"));
    check(
        &service(local, ["ready: false", "ready: false", ""]),
        to,
        "no_healthy_upstream: demo/s:80: 1 of 3 endpoints ready, and none that this pod may use",
    );
}

#[test]
fn another_family_is_taken_where_the_service_has_both() {
    let service = |families: &str, vips: &str| {
        mesh(&format!(
            "{MESH}
            Service demo/s | spec: {{ipFamilies: [{families}], clusterIPs: [{vips}], ports: [{{port: 80}}]}}
            EndpointSlice demo/s labels: {{kubernetes.io/service-name: s}} | addressType: IPv6, ports: [{{port: 80}}], endpoints: [{{addresses: ['fd00:9::1']}}]"
        ))
    };
    let dual = service("IPv4, IPv6", "10.96.1.1, 'fd00:96::9'");
    check(&dual, "demo/client -> 10.96.1.1:80", "demo/s: plain [fd00:9::1]:80");
    check(&dual, "demo/client -> [fd00:96::9]:80", "demo/s: plain [fd00:9::1]:80");
    let single = service("IPv4", "10.96.1.1");
    check(
        &single,
        "demo/client -> 10.96.1.1:80",
        "no_healthy_upstream: demo/s:80: 1 of 1 endpoints ready, and none that this pod may use",
    );
}

#[test]
fn entries_lead_where_they_say() {
    let entries = "
        ServiceEntry demo/static | spec: {hosts: [s.example], addresses: [198.51.100.1, 198.51.101.0/24], ports: [{number: 443, name: tls}], resolution: STATIC, subjectAltNames: ['spiffe://cluster.local/ns/demo/sa/more'], endpoints: [{address: 203.0.113.1, ports: {tls: 8443}}, {address: 10.0.2.2}]}
        ServiceEntry demo/none | spec: {hosts: [n.example], addresses: [198.51.0.0/16, 10.0.0.0/8], ports: [{number: 443}]}
        ServiceEntry plain/own | spec: {hosts: [o.example], addresses: [198.51.100.9], ports: [{number: 443}], exportTo: [.]}
    ";
    let open = mesh(&format!("{MESH}{entries}"));
    let settings = "ConfigMap istio-system/istio | data: {mesh: '{outboundTrafficPolicy: {mode: REGISTRY_ONLY}}'}";
    let closed = mesh(&format!("{MESH}{entries}{settings}"));
    for mesh in [&open, &closed] {
        let both = "demo/static: plain 203.0.113.1:8443 or tunnel 10.0.2.2:443 to web+more";
        check(mesh, "demo/client -> 198.51.100.1:443", both);
        check(mesh, "demo/client -> 198.51.101.77:443", both);
        check(
            mesh,
            "demo/client -> 198.51.100.1:80",
            "no_healthy_upstream: ServiceEntry demo/static has no TCP port 80",
        );
        check(mesh, "demo/client -> 198.51.7.7:443", "demo/none: plain 198.51.7.7:443");
        // An IP block that contains a pod does not take the pod out of the mesh.
        check(mesh, "demo/client -> 10.0.2.2:443", "tunnel 10.0.2.2:443 to web");
        check(mesh, "plain/old -> 198.51.100.9:443", "plain/own: plain 198.51.100.9:443");
    }
    check(&open, "demo/client -> 198.51.7.7:80", "plain 198.51.7.7:80");
    check(&open, "demo/client -> 203.0.113.1:443", "plain 203.0.113.1:443");
    let unknown = |dst: &str| {
        format!("unknown_destination: {dst} is not in the mesh's registry (outboundTrafficPolicy REGISTRY_ONLY)")
    };
    check(&closed, "demo/client -> 203.0.113.1:443", &unknown("203.0.113.1:443"));
    check(&closed, "demo/client -> 192.168.0.2:80", &unknown("192.168.0.2:80"));
    check(
        &closed,
        "demo/client -> 198.51.7.7:80",
        &format!("{}, and ServiceEntry demo/none has no TCP port 80", unknown("198.51.7.7:80")),
    );
}

/// The target of a CONNECT request to `pod` at `local` from `peer` with this service account, or the refusal.
fn check_target(pod: &str, local: &str, peer: &str, account: &str, authority: &str, expected: &str) {
    let (authority, forwarded) = authority.split_once(" for ").map_or((authority, None), |(to, host)| (to, Some(host)));
    let authority = match authority.parse() {
        Ok(address) => Authority::Address(address),
        Err(_) => {
            let (host, port) = authority.rsplit_once(':').unwrap();
            Authority::Host { host: host.to_owned(), port: port.parse().unwrap() }
        }
    };
    let more = "
        Service demo/all | spec: {selector: {app: web}, clusterIP: 10.96.0.20, ports: [{port: 8000, targetPort: http}]}
        Service demo/private annotations: {networking.istio.io/exportTo: other} | spec: {selector: {app: web}, ports: [{port: 80}]}
    ";
    let mesh = mesh(&format!("{MESH}{more}"));
    let identity = format!("spiffe://cluster.local/ns/demo/sa/{account}").parse().unwrap();
    let peer = PeerAddr::new(format!("{peer}:5000").parse().unwrap());
    let local = format!("{local}:15008").parse().unwrap();
    let got = match target(&mesh, local, peer, &identity, &authority, forwarded, &name(pod)) {
        Ok(Target { to, source, destination, service }) => {
            assert_eq!(destination.unwrap().name.to_string(), pod);
            let source = source.map_or("?".to_owned(), |source| source.name.name.to_string());
            let service = service.map_or("-".to_owned(), |service| service.name.name.to_string());
            format!("{to} from {source} for {service}")
        }
        Err(error) => format!("{} {}: {error}", error.status().as_u16(), error.reason().label()),
    };
    assert_eq!(got, expected, "{pod} {authority:?}");
}

#[test]
fn tunnels_lead_to_this_pod_only() {
    let ask = |authority: &str, expected: &str| {
        check_target("demo/web-a", "10.0.1.2", "10.0.1.1", "client", authority, expected);
    };
    ask("10.0.1.2:8080", "10.0.1.2:8080 from client for all");
    ask("10.0.1.2:8080 for web.demo.svc.cluster.local", "10.0.1.2:8080 from client for web");
    ask("10.0.1.2:8080 for WEB.demo.svc.cluster.local:80", "10.0.1.2:8080 from client for web");
    ask("10.0.1.2:8080 for old.plain.svc.cluster.local", "10.0.1.2:8080 from client for all");
    ask("10.0.1.2:1", "10.0.1.2:1 from client for -");
    ask("[::ffff:10.0.1.2]:8080", "10.0.1.2:8080 from client for all");
    ask(
        "10.0.2.2:80",
        "400 not_this_pod: 10.0.2.2:80 is not an address of this pod: the HBONE connection was made to 10.0.1.2",
    );
    ask(
        "[fd00:1::2]:80",
        "400 not_this_pod: [fd00:1::2]:80 is not an address of this pod: the HBONE connection was made to 10.0.1.2",
    );
    ask(
        "127.0.0.1:80",
        "400 not_this_pod: 127.0.0.1:80 is not an address of this pod: the HBONE connection was made to 10.0.1.2",
    );
    ask("10.0.1.2:0", "400 bad_request: port 0 does not exist");
    for port in [15001, 15006, 15008] {
        ask(&format!("10.0.1.2:{port}"), &format!("503 recursive: port {port} is reserved for HBONE"));
    }
    ask("web.demo.svc.cluster.local:80", "10.0.1.2:8080 from client for web");
    ask("Web.demo.svc.cluster.local:80", "10.0.1.2:8080 from client for web");
    ask("headless.demo.svc.cluster.local:80", "10.0.1.2:8080 from client for headless");
    let no_endpoint = |host: &str, port: u16| {
        format!("503 no_healthy_upstream: Pod demo/web-a is not an endpoint of {host:?}, port {port}")
    };
    ask("web.demo.svc.cluster.local:81", &no_endpoint("web.demo.svc.cluster.local", 81));
    ask("old.plain.svc.cluster.local:80", &no_endpoint("old.plain.svc.cluster.local", 80));
    ask(
        "private.demo.svc.cluster.local:80",
        "503 no_healthy_upstream: the namespace of the pod sees no service \"private.demo.svc.cluster.local\"",
    );
    ask("web:80", "503 no_healthy_upstream: the namespace of the pod sees no service \"web\"");
    check_target(
        "demo/gone",
        "10.0.1.2",
        "10.0.1.1",
        "client",
        "10.0.1.2:80",
        "503 local_fault: the mesh has no Pod demo/gone (any more)",
    );
    check_target(
        "demo/web-a",
        "[fd00:1::2]",
        "[fd00:1::1]",
        "client",
        "web.demo.svc.cluster.local:80",
        "[fd00:1::2]:8080 from client for web",
    );
}

#[test]
fn a_peer_is_who_it_proved_to_be() {
    let ask = |peer: &str, account: &str, expected: &str| {
        check_target("demo/web-a", "10.0.1.2", peer, account, "10.0.1.2:1", expected);
    };
    ask("10.0.1.1", "client", "10.0.1.2:1 from client for -");
    ask("[::ffff:10.0.1.1]", "client", "10.0.1.2:1 from client for -");
    ask("10.0.1.1", "web", "10.0.1.2:1 from ? for -");
    ask("10.0.2.2", "client", "10.0.1.2:1 from ? for -");
    ask("203.0.113.1", "client", "10.0.1.2:1 from ? for -");
    ask("127.0.0.1", "client", "503 recursive: 127.0.0.1 cannot be the address of a client");
    ask("[fe80::1]", "client", "503 link_local_source: fe80::1 cannot be the address of a client");
    let error = TargetError::Reserved(15001);
    assert_eq!((error.status().as_u16(), error.reason().label()), (503, "recursive"));
}

#[test]
fn plaintext_inbound_names_the_pod_and_its_service() {
    let mesh = mesh(MESH);
    let inbound = |peer: &str, dst: &str| {
        let flow = Flow {
            direction: Direction::Inbound,
            peer: PeerAddr::new(peer.parse().unwrap()),
            dst: OrigDst::new(dst.parse().unwrap()),
        };
        let inbound = decide::inbound(&mesh, &flow, &name("demo/web-a")).map_err(|refusal| refusal.reason.label())?;
        let source = inbound.source.map_or("?".to_owned(), |source| source.name.to_string());
        let service = inbound.service.map_or("-".to_owned(), |service| service.name.to_string());
        assert_eq!(inbound.destination.unwrap().name.to_string(), "demo/web-a");
        Ok(format!("{source} -> {} for {service}", inbound.to))
    };
    let told = |text: &str| Ok(text.to_owned());
    assert_eq!(inbound("10.0.2.3:1", "10.0.1.2:8080"), told("plain/old -> 10.0.1.2:8080 for demo/headless"));
    assert_eq!(inbound("203.0.113.1:1", "10.0.1.2:7"), told("? -> 10.0.1.2:7 for -"));
    assert_eq!(inbound("[fe80::1]:1", "[fd00:1::2]:7"), Err("link_local_source"));
    assert_eq!(inbound("127.0.0.1:1", "10.0.1.2:7"), Err("recursive"));
    assert_eq!(inbound("10.0.2.3:1", "127.0.0.1:7"), Err("not_this_pod"));
}
