//! `explain` and the data path agree on random meshes: each connection is explained, and is decided and judged as by the
//! daemons of its two ends.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ebpf_common::capture::{Capture, Exceptions};
use ebpf_common::{Addr, HBONE_PORT, map_addr};
use ipnet::IpNet;
use proptest::prelude::{Just, Strategy, any, prop, prop_oneof};
use proptest::test_runner::{Config, TestRunner};

use crate::control::manifests::tests::routing::{claims::any_mesh, mesh_and_local};
use crate::explain::{Endpoint, Explanation, Preference, Query, Verdict, Way, explain, text};
use crate::model::addr::{OrigDst, PeerAddr};
use crate::model::flow::{Direction, Flow};
use crate::model::local::{LocalPod, LocalPods};
use crate::model::workload::{Membership, Workload};
use crate::policy::{Connection, PodPolicies, Principal};
use crate::route::decide::{self, Candidate, Hop};
use crate::route::{survey, target};
use crate::store::snapshot::Snapshot;
use crate::wire::connect::Authority;

const CASES: u32 = 400;
/// The number of random draws, enough to select each of a few equal endpoints.
const DRAWS: u64 = 128;
const CLIENT_PORT: u16 = 40_000;

/// Lines of [`any_mesh`]: most pods can be enrolled, some exclude traffic, and often each pod has an address of its own.
fn any_lines() -> impl Strategy<Value = String> {
    let annotations = prop_oneof![
        4 => Just("ambient.mesh/netns: /own"),
        1 => Just("ambient.mesh/netns: /own, traffic.ambient.mesh/exclude-outbound-ports: '81'"),
        1 => Just("ambient.mesh/netns: /own, traffic.ambient.mesh/exclude-outbound-cidrs: 10.0.0.4/30"),
        1 => Just(""),
    ];
    let others = prop_oneof![2 => Just("ambient.mesh/netns: /n"), 1 => Just("")];
    let is_apart = prop::bool::weighted(0.7);
    (any_mesh(), annotations, others, is_apart).prop_map(|(lines, own, others, is_apart)| {
        let with_own = lines.replace("Pod demo/own |", &format!("Pod demo/own annotations: {{{own}}} |"));
        let with_others =
            with_own.replace("| spec: {hostNetwork", &format!(", annotations: {{{others}}} | spec: {{hostNetwork"));
        let apart = with_others.lines().map(|line| {
            // Pods on their node's network have no own address.
            let line = if is_apart && line.starts_with("Pod") {
                line.replace("Network: true", "Network: false")
            } else {
                line.to_owned()
            };
            match line.strip_prefix("Pod pod").and_then(|rest| Some((rest.chars().next()?, rest.find("{ip: 10.0.0.")?)))
            {
                Some((number, at)) if is_apart => {
                    let at = at + "Pod pod".len();
                    format!("{}{{ip: 10.0.1.{number}}}{}\n", &line[..at], &line[at + "{ip: 10.0.0.0}".len()..])
                }
                _ => format!("{line}\n"),
            }
        });
        apart.collect()
    })
}

/// Policies for the pods of [`any_mesh`].
fn any_policies() -> impl Strategy<Value = String> {
    let source = prop_oneof![
        Just("principals: ['*']"),
        Just("principals: [cluster.local/ns/demo/sa/default]"),
        Just("namespaces: [plain]"),
        Just("ipBlocks: [10.0.0.0/30]"),
    ];
    let rule = (source, 80u16..83).prop_map(|(source, port)| {
        format!("{{from: [{{source: {{{source}}}}}], to: [{{operation: {{ports: ['{port}']}}}}]}}")
    });
    let action = prop_oneof![Just("ALLOW"), Just("DENY")];
    let selector = prop_oneof![Just(""), Just("selector: {matchLabels: {app: a1}}, ")];
    let authorization = (selector, action, prop::collection::vec(rule, 0..3)).prop_map(|(selector, action, rules)| {
        format!("| spec: {{{selector}action: {action}, rules: [{}]}}\n", rules.join(", "))
    });
    let mode = prop_oneof![Just(None), Just(Some("STRICT")), Just(Some("PERMISSIVE"))];
    (prop::collection::vec(authorization, 0..3), mode).prop_map(|(authorization, mode)| {
        let numbered = authorization.into_iter().enumerate();
        let policies: String =
            numbered.map(|(number, line)| format!("AuthorizationPolicy demo/p{number} {line}")).collect();
        let mode = mode.map(|mode| format!("PeerAuthentication demo/pa | spec: {{mtls: {{mode: {mode}}}}}\n"));
        policies + &mode.unwrap_or_default()
    })
}

/// A pod's exceptions from capture, as its node writes them to the maps.
struct Maps<'a> {
    own: BTreeSet<Addr>,
    local: &'a LocalPod,
}

impl Exceptions for Maps<'_> {
    fn is_own(&self, addr: &Addr) -> bool {
        self.own.contains(addr)
    }

    fn excludes_port(&self, port: u16) -> bool {
        self.local.exclusions.outbound_ports.contains(port)
    }

    fn excludes_addr(&self, addr: &Addr) -> bool {
        let ip = IpAddr::from(*addr).to_canonical();
        self.local.exclusions.outbound_cidrs.iter().any(|range: &IpNet| range.contains(&ip))
    }
}

/// The daemons of a mesh.
struct Daemons<'a> {
    snapshot: &'a Snapshot,
    local: &'a LocalPods,
}

impl Daemons<'_> {
    /// The local facts of a pod, if its node has enrolled the pod.
    fn enrolled(&self, pod: &Workload) -> Option<&LocalPod> {
        let local = self.local.get(&pod.name).filter(|local| local.netns.is_some())?;
        (pod.membership == Membership::InMesh && !pod.host_network).then_some(local)
    }

    fn captures(&self, pod: &Workload, dst: SocketAddr) -> bool {
        self.enrolled(pod).is_some_and(|local| {
            let own = pod.addresses.iter().copied().map(map_addr).collect();
            Capture::of(&map_addr(dst.ip()), dst.port(), &Maps { own, local }) == Capture::Captured
        })
    }

    fn admits(&self, workload: &Workload, local: &LocalPod, connection: &Connection) -> bool {
        PodPolicies::of(self.snapshot, workload, local).judge(connection).is_ok()
    }

    /// Whether the destination's node accepts a CONNECT request. The proxy of a WorkloadEntry's host is not part of the mesh's nodes:
    /// nothing here refuses the request.
    fn takes_tunnel(&self, workload: &Workload, client: &Workload, to: SocketAddr, target: SocketAddr) -> bool {
        if workload.is_entry {
            return true;
        }
        let Some(local) = self.enrolled(workload) else { return false };
        let (source_ip, identity) = (client.addresses[0], &client.identity);
        let peer = PeerAddr::new((source_ip, CLIENT_PORT).into());
        let authority = Authority::Address(target);
        let found = target::target(self.snapshot, to, peer, identity, &authority, None, &workload.name);
        let source = Some(Principal::new(identity.clone()));
        found.is_ok() && self.admits(workload, local, &Connection { source, source_ip, destination: target })
    }

    /// Whether the destination's node accepts a plaintext connection.
    fn takes_plaintext(&self, workload: &Workload, source_ip: IpAddr, target: SocketAddr) -> bool {
        let Some(local) = self.enrolled(workload) else { return true };
        // The same checks as in `steer`, in the same order.
        if workload.addresses.contains(&source_ip) {
            return true;
        }
        if target.port() == HBONE_PORT {
            return false;
        }
        if local.exclusions.exclude_inbound(target.port()) {
            return true;
        }
        let peer = PeerAddr::new((source_ip, CLIENT_PORT).into());
        let flow = Flow { direction: Direction::Inbound, peer, dst: OrigDst::new(target) };
        decide::inbound(self.snapshot, &flow, &workload.name).is_ok()
            && self.admits(workload, local, &Connection { source: None, source_ip, destination: target })
    }
}

fn told(explanation: &Explanation, target: SocketAddr) -> &Endpoint {
    let found = explanation.endpoints.iter().find(|endpoint| endpoint.address == target);
    found.unwrap_or_else(|| panic!("{target} is not told:\n{}", text(explanation)))
}

fn check_verdict(explanation: &Explanation, endpoint: &Endpoint, expected: bool) {
    let verdict = endpoint.judgement.as_ref().map(|judgement| judgement.verdict);
    let expected = if expected { Verdict::Allowed } else { Verdict::Denied };
    assert_eq!(verdict, Some(expected), "{}:\n{}", endpoint.address, text(explanation));
}

/// Checks the connections of a pod that its daemon captures.
fn check_captured(daemons: &Daemons<'_>, explanation: &Explanation, pod: &Workload, dst: SocketAddr) {
    assert!(explanation.from.captured, "{}", text(explanation));
    let peer = PeerAddr::new((pod.addresses[0], CLIENT_PORT).into());
    let flow = Flow { direction: Direction::Outbound, peer, dst: OrigDst::new(dst) };
    let mut first = BTreeSet::new();
    for draw in 0..DRAWS {
        // The draw is distributed over all 64 bits.
        let draw = draw.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let decided = match decide::outbound(daemons.snapshot, &flow, &pod.name, draw) {
            Ok(decided) => decided,
            Err(refusal) => {
                let told = explanation.route.refusal.as_ref().map(|refusal| refusal.reason.as_str());
                assert_eq!(told, Some(refusal.reason.label()), "{}", text(explanation));
                assert_eq!(explanation.verdict, Verdict::Failed, "{}", text(explanation));
                assert!(explanation.endpoints.iter().all(|endpoint| endpoint.judgement.is_none()));
                return;
            }
        };
        assert_eq!(explanation.route.refusal, None, "{}", text(explanation));
        assert_eq!(explanation.route.service, decided.service.map(|service| service.name.to_string()));
        first.insert(decided.candidates[0].target);
        for candidate in &decided.candidates {
            check_candidate(daemons, explanation, pod, candidate);
        }
    }
    let at_once = |endpoint: &&Endpoint| endpoint.turn == Preference::First;
    let told: BTreeSet<_> = explanation.endpoints.iter().filter(at_once).map(|endpoint| endpoint.address).collect();
    assert_eq!(told, first, "{}", text(explanation));
}

fn check_candidate(daemons: &Daemons<'_>, explanation: &Explanation, pod: &Workload, candidate: &Candidate) {
    let Candidate { target, workload, hop } = candidate;
    let endpoint = told(explanation, *target);
    assert_ne!(endpoint.turn, Preference::Never, "{}", text(explanation));
    assert_eq!(endpoint.pod, workload.as_ref().map(|workload| workload.name.to_string()));
    let taken = match (hop, &endpoint.way, workload) {
        (Hop::Tunnel { to, expected }, Some(Way::Tunnel { to: told, expected: names }), Some(workload)) => {
            assert_eq!((to, expected.iter().map(ToString::to_string).collect()), (told, names.clone()));
            daemons.takes_tunnel(workload, pod, *to, *target)
        }
        (Hop::Plain, Some(Way::Plaintext { .. }), Some(workload)) => {
            daemons.takes_plaintext(workload, pod.addresses[0], *target)
        }
        (Hop::Plain, Some(Way::Plaintext { .. }), None) => true,
        _ => panic!("{hop:?} is told otherwise:\n{}", text(explanation)),
    };
    check_verdict(explanation, endpoint, taken);
}

/// Checks connections that no daemon captures: they use plaintext to every destination.
fn check_uncaptured(daemons: &Daemons<'_>, explanation: &Explanation, source_ip: IpAddr) {
    assert!(!explanation.from.captured, "{}", text(explanation));
    for endpoint in explanation.endpoints.iter().filter(|endpoint| endpoint.judgement.is_some()) {
        assert!(matches!(endpoint.way, Some(Way::Plaintext { .. })), "{}", text(explanation));
        let workload = daemons.snapshot.workload_at(endpoint.address.ip());
        let taken = workload.is_none_or(|workload| daemons.takes_plaintext(workload, source_ip, endpoint.address));
        check_verdict(explanation, endpoint, taken);
    }
}

#[test]
fn explain_says_what_the_data_path_does() {
    let [captured, tunnels, refused, uncaptured, denied, hosts] = [const { Cell::new(0_u32) }; 6];
    let count = |what: &Cell<u32>, is_so: bool| what.set(what.get() + u32::from(is_so));
    let port = prop_oneof![4 => Just(80u16), 2 => Just(81), 1 => Just(82), 1 => Just(HBONE_PORT)];
    let client = (prop::bool::weighted(0.5), any::<prop::sample::Index>());
    let strategy = (any_lines(), any_policies(), client, any::<prop::sample::Index>(), port);
    let mut runner = TestRunner::new(Config { cases: CASES, failure_persistence: None, ..Config::default() });
    let checked = runner.run(&strategy, |(lines, policies, (is_own, client), server, port)| {
        let (snapshot, local) = mesh_and_local(&format!("{lines}{policies}"));
        let daemons = Daemons { snapshot: &snapshot, local: &local };
        let pods: Vec<&Arc<Workload>> = snapshot.workloads().filter(|pod| !pod.addresses.is_empty()).collect();
        // The last client is outside of the mesh.
        let own = pods.iter().position(|pod| pod.name.to_string() == "demo/own").filter(|_| is_own);
        let pod = pods.get(own.unwrap_or_else(|| client.index(pods.len() + 1))).copied();
        // No client connects from an address of another pod: the successor of a terminating pod, or a pod at a node's address.
        let holder = pod.and_then(|pod| snapshot.workload_at(pod.addresses[0]));
        if holder.is_some_and(|holder| pod.is_none_or(|pod| holder.name != pod.name)) {
            return Ok(());
        }
        let from = pod.map_or_else(|| "192.0.2.7".to_owned(), |pod| pod.name.to_string());
        let unknown = ["10.0.0.8", "127.0.0.1", "0.0.0.0"].map(|address| address.parse().unwrap());
        let of_pods = pods.iter().flat_map(|pod| pod.own_addresses());
        let of_services = snapshot.services().flat_map(|service| service.vips.iter());
        let servers: Vec<IpAddr> = of_pods.chain(of_services).chain(&unknown).copied().collect();
        let dst = SocketAddr::new(*server.get(&servers), port);
        let Ok(explanation) =
            explain(&snapshot, &local, &Query::parse(&from, &dst.ip().to_string(), &port.to_string()).unwrap())
        else {
            return Ok(());
        };
        match pod.filter(|pod| daemons.captures(pod, dst)) {
            Some(pod) => check_captured(&daemons, &explanation, pod, dst),
            None => {
                let source_ip = pod.map_or("192.0.2.7".parse().unwrap(), |pod| pod.addresses[0]);
                check_uncaptured(&daemons, &explanation, source_ip);
            }
        }
        count(&captured, explanation.from.captured);
        count(&uncaptured, !explanation.from.captured);
        count(&refused, explanation.route.refusal.is_some());
        let is_tunnel = |endpoint: &Endpoint| matches!(endpoint.way, Some(Way::Tunnel { .. }));
        count(&tunnels, explanation.endpoints.iter().any(is_tunnel));
        count(&denied, explanation.route.refusal.is_none() && explanation.verdict == Verdict::Denied);
        let is_host = |name: &String| name.contains("/workloadentry");
        let ends = explanation.from.pod.iter().chain(explanation.endpoints.iter().filter_map(|end| end.pod.as_ref()));
        count(&hosts, ends.into_iter().any(is_host));
        Ok(())
    });
    checked.unwrap_or_else(|error| panic!("{error}"));
    let seen = [captured, tunnels, refused, uncaptured, denied, hosts].map(Cell::into_inner);
    assert!(seen.iter().all(|seen| *seen >= CASES / 40), "the meshes are too much alike: {seen:?}");
}

/// A client of which only the identity is known gets the same destinations as a pod of its namespace, except those that are
/// that pod itself.
#[test]
fn an_identity_goes_where_a_pod_of_its_namespace_does() {
    let mut runner = TestRunner::new(Config { cases: CASES / 4, failure_persistence: None, ..Config::default() });
    let checked = runner.run(&(any_mesh(), 0u8..9, 80u16..83), |(lines, last, port)| {
        let (snapshot, _) = mesh_and_local(&lines);
        let own = snapshot.workloads().find(|pod| pod.name.to_string() == "demo/own").unwrap();
        let dst = OrigDst::new(format!("10.0.0.{last}:{port}").parse().unwrap());
        let (of_pod, of_identity) =
            (survey::of_pod(&snapshot, own, dst), survey::of_identity(&snapshot, &own.identity, dst));
        assert_eq!((&of_pod.service, of_pod.refusal), (&of_identity.service, of_identity.refusal));
        assert_eq!(of_pod.ends.len(), of_identity.ends.len());
        for (one, other) in of_pod.ends.iter().zip(&of_identity.ends) {
            let is_own = one.workload.as_ref().is_some_and(|workload| workload.name == own.name);
            // With session affinity the client's address selects the endpoint, so without an address only the ways are
            // compared.
            let sticks = of_pod.service.as_ref().is_some_and(|service| service.is_sticky);
            let ways = |end: &survey::RouteEnd<'_>| end.standing.clone().map(|(_, hop)| hop);
            let is_same = if sticks { ways(one) == ways(other) } else { one == other };
            assert!(is_same || is_own, "{one:?} {other:?}");
        }
        Ok(())
    });
    checked.unwrap_or_else(|error| panic!("{error}"));
}
