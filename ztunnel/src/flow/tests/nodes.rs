//! The client's node, the server's node, and the pipe between them.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::SystemTime,
};

use thiserror::Error;
use tokio::{
    io::DuplexStream,
    net::{TcpListener, TcpStream},
    sync::watch,
};

use crate::{
    control::manifests::{assemble, parse},
    flow::{inbound, leg::Leg, tunnel},
    hbone::{
        Settings,
        pool::{Connect, Connected, Key, OpenError, Opened, Pool},
        relay,
        server::Incoming,
        stream::Tunnel,
        tests::{buffers, tcp_pair},
    },
    identity::handle::CertState,
    lifecycle::{
        drain::{self, DrainTrigger, DrainWatch},
        tasks::{TaskCount, TaskSet},
    },
    model::{
        addr::PeerAddr,
        close::CloseReason,
        identity::{SpiffeId, TrustDomain},
        workload::NamespacedName,
    },
    net::{
        copy::{CopyError, Side, Transferred},
        socket::reset_on_close,
    },
    route::target,
    store::snapshot::Snapshot,
    tls::{
        ConnectError, Endpoint, Peer, TlsStream,
        test_ca::{CLIENT, TestCa, WEB, endpoint},
    },
    wire::{
        connect::{Authority, ConnectRequest, ConnectResponse},
        forwarded::Forwarded,
        refusal::Refusal,
    },
};

/// The client's pod, the server's, its application there, and another pod's.
const CLIENT_ADDR: &str = "10.0.0.1:40000";
const HBONE: &str = "10.0.0.2:15008";
pub(super) const WEB_APP: &str = "10.0.0.2:8080";
pub(super) const OTHER: &str = "10.0.0.3:8080";

const MESH: &str = "
apiVersion: v1
kind: Pod
metadata:
  name: client
  labels: {istio.io/dataplane-mode: ambient}
  annotations: {ambient.mesh/netns: /run/netns/client}
spec: {nodeName: a, serviceAccountName: client, containers: []}
status: {podIPs: [{ip: 10.0.0.1}]}
---
apiVersion: v1
kind: Pod
metadata:
  name: web
  labels: {istio.io/dataplane-mode: ambient, app: web}
  annotations: {ambient.mesh/netns: /run/netns/web}
spec: {nodeName: b, serviceAccountName: web, containers: []}
status: {podIPs: [{ip: 10.0.0.2}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
";

fn snapshot() -> Snapshot {
    let file: Arc<str> = "mesh.yaml".into();
    let content = parse(&file, MESH).unwrap();
    let mesh = assemble([(&file, &content)], &TrustDomain::default());
    assert_eq!(mesh.problems, []);
    Snapshot::build(1, mesh.workloads, mesh.services, mesh.problems)
}

/// What the server's node knows of a stream.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) identity: SpiffeId,
    pub(super) source: Option<String>,
    pub(super) service: Option<String>,
}

/// What a relay said at its end.
pub(super) type End = (Side, Result<(), CopyError>);

/// The server's node, for one pod.
pub(super) struct ServerNode {
    tls: Endpoint,
    settings: Settings,
    snapshot: Snapshot,
    /// What listens at the pod's addresses.
    applications: HashMap<SocketAddr, SocketAddr>,
    pub(super) seen: RefCell<Vec<Seen>>,
    /// What happens when the next one has proved who it is.
    pub(super) once_proved: RefCell<Option<Box<dyn FnOnce()>>>,
    /// Who came, once for each tunnel.
    pub(super) peers: RefCell<Vec<Peer>>,
    /// Why no tunnel came about.
    pub(super) failures: RefCell<Vec<&'static str>>,
    tasks: RefCell<TaskSet>,
    ends: RefCell<Vec<End>>,
    drain: (DrainTrigger, DrainWatch),
}

impl ServerNode {
    fn accept(self: &Rc<Self>, io: DuplexStream) {
        let node = Rc::clone(self);
        self.tasks.borrow_mut().spawn_local(async move { node.serve(io).await });
    }

    async fn serve(self: Rc<Self>, io: DuplexStream) {
        let (mut io, peer) = match self.tls.accept(io, &buffers()).await {
            Ok(accepted) => accepted,
            Err(error) => return self.failures.borrow_mut().push(error.label()),
        };
        self.peers.borrow_mut().push(peer.clone());
        if let Some(happens) = self.once_proved.take() {
            happens();
        }
        let streams = RefCell::new(TaskSet::default());
        inbound::speak(&mut io, (&self.tls, &peer), &self.settings, self.drain.1.clone(), |incoming| {
            streams.borrow_mut().spawn_local(Rc::clone(&self).serve_stream(peer.identity.clone(), incoming));
        })
        .await;
        drop(io);
        streams.into_inner().join_all().await;
    }

    async fn serve_stream(self: Rc<Self>, identity: SpiffeId, incoming: Incoming) {
        let Incoming { request, mut responder } = incoming;
        let request = request.unwrap();
        let opened = tokio::select! {
            opened = self.open(&identity, &request) => opened,
            _gone = responder.gone() => return,
        };
        match opened {
            Ok(application) => {
                let tunnel = responder.accept(&ConnectResponse::ok(None)).unwrap();
                let end = carry(application, tunnel, Side::Client).await;
                self.ends.borrow_mut().push(end);
            }
            Err(refused) => responder.refuse(&refused).unwrap(),
        }
    }

    async fn open(&self, identity: &SpiffeId, request: &ConnectRequest) -> Result<TcpStream, ConnectResponse> {
        let host = request.forwarded.as_ref().and_then(|forwarded| forwarded.host.as_deref());
        let target = target::target(
            &self.snapshot,
            HBONE.parse().unwrap(),
            PeerAddr::new(CLIENT_ADDR.parse().unwrap()),
            identity,
            &request.authority,
            host,
            &NamespacedName::new("default", "web"),
        )
        .map_err(|error| ConnectResponse::refused(error.status(), Refusal::new(error.reason(), error.to_string())))?;
        self.seen.borrow_mut().push(Seen {
            identity: identity.clone(),
            source: target.source.map(|source| source.name.to_string()),
            service: target.service.map(|service| service.hostname.to_string()),
        });
        let refused = || {
            let refusal = Refusal::new(CloseReason::ConnectRefused, "nobody listens");
            ConnectResponse::refused(http::StatusCode::SERVICE_UNAVAILABLE, refusal)
        };
        let at = self.applications.get(&target.to).ok_or_else(refused)?;
        TcpStream::connect(at).await.map_err(|_| refused())
    }
}

/// As the nodes do it: what does not end well ends in a reset.
async fn carry(application: TcpStream, mut tunnel: Tunnel, tunnel_side: Side) -> End {
    reset_on_close(&application);
    let mut application = Leg::new(application);
    let counts = Transferred::default();
    let result = relay::both(application.stream(), &mut tunnel, tunnel_side, &buffers(), &counts).await;
    if result.is_ok() {
        application.finish();
    }
    (tunnel_side, result)
}

/// Why there is no tunnel.
#[derive(Debug, Error)]
pub(super) enum NoTunnel {
    #[error("no node is at {0}")]
    NoRoute(SocketAddr),
    #[error(transparent)]
    Tls(#[from] ConnectError),
}

/// The network between the nodes, as the client's node sees it.
#[derive(Clone)]
pub(super) struct Wire(Rc<WireState>);

pub(super) struct WireState {
    tls: Endpoint,
    server: Rc<ServerNode>,
    pub(super) dials: Cell<u32>,
    /// Whoever connects is heard by nobody.
    pub(super) stalled: Cell<bool>,
    /// Whoever has proved himself is in no hurry to speak.
    pub(super) hesitates: Cell<bool>,
    unheard: RefCell<Vec<DuplexStream>>,
}

impl std::ops::Deref for Wire {
    type Target = WireState;

    fn deref(&self) -> &WireState {
        &self.0
    }
}

impl WireState {
    /// How many connections are open that nobody has heard.
    pub(super) fn unheard(&self) -> usize {
        self.unheard.borrow().len()
    }
}

impl Connect for Wire {
    type Io = TlsStream<DuplexStream>;
    type Error = NoTunnel;

    async fn connect(&self, key: &Key) -> Result<Connected<Self::Io>, NoTunnel> {
        if key.to != HBONE.parse().unwrap() {
            return Err(NoTunnel::NoRoute(key.to));
        }
        self.dials.set(self.dials.get() + 1);
        let (near, far) = tokio::io::duplex(256 << 10);
        if self.stalled.get() {
            self.unheard.borrow_mut().push(far);
        } else {
            self.server.accept(far);
        }
        let (io, peer) = self.tls.connect(near, &key.expected, &buffers()).await?;
        if self.hesitates.get() {
            for _ in 0..50 {
                tokio::task::yield_now().await;
            }
        }
        let activity = io.activity();
        let local = CLIENT_ADDR.parse().ok();
        let (tls, proved) = (self.tls.clone(), peer.clone());
        Ok(Connected {
            io,
            outdated: tunnel::outdated(&self.tls, &peer),
            cut: Box::pin(async move { tunnel::distrusted(&tls, &proved).await }),
            identity: peer.identity,
            expires: peer.expires,
            local,
            activity,
            guard: Box::new(()),
        })
    }
}

/// A connection of the client's application.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) client: TcpStream,
    /// Who is at the other end of the tunnel.
    pub(super) identity: SpiffeId,
}

/// Both nodes.
pub(super) struct Mesh {
    pub(super) ca: TestCa,
    pub(super) client_certificate: watch::Sender<CertState>,
    pub(super) server_certificate: watch::Sender<CertState>,
    pub(super) server: Rc<ServerNode>,
    pub(super) wire: Wire,
    pub(super) pool: Pool<Wire>,
    application: TcpListener,
    tasks: RefCell<TaskSet>,
    ends: Rc<RefCell<Vec<End>>>,
}

impl Mesh {
    pub(super) async fn new() -> Self {
        Self::with_server(WEB).await
    }

    /// A mesh where the server's node shows this identity.
    pub(super) async fn with_server(identity: &str) -> Self {
        let ca = TestCa::new("root");
        let (server_tls, server_certificate) = endpoint(ca.good(identity));
        let (client_tls, client_certificate) = endpoint(ca.good(CLIENT));
        let application = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = application.local_addr().unwrap();
        let server = Rc::new(ServerNode {
            tls: server_tls,
            settings: Settings::default(),
            snapshot: snapshot(),
            applications: HashMap::from([(WEB_APP.parse().unwrap(), at)]),
            seen: RefCell::default(),
            once_proved: RefCell::default(),
            peers: RefCell::default(),
            failures: RefCell::default(),
            tasks: RefCell::default(),
            ends: RefCell::default(),
            drain: drain::channel(),
        });
        let wire = Wire(Rc::new(WireState {
            tls: client_tls,
            server: Rc::clone(&server),
            dials: Cell::new(0),
            stalled: Cell::new(false),
            hesitates: Cell::new(false),
            unheard: RefCell::default(),
        }));
        let pool = Pool::new(wire.clone(), Settings::default(), TaskCount::default());
        Self {
            ca,
            client_certificate,
            server_certificate,
            server,
            wire,
            pool,
            application,
            tasks: RefCell::default(),
            ends: Rc::default(),
        }
    }

    /// Gives the client's node another certificate.
    pub(super) fn renew_client(&self, until: SystemTime) {
        let mut wanted = crate::tls::test_ca::good(CLIENT);
        wanted.not_after = until;
        let credentials = self.ca.credentials(CLIENT, &wanted, &[self.ca.root()]);
        self.client_certificate.send_replace(CertState { credentials: Some(credentials), failure: None });
    }

    pub(super) async fn open(&self, authority: &str) -> Result<Opened, OpenError<NoTunnel>> {
        let authority: Authority = authority.parse().unwrap();
        let key = Key { to: HBONE.parse().unwrap(), expected: [WEB.parse().unwrap()].into(), from: None };
        let forwarded = Forwarded::new(CLIENT_ADDR.parse().unwrap(), Some("web.default.svc.cluster.local".to_owned()));
        let request = ConnectRequest { forwarded: Some(forwarded), ..ConnectRequest::to(authority) };
        self.pool.open(&key, &request).await
    }

    /// A connection of the client's application, carried to `authority`.
    pub(super) async fn connect(&self, authority: &str) -> Result<Flow, OpenError<NoTunnel>> {
        let Opened { tunnel, identity, .. } = self.open(authority).await?;
        let (client, outbound) = tcp_pair().await;
        let ends = Rc::clone(&self.ends);
        self.tasks.borrow_mut().spawn_local(async move {
            let end = carry(outbound, tunnel, Side::Server).await;
            ends.borrow_mut().push(end);
        });
        Ok(Flow { client, identity })
    }

    /// The server's application takes the next connection.
    pub(super) async fn accept(&self) -> TcpStream {
        self.application.accept().await.unwrap().0
    }

    /// The server's node accepts nothing more.
    pub(super) fn drain_server(&self) {
        self.server.drain.0.start();
    }

    /// Gives a node a certificate of that authority, and these roots.
    pub(super) fn certify(&self, identity: &str, ca: &TestCa, roots: &[&TestCa]) {
        let certificate = if identity == CLIENT { &self.client_certificate } else { &self.server_certificate };
        certificate.send_replace(ca.trusting(identity, roots));
    }

    /// Waits for `count` relays on each node to end, and says how.
    pub(super) async fn ends(&self, count: usize) -> Vec<End> {
        while self.ends.borrow().len() < count || self.server.ends.borrow().len() < count {
            tokio::task::yield_now().await;
        }
        let mut ends = self.ends.take();
        ends.extend(self.server.ends.take());
        ends
    }
}
