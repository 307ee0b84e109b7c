use std::net::IpAddr;

use tokio::time::{sleep, timeout};

use super::*;
use crate::lifecycle::tasks::{TaskCount, TaskSet};
use crate::model::{
    identity::{SpiffeId, TrustDomain},
    workload::{RefuseReason, Workload},
};
use crate::pods::proc::tests::Tree;

const UID: &str = "8e2f1c5a-0b7d-4c1e-9f3a-5d6e7f8091a2";
const OTHER_UID: &str = "11111111-2222-3333-4444-555555555555";

fn name(pod: &str) -> NamespacedName {
    NamespacedName::new("ns", pod)
}

fn pod(pod: &str, uid: &str, addresses: &[&str], membership: Membership) -> NodePod {
    let workload = Workload {
        uid: uid.into(),
        node: Some("here".into()),
        addresses: addresses.iter().map(|address| address.parse::<IpAddr>().unwrap()).collect(),
        membership,
        ..Workload::new(name(pod), SpiffeId::new(TrustDomain::default(), "ns", "account"))
    };
    NodePod { workload: Arc::new(workload), local: Arc::new(LocalPod { probe_ports: vec![80], ..LocalPod::default() }) }
}

/// A node with a scripted machine, and a scripted API server.
struct World {
    tree: Tree,
    news: watch::Sender<NodePods>,
    source: FromCluster,
    sandboxes: Sandboxes,
    _task: TaskSet,
}

impl World {
    fn new() -> Self {
        let tree = Tree::new();
        tree.namespace("a", "10.0.0.1");
        let (news, told) = watch::channel(NodePods::default());
        let (follower, source, sandboxes) = Follower::new("here", TrustDomain::default(), told, tree.finder());
        let mut task = TaskSet::new(TaskCount::default());
        task.spawn(tracing::Span::none(), follower.run());
        Self { tree, news, source, sandboxes, _task: task }
    }

    fn says(&self, pods: &[NodePod]) {
        let pods = pods.iter().map(|pod| (pod.workload.name.clone(), pod.clone())).collect();
        self.news.send_replace(NodePods { pods: Some(pods), ..NodePods::default() });
    }

    /// The facts about the pod `a`, as text.
    fn of_a(&self) -> String {
        let Some(pods) = self.source.current() else { return "nothing is told".to_owned() };
        match pods.get(&name("a")).map(|pod| &pod.netns) {
            Some(Some(crate::model::netns::NetnsFile::Open(open))) => format!("netns:{}", self.tree.name(open)),
            Some(Some(named)) => panic!("{named:?}"),
            Some(None) => self.source.missing_netns(&name("a")),
            None => "absent".to_owned(),
        }
    }

    /// Waits until the facts about the pod `a` contain this text.
    async fn comes_to(&mut self, expected: &str) {
        for _ in 0..100 {
            if self.of_a().contains(expected) {
                return;
            }
            let _nothing_new = timeout(Duration::from_secs(40), self.source.changed()).await;
        }
        panic!("{expected:?} never came: {}", self.of_a());
    }
}

#[tokio::test(start_paused = true)]
async fn a_labelled_pod_is_found_and_one_without_the_label_is_not_looked_for() {
    let mut world = World::new();
    world.tree.of_pod(5, UID, "a");
    assert_eq!(world.of_a(), "nothing is told");
    world.says(&[pod("a", UID, &["10.0.0.1"], Membership::NotLabelled)]);
    world.comes_to("neither the pod nor its Namespace has the label").await;
    world.says(&[pod("a", UID, &["10.0.0.1"], Membership::InMesh)]);
    world.comes_to("netns:a").await;
    let pods = world.source.current().unwrap();
    let known = &pods[&name("a")];
    assert_eq!((known.service_account.as_deref(), known.is_labelled), (Some("account"), true));
    assert_eq!(known.probe_ports, [80]);
    world.says(&[]);
    world.comes_to("absent").await;
    assert!(world.source.missing_netns(&name("a")).contains("on node here"));
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_containers_start_later_is_found_then() {
    let mut world = World::new();
    world.says(&[pod("a", UID, &["10.0.0.1"], Membership::InMesh)]);
    world.comes_to("its containers have not started yet").await;
    world.tree.of_pod(5, UID, "a");
    world.comes_to("netns:a").await;
}

#[tokio::test(start_paused = true)]
async fn the_processes_of_a_static_pod_have_another_uid_than_its_object() {
    let mut world = World::new();
    world.tree.of_pod(5, UID, "a");
    let mirror = pod("a", OTHER_UID, &["10.0.0.1"], Membership::InMesh);
    let local = LocalPod { cgroup_uid: Some(UID.into()), ..LocalPod::default() };
    world.says(&[NodePod { local: Arc::new(local), ..mirror }]);
    world.comes_to("netns:a").await;
}

#[tokio::test(start_paused = true)]
async fn what_each_pod_goes_through_is_told_apart_from_what_is_wrong() {
    let mut world = World::new();
    world.says(&[pod("a", UID, &["10.0.0.1"], Membership::Refused(RefuseReason::NoAddress))]);
    world.comes_to("no usable address").await;
    assert!(world.source.is_passing(&name("a")));
    world.says(&[pod("a", UID, &["10.0.0.1"], Membership::InMesh)]);
    world.comes_to("its containers have not started yet").await;
    assert!(!world.source.is_passing(&name("a")));
    world.says(&[pod("a", UID, &["10.0.0.1"], Membership::Refused(RefuseReason::Finished))]);
    world.comes_to("has finished").await;
    assert!(world.source.is_passing(&name("a")));
}

#[tokio::test(start_paused = true)]
async fn pods_that_cannot_be_captured_have_the_reason() {
    let mut world = World::new();
    world.tree.of_pod(5, UID, "a");
    let reason = RefuseReason::HostNetwork;
    world.says(&[pod("a", UID, &["10.0.0.1"], Membership::Refused(reason))]);
    world.comes_to("hostNetwork pods share the node's network").await;
    let sandboxed = pod("a", UID, &["10.0.0.1"], Membership::InMesh);
    let local = LocalPod { runtime_class: Some("kata-qemu".into()), ..LocalPod::default() };
    world.says(&[NodePod { local: Arc::new(local), ..sandboxed }]);
    world.comes_to("the daemon is searching for the pod's network namespace").await;
    let pods = world.source.current().unwrap();
    assert!(
        !pods[&name("a")].is_labelled,
        "it is refused by its runtime class if the mesh has it, and else left alone"
    );
}

#[tokio::test(start_paused = true)]
async fn a_namespace_that_was_found_is_kept_against_another_with_the_same_addresses() {
    let mut world = World::new();
    world.tree.of_pod(5, UID, "a");
    world.says(&[pod("a", UID, &["10.0.0.1"], Membership::InMesh)]);
    world.comes_to("netns:a").await;
    world.tree.namespace("fake", "10.0.0.1");
    world.tree.of_pod(6, UID, "fake");
    world.tree.end(5);
    // Time passes only while no task runs, so everything that is due has been done.
    sleep(WITNESS * 20).await;
    assert_eq!(world.of_a(), "netns:a", "the process that was in it is gone, but it still has the address");
    // This is what happens when a sandbox is made again, with the same address.
    world.tree.namespace("a", "");
    world.comes_to("netns:fake").await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_of_the_same_name_is_another_one() {
    let mut world = World::new();
    world.tree.of_pod(5, UID, "a");
    world.says(&[pod("a", UID, &["10.0.0.1"], Membership::InMesh)]);
    world.comes_to("netns:a").await;
    world.says(&[pod("a", OTHER_UID, &["10.0.0.1"], Membership::InMesh)]);
    world.comes_to("its containers have not started yet").await;
    world.tree.namespace("second", "10.0.0.1");
    world.tree.of_pod(7, OTHER_UID, "second");
    world.comes_to("netns:second").await;
    // Its addresses may change as well.
    world.tree.namespace("second", "10.0.0.7");
    world.says(&[pod("a", OTHER_UID, &["10.0.0.7"], Membership::InMesh)]);
    world.comes_to("netns:second").await;
}

#[tokio::test(start_paused = true)]
async fn while_the_api_server_is_away_the_last_state_stays_and_is_told() {
    let mut world = World::new();
    world.news.send_replace(NodePods { problem: Some("no route to it".into()), ..NodePods::default() });
    world.source.changed().await;
    assert_eq!((world.of_a().as_str(), world.source.problem().as_deref()), ("nothing is told", Some("no route to it")));
    world.tree.of_pod(5, UID, "a");
    world.says(&[pod("a", UID, &["10.0.0.1"], Membership::InMesh)]);
    world.comes_to("netns:a").await;
    assert_eq!(world.source.problem(), None);
    world.news.send_modify(|news| news.problem = Some("it is away".into()));
    world.source.changed().await;
    assert_eq!((world.of_a().as_str(), world.source.problem().as_deref()), ("netns:a", Some("it is away")));
    let pods = world.source.current().unwrap();
    assert!(!pods[&name("a")].is_labelled, "old labels hold no pod that has left the mesh");
}

const WAITING: Membership = Membership::Refused(RefuseReason::NoAddress);

impl World {
    async fn makes_sandbox(&self, uid: &str, netns: &str, address: &str) {
        let (netns, addresses) = (self.tree.open(netns), vec![address.parse().unwrap()]);
        assert!(self.sandboxes.tell(SandboxNews::Made { pod: name("a"), uid: uid.to_owned(), netns, addresses }).await);
    }

    /// The facts that the node uses of the sandbox of the pod `a`: its addresses, and whether it is ahead of the
    /// status.
    fn sandbox_of_a(&self) -> Option<(String, bool)> {
        let pods = self.source.current()?;
        let sandbox = pods.get(&name("a"))?.sandbox.as_ref()?;
        assert_eq!(sandbox.identity, SpiffeId::new(TrustDomain::default(), "ns", "account"));
        let addresses: Vec<_> = sandbox.addresses.iter().map(ToString::to_string).collect();
        Some((addresses.join(" "), sandbox.is_ahead_of_status))
    }
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_is_known_before_a_process_or_an_address_is() {
    let mut world = World::new();
    world.says(&[pod("a", UID, &[], WAITING)]);
    world.comes_to("no usable address").await;
    world.makes_sandbox(OTHER_UID, "a", "10.0.0.1").await;
    world.makes_sandbox(UID, "a", "10.0.0.1").await;
    world.comes_to("netns:a").await;
    assert_eq!(world.sandbox_of_a(), Some(("10.0.0.1".to_owned(), true)));
    assert!(world.source.current().unwrap()[&name("a")].is_labelled);
    let known = KnownSandbox {
        pod: name("a"),
        uid: UID.to_owned(),
        netns: world.tree.open("a"),
        addresses: vec!["10.0.0.1".parse().unwrap()],
    };
    assert_eq!(world.sandboxes.all().await, Some(vec![known]), "for a daemon that takes over");

    // Status and processes agree: the namespace stays the same all the time.
    world.tree.of_pod(5, UID, "a");
    world.says(&[pod("a", UID, &["10.0.0.1"], Membership::InMesh)]);
    while world.sandbox_of_a() != Some(("10.0.0.1".to_owned(), false)) {
        world.source.changed().await;
        assert_eq!(world.of_a(), "netns:a");
    }
    sleep(WITNESS * 2).await;
    assert_eq!(world.of_a(), "netns:a");

    // Without the label, the sandbox does not count. It counts again when the label is back.
    world.says(&[pod("a", UID, &["10.0.0.1"], Membership::NotLabelled)]);
    while world.sandbox_of_a().is_some() {
        world.source.changed().await;
    }
    world.says(&[pod("a", UID, &["10.0.0.1"], Membership::InMesh)]);
    world.comes_to("netns:a").await;
    // Another pod with the name has no sandbox.
    world.says(&[pod("a", OTHER_UID, &[], WAITING)]);
    world.comes_to("no usable address").await;
}

#[tokio::test(start_paused = true)]
async fn the_facts_are_complete_when_each_namespace_has_been_searched() {
    let mut world = World::new();
    assert!(!world.source.is_complete(), "nothing is told");
    world.tree.of_pod(5, UID, "a");
    world.says(&[
        pod("a", UID, &["10.0.0.1"], Membership::InMesh),
        pod("b", OTHER_UID, &["10.0.0.2"], Membership::InMesh),
    ]);
    while !world.source.is_complete() {
        world.source.changed().await;
    }
    assert_eq!(world.of_a(), "netns:a");
    assert!(world.source.missing_netns(&name("b")).contains("its containers have not started yet"));
    // A pod that comes later is searched first.
    world.tree.namespace("b", "10.0.0.2");
    world.tree.of_pod(6, OTHER_UID, "b");
    world.says(&[pod("b", OTHER_UID, &["10.0.0.2"], Membership::InMesh)]);
    while world.source.current().unwrap()[&name("b")].netns.is_none() {
        world.source.changed().await;
    }
    assert!(world.source.is_complete());
}

#[tokio::test(start_paused = true)]
async fn a_status_that_contradicts_the_sandbox_counts() {
    let mut world = World::new();
    world.tree.namespace("b", "10.0.0.2");
    world.says(&[pod("a", UID, &[], WAITING)]);
    world.makes_sandbox(UID, "a", "10.0.0.1").await;
    world.comes_to("netns:a").await;
    world.says(&[pod("a", UID, &["10.0.0.2"], Membership::InMesh)]);
    world.comes_to("its containers have not started yet").await;
    assert_eq!(world.sandbox_of_a(), None);
    world.tree.of_pod(5, UID, "b");
    world.comes_to("netns:b").await;
}

#[tokio::test(start_paused = true)]
async fn a_second_sandbox_takes_the_place_of_the_first_and_a_removed_one_is_forgotten() {
    let mut world = World::new();
    world.tree.namespace("b", "10.0.0.2");
    world.tree.of_pod(5, UID, "a");
    world.says(&[pod("a", UID, &["10.0.0.1"], Membership::InMesh)]);
    world.comes_to("netns:a").await;
    // The status still has the address of the first sandbox.
    world.tree.of_pod(5, UID, "b");
    world.makes_sandbox(UID, "b", "10.0.0.2").await;
    world.comes_to("netns:b").await;
    assert_eq!(world.sandbox_of_a(), Some(("10.0.0.2".to_owned(), true)));
    sleep(WITNESS * 2).await;
    assert_eq!(world.of_a(), "netns:b");
    world.sandboxes.tell(SandboxNews::Gone { pod: name("a"), netns: world.tree.open("a") }).await;
    world.says(&[pod("a", UID, &["10.0.0.2"], Membership::InMesh)]);
    world.comes_to("netns:b").await;
    world.tree.end(5);
    world.sandboxes.tell(SandboxNews::Gone { pod: name("a"), netns: world.tree.open("b") }).await;
    world.comes_to("its containers have not started yet").await;
}
