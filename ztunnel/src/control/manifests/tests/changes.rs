//! A mesh that follows changes equals a mesh that is read without an earlier state, for any changes in any order.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop, prop_oneof, proptest};

use crate::control::join::{Joiner, Voice};
use crate::control::manifests::{FileContent, parse};
use crate::model::identity::TrustDomain;
use crate::model::local::LocalPods;
use crate::model::policy::Scope;
use crate::model::workload::{NamespacedName, Workload};
use crate::store::change::{Batch, Change, ServiceKey};
use crate::store::policies::{Group, Protection};
use crate::store::snapshot::{Owner, Snapshot};

const NAMESPACES: [&str; 3] = ["demo", "evil", "istio-system"];

/// One of a few objects with a few names, as one line of YAML. `variant` chooses its content.
fn object(kind: u8, namespace: usize, number: u8, variant: u32) -> String {
    // The digits of `variant`, each in a base of its own.
    let mut rest = variant;
    let mut digit = |base: u32| {
        let digit = rest % base;
        rest /= base;
        digit
    };
    let namespace = NAMESPACES[namespace];
    let app = |digit: u32| ["", "app: a", "app: b", "app: a, tier: t"][digit as usize % 4];
    let (version, kind, more) = match kind {
        0 => {
            let mode = ["", "istio.io/dataplane-mode: ambient"][digit(2) as usize];
            let prefers = ["", "networking.istio.io/traffic-distribution: PreferClose"][digit(2) as usize];
            let metadata = format!("metadata: {{name: {namespace}, labels: {{{mode}}}, annotations: {{{prefers}}}}}");
            return format!("{{apiVersion: v1, kind: Namespace, {metadata}}}");
        }
        1 => {
            let zone = ["", "topology.kubernetes.io/zone: z, topology.kubernetes.io/region: r"][digit(2) as usize];
            let address = digit(6);
            return format!(
                "{{apiVersion: v1, kind: Node, metadata: {{name: n{number}, labels: {{{zone}}}}}, status: {{addresses: [{{type: \
                 InternalIP, address: 10.0.0.{address}}}]}}}}"
            );
        }
        2 => {
            let text = [
                "",
                "outboundTrafficPolicy: {mode: REGISTRY_ONLY}",
                "defaultServiceExportTo: ['.']",
                "rootNamespace: demo",
            ];
            let text = text[digit(4) as usize];
            let lead = ["", ", annotations: {traffic.ambient.mesh/service-entries-lead: exported}"][digit(2) as usize];
            return format!(
                "{{apiVersion: v1, kind: ConfigMap, metadata: {{name: istio, namespace: istio-system{lead}}}, data: {{mesh: '{}'}}}}",
                text.replace('\'', "''")
            );
        }
        3 => {
            let (labels, own) = (app(digit(4)), ["", ", istio.io/dataplane-mode: none"][digit(2) as usize]);
            let labels = if labels.is_empty() { "x: y".to_owned() + own } else { labels.to_owned() + own };
            let (node, host) = (digit(3), ["false", "true"][usize::from(digit(4) == 0)]);
            let phase = ["Running", "Running", "Succeeded"][digit(3) as usize];
            let ready = ["True", "False"][digit(2) as usize];
            let deleted = ["", ", deletionTimestamp: '2026-01-01T00:00:00Z'"][usize::from(digit(4) == 0)];
            let netns = ["", ", annotations: {ambient.mesh/netns: /n}"][digit(2) as usize];
            let ips = [format!("{{ip: 10.0.0.{}}}", digit(6)), format!("{{ip: 'fd00::{}'}}", digit(6))];
            let ips = &ips[..digit(3) as usize];
            (
                "v1",
                "Pod",
                format!(
                    ", labels: {{{labels}}}{deleted}{netns}}}, spec: {{nodeName: n{node}, hostNetwork: {host}, containers: [{{name: c, \
                     ports: [{{name: http, containerPort: 808{number}}}]}}]}}, status: {{phase: {phase}, podIPs: [{}], conditions: \
                     [{{type: Ready, status: '{ready}'}}]}}",
                    ips.join(", ")
                ),
            )
        }
        4 => {
            let selector = ["".to_owned(), format!("selector: {{{}}}, ", app(1 + digit(3)))];
            let selector = &selector[digit(2) as usize];
            let vip = [format!("10.96.0.{}", digit(3)), format!("10.0.0.{}", digit(6)), "None".to_owned()];
            let vip = &vip[digit(3) as usize];
            let target = ["80", "http", "9090"][digit(3) as usize];
            let unready = ["false", "true"][digit(2) as usize];
            let export = ["", ", annotations: {networking.istio.io/exportTo: '.'}"][digit(2) as usize];
            let outside = [String::new(), format!("externalIPs: [10.0.0.{}], ", digit(6))];
            let outside = &outside[digit(2) as usize];
            let balancer = format!(", status: {{loadBalancer: {{ingress: [{{ip: 10.0.0.{}}}]}}}}", digit(6));
            let balancer = ["", &balancer][digit(2) as usize];
            (
                "v1",
                "Service",
                format!(
                    "{export}}}, spec: {{{selector}{outside}clusterIP: {vip}, publishNotReadyAddresses: {unready}, ports: [{{name: p, \
                     port: 80, targetPort: {target}, nodePort: 30080}}]}}{balancer}"
                ),
            )
        }
        5 => {
            let service = digit(3);
            let pod = ["", ", targetRef: {kind: Pod, name: x0}"][digit(2) as usize];
            let ready = ["true", "false"][digit(2) as usize];
            let zone = ["", ", zone: z"][digit(2) as usize];
            let (address, node) = (digit(6), digit(3));
            (
                "discovery.k8s.io/v1",
                "EndpointSlice",
                format!(
                    ", labels: {{kubernetes.io/service-name: x{service}}}}}, addressType: IPv4, ports: [{{name: p, port: 80{number}}}], \
                     endpoints: [{{addresses: [10.0.0.{address}], nodeName: n{node}, conditions: {{ready: {ready}}}{pod}{zone}}}]"
                ),
            )
        }
        6 => {
            let hosts = ["[e.example]", "[e.example, f.example]", "[x0.demo.svc.cluster.local]", "['*.g.example']"];
            let hosts = hosts[digit(4) as usize];
            let addresses = ["[]", "[10.0.0.1]", "[10.97.0.1, 10.98.0.0/16]", "[10.0.0.0/24]"][digit(4) as usize];
            let behind = match digit(3) {
                0 => "resolution: NONE".to_owned(),
                1 => format!(
                    "resolution: STATIC, endpoints: [{{address: 10.0.0.{}}}, {{address: 203.0.113.1}}]",
                    digit(6)
                ),
                _ => format!("resolution: STATIC, workloadSelector: {{labels: {{{}}}}}", app(1 + digit(3))),
            };
            (
                "networking.istio.io/v1",
                "ServiceEntry",
                format!("}}, spec: {{hosts: {hosts}, addresses: {addresses}, ports: [{{number: 80}}], {behind}}}"),
            )
        }
        7 => {
            let action = ["ALLOW", "DENY", "AUDIT"][digit(3) as usize];
            let whom = match digit(4) {
                0 => String::new(),
                1 => format!("selector: {{matchLabels: {{{}}}}}, ", app(1 + digit(3))),
                _ => format!(
                    "targetRefs: [{{kind: Service, name: x{}}}, {{kind: Service, name: x{}}}], ",
                    digit(3),
                    digit(3)
                ),
            };
            let rules = ["[]", "[{}]", "[{from: [{source: {namespaces: [demo]}}]}]"][digit(3) as usize];
            (
                "security.istio.io/v1",
                "AuthorizationPolicy",
                format!("}}, spec: {{{whom}action: {action}, rules: {rules}}}"),
            )
        }
        9 => {
            let pod = ["", ", targetRef: {kind: Pod, name: x0}"][digit(2) as usize];
            let list = ["addresses", "notReadyAddresses"][digit(2) as usize];
            let (address, node) = (digit(6), digit(3));
            (
                "v1",
                "Endpoints",
                format!(
                    "}}, subsets: [{{{list}: [{{ip: 10.0.0.{address}, nodeName: n{node}{pod}}}], ports: [{{name: p, port: 80{number}}}]}}]"
                ),
            )
        }
        10 => {
            let labels = app(digit(4));
            let tunnel = ["", ", labels: {networking.istio.io/tunnel: http}"][digit(2) as usize];
            let (address, weight) = (digit(6), digit(3));
            let ports = ["", ", ports: {p: 81}"][digit(2) as usize];
            (
                "networking.istio.io/v1",
                "WorkloadEntry",
                format!(
                    "{tunnel}}}, spec: {{address: 10.0.0.{address}, labels: {{{labels}}}, weight: {weight}{ports}}}"
                ),
            )
        }
        11 => {
            let kinds = [
                ("networking.k8s.io/v1", "NetworkPolicy"),
                ("networking.istio.io/v1", "Gateway"),
                ("gateway.networking.k8s.io/v1", "Gateway"),
                ("networking.istio.io/v1", "DestinationRule"),
            ];
            let (version, kind) = kinds[digit(4) as usize];
            (version, kind, "}, spec: {}".to_owned())
        }
        _ => {
            let mode = ["STRICT", "PERMISSIVE", "UNSET"][digit(3) as usize];
            let whom = match digit(2) {
                0 => String::new(),
                _ => format!(
                    "selector: {{matchLabels: {{{}}}}}, portLevelMtls: {{80: {{mode: DISABLE}}}}, ",
                    app(1 + digit(3))
                ),
            };
            ("security.istio.io/v1", "PeerAuthentication", format!("}}, spec: {{{whom}mtls: {{mode: {mode}}}}}"))
        }
    };
    format!("{{apiVersion: {version}, kind: {kind}, metadata: {{name: x{number}, namespace: {namespace}{more}}}")
}

/// The content of one file; most objects are pods.
pub(crate) fn any_file() -> impl Strategy<Value = String> {
    let kind = prop_oneof![3 => 0u8..12, 2 => Just(3u8), 1 => Just(4u8)];
    let object = (kind, 0usize..3, 0u8..3, any::<u32>())
        .prop_map(|(kind, namespace, number, variant)| object(kind, namespace, number, variant));
    prop::collection::vec(object, 0..7).prop_map(|objects| objects.iter().map(|one| format!("---\n{one}\n")).collect())
}

/// Everything that can be observed of a mesh.
pub(super) fn seen(mesh: &Snapshot, local: &LocalPods) -> String {
    let mut out = String::new();
    writeln!(out, "{:?} {}", mesh.counts(), mesh.is_registry_only()).unwrap();
    writeln!(out, "{:?}", mesh.namespaces().collect::<Vec<_>>()).unwrap();
    for pod in mesh.workloads() {
        writeln!(out, "{pod:?}").unwrap();
        let services: Vec<_> = mesh.services_of(&pod.name).map(|service| ServiceKey::of(service)).collect();
        let mut protections: Vec<String> = mesh.policies().protecting(pod, mesh).iter().map(protection).collect();
        protections.sort();
        let mut authentication: Vec<String> =
            mesh.policies().authenticating(pod).iter().map(|policy| policy.name.to_string()).collect();
        authentication.sort();
        writeln!(out, "  {services:?} {protections:?} {authentication:?}").unwrap();
    }
    for service in mesh.services() {
        writeln!(out, "{service:?}").unwrap();
        let named = mesh.services_named(&service.hostname).iter().map(|service| ServiceKey::of(service));
        writeln!(out, "  {:?} {:?}", named.collect::<Vec<_>>(), mesh.kubernetes_service(&service.name)).unwrap();
    }
    for address in (0..6)
        .map(|last| format!("10.0.0.{last}"))
        .chain(["10.96.0.0", "10.96.0.1", "10.97.0.1", "10.98.0.1"].map(String::from))
    {
        let address: IpAddr = address.parse().unwrap();
        let owners = NAMESPACES.map(|namespace| match mesh.owner(address, 80, namespace) {
            Owner::Service(service) => format!("service {:?}", ServiceKey::of(service)),
            Owner::Workload(pod) => format!("pod {}", pod.name),
            Owner::Contested(claimants) => format!("contested {claimants:?}"),
            Owner::Unclear(services) => {
                format!("unclear {:?}", services.iter().map(|one| &one.name).collect::<Vec<_>>())
            }
            Owner::Hidden(service) => format!("hidden {}", service.name),
            Owner::Unknown => "unknown".to_owned(),
        });
        let cluster_ip = mesh.cluster_ip(address).map(|service| service.name.to_string());
        writeln!(out, "{address} {owners:?} {cluster_ip:?} {:?}", mesh.workload_at(address).map(|pod| &pod.name))
            .unwrap();
    }
    for node in ["n0", "n1", "n2"] {
        writeln!(out, "{node} {:?}", mesh.pods_on(node).map(|pod| &pod.name).collect::<Vec<_>>()).unwrap();
    }
    writeln!(out, "{:#?}", mesh.policies().authorization()).unwrap();
    writeln!(out, "{:#?}", mesh.policies().authentication()).unwrap();
    writeln!(out, "{:#?}", mesh.problems()).unwrap();
    writeln!(out, "{local:#?}").unwrap();
    out
}

/// Whether policies of two scopes may be in one group.
fn have_common(one: &Scope, other: &Scope) -> bool {
    match (one, other) {
        (Scope::Services(one), Scope::Services(other)) => one.iter().any(|name| other.contains(name)),
        _ => one == other,
    }
}

fn protection(Protection { group, ports }: &Protection) -> String {
    let names: Vec<_> = group.policies().iter().map(|policy| policy.name.to_string()).collect();
    format!("{names:?} at {ports:?}")
}

fn read(name: &str, text: &str) -> FileContent {
    parse(&name.into(), text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

pub(crate) fn say(joiner: &mut Joiner, name: &str, text: &str) {
    let FileContent { objects, problems, .. } = read(name, text);
    joiner.say(&Voice::of(name), objects, problems);
}

/// A joiner, and the mesh that follows it.
pub(super) struct Following {
    pub(super) joiner: Joiner,
    pub(super) mesh: Snapshot,
}

impl Following {
    pub(super) fn new() -> Self {
        Self { joiner: Joiner::new(TrustDomain::default(), None), mesh: Snapshot::default() }
    }

    /// With a small budget for the services of each namespace.
    pub(super) fn within(budget: Option<usize>) -> Self {
        let Self { joiner, mesh } = Self::new();
        Self {
            joiner: match budget {
                Some(budget) => joiner.with_budget(budget),
                None => joiner,
            },
            mesh,
        }
    }

    fn batch(&mut self) -> Batch {
        let joined = self.joiner.take();
        let problems = joined.problems.then(|| self.joiner.problems().into());
        Batch { problems, ..Batch::of(joined.changes) }
    }

    pub(super) fn follow(&mut self) -> Vec<Change> {
        let batch = self.batch();
        let changes = batch.changes.clone();
        self.mesh = self.mesh.apply(batch);
        changes
    }

    fn seen(&self) -> String {
        seen(&self.mesh, self.joiner.local())
    }
}

pub(super) fn from_nothing(files: &[(&str, String)]) -> Following {
    from_nothing_within(None, files)
}

pub(super) fn from_nothing_within(budget: Option<usize>, files: &[(&str, String)]) -> Following {
    let mut following = Following::within(budget);
    for (name, text) in files {
        say(&mut following.joiner, name, text);
    }
    following.follow();
    following
}

#[track_caller]
pub(super) fn assert_same(followed: &str, expected: &str, what: &str) {
    if followed == expected {
        return;
    }
    let differing: Vec<_> =
        followed.lines().zip(expected.lines()).filter(|(one, other)| one != other).take(6).collect();
    panic!("{what}: {differing:#?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Files change one after the other. Some changes are taken together, others one by one.
    #[test]
    fn following_changes_leads_to_what_is_read_from_nothing(
        steps in prop::collection::vec((0usize..4, any_file(), any::<bool>()), 1..12), budget in prop::option::of(1usize..12)
    ) {
        let from_nothing = |files: &[(&str, String)]| from_nothing_within(budget, files);
        let mut files = [("a", String::new()), ("b", String::new()), ("c", String::new()), ("d", String::new())];
        let mut following = Following::within(budget);
        for (file, text, together) in steps {
            say(&mut following.joiner, files[file].0, &text);
            files[file].1 = text;
            if together {
                continue;
            }
            following.follow();
            assert_same(&following.seen(), &from_nothing(&files).seen(), "after a step");
        }
        following.follow();
        assert_same(&following.seen(), &from_nothing(&files).seen(), "at the end");
        assert_eq!(following.follow(), Vec::new(), "nothing has changed");
        for (file, _) in &files {
            following.joiner.silence(&Voice::of(*file));
        }
        following.follow();
        assert_same(&following.seen(), &seen(&Snapshot::default().apply(Batch::of(Vec::new())), &LocalPods::new()), "of nothing");
    }

    /// A source may reorder the changes of a batch, repeat them, or send everything again.
    #[test]
    fn order_and_repetition_make_no_difference(
        before in any_file(), after in any_file(), swaps in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..20), whole in any::<bool>()
    ) {
        let mut following = from_nothing(&[("a", before)]);
        let mesh = following.mesh.clone();
        say(&mut following.joiner, "a", &after);
        let mut batch = following.batch();
        let mut whole_batch = from_nothing(&[("a", after.clone())]);
        let expected = whole_batch.seen();
        if whole {
            whole_batch = Following::new();
            say(&mut whole_batch.joiner, "a", &after);
            batch = Batch { is_whole: true, problems: Some(whole_batch.joiner.problems().into()), ..whole_batch.batch() };
            batch.problems = Some(whole_batch.joiner.problems().into());
        }
        if !batch.changes.is_empty() {
            for (one, other) in swaps {
                let (one, other) = (one.index(batch.changes.len()), other.index(batch.changes.len()));
                batch.changes.swap(one, other);
            }
        }
        let mesh = mesh.apply(batch.clone());
        assert_same(&seen(&mesh, whole_batch.joiner.local()), &expected, "shuffled");
        let again = mesh.apply(batch);
        assert_same(&seen(&again, whole_batch.joiner.local()), &expected, "said twice");
        assert!(Arc::ptr_eq(mesh.policies(), again.policies()), "what changes nothing is the same value");
    }

    /// A change names objects. All other objects keep their allocations.
    #[test]
    fn a_change_touches_only_what_it_names(files in prop::collection::vec(any_file(), 2..4), text in any_file()) {
        let files: Vec<(&str, String)> = ["a", "b", "c"].into_iter().zip(files).collect();
        let mut following = from_nothing(&files);
        let before = following.mesh.clone();
        say(&mut following.joiner, "a", &text);
        let changes = following.follow();
        for pod in before.workloads() {
            let is_named = changes.iter().any(|change| match change {
                Change::Workload(named) => named.name == pod.name,
                Change::WorkloadGone(name) => *name == pod.name,
                _ => false,
            });
            let after = following.mesh.workload(&pod.name);
            assert_eq!(is_named, !after.is_some_and(|after| Arc::ptr_eq(pod, after)), "{}", pod.name);
            assert!(!changes.contains(&Change::Workload(Arc::clone(pod))), "it is as it was: {}", pod.name);
        }
        for service in before.services() {
            let key = ServiceKey::of(service);
            let is_named = changes.iter().any(|change| match change {
                Change::Service(named) => ServiceKey::of(named) == key,
                Change::ServiceGone(gone) => *gone == key,
                _ => false,
            });
            let after = following.mesh.service(&key);
            assert_eq!(is_named, !after.is_some_and(|after| Arc::ptr_eq(service, after)), "{key:?}");
        }
        // A group of policies is made anew only for a policy with a workload or service in common.
        let named: BTreeSet<&NamespacedName> = changes.iter().filter_map(|change| match change {
            Change::Authorization(policy) => Some(&policy.name),
            Change::AuthorizationGone(name) => Some(name),
            _ => None,
        }).collect();
        let of = |mesh: &Snapshot| -> Vec<Scope> {
            let named = mesh.policies().authorization().iter().filter(|policy| named.contains(&policy.name));
            named.map(|policy| policy.scope.clone()).collect()
        };
        let scopes = [of(&before), of(&following.mesh)].concat();
        let groups = |mesh: &Snapshot, pod: &Workload| -> Vec<Arc<Group>> {
            let groups = mesh.policies().protecting(pod, mesh).into_iter().map(|protection| protection.group);
            groups.filter(|group| !group.policies().iter().any(|policy| scopes.iter().any(|scope| have_common(scope, &policy.scope)))).collect()
        };
        // The groups of a service concern the pods that it selects.
        let may_move = |pod: &Workload| changes.iter().any(|change| match change {
            Change::Service(service) => service.name.namespace == pod.name.namespace,
            Change::ServiceGone(key) => key.namespace == pod.name.namespace,
            _ => false,
        });
        for pod in following.mesh.workloads() {
            let is_same = before.workload(&pod.name).is_some_and(|before| Arc::ptr_eq(before, pod));
            if !is_same || may_move(pod) {
                continue;
            }
            let [was, is] = [&before, &following.mesh].map(|mesh| groups(mesh, pod));
            let all_same = was.len() == is.len() && was.iter().all(|one| is.iter().any(|other| Arc::ptr_eq(one, other)));
            assert!(all_same, "{}: {was:?} and then {is:?}", pod.name);
        }
    }

    /// An author who may write anything in one namespace can neither allow nor deny connections to the pods of another.
    #[test]
    fn no_policy_reaches_beyond_its_namespace(files in prop::collection::vec(any_file(), 1..4)) {
        let files: Vec<(&str, String)> = ["a", "b", "c"].into_iter().zip(files).collect();
        let following = from_nothing(&files);
        let (mesh, root) = (&following.mesh, following.joiner.root_namespace());
        for pod in mesh.workloads() {
            let may = |namespace: &Arc<str>| *namespace == pod.name.namespace || *namespace == root;
            let policies = mesh.policies();
            for protection in policies.protecting(pod, mesh) {
                for policy in protection.group.policies() {
                    assert!(may(&policy.name.namespace), "{} protects {}", policy.name, pod.name);
                }
            }
            for policy in policies.authenticating(pod) {
                assert!(may(&policy.name.namespace), "{} is for {}", policy.name, pod.name);
            }
        }
    }
}

/// A Service without a selector, a slice with the address of a pod in another namespace, and policies that name the
/// Service.
#[test]
fn endpoints_of_a_stranger_bring_no_policy() {
    let pod = "{apiVersion: v1, kind: Pod, metadata: {name: db, namespace: prod}, status: {podIP: 10.0.0.9}}";
    let bait = "{apiVersion: v1, kind: Service, metadata: {name: bait, namespace: evil}, spec: {ports: [{port: 80}]}}";
    let slice = "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: bait, namespace: evil, labels: \
                 {kubernetes.io/service-name: bait}}, addressType: IPv4, ports: [{port: 80}], endpoints: [{addresses: [10.0.0.9]}]}";
    let policy = |namespace: &str, action: &str| {
        format!(
            "{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: p, namespace: {namespace}}}, spec: \
             {{targetRefs: [{{kind: Service, name: bait}}], action: {action}, rules: [{{}}]}}}}"
        )
    };
    let protections = |objects: &[&str]| {
        let following = from_nothing(&[("a", objects.join("\n---\n"))]);
        let mesh = &following.mesh;
        let db = mesh.workload(&NamespacedName::new("prod", "db")).unwrap();
        assert_eq!(mesh.services_of(&db.name).count(), 1, "the slice names it");
        mesh.policies().protecting(db, mesh).iter().map(protection).collect::<Vec<_>>()
    };
    for action in ["ALLOW", "DENY"] {
        assert_eq!(protections(&[pod, bait, slice, &policy("evil", action)]), [""; 0]);
        // The same objects in the pod's own namespace do select it.
        let [bait, slice] = [bait, slice].map(|object| object.replace("evil", "prod"));
        assert_eq!(protections(&[pod, &bait, &slice, &policy("prod", action)]), [r#"["prod/p"] at These([80])"#]);
    }
}

/// Objects of kinds that are not enforced here are told by kind, also if they have one name.
#[test]
fn what_is_not_enforced_is_told_by_kind_until_it_is_gone() {
    let object = |version: &str, kind: &str| {
        format!(
            "---\n{{apiVersion: {version}, kind: {kind}, metadata: {{name: reviews, namespace: demo}}, spec: {{}}}}\n"
        )
    };
    let rule = object("networking.istio.io/v1", "DestinationRule");
    let own = object("networking.istio.io/v1", "Gateway");
    let other = object("gateway.networking.k8s.io/v1", "Gateway");
    let gateway = |line| {
        format!(
            "o.yaml:{line}: Gateway of namespace demo: has no effect in this daemon: the proxy of the gateway carries it out"
        )
    };
    let destination = |line| {
        format!(
            "o.yaml:{line}: DestinationRule of namespace demo: has no effect in this daemon: a waypoint or a gateway \
             carries it out, for the traffic that goes through it"
        )
    };
    let mut following = Following::new();
    let mut told = |text: &str| {
        say(&mut following.joiner, "o.yaml", text);
        following.follow();
        following.mesh.problems().iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(told(&[&*rule, &*own, &*other].concat()), [destination(2), gateway(4), gateway(6)]);
    assert_eq!(told(&[&*rule, &*other].concat()), [destination(2), gateway(4)]);
    assert_eq!(told(&[&*own, &*other].concat()), [gateway(2), gateway(4)]);
    assert_eq!(told(&rule), [destination(2)]);
    assert_eq!(told(""), [""; 0]);
}
