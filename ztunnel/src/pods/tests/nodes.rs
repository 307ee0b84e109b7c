//! Two whole nodes, each with its manager, workers, enforcement points and certificates, assembled as in the daemon.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use prometheus_client::registry::Registry;
use tokio::{net::TcpStream, sync::watch, task::yield_now};
use tracing::Span;

use super::{kernel::Scripted, network::Network};
use crate::{
    control::{
        manifests::{Assembled, assemble, parse},
        remote::tests::decisions::Relay,
        source::MeshSource,
    },
    flow::{
        admission::Limits,
        enforcement::EnforcementPoints,
        events::{EventReader, Events},
        failures::NodeLines,
        table::WorkerId,
    },
    hbone,
    identity::{
        Credentials,
        cache::{self, CacheSettings},
        source::{CertSource, Issuing},
    },
    lifecycle::{
        drain::{self, DrainTrigger},
        tasks::{TaskCount, TaskSet},
    },
    metrics::traffic::Traffic,
    model::{
        identity::{SpiffeId, TrustDomain},
        local::{ConnectMode, LocalPod},
        problem::Problem,
        workload::NamespacedName,
    },
    net::{listen::DeafPods, memory::Budget, open::Resources},
    pods::{
        describe::{Description, PodInfo, PodState},
        handover::Orders,
        local::Annotated,
        manager::{Manager, ManagerHandle, ManagerParts},
        pod::PodSettings,
        status::Status,
        worker::{ByteCount, WorkerHandle, WorkerSettings},
    },
    store::{
        change::{Batch, Change},
        local::{self, LocalPublisher},
        publish::{self, Publisher},
        snapshot::Snapshot,
    },
    tls::{
        self,
        test_ca::{TestCa, good},
    },
};

/// Longer than any step of these tests takes.
const SOON: Duration = Duration::from_secs(20);
/// How long a connect may take.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const WORKERS: u32 = 2;

/// The client is on node a, the server on node b, and both are in the mesh. The guest is on node b, and is not in the
/// mesh.
pub(super) const MESH: &str = "
apiVersion: v1
kind: Pod
metadata:
  name: client
  labels: {istio.io/dataplane-mode: ambient}
  annotations: {ambient.mesh/netns: /n/client}
spec: {nodeName: a, serviceAccountName: client, containers: []}
status: {podIPs: [{ip: 10.0.0.1}]}
---
apiVersion: v1
kind: Pod
metadata:
  name: web
  labels: {istio.io/dataplane-mode: ambient, app: web}
  annotations: {ambient.mesh/netns: /n/web}
spec: {nodeName: b, serviceAccountName: web, containers: []}
status: {podIPs: [{ip: 10.0.0.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: guest}
spec: {nodeName: b, serviceAccountName: guest, containers: []}
status: {podIPs: [{ip: 10.0.0.3}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
";

/// The authority that signs the certificates of both nodes.
pub(super) struct Authority {
    pub(super) ca: Arc<TestCa>,
    others: Mutex<HashMap<String, Issuer>>,
    generation: watch::Sender<u64>,
}

type Issuer = Box<dyn Fn() -> Arc<Credentials> + Send>;

impl Authority {
    fn new() -> Arc<Self> {
        let (ca, generation) = (Arc::new(TestCa::new("root")), watch::Sender::new(0));
        Arc::new(Self { ca, others: Mutex::default(), generation })
    }

    /// Gives the pods of an identity certificates of that authority, and these roots.
    pub(super) fn certify(&self, identity: &str, ca: &Arc<TestCa>, roots: &[&Arc<TestCa>]) {
        let roots: Vec<_> = roots.iter().map(|ca| ca.root()).collect();
        let (name, ca) = (identity.to_owned(), Arc::clone(ca));
        self.give(identity, Box::new(move || ca.credentials(&name, &good(&name), &roots)));
    }

    /// Gives the pods of an identity a certificate of another one.
    pub(super) fn mistake(&self, identity: &str, other: &str) {
        let (name, other, ca) = (identity.to_owned(), other.to_owned(), Arc::clone(&self.ca));
        self.give(identity, Box::new(move || ca.credentials(&name, &good(&other), &[ca.root()])));
    }

    fn give(&self, identity: &str, issuer: Issuer) {
        self.others.lock().unwrap().insert(identity.to_owned(), issuer);
        self.generation.send_modify(|generation| *generation += 1);
    }
}

impl CertSource for Authority {
    fn issue<'a>(&'a self, identity: &'a SpiffeId) -> Issuing<'a> {
        let name = identity.to_string();
        let credentials = match self.others.lock().unwrap().get(&name) {
            Some(issuer) => issuer(),
            None => self.ca.good(&name),
        };
        Box::pin(async { Ok(Arc::into_inner(credentials).unwrap()) })
    }

    fn generation(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }
}

/// One node.
pub(super) struct Node {
    name: &'static str,
    manager: ManagerHandle,
    local: LocalPublisher,
    registry: Registry,
    carried: Vec<ByteCount>,
    events: Events,
    drain: DrainTrigger,
    _tasks: TaskSet,
}

/// The way in which the nodes get the mesh.
#[derive(Clone, Copy, Debug)]
pub(super) enum Via {
    /// From manifests.
    Manifests,
    /// From the resources that a control plane makes from manifests.
    ControlPlane,
}

impl Via {
    /// Both ways.
    pub(super) const ALL: [Self; 2] = [Self::Manifests, Self::ControlPlane];
}

/// Both nodes, and the network between them.
pub(super) struct World {
    pub(super) network: Network,
    pub(super) authority: Arc<Authority>,
    certificates: Arc<dyn CertSource>,
    publisher: Arc<Publisher>,
    mesh: publish::Reader,
    nodes: [Node; 2],
    relay: Option<Mutex<Relay>>,
}

impl World {
    /// Two nodes that know [`MESH`], with the pods of the mesh enrolled.
    pub(super) async fn new() -> Self {
        Self::via(Via::Manifests).await
    }

    /// Two nodes as in [`World::new`] that get the mesh in this way.
    pub(super) async fn via(via: Via) -> Self {
        let relay = match via {
            Via::Manifests => None,
            Via::ControlPlane => Some(Mutex::default()),
        };
        let world = Self { relay, ..Self::empty() };
        world.publish(MESH).await;
        for (node, pod) in [("a", "client"), ("b", "web")] {
            assert_eq!(world.pod(node, pod).await.state, PodState::Enrolled);
        }
        world
    }

    /// Two nodes that have read no mesh yet.
    pub(super) fn empty() -> Self {
        let authority = Authority::new();
        Self::certified_by(Arc::clone(&authority) as Arc<dyn CertSource>, authority)
    }

    /// Two nodes that get their certificates and the mesh from these sources, as from a control plane. The sources are used until the
    /// tasks are dropped.
    pub(super) fn remote(certificates: Arc<dyn CertSource>, mut mesh: impl MeshSource + 'static) -> (Self, TaskSet) {
        let world = Self::certified_by(certificates, Authority::new());
        let (publisher, mut feeding) = (Arc::clone(&world.publisher), TaskSet::default());
        feeding.spawn_local(async move {
            while let Some(batch) = mesh.next().await {
                publisher.apply(batch);
            }
        });
        (world, feeding)
    }

    fn certified_by(certificates: Arc<dyn CertSource>, authority: Arc<Authority>) -> Self {
        let network = Network::default();
        network.namespace("/n/client", &["10.0.0.1"]);
        network.namespace("/n/web", &["10.0.0.2"]);
        network.namespace("/n/guest", &["10.0.0.3"]);
        let (publisher, mesh) = publish::channel();
        let nodes = ["a", "b"].map(|name| Node::start(name, &network, &certificates, &mesh));
        Self { network, authority, certificates, publisher: Arc::new(publisher), mesh, nodes, relay: None }
    }

    /// Ends a node's daemon without a drain, and starts another, which has read no mesh yet. Captured pods stay
    /// captured.
    pub(super) fn restart(&mut self, name: &'static str) {
        let node = self.nodes.iter_mut().find(|node| node.name == name).unwrap();
        *node = Node::start(name, &self.network, &self.certificates, &self.mesh);
    }

    pub(super) fn node(&self, name: &str) -> &Node {
        self.nodes.iter().find(|node| node.name == name).unwrap()
    }

    /// Publishes manifests as the folder does, and waits until the pods match them.
    pub(super) async fn publish(&self, manifests: &str) {
        assert_eq!(self.publish_with_problems(manifests).await, []);
    }

    /// Publishes manifests that may have faults. Returns the faults.
    pub(super) async fn publish_with_problems(&self, manifests: &str) -> Vec<Problem> {
        let (snapshot, facts) = self.read(manifests);
        let problems = snapshot.problems().to_vec();
        self.nodes.iter().zip(&facts).for_each(|(node, facts)| node.local.extend(facts));
        match &self.relay {
            None => self.publisher.publish(snapshot),
            Some(relay) => drop(self.publisher.apply(relay.lock().unwrap().batch(&snapshot))),
        }
        self.nodes.iter().zip(facts).for_each(|(node, facts)| node.local.replace(facts));
        for node in &self.nodes {
            eventually("the pods are as the manifests say", async || node.manager.pending().is_none()).await;
        }
        problems
    }

    /// The mesh of manifests, and the facts that each node has of its own pods.
    fn read(&self, manifests: &str) -> (Snapshot, [BTreeMap<NamespacedName, LocalPod>; 2]) {
        let version = self.mesh.load().version() + 1;
        let file: Arc<str> = "mesh.yaml".into();
        let assembled = assemble([(&file, &parse(&file, manifests).unwrap())], &TrustDomain::default());
        let Assembled { workloads, local, services, policies, problems, nodes, .. } = assembled;
        let snapshot = Snapshot::build(version, workloads, services, problems).with_policies(policies);
        let nodes = Batch { is_read: false, ..Batch::of(nodes.into_iter().map(Change::Node).collect()) };
        let snapshot = snapshot.apply(nodes);
        let facts = self.nodes.each_ref().map(|node| {
            let here = snapshot.pods_on(node.name).map(|pod| (pod.name.clone(), local[&pod.name].clone()));
            here.collect()
        });
        (snapshot, facts)
    }

    /// Gives the nodes the local facts of manifests. Returns the mesh, which a control plane has to send.
    pub(super) fn local_facts(&self, manifests: &str) -> Snapshot {
        let (snapshot, facts) = self.read(manifests);
        self.nodes.iter().zip(facts).for_each(|(node, facts)| node.local.replace(facts));
        snapshot
    }

    /// The mesh of the nodes.
    pub(super) fn mesh(&self) -> Arc<Snapshot> {
        self.mesh.load()
    }

    /// Publishes the mesh only, without local facts.
    pub(super) fn publish_without_local_facts(&self, manifests: &str) {
        let file: Arc<str> = "mesh.yaml".into();
        let mesh = assemble([(&file, &parse(&file, manifests).unwrap())], &TrustDomain::default());
        self.publisher.publish(Snapshot::build(1, mesh.workloads, mesh.services, mesh.problems));
    }

    pub(super) async fn pod(&self, node: &str, pod: &str) -> PodInfo {
        let Description { pods, .. } = self.node(node).describe().await;
        pods.into_iter().find(|found| found.name == pod).unwrap()
    }
}

impl Node {
    fn start(
        name: &'static str,
        network: &Network,
        certificates: &Arc<dyn CertSource>,
        mesh: &publish::Reader,
    ) -> Self {
        let count = TaskCount::default();
        let mut tasks = TaskSet::new(count.clone());
        let mut registry = Registry::default();
        let traffic = Traffic::register(&mut registry, Duration::from_secs(900), "Kubernetes".into());
        let (cache, certificates) = cache::channel(Arc::clone(certificates), CacheSettings::default(), count.clone());
        tasks.spawn(Span::none(), cache.run());
        let enforcement_points = EnforcementPoints::of_node(Some(Arc::new(network.clone())));
        tasks.spawn(Span::none(), enforcement_points.clone().follow(mesh.clone(), traffic.decisions().clone()));
        let events = Events::new(64, 4);
        let settings = WorkerSettings {
            buffer_size: 64 << 10,
            buffers_kept: 32,
            hbone: hbone::Settings::default(),
            cluster: "Kubernetes".into(),
            mesh: mesh.clone(),
            node: Some(Arc::new(network.clone())),
            traffic,
            tasks: count.clone(),
            lines: NodeLines::new(tokio::time::Instant::now()),
            events: events.clone(),
        };
        let worker = |index| WorkerHandle::beside(WorkerId { index, of: WORKERS }, settings.clone());
        let workers: Vec<_> = (0..WORKERS).map(worker).collect();
        let carried = workers.iter().map(WorkerHandle::carried).collect();
        let (local, facts) = local::channel();
        let (manager, handle) = Manager::new(ManagerParts {
            node: name.to_owned(),
            mesh: mesh.clone(),
            local: Box::new(Annotated::new(facts)),
            kernel: Scripted { node: name, network: network.clone(), workers: WORKERS },
            workers,
            host_cookie: 0,
            settings: PodSettings {
                connect_timeout: CONNECT_TIMEOUT,
                backlog: 1024,
                open: Resources::within(10_000, 1 << 20, 256 << 20),
                cut_existing: false,
                connect: ConnectMode::Early,
                tunnels: Limits {
                    connections: 1024,
                    connections_per_peer: 128,
                    handshakes: 256,
                    handshakes_per_peer: 32,
                },
                tls: tls::Settings::default(),
                memory: Budget::default(),
                deaf: DeafPods::default(),
            },
            enforcement_points,
            certificates,
            tasks: count,
            drain_timeout: Duration::from_secs(30),
            linger: Duration::from_secs(60),
        });
        let (drain, watch) = drain::channel();
        tasks.spawn_local(async { manager.run(watch).await.unwrap() });
        Self { name, manager: handle, local, registry, carried, events, drain, _tasks: tasks }
    }

    /// Reads the events of the node's connections.
    pub(super) fn events(&self) -> EventReader {
        self.events.read().unwrap()
    }

    /// What is missing until the node is ready.
    pub(super) fn pending(&self) -> Option<&'static str> {
        self.manager.pending()
    }

    /// The manager's last report.
    pub(super) fn status(&self) -> Arc<Status> {
        self.manager.status()
    }

    /// The orders for a handover of the pods.
    pub(super) fn orders(&self) -> Orders {
        self.manager.orders()
    }

    /// Whether the manager has ended.
    pub(super) fn is_gone(&self) -> bool {
        self.manager.orders().is_closed()
    }

    pub(super) async fn describe(&self) -> Description {
        self.manager.describe().await.unwrap()
    }

    /// Has the workers count the bytes of their live connections.
    pub(super) async fn count_carried(&self) {
        for carried in &self.carried {
            carried.count().await;
        }
    }

    /// Starts the drain: open connections may end, and no new ones are accepted.
    pub(super) fn drain(&self) {
        self.drain.start();
    }

    /// Stops for good: no other daemon takes over.
    pub(super) fn leave(&self) {
        self.drain.start_for_good();
    }

    /// Connections that have ended, by direction and reason.
    pub(super) fn closed(&self) -> BTreeMap<String, u64> {
        self.counted("ztunnel_connections_closed_total")
    }

    /// The values of a metric that are not 0, by the values of its labels.
    pub(super) fn counted(&self, metric: &str) -> BTreeMap<String, u64> {
        self.series(metric).into_iter().filter(|(_, value)| *value > 0).collect()
    }

    /// The values of a metric, including those that are 0, by the values of its labels.
    pub(super) fn series(&self, metric: &str) -> BTreeMap<String, u64> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let values = text.lines().filter_map(|line| {
            let (labels, value) = line.strip_prefix(metric)?.strip_prefix('{')?.split_once("} ")?;
            let labels: Vec<&str> = labels.split(',').filter_map(|label| label.split('"').nth(1)).collect();
            Some((labels.join(" "), value.parse().ok()?))
        });
        values.collect()
    }
}

/// Waits until a condition is true. It does not sleep: where the test clock stands still, only the real clock limits
/// the wait.
pub(super) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < SOON, "{what}: not within {SOON:?}");
        yield_now().await;
    }
}

/// Waits for work on sockets while the test clock stands still: a runtime that has nothing to do would advance it.
pub(super) async fn meanwhile<T>(work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = yield_now() => {}
        }
    }
}

/// Checks that bytes arrive in both directions.
pub(super) async fn echo(client: &mut TcpStream, server: &mut TcpStream) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut heard = [0; 10];
    client.write_all(b"still here").await.unwrap();
    server.read_exact(&mut heard).await.unwrap();
    server.write_all(&heard).await.unwrap();
    client.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"still here");
}

/// Whether a connection ends in a reset.
pub(super) async fn is_reset(stream: &mut TcpStream) -> bool {
    use tokio::io::AsyncReadExt as _;
    stream.read(&mut [0; 10]).await.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
}
