//! The pods of a node from a scripted Kubernetes API, found by their processes in real cgroups and real network namespaces.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use ztunnel_tests::apps::server::Server;
use ztunnel_tests::cgroups;
use ztunnel_tests::daemon::DaemonOptions;
use ztunnel_tests::kubernetes::Api;
use ztunnel_tests::netns::Netns;
use ztunnel_tests::process::{Launch, Process};
use ztunnel_tests::proof;
use ztunnel_tests::testbed::Testbed;
use ztunnel_tests::topology::{Family, ONE_NODE, Pod};
use ztunnel_tests::wait;

const PORT: u16 = 7000;
const NODE: &str = "node-a";
const PODS: [&str; 2] = ["client-a", "web-a"];

/// Tests that run at the same time need different pods, because the daemon looks at all processes of the machine.
static NODES: AtomicU16 = AtomicU16::new(0);

/// A node whose daemon gets its pods from a scripted API. The fields are dropped in their order.
struct Node {
    bed: Testbed,
    api: Api,
    processes: BTreeMap<String, Process>,
    cgroup: Cgroup,
    number: u16,
}

/// The cgroup below which the test creates the cgroups of a kubelet.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(bed: &Testbed) -> Result<Self> {
        // cgroup v1 has a file `tasks` in each group.
        let v2 = cgroups::hierarchies().into_iter().find(|root| !root.join("tasks").exists());
        let top = v2.context("no cgroup v2")?.join(bed.topology.prefix.member("kubelet"));
        fs::create_dir(&top).with_context(|| format!("cannot make {}", top.display()))?;
        Ok(Self(top))
    }

    fn of_pod(&self, uid: &str) -> PathBuf {
        self.0.join(format!("kubepods/burstable/pod{uid}/container"))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // The processes in the cgroup have been killed; the kernel may need a moment to remove them.
        let removed =
            wait::until_true("the cgroups to be empty", wait::PATIENCE, || Ok(cgroups::remove(&self.0).is_ok()));
        if let Err(error) = removed {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
    }
}

impl Node {
    fn new() -> Result<Self> {
        let mut bed = Testbed::new(ONE_NODE)?;
        bed.start_control_plane(NODE)?;
        let api = Api::start(&bed.topology.node(NODE)?.netns, &bed.topology.folder)?;
        let cgroup = Cgroup::new(&bed)?;
        let number = NODES.fetch_add(1, Ordering::Relaxed);
        let mut node = Self { bed, api, processes: BTreeMap::new(), cgroup, number };
        node.api.apply("nodes", json!({"metadata": {"name": NODE, "uid": "node"}}));
        node.namespace(false);
        for pod in PODS {
            let uid = node.uid(pod, 1);
            node.run(pod, &uid)?;
            node.api.apply("pods", node.object(pod, &uid)?);
        }
        node.bed.start_with(NODE, |options: &mut DaemonOptions| {
            options.arguments = vec!["--kubeconfig".to_owned(), node.api.kubeconfig().display().to_string()];
            if let Some(remote) = &mut options.control_plane {
                remote.pods = "kubernetes".into();
            }
        })?;
        Ok(node)
    }

    /// The UID of a pod, or of a later pod with the same name.
    fn uid(&self, pod: &str, generation: u8) -> String {
        let rank = PODS.iter().position(|other| *other == pod).unwrap_or(PODS.len());
        format!(
            "{:08x}-{:04x}-4000-8000-{:012x}",
            std::process::id(),
            self.number,
            rank * 256 + usize::from(generation)
        )
    }

    /// Starts the process of a pod's sandbox.
    fn run(&mut self, pod: &str, uid: &str) -> Result<()> {
        let netns = Netns::existing(self.bed.pod(pod)?.netns.name());
        let group = self.cgroup.of_pod(uid);
        self.process(uid, &netns, &group)
    }

    fn process(&mut self, key: &str, netns: &Netns, group: &Path) -> Result<()> {
        fs::create_dir_all(group).with_context(|| format!("cannot make {}", group.display()))?;
        let process = Launch::new("sleep").args(["infinity"]).inside(netns).start()?;
        fs::write(group.join("cgroup.procs"), process.id().to_string())?;
        self.processes.insert(key.to_owned(), process);
        Ok(())
    }

    fn namespace(&self, is_labelled: bool) {
        let labels = if is_labelled { json!({"istio.io/dataplane-mode": "ambient"}) } else { json!({}) };
        self.api.apply("namespaces", json!({"metadata": {"name": "demo", "uid": "demo", "labels": labels}}));
    }

    /// A pod as in the API. Its annotation names the network namespace of another pod.
    fn object(&self, name: &str, uid: &str) -> Result<Value> {
        let pod = self.bed.pod(name)?;
        let other = self.bed.pod(if name == PODS[0] { PODS[1] } else { PODS[0] })?;
        Ok(json!({
            "metadata": {
                "name": name, "namespace": "demo", "uid": uid, "labels": {"app": name},
                "annotations": {"ambient.mesh/netns": other.netns.path()},
            },
            "spec": {"nodeName": NODE, "serviceAccountName": name, "containers": []},
            "status": {"phase": "Running", "podIPs": [{"ip": pod.v4}, {"ip": pod.v6}]},
        }))
    }

    /// Labels the Namespace, in the mesh of the control plane and in the API.
    fn label(&self) -> Result<()> {
        self.bed.mesh.label()?;
        self.namespace(true);
        Ok(())
    }

    fn unlabel(&self) -> Result<()> {
        self.bed.mesh.unlabel()?;
        self.namespace(false);
        Ok(())
    }

    fn enrolled(&self) -> Result<()> {
        PODS.iter().try_for_each(|pod| self.bed.daemon(NODE)?.enrolled(pod))
    }

    /// Waits until no pod is captured. A refused pod may still be captured, and closed.
    fn released(&self) -> Result<()> {
        let daemon = self.bed.daemon(NODE)?;
        daemon.wait_dump("all pods to be released", wait::PATIENCE, |dump| dump.pods().count() == 0)
    }

    fn is_tunnelled(&self) -> Result<()> {
        let web = self.bed.pod("web-a")?;
        let echo = Server::echo(web, web.at(Family::V4, PORT))?;
        proof::tunnelled(&self.bed, ("client-a", "web-a"), &echo, Pod::connect).map(drop)
    }

    /// Waits until a pod is refused with these words.
    fn refused(&self, pod: &str, words: &str) -> Result<()> {
        let what = format!("{pod} to be refused with {words:?}");
        self.bed.daemon(NODE)?.wait_dump(&what, wait::PATIENCE, |dump| {
            dump.pod(pod).is_some_and(|pod| pod.state() == "refused" && pod.reason().contains(words))
        })
    }
}

#[test]
fn a_label_enrols_running_pods_and_its_removal_releases_them() -> Result<()> {
    let node = Node::new()?;
    ensure!(node.bed.daemon(NODE)?.dump()?.pods().count() == 0, "a pod that is not labelled is listed");
    let begun = Instant::now();
    node.label()?;
    node.enrolled()?;
    let took = begun.elapsed();
    println!("enrolled {took:?} after the label");
    ensure!(took < Duration::from_secs(3), "it took {took:?}");
    node.is_tunnelled()?;
    node.unlabel()?;
    node.released()?;
    let web = node.bed.pod("web-a")?;
    let echo = Server::echo(web, web.at(Family::V4, PORT))?;
    proof::direct(&echo, || node.bed.pod("client-a")?.connect(echo.address()))?;
    Ok(())
}

#[test]
fn a_pod_that_names_its_cgroups_like_another_pod_is_not_taken_for_it() -> Result<()> {
    let mut node = Node::new()?;
    // The attacker starts a process in a cgroup with the victim's UID below its own cgroup, and in a network namespace with the
    // victim's address.
    let (victim, attacker) = (node.uid("web-a", 1), node.uid("client-a", 1));
    drop(node.processes.remove(&victim));
    let fake = Netns::create(&node.bed.topology.prefix.member("fake"))?;
    let address = node.bed.pod("web-a")?;
    fake.ip("link add d0 type veth peer name d1\nlink set d0 up\nlink set d1 up\n")?;
    fake.ip(&format!("addr add {}/24 dev d0\naddr add {}/64 dev d0 nodad\n", address.v4, address.v6))?;
    for (number, below) in [format!("kubepods/burstable/pod{victim}/x"), format!("pod{victim}")].iter().enumerate() {
        let group = node.cgroup.of_pod(&attacker).join(below);
        node.process(&format!("attacker-{number}"), &fake, &group)?;
    }
    node.label()?;
    node.bed.daemon(NODE)?.enrolled("client-a")?;
    node.refused("web-a", "is in a cgroup of the pod")?;
    // Only the sandbox of the pod itself counts.
    node.run("web-a", &victim)?;
    node.enrolled()?;
    node.is_tunnelled()?;
    Ok(())
}

#[test]
fn a_pod_that_is_created_anew_under_its_name_is_another_one() -> Result<()> {
    let mut node = Node::new()?;
    node.label()?;
    node.enrolled()?;
    node.api.delete("pods", "demo/web-a");
    node.refused("web-a", "no pod of this name on node")?;
    let (first, second) = (node.uid("web-a", 1), node.uid("web-a", 2));
    drop(node.processes.remove(&first));
    // The old UID has no process any more, and the new UID has no process yet.
    let object = node.object("web-a", &second)?;
    node.api.apply("pods", object);
    node.refused("web-a", "is in a cgroup of the pod")?;
    node.run("web-a", &second)?;
    node.enrolled()?;
    node.is_tunnelled()?;
    // A pod whose service account differs from the one in the mesh is another pod.
    let mut object = node.object("web-a", &second)?;
    object["spec"]["serviceAccountName"] = "other-account".into();
    node.api.apply("pods", object);
    node.refused("web-a", "other-account in its spec")
}

#[test]
fn while_the_api_is_away_enrolled_pods_go_on_and_that_is_told() -> Result<()> {
    let mut node = Node::new()?;
    node.label()?;
    node.enrolled()?;
    node.api.set_away(true);
    let daemon = node.bed.daemon(NODE)?;
    daemon.wait_dump("the outage to be told", wait::PATIENCE, |dump| {
        dump.value()["localProblem"].as_str().is_some_and(|problem| problem.contains("stays in force"))
    })?;
    let stale = daemon.metrics()?.sum("ztunnel_local_facts_stale", &[]);
    ensure!((stale - 1.0).abs() < f64::EPSILON, "the metric is {stale}");
    node.enrolled()?;
    node.is_tunnelled()?;
    node.api.set_away(false);
    let daemon = node.bed.daemon(NODE)?;
    daemon.wait_dump("the API to be back", wait::PATIENCE, |dump| dump.value()["localProblem"].is_null())?;
    // Changes after that are followed again.
    node.unlabel()?;
    node.released()?;
    node.label()?;
    node.enrolled()?;
    let daemon = node.bed.daemon_mut(NODE)?;
    daemon.kill9()?;
    daemon.restart()?;
    node.enrolled()?;
    node.is_tunnelled()
}
