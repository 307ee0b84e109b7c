//! Both sides of a handover, in one process, and what goes wrong between them.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::Write as _,
    net::{SocketAddr, TcpListener},
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{io::AsyncWriteExt as _, net::UnixStream, time::sleep};
use tracing::Span;

use super::{
    ask::{self, Frozen, TakeOverError},
    protocol::{Asker, PROTOCOLS, Reply, Request, agree, receive, send},
    serve::{self, Handover},
    socket,
};
use crate::{
    app::lock::Lock,
    lifecycle::{
        drain::{self, DrainWatch},
        keeps::Keeps,
        tasks::{TaskCount, TaskSet},
    },
    model::{netns::OpenNetns, workload::NamespacedName},
    pods::{
        kubernetes::sandbox::{KnownSandbox, SandboxNews, tests::scripted},
        manager::ManagerHandle,
    },
    redirect::pins::PinDir,
    store::publish,
};

/// A daemon that runs, as far as a handover goes.
struct Running {
    _parent: tempfile::TempDir,
    state: PathBuf,
    pins: PinDir,
    endpoint: SocketAddr,
    endpoints: DrainWatch,
    keeps: Keeps,
    manager: ManagerHandle,
    /// The sandboxes of its pods: more than fit beside one message.
    known: Vec<KnownSandbox>,
    /// What its manager was told to do.
    orders: Arc<Mutex<Vec<&'static str>>>,
    serving: TaskSet,
    _others: TaskSet,
}

impl Running {
    fn start() -> Self {
        let parent = tempfile::tempdir().unwrap();
        // More than the path of a socket may have.
        let state = parent.path().join("s".repeat(120));
        DirBuilder::new().mode(0o700).create(&state).unwrap();
        let pins = PinDir::at(&parent.path().join("pins"));
        std::fs::create_dir_all(pins.root()).unwrap();
        let lock = Lock::handed_over(files(&state, &pins), &state, &pins).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let endpoint = listener.local_addr().unwrap();
        let (close_endpoints, endpoints) = drain::channel();
        let (_publisher, mesh) = publish::channel();
        let (manager, mut steps) = ManagerHandle::of_handover(mesh);
        let (keeps, orders) = (Keeps::default(), Arc::new(Mutex::new(Vec::new())));
        let mut obeying = TaskSet::new(TaskCount::default());
        let told = Arc::clone(&orders);
        obeying.spawn(Span::none(), async move {
            while let Some(order) = steps.next().await {
                told.lock().unwrap().push(order);
            }
        });
        let known: Vec<_> = (0..20).map(|number| sandbox(parent.path(), number)).collect();
        let (sandboxes, mut asked) = scripted();
        let answer = known.clone();
        obeying.spawn(Span::none(), async move {
            while let Some(SandboxNews::Asked(reply)) = asked.recv().await {
                reply.send(answer.clone()).unwrap();
            }
        });
        let handover = Handover {
            lock,
            endpoints: vec![(endpoint, listener)],
            close_endpoints,
            manager: manager.clone(),
            keeps: keeps.clone(),
            sandboxes: Some(sandboxes),
            node: "node-a".to_owned(),
        };
        let mut serving = TaskSet::new(TaskCount::default());
        serving.spawn(Span::none(), handover.serve(serve::listen(&state).unwrap()));
        Self {
            _parent: parent,
            state,
            pins,
            endpoint,
            endpoints,
            keeps,
            manager,
            known,
            orders,
            serving,
            _others: obeying,
        }
    }

    /// What it says when it has stopped all changes.
    fn frozen(&self) -> Frozen {
        Frozen { pods: 2, connections_before: [(7, 3)].into(), sandboxes: self.known.clone() }
    }

    fn orders(&self) -> Vec<&'static str> {
        self.orders.lock().unwrap().clone()
    }

    async fn connect(&self) -> UnixStream {
        socket::connect(&self.state, socket::NAME).await.unwrap()
    }

    /// One that has been granted what it asked for.
    async fn asked(&self) -> (Lock, ask::Predecessor) {
        ask::ask(&self.state, &self.pins, asker()).await.unwrap().unwrap()
    }

    /// Waits until the manager has been told all of that.
    async fn told(&self, orders: &[&str]) {
        while self.orders().len() < orders.len() {
            sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(self.orders(), orders);
    }

    /// Hands over to one that does everything right.
    async fn hands_over(&mut self) {
        let (_lock, mut successor) = self.asked().await;
        let before = self.orders().len();
        assert_eq!(successor.begin().await.unwrap(), Some(self.frozen()));
        successor.done().await.unwrap();
        self.serving.join_all().await;
        assert_eq!(self.orders().split_off(before), ["freeze", "retire"]);
    }
}

fn sandbox(dir: &Path, number: u8) -> KnownSandbox {
    let path = dir.join(format!("netns-{number}"));
    KnownSandbox {
        pod: NamespacedName::new("ns", format!("pod-{number}")),
        uid: format!("uid-{number}"),
        netns: OpenNetns::new(File::create(&path).unwrap(), path).unwrap(),
        addresses: vec![[10, 0, 0, number].into(), [0xfd00, 0, 0, 0, 0, 0, 0, u16::from(number)].into()],
    }
}

/// The files of a lock, locked.
fn files(state: &Path, pins: &PinDir) -> [OwnedFd; 2] {
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).mode(0o600).open(state.join("lock")).unwrap();
    let root = File::open(pins.root()).unwrap();
    file.try_lock().unwrap();
    root.try_lock().unwrap();
    [file.into(), root.into()]
}

fn asker() -> Asker {
    let layout = ebpf_common::LAYOUT;
    Asker { protocols: PROTOCOLS, version: "test".to_owned(), layout, node: "node-a".to_owned() }
}

fn is_locked(state: &Path) -> bool {
    File::open(state.join("lock")).unwrap().try_lock().is_err()
}

#[test]
fn the_newest_protocol_that_both_speak() {
    assert_eq!(agree([1, 3], [2, 7]), Some(3));
    assert_eq!(agree([2, 7], [1, 3]), Some(3));
    assert_eq!(agree([1, 1], [1, 1]), Some(1));
    assert_eq!(agree([1, 1], [2, 3]), None);
    assert_eq!(agree([2, 3], [1, 1]), None);
}

#[tokio::test]
async fn everything_changes_hands_and_the_lock_is_never_free() {
    let mut running = Running::start();
    let mode = std::fs::symlink_metadata(running.state.join(socket::NAME)).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    let (lock, mut successor) = running.asked().await;
    let listener = successor.listener(running.endpoint).unwrap().unwrap();
    assert_eq!(listener.local_addr().unwrap(), running.endpoint);
    assert!(successor.listener(running.endpoint).unwrap().is_none(), "it is given once");
    assert!(running.orders().is_empty() && running.keeps.is_so() && !running.endpoints.is_started());
    assert_eq!(successor.begin().await.unwrap(), Some(running.frozen()));
    successor.done().await.unwrap();
    running.serving.join_all().await;
    assert_eq!(running.orders(), ["freeze", "retire"]);
    assert!(running.endpoints.is_started() && !running.keeps.is_so());
    assert!(is_locked(&running.state), "the successor has the lock");
    drop(lock);
    assert!(!is_locked(&running.state));
}

#[tokio::test]
async fn a_successor_that_dies_is_as_if_it_had_never_been() {
    let mut running = Running::start();
    drop(running.connect().await);
    drop(running.asked().await);
    let (lock, mut successor) = running.asked().await;
    successor.begin().await.unwrap();
    drop(successor);
    drop(lock);
    running.told(&["freeze", "resume"]).await;
    assert!(is_locked(&running.state) && running.keeps.is_so() && !running.endpoints.is_started());
    running.hands_over().await;
}

/// What it may have changed after it was given up is put right once it is gone.
#[tokio::test]
async fn a_successor_that_says_something_else_is_given_up() {
    let running = Running::start();
    let mut stream = running.connect().await;
    send(&mut stream, &Request::Ask(asker())).await.unwrap();
    assert!(matches!(receive(&mut stream).await.unwrap(), Reply::Granted(_)));
    let _files = super::protocol::receive_files(&stream, 3).await.unwrap();
    send(&mut stream, &Request::Begin).await.unwrap();
    assert!(matches!(receive(&mut stream).await.unwrap(), Reply::Frozen { pods: 2, .. }));
    let _sandboxes = super::protocol::receive_files(&stream, running.known.len()).await.unwrap();
    send(&mut stream, &Request::Begin).await.unwrap();
    let Reply::Aborted { reason } = receive(&mut stream).await.unwrap() else { panic!("it goes on") };
    assert!(reason.contains("unexpected message"), "{reason}");
    assert_eq!(running.orders(), ["freeze", "resume"]);
    drop(stream);
    running.told(&["freeze", "resume", "freeze", "resume"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_successor_that_hangs_is_given_up() {
    let running = Running::start();
    let (_lock, mut successor) = running.asked().await;
    successor.begin().await.unwrap();
    running.told(&["freeze", "resume"]).await;
    // It goes on, and hears that it is too late.
    let error = successor.done().await.unwrap_err();
    assert!(matches!(&error, TakeOverError::Aborted(reason) if reason.contains("within 60 s")), "{error}");
    assert!(running.keeps.is_so() && !running.endpoints.is_started());
}

#[tokio::test]
async fn nonsense_gets_nothing_and_does_no_harm() {
    let mut running = Running::start();
    for nonsense in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 100], &[0; 4], &[0, 0, 0, 2, b'{', b'}'], &[0, 0, 0, 9, b'"']]
    {
        let mut stream = running.connect().await;
        stream.write_all(nonsense).await.unwrap();
        stream.shutdown().await.unwrap();
        let answer = receive::<Reply>(&mut stream).await;
        assert!(answer.is_err(), "{answer:?}");
    }
    let mut stream = running.connect().await;
    send(&mut stream, &Request::Done).await.unwrap();
    assert!(matches!(receive(&mut stream).await.unwrap(), Reply::Refused { .. }));
    assert!(running.orders().is_empty());
    running.hands_over().await;
}

#[tokio::test]
async fn who_can_not_take_over_is_told_why() {
    let mut running = Running::start();
    let cases = [
        (Asker { node: "node-b".to_owned(), ..asker() }, "--node node-b"),
        (Asker { layout: 99, ..asker() }, "layout 99"),
        (Asker { protocols: [3, 4], ..asker() }, "knows 3 to 4"),
    ];
    for (asker, reason) in cases {
        let error = ask::ask(&running.state, &running.pins, asker).await.unwrap().unwrap_err();
        assert!(matches!(&error, TakeOverError::Refused(text) if text.contains(reason)), "{error}");
    }
    let elsewhere = PinDir::at(running.state.parent().unwrap());
    std::fs::create_dir_all(elsewhere.root()).unwrap();
    let error = ask::ask(&running.state, &elsewhere, asker()).await.unwrap().unwrap_err().to_string();
    assert!(error.contains("pin directory") && error.contains("--bpf-pin"), "{error}");
    let first = running.asked().await;
    let error = ask::ask(&running.state, &running.pins, asker()).await.unwrap().unwrap_err();
    assert!(matches!(&error, TakeOverError::Busy(text) if text.contains("in progress")), "{error}");
    drop(first);
    assert!(running.orders().is_empty());
    running.hands_over().await;
}

/// A daemon of an earlier version does not expect files behind the message.
#[tokio::test]
async fn a_successor_of_the_first_protocol_gets_no_sandboxes() {
    let running = Running::start();
    let mut stream = running.connect().await;
    send(&mut stream, &Request::Ask(Asker { protocols: [1, 1], ..asker() })).await.unwrap();
    let Reply::Granted(granted) = receive(&mut stream).await.unwrap() else { panic!("it is refused") };
    assert_eq!(granted.protocol, 1);
    let _files = super::protocol::receive_files(&stream, 3).await.unwrap();
    send(&mut stream, &Request::Begin).await.unwrap();
    let frozen = receive(&mut stream).await.unwrap();
    assert!(matches!(&frozen, Reply::Frozen { pods: 2, sandboxes, .. } if sandboxes.is_empty()), "{frozen:?}");
    send(&mut stream, &Request::Done).await.unwrap();
    assert_eq!(receive::<Reply>(&mut stream).await.unwrap(), Reply::Left);
}

/// The state directory of a daemon that has crashed: its socket leads nowhere, and makes way.
#[tokio::test]
async fn a_socket_that_a_crash_has_left_makes_way() {
    let running = Running::start();
    let state = running.state.clone();
    let mut file = File::create(state.join("handover.sock.unfinished")).unwrap();
    file.write_all(b"left").unwrap();
    let listener = serve::listen(&state).unwrap();
    drop(listener);
    assert!(socket::connect(&state, socket::NAME).await.is_err());
    let _listener = serve::listen(&state).unwrap();
    socket::connect(&state, socket::NAME).await.unwrap();
    assert!(running.manager.orders().freeze().await.is_some());
}
