use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::IpAddr,
    os::fd::AsRawFd as _,
    os::unix::net::UnixStream as Client,
};

use nix::unistd::geteuid;
use tokio::{sync::mpsc, task::spawn_blocking};

use super::*;
use crate::{
    model::{
        identity::{SpiffeId, TrustDomain},
        local::LocalPod,
        node_pods::NodePod,
        workload::{RefuseReason, Workload},
    },
    pods::kubernetes::sandbox,
};

const UID: &str = "8e2f1c5a-0b7d-4c1e-9f3a-5d6e7f8091a2";

/// Pods that may wait at the same time in tests: each connection has two descriptors here.
const PLACES: usize = 16;

/// A network namespace is a file, which has this address.
struct Scripted(NetnsId);

impl Inspect for Scripted {
    async fn addresses(&self, _: &OpenNetns) -> Result<Vec<IpAddr>, String> {
        Ok(vec!["10.0.0.1".parse().unwrap()])
    }

    fn host(&self) -> NetnsId {
        self.0
    }

    fn is_recorded(&self, _: &OpenNetns, _: &NamespacedName) -> bool {
        false
    }
}

/// A daemon whose follower and manager are scripted.
struct World {
    dir: tempfile::TempDir,
    news: watch::Sender<NodePods>,
    told: mpsc::Receiver<SandboxNews>,
    arrivals: Arrivals,
    _task: TaskSet,
}

impl World {
    fn new() -> Self {
        Self::for_user(geteuid().as_raw())
    }

    fn for_user(owner: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (news, known) = watch::channel(NodePods::default());
        let (sandboxes, told) = sandbox::tests::scripted();
        let arrivals = Arrivals::default();
        let host = NetnsId::at(Path::new("/")).unwrap();
        let finder = Finder::new(Path::new("/nothing"), Scripted(host));
        let shared = Shared { news: known, sandboxes, arrivals: arrivals.clone(), finder };
        let mut server = Server::bind_for(&Place::of(dir.path()), shared, TaskCount::default(), owner).unwrap();
        server.places = Arc::new(Semaphore::new(PLACES));
        let mut task = TaskSet::new(TaskCount::default());
        task.spawn(Span::none(), server.run());
        Self { dir, news, told, arrivals, _task: task }
    }

    fn socket(&self) -> std::path::PathBuf {
        Place::of(self.dir.path()).socket()
    }

    fn netns(&self) -> File {
        let path = self.dir.path().join("netns");
        File::options().create(true).append(true).read(true).open(path).unwrap()
    }

    fn says(&self, membership: Membership, uid: &str) {
        self.news.send_replace(news(membership, uid));
    }

    /// Asks as the plugin does.
    fn ask(&self, request: Request) -> tokio::task::JoinHandle<io::Result<Answer>> {
        let (socket, netns) = (self.socket(), self.netns());
        spawn_blocking(move || {
            let socket = Client::connect(socket)?;
            message::send(&socket, &request, Some(netns.as_raw_fd()))?;
            message::receive(&socket)
        })
    }

    /// The sandbox that is told of next.
    async fn made(&mut self) -> OpenNetns {
        match self.told.recv().await.unwrap() {
            SandboxNews::Made { pod, uid, netns, addresses } => {
                assert_eq!((pod, uid.as_str(), addresses), (name(), UID, request().addresses));
                netns
            }
            other => panic!("{other:?}"),
        }
    }

    fn arrives(&self, arrival: &Arrival) {
        self.arrivals.tell(|pod| if *pod == name() { arrival.clone() } else { Arrival::Unknown });
    }
}

fn name() -> NamespacedName {
    NamespacedName::new("shop", "web")
}

fn news(membership: Membership, uid: &str) -> NodePods {
    let identity = SpiffeId::new(TrustDomain::default(), "shop", "default");
    let workload = Workload { uid: uid.into(), membership, ..Workload::new(name(), identity) };
    let pod = NodePod { workload: Arc::new(workload), local: Arc::default() };
    NodePods {
        pods: Some(BTreeMap::from([(name(), pod)])),
        namespaces: Arc::new(BTreeMap::from([("shop".into(), true), ("outside".into(), false)])),
        problem: None,
    }
}

fn request() -> Request {
    Request {
        version: message::VERSION,
        action: Action::Add,
        namespace: "shop".to_owned(),
        name: "web".to_owned(),
        uid: UID.to_owned(),
        sandbox: "0123".to_owned(),
        netns: "/run/netns/web".to_owned(),
        addresses: vec!["10.0.0.1".parse().unwrap()],
    }
}

fn place(netns: &OpenNetns) -> NetnsId {
    let (device, inode) = netns.place();
    NetnsId { device, inode }
}

const WAITING_POD: Membership = Membership::Refused(RefuseReason::NoAddress);

#[tokio::test]
async fn the_answer_comes_when_the_pod_is_enrolled_and_not_before() {
    let mut world = World::new();
    let answer = world.ask(request());
    // The API server tells of it later; one of the same name is another pod.
    world.says(WAITING_POD, "another");
    world.says(WAITING_POD, UID);
    let netns = world.made().await;
    world.arrives(&Arrival::Refused("no room".to_owned()));
    world.arrives(&Arrival::Enrolled(NetnsId { device: 1, inode: 1 }));
    assert!(!answer.is_finished(), "it is enrolled elsewhere");
    world.arrives(&Arrival::Enrolled(place(&netns)));
    assert_eq!(answer.await.unwrap().unwrap(), Answer::Enrolled);
    let check = world.ask(Request { action: Action::Check, ..request() });
    while !check.is_finished() {
        world.arrives(&Arrival::Enrolled(place(&netns)));
        tokio::task::yield_now().await;
    }
    assert_eq!(check.await.unwrap().unwrap(), Answer::Enrolled);
}

#[tokio::test]
async fn a_pod_outside_of_the_mesh_starts_at_once() {
    let world = World::new();
    for (membership, expected) in [
        (Membership::NotLabelled, "has the label"),
        (Membership::OptedOut, "dataplane-mode: none"),
        (Membership::Refused(RefuseReason::HostNetwork), "hostNetwork"),
    ] {
        world.says(membership, UID);
        let Answer::Outside { reason } = world.ask(request()).await.unwrap().unwrap() else { panic!() };
        assert!(reason.contains(expected), "{reason}");
    }
    let mut of_kata = news(WAITING_POD, UID);
    let local = Arc::new(LocalPod { runtime_class: Some("kata".into()), ..LocalPod::default() });
    of_kata.pods.as_mut().unwrap().get_mut(&name()).unwrap().local = local;
    world.news.send_replace(of_kata);
    assert!(matches!(world.ask(request()).await.unwrap().unwrap(), Answer::Outside { .. }));
}

#[tokio::test]
async fn a_pod_that_leaves_the_mesh_while_it_waits_may_start() {
    let mut world = World::new();
    world.says(WAITING_POD, UID);
    let answer = world.ask(request());
    world.made().await;
    world.says(Membership::OptedOut, UID);
    assert!(matches!(answer.await.unwrap().unwrap(), Answer::Outside { .. }));
}

/// The answer to a plugin that waits, while time goes fast.
async fn later(answer: tokio::task::JoinHandle<io::Result<Answer>>) -> io::Result<Answer> {
    let mut asked = 0;
    while !answer.is_finished() {
        // First the request has to arrive, in real time.
        if asked < 20 {
            std::thread::sleep(Duration::from_millis(5));
            tokio::task::yield_now().await;
            asked += 1;
        } else {
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        tokio::task::yield_now().await;
    }
    answer.await.unwrap()
}

fn refused(answer: io::Result<Answer>) -> String {
    match answer.unwrap() {
        Answer::Refused { reason } => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_is_not_proved_is_refused() {
    let world = World::new();
    world.says(WAITING_POD, UID);
    let foreign = Request { addresses: vec!["10.0.0.9".parse().unwrap()], ..request() };
    assert!(refused(world.ask(foreign).await.unwrap()).contains("it lacks 10.0.0.9"));
    for (bad, expected) in [
        (Request { addresses: Vec::new(), ..request() }, "0 addresses"),
        (Request { uid: String::new(), ..request() }, "K8S_POD_UID"),
        (Request { version: 99, ..request() }, "different versions"),
        (Request { namespace: "../shop".to_owned(), ..request() }, "the namespace of the pod"),
        (Request { name: "a\nb".to_owned(), ..request() }, "the name of the pod"),
    ] {
        let reason = refused(world.ask(bad).await.unwrap());
        assert!(reason.contains(expected), "{reason}");
    }
    // Without a network namespace, and with that of the node.
    for file in [None, Some(File::open("/").unwrap())] {
        let socket = world.socket();
        let asking = spawn_blocking(move || {
            let socket = Client::connect(socket)?;
            message::send(&socket, &request(), file.as_ref().map(std::os::fd::AsRawFd::as_raw_fd))?;
            message::receive(&socket)
        });
        let reason = refused(asking.await.unwrap());
        assert!(reason.contains("no open network namespace") || reason.contains("of the node"), "{reason}");
    }
}

#[tokio::test]
async fn a_pod_that_is_not_enrolled_in_time_may_not_start_and_its_sandbox_is_forgotten() {
    tokio::time::pause();
    let mut world = World::new();
    world.says(WAITING_POD, UID);
    let answer = world.ask(request());
    let netns = world.made().await;
    world.arrives(&Arrival::Refused("its address is another pod's".to_owned()));
    let answer = later(answer).await;
    assert!(refused(answer).contains("its address is another pod's"));
    match world.told.recv().await.unwrap() {
        SandboxNews::Gone { netns: gone, .. } => assert_eq!(gone, netns),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_pod_that_the_api_does_not_tell_of_starts_only_outside_of_the_mesh() {
    tokio::time::pause();
    let world = World::new();
    world.says(WAITING_POD, "another");
    let (mesh, outside) = (world.ask(request()), world.ask(Request { namespace: "outside".to_owned(), ..request() }));
    assert!(refused(later(mesh).await).contains("is not known within"));
    assert!(matches!(later(outside).await.unwrap(), Answer::Outside { .. }));
}

#[tokio::test]
async fn garbage_and_silence_cost_nobody_else_anything() {
    let world = World::new();
    world.says(Membership::NotLabelled, UID);
    let socket = world.socket();
    let hostile = spawn_blocking(move || {
        let long = vec![b'x'; 2 * message::MOST_BYTES];
        for garbage in [&b"\xff\xff\xff\n"[..], b"{}\n", b"[1,2", &long, b""] {
            let mut client = Client::connect(&socket).unwrap();
            // It may be closed before all of it is written.
            let _closed = client.write_all(garbage);
            let _closed = client.shutdown(std::net::Shutdown::Write);
            let mut rest = Vec::new();
            let _reset = client.read_to_end(&mut rest);
            assert_eq!(rest, b"", "nothing is answered");
        }
        let connect = |_| Client::connect(&socket).unwrap();
        for _ in 0..3 {
            let _closed: Vec<_> = (0..250).map(connect).collect();
        }
        (0..250).map(connect).collect::<Vec<_>>()
    });
    let silent = hostile.await.unwrap();
    // All places are taken: whoever comes is sent away, and comes again.
    assert!(world.ask(request()).await.unwrap().is_err());
    drop(silent);
    for _ in 0..200 {
        if matches!(world.ask(request()).await.unwrap(), Ok(Answer::Outside { .. })) {
            return;
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("the places are not given back");
}

#[tokio::test]
async fn nobody_but_root_is_listened_to() {
    let world = World::for_user(geteuid().as_raw() + 1);
    world.says(Membership::NotLabelled, UID);
    assert!(world.ask(request()).await.unwrap().is_err());
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(world.socket().parent().unwrap()), mode(&world.socket())), (0o700, 0o600));
}

#[tokio::test]
async fn what_is_seen_is_written_whenever_it_changes() {
    let dir = tempfile::tempdir().unwrap();
    let place = Place::of(dir.path());
    std::fs::create_dir(place.folder()).unwrap();
    let (sender, known) = watch::channel(NodePods::default());
    let (told, mut is_written) = watch::channel(false);
    let mut task = TaskSet::new(TaskCount::default());
    task.spawn(Span::none(), keep_seen(place.clone(), known, told));
    sender.send_replace(news(WAITING_POD, UID));
    is_written.wait_for(|is_written| *is_written).await.unwrap();
    assert!(!Seen::read(&place.seen()).may_be_in_mesh("outside"));
    sender.send_modify(|news| news.namespaces = Arc::new(BTreeMap::from([("outside".into(), true)])));
    while !Seen::read(&place.seen()).may_be_in_mesh("outside") {
        sleep(Duration::from_millis(5)).await;
    }
}
