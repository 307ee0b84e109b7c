//! A control plane with faults below the messages: it sends invalid bytes, a message that is too long, half a message, or
//! nothing. In all cases the last good mesh stays in force, and the daemon reports the cause and connects again.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::StreamBody;
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::Span;

use super::plane::{Ca, reached, within};
use super::streams::{Follower, a, source, while_following};
use super::{pod, response, workload};
use crate::control::remote::plane::{ControlPlane, Keepalive};
use crate::control::source::MeshSource as _;
use crate::istio::LONGEST_MESSAGE;
use crate::istio::discovery::{ADDRESS, AUTHORIZATION, DeltaDiscoveryResponse};
use crate::lifecycle::tasks::TaskSet;
use crate::store::snapshot::Snapshot;

type Frames = mpsc::UnboundedSender<Result<Frame<Bytes>, io::Error>>;

/// One stream whose bytes the test writes.
struct Bare {
    frames: Frames,
    /// Requests that are not read.
    _requests: Incoming,
}

impl Bare {
    fn bytes(&self, bytes: impl Into<Bytes>) {
        self.frames.send(Ok(Frame::data(bytes.into()))).unwrap();
    }

    fn message(&self, response: &DeltaDiscoveryResponse) {
        let message = response.encode_to_vec();
        self.bytes(prefix(message.len()));
        self.bytes(message);
    }

    /// A mesh of one pod.
    fn mesh(&self) {
        self.message(&response(ADDRESS, "a1", vec![a()], &[]));
        self.message(&response(AUTHORIZATION, "p1", Vec::new(), &[]));
    }
}

/// The prefix of a gRPC message of this length.
fn prefix(length: usize) -> Vec<u8> {
    let mut prefix = vec![0];
    prefix.extend(u32::try_from(length).unwrap().to_be_bytes());
    prefix
}

/// A control plane on loopback that answers each call with the bytes that a test writes.
struct Control {
    address: SocketAddr,
    opened: mpsc::UnboundedReceiver<Bare>,
    /// While it is `true`, no connection reads or writes.
    frozen: watch::Sender<bool>,
    _connections: TaskSet,
}

impl Control {
    async fn start(ca: &Ca) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (opened, receiver) = mpsc::unbounded_channel();
        let (frozen, freezing) = watch::channel(false);
        let tls = ca.server("127.0.0.1");
        let mut connections = TaskSet::default();
        connections.spawn(Span::none(), async move {
            let mut open = TaskSet::default();
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let (tls, opened, mut freezing) = (tls.clone(), opened.clone(), freezing.clone());
                open.spawn(Span::none(), async move {
                    let Ok(stream) = tls.accept(tcp).await else { return };
                    let answer = service_fn(move |request: http::Request<Incoming>| {
                        let (frames, mut written) = mpsc::unbounded_channel();
                        let _over = opened.send(Bare { frames, _requests: request.into_body() });
                        let body = StreamBody::new(futures_util::stream::poll_fn(move |cx| written.poll_recv(cx)));
                        let answer = http::Response::builder().header("content-type", "application/grpc").body(body);
                        async move { Ok::<_, std::convert::Infallible>(answer.unwrap()) }
                    });
                    let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let mut serving = std::pin::pin!(http.serve_connection(TokioIo::new(stream), answer));
                    loop {
                        tokio::select! {
                            biased;
                            () = turns(&mut freezing, true) => turns(&mut freezing, false).await,
                            _over = &mut serving => return,
                        }
                    }
                });
            }
        });
        Self { address, opened: receiver, frozen, _connections: connections }
    }

    async fn stream(&mut self) -> Bare {
        within(self.opened.recv()).await.unwrap()
    }
}

/// Waits until `frozen` has the wanted value.
async fn turns(frozen: &mut watch::Receiver<bool>, wanted: bool) {
    if frozen.wait_for(|is_frozen| *is_frozen == wanted).await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn problem(mesh: &Snapshot) -> Option<String> {
    mesh.problems().first().map(ToString::to_string)
}

/// Gives a daemon the mesh of one pod, lets the control plane break the stream by `what`, and then serves correctly.
async fn after(what: impl AsyncFnOnce(Bare), expected: &str) {
    let (dir, ca) = (tempfile::tempdir().unwrap(), Ca::new("one"));
    let mut plane = Control::start(&ca).await;
    let mut follower = Follower::new(source(&reached(plane.address, dir.path(), &ca, "t"), dir.path()));
    let stream = while_following(&mut follower, plane.stream()).await;
    stream.mesh();
    follower.until(|mesh| mesh.version() > 0).await;
    what(stream).await;
    follower.until(|mesh| problem(mesh).is_some()).await;
    let why = problem(&follower.mesh).unwrap();
    assert!(why.contains(expected) && why.contains("the mesh stays as it was"), "{why}");
    assert!(follower.has("a"), "nothing is lost");
    let stream = while_following(&mut follower, plane.stream()).await;
    stream.message(&response(ADDRESS, "a1", vec![workload("1", pod("b", [10, 0, 0, 2]))], &[]));
    follower.until(|mesh| mesh.problems().is_empty() && mesh.counts().workloads == 2).await;
}

#[tokio::test]
async fn half_a_message_is_no_message() {
    let cut = async |stream: Bare| {
        let message = response(ADDRESS, "a2", Vec::new(), &["c1//Pod/demo/a"]).encode_to_vec();
        stream.bytes(prefix(message.len()));
        stream.bytes(message[..message.len() / 2].to_vec());
        stream.frames.send(Err(io::Error::other("the control plane has crashed"))).unwrap();
    };
    after(cut, "the control plane ended the stream").await;
}

#[tokio::test]
async fn a_stream_that_ends_in_the_middle_of_a_message_changes_nothing() {
    let ended = async |stream: Bare| {
        let message = response(ADDRESS, "a2", Vec::new(), &["c1//Pod/demo/a"]).encode_to_vec();
        stream.bytes(prefix(message.len()));
        stream.bytes(message[..message.len() - 1].to_vec());
    };
    after(ended, "the control plane").await;
}

#[tokio::test]
async fn bytes_that_are_no_message_end_the_stream_and_change_nothing() {
    let garbled = async |stream: Bare| {
        stream.bytes(prefix(4));
        stream.bytes(vec![0x0A, 0xFF, 0xFF, 0xFF]);
        // Later bytes must have no effect.
        stream.message(&response(ADDRESS, "a3", Vec::new(), &["c1//Pod/demo/a"]));
    };
    after(garbled, "decode").await;
}

/// A message may have 200 MiB. For a longer message the daemon does not wait, and keeps no byte of it.
#[tokio::test]
async fn a_message_that_is_too_long_is_not_read() {
    after(async |stream: Bare| stream.bytes(prefix(LONGEST_MESSAGE + 1)), "too large").await;
}

/// The machine of the control plane is gone, or its process is stopped: TCP alone would not notice that for hours.
#[tokio::test]
async fn a_control_plane_that_falls_silent_is_given_up() {
    let (dir, ca) = (tempfile::tempdir().unwrap(), Ca::new("one"));
    let mut plane = Control::start(&ca).await;
    let default = Keepalive::default();
    assert!(default.interval + default.timeout <= Duration::from_secs(60), "{default:?}");
    let keepalive = Keepalive { interval: Duration::from_millis(200), timeout: Duration::from_millis(300) };
    let reached = ControlPlane { keepalive, ..reached(plane.address, dir.path(), &ca, "t") };
    let mut follower = Follower::new(source(&reached, dir.path()));
    let stream = while_following(&mut follower, plane.stream()).await;
    stream.mesh();
    follower.until(|mesh| mesh.version() > 0).await;
    // While the control plane is idle but answers pings, the stream stays open.
    let idle = tokio::time::timeout(Duration::from_secs(2), follower.source.next()).await;
    assert!(idle.is_err(), "{idle:?}");
    let (begin, _frozen) = (Instant::now(), plane.frozen.send_replace(true));
    follower.until(|mesh| problem(mesh).is_some()).await;
    let (why, took) = (problem(&follower.mesh).unwrap(), begin.elapsed());
    assert!(why.contains("the control plane ended the stream") && why.contains("the mesh stays as it was"), "{why}");
    assert!(took >= keepalive.timeout, "{took:?}");
    assert!(follower.has("a"));
    plane.frozen.send_replace(false);
    let stream = while_following(&mut follower, plane.stream()).await;
    stream.message(&response(ADDRESS, "a1", vec![a()], &[]));
    follower.until(|mesh| mesh.problems().is_empty()).await;
}
