//! A whole control plane on loopback. Its nodes use HTTP/2 frame by frame, so that they can break the rules.

mod certificates;
mod hostile;
mod interop;
mod reports;
mod streams;

use std::{fs, net::SocketAddr, os::unix::fs::PermissionsExt as _, path::Path, sync::Arc, time::Duration};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use h2::{RecvStream, SendStream, client};
use http::{HeaderMap, Method, Request};
use prometheus_client::{encoding::text::encode, registry::Registry};
use prost::Message;
use tempfile::TempDir;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tracing::Span;

use super::{
    callers::Callers,
    certificates::{Certificates, SigningLimits},
    describe::Streams,
    metrics::PlaneMetrics,
    nodes::NodeTokens,
    pod_events::PodEvents,
    publish::{Resources, feed},
    serve::{Limits, Server, serve},
    serving::Keeper,
    translate::Translator,
};
use crate::{
    control::{join::Joiner, kubernetes::Cluster, manifests::tests::changes::say, source::MeshSource},
    identity::{
        certificate::to_pem,
        local_ca::{CaSettings, LocalCa},
    },
    istio::{
        discovery::{ADDRESS, AUTHORIZATION, DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node as NodeMessage},
        server::DELTA_AGGREGATED_RESOURCES,
        standard::{Status, Struct},
    },
    lifecycle::{
        drain::{self, DrainTrigger},
        tasks::{TaskCount, TaskSet},
    },
    model::identity::TrustDomain,
    store::{
        change::{Batch, Gaps},
        publish::channel,
    },
    tls::NamedClient,
};

const NAME: &str = "istiod.istio-system.svc";
const TOKEN_A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const TOKEN_B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

/// Generous limits.
const LIMITS: Limits = Limits {
    connections: 100,
    connections_per_address: 100,
    streams_per_node: 4,
    stream_quota: (100, Duration::from_secs(60)),
    calls_per_connection: 16,
    request: 4 << 20,
    large_requests: (64 << 10, 2),
    certificate_request: 64 << 10,
    pod_report: 384 << 10,
    large_responses: (64 << 10, 4),
    request_within: Duration::from_secs(60),
    answer_within: Duration::from_secs(60),
    read_within: Duration::from_secs(60),
    idle: Duration::from_secs(60),
    ping: Duration::from_secs(60),
    spread: Duration::ZERO,
};

/// A source of the mesh that yields the batches of a test.
struct Told(mpsc::UnboundedReceiver<Batch>);

impl MeshSource for Told {
    async fn next(&mut self) -> Option<Batch> {
        self.0.recv().await
    }
}

/// A control plane for the nodes `node-a` and `node-b`.
struct Plane {
    addr: SocketAddr,
    dir: TempDir,
    ca: Arc<LocalCa>,
    joiner: Joiner,
    tell: mpsc::UnboundedSender<Batch>,
    registry: Registry,
    streams: Streams,
    trigger: DrainTrigger,
    /// The task that serves. It ends when the control plane has stopped.
    serving: TaskSet,
    _services: TaskSet,
}

impl Plane {
    async fn start(limits: Limits) -> Self {
        let signing = SigningLimits { burst: 100, every: Duration::from_secs(3600), at_once: 8 };
        Self::start_with(limits, signing).await
    }

    async fn start_with(limits: Limits, signing: SigningLimits) -> Self {
        Self::start_on(limits, signing, None).await
    }

    /// Starts a control plane that writes Events to this API server.
    async fn start_on(limits: Limits, signing: SigningLimits, cluster: Option<Cluster>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tasks = TaskCount::default();
        let mut services = TaskSet::new(tasks.clone());
        let tokens = dir.path().join("tokens");
        fs::create_dir(&tokens).unwrap();
        write_token(&tokens, "node-a", TOKEN_A);
        write_token(&tokens, "node-b", TOKEN_B);
        let nodes = Callers::Tokens(NodeTokens::open(tokens, tasks.clone()).unwrap());
        let (trust_domain, ttl) = (TrustDomain::default(), Duration::from_secs(3600));
        let settings = CaSettings { dir: dir.path().join("ca"), trust_domain: trust_domain.clone(), ttl };
        let ca = Arc::new(LocalCa::open(settings, tasks.clone()).unwrap());
        let (keeper, tls, _until) =
            Keeper::start(Arc::clone(&ca), vec![NAME.to_owned()], Duration::from_secs(60)).unwrap();
        services.spawn(Span::none(), keeper.run());
        let (publisher, mesh) = channel();
        let resources = Resources::default();
        let (tell, told) = mpsc::unbounded_channel();
        let translator = Translator::new("Kubernetes");
        let feeding = feed(Told(told), publisher, mesh.clone(), translator, resources.clone(), std::future::pending());
        services.spawn(Span::none(), feeding);
        let mut registry = Registry::default();
        let metrics = PlaneMetrics::register(&mut registry);
        let pod_events = cluster.map(|cluster| PodEvents::new(cluster, mesh.clone(), metrics.clone()));
        if let Some(events) = pod_events.clone() {
            services.spawn(Span::none(), events.write());
        }
        let certificates =
            Certificates::new(Arc::clone(&ca), mesh, trust_domain.clone(), ttl, signing, metrics.clone());
        let streams = Streams::default();
        let server =
            Server { resources, nodes, certificates, pod_events, streams: streams.clone(), tls, metrics, limits };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (trigger, watch) = drain::channel();
        let mut serving = TaskSet::new(tasks.clone());
        serving.spawn(Span::none(), serve(listener, server, watch, tasks));
        let joiner = Joiner::new(trust_domain, None);
        Self { addr, dir, ca, joiner, tell, registry, streams, trigger, serving, _services: services }
    }

    /// The mesh's file `name` has these objects from now on.
    fn says(&mut self, name: &str, objects: &[&str]) {
        let text: String = objects.iter().map(|object| format!("---\n{object}\n")).collect();
        say(&mut self.joiner, name, &text);
        let batch = Batch { gaps: Some(Gaps::default()), ..Batch::of(self.joiner.take().changes) };
        self.tell.send(batch).unwrap();
    }

    /// The value of a metric's series.
    fn count(&self, series: &str) -> u64 {
        let mut text = String::new();
        encode(&mut text, &self.registry).unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok());
        value.unwrap_or(0)
    }

    fn tokens(&self) -> std::path::PathBuf {
        self.dir.path().join("tokens")
    }

    async fn connect(&self) -> Connection {
        let stream = TcpStream::connect(self.addr).await.unwrap();
        let roots: String = self.ca.roots().iter().map(|root| to_pem(&root.der)).collect();
        let tls = NamedClient::new(roots.as_bytes(), &[NAME]).unwrap().connect(stream).await.unwrap();
        let (sender, connection) = client::handshake(tls).await.unwrap();
        let mut tasks = TaskSet::new(TaskCount::default());
        tasks.spawn(Span::none(), async move { drop(connection.await) });
        Connection { sender, _tasks: tasks }
    }

    /// Opens a stream of resources for a node, on a connection of its own.
    async fn stream(&self, token: &str) -> Call {
        self.connect().await.call(DELTA_AGGREGATED_RESOURCES, Some(token)).await
    }
}

fn write_token(dir: &Path, node: &str, token: &str) {
    let path = dir.join(node);
    fs::write(&path, token).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
}

struct Connection {
    sender: client::SendRequest<Bytes>,
    _tasks: TaskSet,
}

/// One call, and its connection.
struct Call {
    send: SendStream<Bytes>,
    answer: Answer,
    buffer: BytesMut,
    connection: Option<Connection>,
}

enum Answer {
    Awaited(client::ResponseFuture),
    Body(RecvStream),
    Ended(HeaderMap),
}

/// How a call ended: code and message.
type Ended = (u16, String);

impl Connection {
    async fn call(self, path: &str, token: Option<&str>) -> Call {
        let mut this = self;
        let call = this.open(path, token).await;
        Call { connection: Some(this), ..call }
    }

    async fn open(&mut self, path: &str, token: Option<&str>) -> Call {
        let mut request = Request::builder().method(Method::POST).uri(format!("https://{NAME}{path}"));
        request = request.header("content-type", "application/grpc").header("te", "trailers");
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let mut sender = self.sender.clone().ready().await.unwrap();
        let (answer, send) = sender.send_request(request.body(()).unwrap(), false).unwrap();
        Call { send, answer: Answer::Awaited(answer), buffer: BytesMut::new(), connection: None }
    }
}

impl Call {
    fn send(&mut self, message: &impl Message) {
        self.send_raw(0, &message.encode_to_vec());
    }

    fn send_raw(&mut self, flag: u8, bytes: &[u8]) {
        let mut frame = BytesMut::new();
        frame.put_u8(flag);
        frame.put_u32(u32::try_from(bytes.len()).unwrap());
        frame.put_slice(bytes);
        // Bytes that do not fit into the window wait in h2.
        self.send.send_data(frame.freeze(), false).unwrap();
    }

    /// The next message.
    async fn next<M: Message + Default>(&mut self) -> Result<M, Ended> {
        loop {
            if let Some(length) = self.buffer.get(1..5).map(|mut length| length.get_u32() as usize)
                && self.buffer.len() >= 5 + length
            {
                self.buffer.advance(5);
                return Ok(M::decode(self.buffer.split_to(length)).unwrap());
            }
            match &mut self.answer {
                Answer::Awaited(answer) => {
                    let response = answer.await.map_err(|error| (u16::MAX, error.to_string()))?;
                    let (head, body) = response.into_parts();
                    let has_ended = head.headers.contains_key("grpc-status");
                    self.answer = if has_ended { Answer::Ended(head.headers) } else { Answer::Body(body) };
                }
                Answer::Body(body) => match body.data().await {
                    Some(Ok(data)) => {
                        body.flow_control().release_capacity(data.len()).unwrap();
                        self.buffer.extend_from_slice(&data);
                    }
                    Some(Err(error)) => return Err((u16::MAX, error.to_string())),
                    None => {
                        let trailers = body.trailers().await.map_err(|error| (u16::MAX, error.to_string()))?;
                        self.answer = Answer::Ended(trailers.unwrap_or_default());
                    }
                },
                Answer::Ended(headers) => {
                    let text = |name: &str| {
                        let value = headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default();
                        percent_encoding::percent_decode_str(value).decode_utf8().unwrap().into_owned()
                    };
                    return Err((text("grpc-status").parse().unwrap(), text("grpc-message")));
                }
            }
        }
    }

    /// Skips all messages, and returns the end of the call.
    async fn end(&mut self) -> Ended {
        loop {
            if let Err(ended) = self.next::<DeltaDiscoveryResponse>().await {
                return ended;
            }
        }
    }

    /// Asks for everything of a type, as `node-a`.
    fn subscribe(&mut self, type_url: &str) {
        self.send(&DeltaDiscoveryRequest { node: Some(node("node-a")), ..request(type_url) });
    }

    /// The next response, which has to be of this type, and its text: names of resources, and with `-` names of removed
    /// resources.
    async fn response(&mut self, type_url: &str) -> (DeltaDiscoveryResponse, String) {
        let response: DeltaDiscoveryResponse = self.next().await.unwrap();
        assert_eq!(response.type_url, type_url);
        let mut names: Vec<String> = response.resources.iter().map(|resource| resource.name.clone()).collect();
        names.extend(response.removed_resources.iter().map(|name| format!("-{name}")));
        names.sort();
        (response, names.join(" "))
    }

    fn ack(&mut self, response: &DeltaDiscoveryResponse) {
        self.send(&DeltaDiscoveryRequest { response_nonce: response.nonce.clone(), ..request(&response.type_url) });
    }

    fn nack(&mut self, response: &DeltaDiscoveryResponse, message: &str) {
        let error_detail = Some(Status { code: 0, message: message.to_owned() });
        let nonce = response.nonce.clone();
        self.send(&DeltaDiscoveryRequest { response_nonce: nonce, error_detail, ..request(&response.type_url) });
    }
}

fn request(type_url: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { type_url: type_url.to_owned(), ..DeltaDiscoveryRequest::default() }
}

fn node(name: &str) -> NodeMessage {
    NodeMessage {
        id: "ztunnel~10.0.0.1~ztunnel-x.istio-system~istio-system.svc.cluster.local".to_owned(),
        metadata: Some(Struct::of_strings([("NODE_NAME", name)])),
    }
}

fn pod(name: &str, node: &str, address: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{namespace: demo, name: {name}, labels: {{app: {name}, istio.io/dataplane-mode: ambient}}}}, \
         spec: {{nodeName: {node}, serviceAccountName: sa-{name}}}, status: {{podIPs: [{{ip: {address}}}]}}}}"
    )
}

const POLICY: &str = "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {namespace: demo, name: p}, spec: {selector: \
                      {matchLabels: {app: a}}, action: DENY, rules: [{}]}}";
const TYPES: [&str; 2] = [ADDRESS, AUTHORIZATION];
