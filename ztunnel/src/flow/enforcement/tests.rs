use std::{future::Future, io, net::SocketAddr, pin::pin, sync::Arc, task::Poll, time::Duration};

use futures_util::{future::join, poll};
use prometheus_client::registry::Registry;
use tokio::time::timeout;

use super::{Enforcement, EnforcementPoint, EnforcementPoints, Rechecked};
use crate::{
    metrics::{policy::Decisions, traffic::Traffic},
    model::{
        identity::{SpiffeId, TrustDomain},
        local::{Exclusions, LocalPod},
        origin::Origin,
        policy::{Action, AuthorizationPolicy, Match, Part, PolicySet, Rule, Scope},
        policy::{Clause, MtlsMode, PeerAuthentication, StringMatch},
        workload::{NamespacedName, Workload},
    },
    net::node::{Client, NodeConnections},
    policy::{Basis, Cause, Connection, Principal},
    store::{
        change::{Batch, Change},
        publish::{self, Publisher, Reader},
        snapshot::Snapshot,
    },
};

const WEB: &str = "10.0.0.2:8080";
/// The address and port of the pod's probe.
const HEALTH: &str = "10.0.0.2:9000";

/// A deadline for events in real time.
const SOON: Duration = Duration::from_secs(10);

/// The pod `demo/web`, its enforcement point, and the mesh that both follow.
struct Bed {
    publisher: Publisher,
    mesh: Reader,
    points: EnforcementPoints,
    point: EnforcementPoint,
    decisions: Decisions,
}

/// The pod's local facts: a probe, and the ports that it excludes from inbound capture.
fn local(excluded: &str) -> LocalPod {
    let exclusions = Exclusions { inbound_ports: excluded.parse().unwrap(), ..Exclusions::default() };
    LocalPod { probe_ports: vec![9000], exclusions, ..LocalPod::default() }
}

fn origin() -> Origin {
    Origin::line_of("policies.yaml", 1)
}

/// Denies these service accounts of the namespace.
fn deny(accounts: &[&str]) -> AuthorizationPolicy {
    let principals =
        accounts.iter().map(|account| StringMatch::new(&format!("cluster.local/ns/demo/sa/{account}"))).collect();
    let from = Clause { part: Part::From, matches: vec![Match { principals, ..Match::default() }] };
    AuthorizationPolicy {
        name: NamespacedName::new("demo", "deny"),
        origin: origin(),
        scope: Scope::Namespace("demo".into()),
        action: Action::Deny,
        dry_run: false,
        rules: vec![Rule { clauses: vec![from], unjudged: vec![] }],
    }
}

fn strict() -> PeerAuthentication {
    PeerAuthentication {
        name: NamespacedName::new("istio-system", "default"),
        origin: origin(),
        created: None,
        scope: Scope::Mesh,
        mode: Some(MtlsMode::Strict),
        ports: Default::default(),
    }
}

/// The port from which the kubelet connects.
const KUBELET: u16 = 40_000;

/// A node with a kubelet at [`KUBELET`]; other ports belong to other processes.
struct Kubelet;

impl NodeConnections for Kubelet {
    fn client(&self, local: SocketAddr, remote: SocketAddr) -> io::Result<Client> {
        assert_eq!((local.ip().to_string(), remote), ("10.0.0.1".to_owned(), HEALTH.parse().unwrap()));
        Ok(if local.port() == KUBELET { Client::Kubelet } else { Client::Elsewhere })
    }
}

impl Bed {
    fn new() -> Self {
        let (publisher, mesh) = publish::channel();
        let points = EnforcementPoints::of_node(Some(Arc::new(Kubelet)));
        let point = points.point(NamespacedName::new("demo", "web"), mesh.clone(), local(""));
        let traffic = Traffic::register(&mut Registry::default(), Duration::from_secs(900), "Kubernetes".into());
        let bed = Self { publisher, mesh, points, point, decisions: traffic.decisions().clone() };
        bed.publish(PolicySet::default());
        bed
    }

    fn publish(&self, policies: PolicySet) {
        use crate::control::manifests::{assemble, parse};
        let file: Arc<str> = "mesh.yaml".into();
        let text = "{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: demo, labels: {istio.io/dataplane-mode: ambient}, \
                    annotations: {ambient.mesh/netns: /n}}, spec: {containers: []}, status: {podIP: 10.0.0.2}}";
        let mesh = assemble([(&file, &parse(&file, text).unwrap())], &TrustDomain::default());
        let workloads = mesh.workloads;
        let version = self.mesh.load().version() + 1;
        self.publisher
            .publish(Snapshot::build(version, workloads, mesh.services, mesh.problems).with_policies(policies));
    }

    fn deny(&self, accounts: &[&str]) {
        self.publish(PolicySet { authorization: vec![deny(accounts)], ..PolicySet::default() });
    }

    fn strict(&self) {
        self.publish(PolicySet { authentication: vec![strict()], ..PolicySet::default() });
    }

    /// A connection of a service account, or without identity, to an address of the pod.
    fn enter(&self, account: Option<&str>, to: &str) -> Enforcement {
        let identity = |account| SpiffeId::new(TrustDomain::default(), "demo", account);
        let destination: SocketAddr = to.parse().unwrap();
        let source = account.map(identity).map(Principal::new);
        self.point.enter(Connection { source, source_ip: "10.0.0.1".parse().unwrap(), destination })
    }

    /// A plaintext connection from this port.
    fn enter_from(&self, port: u16, to: &str) -> Enforcement {
        let (source_ip, destination) = ("10.0.0.1".parse().unwrap(), to.parse().unwrap());
        self.point.enter_in_plaintext(Connection { source: None, source_ip, destination }, port)
    }

    fn recheck(&self) -> Rechecked {
        self.points.recheck(&self.decisions)
    }
}

fn is_let_in(enforcement: &Enforcement) -> bool {
    enforcement.judge(|found| panic!("{found:?}")).is_ok()
}

/// The denial that has ended the connection, if there is one now.
async fn is_stopped(enforcement: &mut Enforcement) -> Option<String> {
    let mut stopped = pin!(enforcement.stopped());
    match poll!(stopped.as_mut()) {
        Poll::Ready(denial) => Some(denial.to_string()),
        Poll::Pending => None,
    }
}

#[tokio::test]
async fn a_change_between_judgement_and_dial_is_caught() {
    let bed = Bed::new();
    let mut client = bed.enter(Some("client"), WEB);
    assert!(is_let_in(&client), "judged by the mesh without policy");
    // The connection dials now; only the enforcement point knows it.
    assert_eq!(is_stopped(&mut client).await, None);
    bed.deny(&["client"]);
    assert_eq!(bed.recheck(), Rechecked { judged: 1, cut: 1 });
    let told = is_stopped(&mut client).await.unwrap();
    assert!(told.contains("demo/deny") && told.contains("rules[0]"), "{told}");
}

#[tokio::test]
async fn a_change_between_entry_and_judgement_is_judged_by() {
    let bed = Bed::new();
    let client = bed.enter(Some("client"), WEB);
    // The recheck comes before the judgement, and the judgement uses the changed policy.
    bed.deny(&["client"]);
    assert!(matches!(client.judge(|_| {}).unwrap_err().unwrap().cause, Cause::Matched { .. }));
    assert_eq!(bed.recheck(), Rechecked { judged: 1, cut: 1 });
    drop(client);
    assert_eq!(bed.recheck(), Rechecked::default(), "who has left is not judged");
}

#[tokio::test]
async fn only_those_who_may_not_any_more_are_stopped_and_only_once() {
    let bed = Bed::new();
    let (mut bad, mut good, mut nobody) =
        (bed.enter(Some("bad"), WEB), bed.enter(Some("good"), WEB), bed.enter(None, WEB));
    assert!([&bad, &good, &nobody].into_iter().all(is_let_in));
    bed.deny(&["bad"]);
    assert_eq!(bed.recheck(), Rechecked { judged: 3, cut: 1 });
    assert_eq!(bed.recheck(), Rechecked::default(), "it has been told, and nothing has changed");
    assert!(is_stopped(&mut bad).await.is_some());
    bed.strict();
    assert_eq!(bed.recheck(), Rechecked { judged: 3, cut: 1 });
    assert_eq!(is_stopped(&mut good).await, None);
    let told = is_stopped(&mut nobody).await.unwrap();
    assert!(told.contains("istio-system/default") && told.contains("STRICT"), "{told}");
}

/// During a recheck a newer snapshot may come, which allows a connection that the older one denies.
#[tokio::test]
async fn an_older_mesh_cuts_nobody_whom_the_newest_lets_in() {
    let bed = Bed::new();
    bed.deny(&["client", "other"]);
    let older = bed.point.guard().unwrap();
    bed.deny(&["other"]);
    let (mut client, mut other) = (bed.enter(Some("client"), WEB), bed.enter(Some("other"), WEB));
    assert!(is_let_in(&client));
    assert_eq!(bed.point.recheck(&older, &bed.decisions, None), Rechecked { judged: 2, cut: 1 });
    assert_eq!(is_stopped(&mut client).await, None);
    assert!(is_stopped(&mut other).await.is_some());
}

/// The guard changes only if a change concerns the pod.
#[tokio::test]
async fn a_change_that_does_not_concern_the_pod_judges_nobody() {
    let bed = Bed::new();
    bed.deny(&["bad"]);
    bed.recheck();
    let client = bed.enter(Some("client"), WEB);
    assert!(is_let_in(&client));
    let guard = bed.point.guard().unwrap();
    let identity = SpiffeId::new(TrustDomain::default(), "demo", "other");
    let other = Workload::new(NamespacedName::new("demo", "other"), identity);
    let elsewhere = AuthorizationPolicy {
        name: NamespacedName::new("prod", "deny"),
        scope: Scope::Namespace("prod".into()),
        ..deny(&["client"])
    };
    for change in [Change::Workload(Arc::new(other)), Change::Authorization(Arc::new(elsewhere))] {
        bed.publisher.apply(Batch::of(vec![change]));
        assert!(Arc::ptr_eq(&guard, &bed.point.guard().unwrap()));
        assert_eq!(bed.recheck(), Rechecked::default());
        assert!(Arc::ptr_eq(&guard, &bed.point.guard().unwrap()));
    }
    let more = AuthorizationPolicy { name: NamespacedName::new("demo", "more"), ..deny(&["client"]) };
    bed.publisher.apply(Batch::of(vec![Change::Authorization(Arc::new(more))]));
    assert_eq!(bed.recheck(), Rechecked { judged: 1, cut: 1 });
    assert!(client.judge(|_| {}).is_err());
}

/// Between two snapshots that decide the same, a third one allowed a connection, and no recheck has seen it.
#[tokio::test]
async fn who_was_let_in_by_a_mesh_in_between_is_judged_by_the_next() {
    let bed = Bed::new();
    bed.strict();
    bed.recheck();
    bed.publish(PolicySet::default());
    let mut plain = bed.enter(None, WEB);
    assert!(is_let_in(&plain));
    bed.strict();
    assert_eq!(bed.recheck(), Rechecked { judged: 1, cut: 1 });
    assert!(is_stopped(&mut plain).await.is_some());
    assert_eq!(bed.recheck(), Rechecked::default());
}

/// A data worker never has to free the memory of an older guard.
#[tokio::test]
async fn only_a_recheck_replaces_the_guard_that_is_asked() {
    let bed = Bed::new();
    bed.recheck();
    let kept = || Arc::as_ptr(&bed.point.0.current.load().as_ref().unwrap().known.as_ref().unwrap().guard);
    let before = kept();
    bed.deny(&["client"]);
    let client = bed.enter(Some("client"), WEB);
    assert!(client.judge(|_| {}).is_err(), "judged by the newest all the same");
    assert_eq!(kept(), before);
    bed.recheck();
    assert_ne!(kept(), before);
    assert_eq!(kept(), Arc::as_ptr(&bed.point.guard().unwrap()));
    let later = bed.points.point(NamespacedName::new("demo", "web"), bed.mesh.clone(), local(""));
    assert!(later.0.current.load().is_some(), "a point that comes after the recheck has one");
}

#[tokio::test]
async fn the_kubelet_stays_where_its_probes_are() {
    let bed = Bed::new();
    bed.strict();
    let (mut kubelet, mut other, elsewhere) = (bed.enter(None, HEALTH), bed.enter(None, HEALTH), bed.enter(None, WEB));
    assert!(kubelet.judge(|_| {}).unwrap_err().unwrap().at_probe);
    assert!(!elsewhere.judge(|_| {}).unwrap_err().unwrap().at_probe);
    kubelet.is_probe();
    bed.strict();
    assert_eq!(bed.recheck(), Rechecked { judged: 3, cut: 2 });
    assert!(is_stopped(&mut kubelet).await.is_none() && is_stopped(&mut other).await.is_some());
}

/// While policy allows all connections, the kubelet is not identified. After a change of policy, a running probe is still a
/// probe.
#[tokio::test]
async fn a_probe_that_is_under_way_outlives_a_change_of_policy() {
    let bed = Bed::new();
    let (mut kubelet, mut other, mut elsewhere) =
        (bed.enter_from(KUBELET, HEALTH), bed.enter_from(1, HEALTH), bed.enter_from(KUBELET, WEB));
    assert!([&kubelet, &other, &elsewhere].into_iter().all(is_let_in));
    bed.strict();
    assert_eq!(bed.recheck(), Rechecked { judged: 3, cut: 2 });
    assert_eq!(is_stopped(&mut kubelet).await, None);
    assert!(is_stopped(&mut other).await.is_some() && is_stopped(&mut elsewhere).await.is_some());
    // This connection is entered now, and judged after the recheck has seen it.
    let mut late = bed.enter_from(KUBELET, HEALTH);
    bed.publish(PolicySet {
        authorization: vec![deny(&["client"])],
        authentication: vec![strict()],
        ..PolicySet::default()
    });
    bed.recheck();
    assert_eq!(is_stopped(&mut late).await, None);
}

/// A port that the pod excludes from capture accepts all connections, also through HBONE. When it is not excluded any more,
/// policy decides, also about open connections.
#[tokio::test]
async fn an_excluded_port_is_open_for_as_long_as_it_is_excluded() {
    let bed = Bed::new();
    bed.publish(PolicySet {
        authorization: vec![deny(&["client"])],
        authentication: vec![strict()],
        ..PolicySet::default()
    });
    bed.point.set_local(local("8080"));
    let (mut plain, mut denied, mut good) =
        (bed.enter(None, WEB), bed.enter(Some("client"), WEB), bed.enter(Some("good"), WEB));
    for enforcement in [&plain, &denied, &good] {
        assert_eq!(enforcement.judge(|found| panic!("{found:?}")).unwrap().basis(), Basis::ExcludedPort);
    }
    assert_eq!(bed.recheck(), Rechecked { judged: 3, cut: 0 });
    bed.point.set_local(local("8081"));
    assert!(bed.enter(None, WEB).judge(|_| {}).is_err(), "judged by the new facts before any recheck");
    assert_eq!(bed.recheck(), Rechecked { judged: 3, cut: 2 });
    assert!(is_stopped(&mut plain).await.is_some() && is_stopped(&mut denied).await.is_some());
    assert!(is_stopped(&mut good).await.is_none());
    assert_eq!(good.judge(|_| {}).unwrap().basis(), Basis::Policy);
}

#[tokio::test]
async fn a_probe_that_is_added_is_known_at_once() {
    let bed = Bed::new();
    bed.strict();
    let at_web = bed.enter(None, WEB);
    assert!(!at_web.judge(|_| {}).unwrap_err().unwrap().at_probe);
    bed.point.set_local(LocalPod { probe_ports: vec![8080], ..local("") });
    assert!(at_web.judge(|_| {}).unwrap_err().unwrap().at_probe);
}

#[tokio::test]
async fn a_pod_that_the_mesh_does_not_know_lets_nobody_in() {
    let bed = Bed::new();
    let mut client = bed.enter(Some("client"), WEB);
    bed.publisher.publish(Snapshot::build(9, vec![], vec![], vec![]));
    assert_eq!(client.judge(|_| {}).unwrap_err(), None);
    assert_eq!(bed.recheck(), Rechecked::default(), "its release ends what it has");
    assert_eq!(is_stopped(&mut client).await, None);
}

#[tokio::test]
async fn whoever_follows_the_mesh_judges_at_every_change() {
    let bed = Bed::new();
    let mut client = bed.enter(Some("client"), WEB);
    let following = bed.points.clone().follow(bed.mesh.clone(), bed.decisions.clone());
    let changing = async {
        tokio::task::yield_now().await;
        bed.deny(&["other"]);
        bed.deny(&["client"]);
        client.stopped().await
    };
    let both = join(drop_when_done(following, changing), async {});
    let (denial, ()) = timeout(SOON, both).await.unwrap();
    assert!(matches!(denial.cause, Cause::Matched { .. }));
}

#[tokio::test]
async fn whoever_follows_the_mesh_judges_when_the_local_facts_of_a_pod_change_as_well() {
    let bed = Bed::new();
    bed.point.set_local(local("8080"));
    bed.deny(&["client"]);
    let mut client = bed.enter(Some("client"), WEB);
    assert!(is_let_in(&client));
    let following = bed.points.clone().follow(bed.mesh.clone(), bed.decisions.clone());
    let changing = async {
        tokio::task::yield_now().await;
        bed.point.set_local(local(""));
        client.stopped().await
    };
    let denial = timeout(SOON, drop_when_done(following, changing)).await.unwrap();
    assert!(matches!(denial.cause, Cause::Matched { .. }));
}

/// Runs `beside` until `main` has ended.
async fn drop_when_done<T>(beside: impl Future<Output = ()>, main: impl Future<Output = T>) -> T {
    tokio::select! {
        done = main => done,
        () = beside => panic!("the mesh has ended"),
    }
}
